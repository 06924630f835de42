//! Answers.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use firesteel_api::{Code, Problem};

/// A refusal as an answer.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = self.0.code;
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match code {
            Code::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // A second is what it takes one of the others to be done, usually.
            Code::TooMany | Code::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// What a route gives.
pub(super) type Answer<T> = Result<T, Refusal>;

/// There is no such job.
pub(super) fn no_job(id: &str) -> Refusal {
    Problem::new(
        Code::JobNotFound,
        format!("there is no job `{}`", short(id)),
    )
    .with_hint("`firesteel job list` names them all")
    .into()
}

/// There is no such site.
pub(super) fn no_site(name: &str) -> Refusal {
    Problem::new(
        Code::SiteNotFound,
        format!("there is no site `{}`", short(name)),
    )
    .with_hint("`firesteel site list` names those that have connected")
    .into()
}

/// What a stranger wrote, no longer than a name is and without control
/// characters.
pub(super) fn short(text: &str) -> String {
    text.chars()
        .take(firesteel_base::limits::NAME_LENGTH)
        .filter(|c| !c.is_control())
        .collect()
}
