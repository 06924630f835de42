//! The document of all routes.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use firesteel_api::ask::{Listing, LogSettings, Matches, Report, Text};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{events, files, jobs, login, logs, sites};

/// All routes. Whatever is added to the router is added here; a test compares.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Firesteel",
        description = "The admin interface of a Firesteel server. Every answer that is no success has a `Problem` as its body."
    ),
    paths(
        login::nonce, login::login, login::logout,
        sites::status,
        jobs::list, jobs::submit, jobs::show, jobs::delete, jobs::abort, jobs::clone,
        events::events, files::list, files::get, logs::job,
        sites::list, sites::show, logs::site, sites::ask,
        openapi,
    ),
    components(schemas(Listing, Text, Matches, LogSettings, Report)),
    security(("token" = [])),
    modifiers(&Token),
    tags(
        (name = "login", description = "A signature over a nonce for a token of an hour"),
        (name = "jobs", description = "Jobs"),
        (name = "sites", description = "The server and its sites"),
    )
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The document as JSON, as it is committed and served.
pub fn document() -> String {
    let mut document = Document::openapi();
    document.info.version = "1".to_owned();
    document.info.license = None;
    document.info.contact = None;
    match document.to_pretty_json() {
        Ok(text) => text + "\n",
        Err(error) => error.to_string(),
    }
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "login", security(()),
    responses((status = 200, description = "OpenAPI 3.1"))
)]
pub(super) async fn openapi() -> Response {
    let mut response = Response::new(Body::from(document()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
