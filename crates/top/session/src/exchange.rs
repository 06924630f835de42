//! Requests: with a token, tried again where that is safe.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use firesteel_api::{Code, Problem, problem};
use firesteel_base::limits;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use crate::error::SessionError;
use crate::http1::{Answer, Outgoing};
use crate::session::Session;

/// The first wait before something is tried again; each next is twice as long, up
/// to the last. One person waits, so there is no need to spread them.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often a request is tried that the server had no room for.
const BUSY_TRIES: u32 = 5;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// Nothing.
    Nothing,
    /// JSON.
    Json(Bytes),
    /// A file, read as it is sent.
    File(PathBuf),
}

/// A request that can be sent more than once.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) load: Load,
}

impl Ask {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            load: Load::Nothing,
        }
    }

    pub(crate) fn json(mut self, body: Bytes) -> Self {
        self.load = Load::Json(body);
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn told(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Sending it twice does no more than sending it once.
    fn is_repeatable(&self) -> bool {
        self.method != Method::POST
            || self
                .headers
                .iter()
                .any(|(name, _)| *name == firesteel_api::route::SUBMIT_KEY)
    }

    fn request(&self, token: Option<&str>) -> Result<Request<Outgoing>, SessionError> {
        let invalid = |why: String| SessionError::Answer {
            request: self.told(),
            why,
        };
        let mut builder = Request::builder()
            .method(self.method.clone())
            .uri(self.path.as_str());
        for (name, value) in &self.headers {
            let value = HeaderValue::try_from(value.as_str())
                .map_err(|_| invalid(format!("`{name}` cannot be sent")))?;
            builder = builder.header(*name, value);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| invalid("the token cannot be sent".to_owned()))?;
            value.set_sensitive(true);
            builder = builder.header(header::AUTHORIZATION, value);
        }
        let full = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
        let (builder, body) = match &self.load {
            Load::Nothing => (builder, full(Bytes::new())),
            Load::Json(bytes) => (
                builder.header(header::CONTENT_TYPE, "application/json"),
                full(bytes.clone()),
            ),
            Load::File(path) => {
                let (length, body) = file_body(path)?;
                let builder = builder
                    .header(header::CONTENT_TYPE, firesteel_api::route::BUNDLE_TYPE)
                    .header(header::CONTENT_LENGTH, length);
                (builder, body)
            }
        };
        builder
            .body(body)
            .map_err(|error| invalid(error.to_string()))
    }
}

fn file_body(path: &Path) -> Result<(u64, Outgoing), SessionError> {
    let file = File::open(path).map_err(SessionError::reading(path))?;
    let meta = file.metadata().map_err(SessionError::reading(path))?;
    let pieces = stream::iter(Pieces {
        file,
        left: meta.len(),
    });
    Ok((meta.len(), BodyExt::boxed(StreamBody::new(pieces))))
}

/// A file, piece by piece, read by whoever sends it: a client has nothing else to
/// do meanwhile that a read of a quarter of a MiB would hold up.
struct Pieces {
    file: File,
    left: u64,
}

impl Iterator for Pieces {
    type Item = io::Result<Frame<Bytes>>;

    fn next(&mut self) -> Option<Self::Item> {
        let most = self.left.min(limits::REST_PIECE as u64);
        if most == 0 {
            return None;
        }
        let mut piece = Vec::new();
        let read = (&mut self.file).take(most).read_to_end(&mut piece);
        Some(match read {
            Ok(0) => {
                self.left = 0;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(read) => {
                self.left = self.left.saturating_sub(read as u64);
                Ok(Frame::data(piece.into()))
            }
            Err(error) => {
                self.left = 0;
                Err(error)
            }
        })
    }
}

impl Session {
    /// Sends a request with a token, and gives whatever comes back.
    ///
    /// Logs in first when there is no token or it is about to end, and again when
    /// the server does not know it any more.
    pub(crate) async fn exchange(&self, ask: &Ask) -> Result<Answer, SessionError> {
        let mut renewed = false;
        let mut wait = FIRST_WAIT;
        let mut busy = 0;
        loop {
            let token = self.token().await?;
            let answer = self.once(ask, Some(&token)).await?;
            match answer.head.status.as_u16() {
                401 if !renewed => {
                    renewed = true;
                    self.forget(&token);
                }
                429 | 503 if busy < BUSY_TRIES => {
                    busy += 1;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LAST_WAIT);
                }
                _ => return Ok(answer),
            }
        }
    }

    /// Sends a request once, or twice where the connection broke and twice is no
    /// more than once.
    pub(crate) async fn once(
        &self,
        ask: &Ask,
        token: Option<&str>,
    ) -> Result<Answer, SessionError> {
        let first = self.connections().send(ask.request(token)?).await;
        match first {
            Ok(answer) => Ok(answer),
            Err(failed) if failed.unsent || !ask.is_repeatable() => Err(failed.error),
            Err(_) => {
                let second = self.connections().send(ask.request(token)?).await;
                second.map_err(|failed| failed.error)
            }
        }
    }

    /// Sends a request and reads what comes back, a refusal as well as an answer.
    pub(crate) async fn reply(&self, ask: &Ask) -> Result<Reply, SessionError> {
        let answer = self.exchange(ask).await?;
        let (status, headers) = (answer.head.status.as_u16(), answer.head.headers.clone());
        let body = answer.whole(limits::REST_ANSWER).await?;
        Ok(Reply {
            status,
            headers,
            body,
        })
    }

    /// The same, and a refusal is an error.
    pub(crate) async fn accepted(&self, ask: &Ask) -> Result<Reply, SessionError> {
        let reply = self.reply(ask).await?;
        if (200..300).contains(&reply.status) {
            return Ok(reply);
        }
        Err(refusal(ask, reply.status, &reply.body))
    }
}

/// What a server that refused said.
pub(crate) fn refusal(ask: &Ask, status: u16, body: &[u8]) -> SessionError {
    match problem::read::<Problem>(body) {
        Ok(problem) => SessionError::Refused(problem),
        // Something in between answered, or a server that knows more codes.
        Err(_) => {
            let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body)).into_owned();
            let said: String = text.chars().filter(|c| !c.is_control()).collect();
            match status {
                401 => SessionError::Refused(Problem::new(Code::Unauthenticated, said)),
                403 => SessionError::Refused(Problem::new(Code::Forbidden, said)),
                _ => SessionError::Answer {
                    request: ask.told(),
                    why: format!("status {status}: {said}"),
                },
            }
        }
    }
}

/// Waits that grow, for what goes on after a cut until nothing moves any more.
pub(crate) struct Patience {
    wait: Duration,
    since: tokio::time::Instant,
    idle: Duration,
}

impl Patience {
    pub(crate) fn new(idle: Duration) -> Self {
        Self {
            wait: FIRST_WAIT,
            since: tokio::time::Instant::now(),
            idle,
        }
    }

    /// Something got through.
    pub(crate) fn progressed(&mut self) {
        *self = Self::new(self.idle);
    }

    /// Waits, or gives the error back when nothing got through for long.
    pub(crate) async fn again(&mut self, error: SessionError) -> Result<(), SessionError> {
        if !error.is_connection() || self.since.elapsed() >= self.idle {
            return Err(error);
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LAST_WAIT);
        Ok(())
    }
}
