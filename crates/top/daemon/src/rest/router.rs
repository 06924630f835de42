//! All routes, and what every request passes.

use std::any::Any;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use bytes::Bytes;
use firesteel_api::{Code, Problem, route};
use firesteel_base::{Durations, limits};
use firesteel_observe::Logger;
use firesteel_policy::{Policy, Subject};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;

use super::answer::Refusal;
use super::federation::Federation;
use super::tokens::Tokens;
use super::{document, events, files, jobs, login, logs, sites};

/// Checks a chain of certificates (PEM) and a login's signature over some bytes,
/// and says whose it is, or why not.
pub type Verify = Arc<dyn Fn(&str, &[u8], &[u8]) -> Result<Subject, String> + Send + Sync>;

/// What the interface is told about its server.
#[derive(Clone)]
pub struct RestOptions {
    /// The server's name, which logins are bound to.
    pub server: String,
    /// The organization that runs it.
    pub org: String,
    /// The project.
    pub project: String,
    /// How long things may take.
    pub durations: Durations,
    /// Who may do what.
    pub policy: Policy,
    /// Who signed something.
    pub verify: Verify,
    /// Where it is noted who did what.
    pub log: Logger,
}

/// The admin interface of one server. A clone is the same.
#[derive(Clone)]
pub struct Rest {
    inner: Arc<Inner>,
    router: Router,
}

pub(super) struct Inner {
    federation: Arc<dyn Federation>,
    options: RestOptions,
    tokens: Mutex<Tokens>,
    requests: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    logins: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    people: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The interface cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the admin interface cannot start")]
pub struct RestError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Rest {
    /// The interface of `federation`.
    ///
    /// # Errors
    /// [`RestError`] when the system gives no random bytes.
    pub fn new(federation: Arc<dyn Federation>, options: RestOptions) -> Result<Self, RestError> {
        let tokens = Tokens::new(Instant::now()).map_err(|error| RestError(error.into()))?;
        let inner = Arc::new(Inner {
            federation,
            options,
            tokens: Mutex::new(tokens),
            requests: Arc::new(Semaphore::new(limits::REST_REQUESTS)),
            strangers: Arc::new(Semaphore::new(limits::REST_STRANGERS)),
            logins: Arc::new(Semaphore::new(limits::REST_LOGINS)),
            uploads: Arc::new(Semaphore::new(limits::REST_UPLOADS)),
            people: Mutex::new(HashMap::new()),
        });
        let router = routes(inner.clone());
        Ok(Self { inner, router })
    }

    /// Answers one request, which came from `from`.
    pub async fn call<B>(&self, request: Request<B>, from: SocketAddr) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // Whoever asks for anything else without a token is answered before a byte
        // of a body is read, so it holds a turn for no time.
        let turns = if request.uri().path().starts_with(route::LOGIN) {
            &self.inner.strangers
        } else {
            &self.inner.requests
        };
        let Ok(permit) = turns.clone().try_acquire_owned() else {
            self.inner
                .log()
                .warning(&format!("a request from {from} was turned away: too many"));
            return Refusal(too_many("the server answers as many requests as it can"))
                .into_response();
        };
        let answered = self.router.clone().oneshot(request.map(Body::new)).await;
        let response = match answered {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        Response::from_parts(
            parts,
            Body::new(Held {
                body,
                _permit: permit,
            }),
        )
    }
}

fn routes(inner: Arc<Inner>) -> Router {
    Router::new()
        .route(route::LOGIN_NONCE, post(login::nonce))
        .route(route::LOGIN, post(login::login))
        .route(route::LOGOUT, post(login::logout))
        .route(route::STATUS, get(sites::status))
        .route(route::OPENAPI, get(document::openapi))
        .route(route::JOBS, get(jobs::list).post(jobs::submit))
        .route("/v1/jobs/{id}", get(jobs::show).delete(jobs::delete))
        .route("/v1/jobs/{id}/abort", post(jobs::abort))
        .route("/v1/jobs/{id}/clone", post(jobs::clone))
        .route("/v1/jobs/{id}/events", get(events::events))
        .route("/v1/jobs/{id}/files", get(files::list))
        .route("/v1/jobs/{id}/files/{*path}", get(files::get))
        .route("/v1/jobs/{id}/logs/{site}", get(logs::job))
        .route(route::SITES, get(sites::list))
        .route("/v1/sites/{name}", get(sites::show))
        .route("/v1/sites/{name}/log", get(logs::site))
        .route("/v1/sites/{name}/ask", post(sites::ask))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(inner)
        .layer(CatchPanicLayer::custom(panicked))
}

async fn no_route(uri: axum::http::Uri) -> Refusal {
    let path = super::answer::short(uri.path());
    Problem::new(Code::NoRoute, format!("there is no route `{path}`"))
        .with_hint("GET /v1/openapi.json names them all")
        .into()
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let path = super::answer::short(uri.path());
    Problem::new(Code::Method, format!("`{path}` does not take {method}"))
        .with_hint("GET /v1/openapi.json names what each route takes")
        .into()
}

fn panicked(_: Box<dyn Any + Send>) -> Response<Body> {
    // What was said with the panic may hold anything, so it is told to nobody.
    Refusal(
        Problem::new(
            Code::Internal,
            "the server made a mistake while it answered",
        )
        .with_hint("its error output says where; please report it"),
    )
    .into_response()
}

fn too_many(message: &str) -> Problem {
    Problem::new(Code::TooMany, message).with_hint("try again in a second")
}

impl Inner {
    pub(super) fn federation(&self) -> &dyn Federation {
        &*self.federation
    }

    pub(super) fn options(&self) -> &RestOptions {
        &self.options
    }

    pub(super) fn log(&self) -> &Logger {
        &self.options.log
    }

    pub(super) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn among the requests of one person.
    pub(super) fn turn(&self, subject: &Subject) -> Result<OwnedSemaphorePermit, Problem> {
        let mut people = self.people.lock().unwrap_or_else(PoisonError::into_inner);
        if people.len() >= limits::REST_TOKENS {
            // Nobody's whose requests are all done has anything to lose.
            people.retain(|_, turns| turns.available_permits() < limits::REST_REQUESTS_EACH);
        }
        let turns = people
            .entry(subject.name.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(limits::REST_REQUESTS_EACH)))
            .clone();
        turns.try_acquire_owned().map_err(|_| {
            too_many("as many of your requests as may be at a time are being answered")
        })
    }

    pub(super) fn login_turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let turns = self.logins.clone();
        turns
            .try_acquire_owned()
            .map_err(|_| too_many("as many logins as may be at a time are being checked"))
    }

    pub(super) fn upload_turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let turns = self.uploads.clone();
        turns
            .try_acquire_owned()
            .map_err(|_| too_many("as many bundles as may be at a time are being received"))
    }
}

/// A body that keeps its request's turn until it is sent or dropped.
struct Held {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
