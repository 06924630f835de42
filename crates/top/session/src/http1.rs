//! HTTP/1.1 over whatever connects: one connection that is kept, more when several
//! requests run at once.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::connect::BoxConnect;
use crate::error::SessionError;

/// A body of a request.
pub(crate) type Outgoing = BoxBody<Bytes, io::Error>;

type Sender = SendRequest<Outgoing>;

/// Connections to one server.
pub(crate) struct Connections {
    connect: BoxConnect,
    /// To connect, and to wait for a byte.
    limits: (Duration, Duration),
    idle: Mutex<Option<Sender>>,
}

/// An answer whose body has yet to be read.
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    body: Incoming,
    keep: Option<(Sender, Weak<Connections>)>,
    idle: Duration,
    address: String,
}

/// Why a request has no answer.
pub(crate) struct Unanswered {
    pub(crate) error: SessionError,
    /// Nothing of it can have reached the server.
    pub(crate) unsent: bool,
}

impl Connections {
    pub(crate) fn new(connect: BoxConnect, open: Duration, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            connect,
            limits: (open, idle),
            idle: Mutex::new(None),
        })
    }

    pub(crate) fn address(&self) -> String {
        self.connect.address()
    }

    /// Closes what is kept open.
    pub(crate) fn close(&self) {
        self.kept().take();
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request. A connection that was kept and has died meanwhile is no
    /// error: another is made.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<Outgoing>,
    ) -> Result<Answer, Unanswered> {
        let host = self.address();
        if let Ok(host) = HeaderValue::try_from(host) {
            request.headers_mut().insert(header::HOST, host);
        }
        let kept = self.kept().take();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            match self.exchange(sender, request).await {
                Ok(answer) => return Ok(answer),
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => return Err(self.cut(error)),
            }
        }
        let sender = self.open().await.map_err(|source| Unanswered {
            error: SessionError::NoConnection {
                address: self.address(),
                source,
            },
            unsent: true,
        })?;
        let sent = self.exchange(sender, request).await;
        sent.map_err(|(error, _)| self.cut(error))
    }

    fn cut(&self, source: io::Error) -> Unanswered {
        Unanswered {
            error: SessionError::Cut {
                address: self.address(),
                source,
            },
            unsent: false,
        }
    }

    async fn open(&self) -> io::Result<Sender> {
        let opening = async {
            let stream = self.connect.connect().await?;
            let (sender, connection) = handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            // It ends when the sender is dropped, and tells it what went wrong.
            tokio::spawn(async move {
                let _ = connection.await;
            });
            Ok(sender)
        };
        let limit = self.limits.0;
        timeout(limit, opening).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs();
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nobody answered within {seconds} s"),
            ))
        })
    }

    /// One request and the head of its answer. With the error comes the request
    /// when nothing of it was sent.
    async fn exchange(
        self: &Arc<Self>,
        mut sender: Sender,
        request: Request<Outgoing>,
    ) -> Result<Answer, (io::Error, Option<Request<Outgoing>>)> {
        let idle = self.limits.1;
        let has_body = !hyper::body::Body::is_end_stream(request.body());
        let answered = sender.try_send_request(request);
        // An upload takes as long as it takes: it is cut by whoever feeds it or by
        // the server when it stands still.
        let response: Response<Incoming> = if has_body {
            answered.await
        } else {
            match timeout(idle, answered).await {
                Ok(answered) => answered,
                Err(_) => {
                    let seconds = idle.as_secs();
                    let why = format!("no answer within {seconds} s");
                    return Err((io::Error::new(io::ErrorKind::TimedOut, why), None));
                }
            }
        }
        .map_err(|mut error| {
            let unsent = error.take_message();
            (io::Error::other(error.into_error()), unsent)
        })?;
        let (head, body) = response.into_parts();
        Ok(Answer {
            head,
            body,
            keep: Some((sender, Arc::downgrade(self))),
            idle,
            address: self.address(),
        })
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, SessionError> {
        loop {
            let frame = match timeout(self.idle, self.body.frame()).await {
                Ok(None) => {
                    self.done();
                    return Ok(None);
                }
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(self.cut(io::Error::other(error))),
                Err(_) => {
                    let seconds = self.idle.as_secs();
                    let why = format!("no byte came for {seconds} s");
                    return Err(self.cut(io::Error::new(io::ErrorKind::TimedOut, why)));
                }
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The body, at most `limit` bytes of it.
    pub(crate) async fn whole(mut self, limit: usize) -> Result<Bytes, SessionError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > limit {
                return Err(SessionError::Answer {
                    request: format!("a request to {}", self.address),
                    why: format!("it is longer than {limit} bytes"),
                });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    fn cut(&self, source: io::Error) -> SessionError {
        SessionError::Cut {
            address: self.address.clone(),
            source,
        }
    }

    /// Read to its end: the connection can be used again.
    fn done(&mut self) {
        if let Some((sender, of)) = self.keep.take()
            && let Some(of) = of.upgrade()
        {
            of.kept().get_or_insert(sender);
        }
    }
}
