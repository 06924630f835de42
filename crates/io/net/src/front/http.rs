//! HTTP at the front door: the two links, and the web.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firesteel_base::limits;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Answering, Entrance, Inside, Serves};
use crate::BoxStream;
use crate::driver::{beat, grpc, websocket};
use crate::session::{AcceptError, lock};

/// What went wrong with the body of an answer.
pub type WebError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub type WebBody = UnsyncBoxBody<Bytes, WebError>;

/// Answers requests that are no sessions.
pub trait Web: Send + Sync {
    /// Answers one request. Nothing is known about who sent it but the address.
    fn call(&self, request: Request<Incoming>, from: SocketAddr) -> Answering<Response<WebBody>>;
}

/// One connection, as its requests see it.
struct Outside {
    from: SocketAddr,
    serves: Serves,
    /// Given up once a session inside is known by its certificate.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    active: AtomicUsize,
    /// Requests so far.
    count: AtomicU64,
}

/// A request that is under way, its answer's body included.
struct Active(Arc<Outside>);

impl Active {
    fn new(outside: &Arc<Outside>) -> Self {
        outside.active.fetch_add(1, Ordering::AcqRel);
        outside.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(outside))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Outside {
    /// Returns when there has been no request for a while: `first` before the
    /// first one, then `later`.
    async fn idle(&self, first: Duration, later: Duration) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(if seen == 0 { first } else { later }).await;
            let count = self.count.load(Ordering::Acquire);
            if count == seen && self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            seen = count;
        }
    }
}

impl Inside {
    /// Serves one connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        http2: bool,
        from: SocketAddr,
        entrance: Entrance,
    ) {
        let Ok(place) = Arc::clone(&self.web_places).try_acquire_owned() else {
            self.tell(Err(AcceptError::Crowded { address: from })).await;
            return;
        };
        let outside = Arc::new(Outside {
            from,
            serves: entrance.serves,
            place: Mutex::new(Some(place)),
            active: AtomicUsize::new(0),
            count: AtomicU64::new(0),
        });
        let durations = self.door.options.durations;
        let service = {
            let outside = Arc::clone(&outside);
            service_fn(move |request| {
                let active = Active::new(&outside);
                let inside = Arc::clone(&self);
                async move { Ok::<_, Infallible>(inside.answer(request, active).await) }
            })
        };
        let served = async {
            // How a connection ended is of no interest: its requests have been
            // answered, or nobody waits for them.
            if http2 {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(limits::WEB_WINDOW)
                    .initial_connection_window_size(limits::WEB_WINDOW)
                    .max_frame_size(limits::SESSION_FRAME)
                    .max_concurrent_streams(limits::WEB_STREAMS)
                    .max_header_list_size(limits::WEB_HEADERS)
                    .max_send_buf_size(limits::LINK_MESSAGE * 2)
                    .keep_alive_interval(beat(durations.idle))
                    .keep_alive_timeout(durations.idle)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(durations.idle.max(durations.connect))
                    .max_buf_size(limits::WEB_HEADERS as usize)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        };
        tokio::select! {
            () = served => {}
            () = outside.idle(durations.connect, durations.idle) => {}
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        active: Active,
    ) -> Response<AnswerBody> {
        let outside = Arc::clone(&active.0);
        let sessions = outside.serves != Serves::Web;
        match request.uri().path() {
            grpc::PATH if sessions => self.grpc(request, active),
            websocket::PATH if sessions => self.websocket(request, active),
            grpc::PATH | websocket::PATH => text(
                StatusCode::NOT_FOUND,
                "Sessions are made at another port of this server.\n",
                active,
            ),
            _ => match &self.web {
                Some(web) if outside.serves != Serves::Sessions => {
                    let answer = web.call(request, outside.from).await;
                    answer.map(|body| AnswerBody::new(Kind::Web(body), active))
                }
                _ => text(
                    StatusCode::NOT_FOUND,
                    "Nothing is shown here: this is the port of a Firesteel server's sites.\n",
                    active,
                ),
            },
        }
    }

    fn grpc(self: Arc<Self>, request: Request<Incoming>, active: Active) -> Response<AnswerBody> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let is_grpc =
            kind.is_some_and(|kind| kind.as_bytes().starts_with(grpc::CONTENT_TYPE.as_bytes()));
        if request.method() != Method::POST || !is_grpc {
            return text(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "This is a gRPC call.\n",
                active,
            );
        }
        let Ok(place) = Arc::clone(&self.links).try_acquire_owned() else {
            return busy(active);
        };
        let (outgoing, writer) = grpc::outgoing(true);
        // nginx keeps an answer's headers to itself until there is a body.
        let _ = writer.try_send(grpc::nothing());
        let stream = grpc::GrpcStream::new(request.into_body(), writer);
        let outside = Arc::clone(&active.0);
        let stream = Guarded {
            stream,
            _active: active,
        };
        let body = AnswerBody {
            kind: Kind::Link(outgoing),
            _active: Active::new(&outside),
        };
        tokio::spawn(self.link(Box::new(stream), outside, place));
        let mut answer = Response::new(body);
        let kind = header::HeaderValue::from_static(grpc::CONTENT_TYPE);
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    fn websocket(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        active: Active,
    ) -> Response<AnswerBody> {
        let says = |name: header::HeaderName, what: &str| {
            let value = request.headers().get(name);
            let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
            value
                .split(',')
                .any(|word| word.trim().eq_ignore_ascii_case(what))
        };
        let asked = request.method() == Method::GET
            && says(header::CONNECTION, "upgrade")
            && says(header::UPGRADE, "websocket")
            && says(header::SEC_WEBSOCKET_VERSION, "13");
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
        let accept = key.map(|key| derive_accept_key(key.as_bytes()));
        let accept = accept.and_then(|key| header::HeaderValue::from_str(&key).ok());
        let (true, Some(accept)) = (asked, accept) else {
            let mut answer = text(
                StatusCode::UPGRADE_REQUIRED,
                "This is a WebSocket, of version 13.\n",
                active,
            );
            let upgrade = header::HeaderValue::from_static("websocket");
            answer.headers_mut().insert(header::UPGRADE, upgrade);
            return answer;
        };
        let Ok(place) = Arc::clone(&self.links).try_acquire_owned() else {
            return busy(active);
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let outside = Arc::clone(&active.0);
        let body = AnswerBody::new(Kind::Text(Full::default()), Active::new(&outside));
        let connect = self.door.options.durations.connect;
        tokio::spawn(async move {
            let Ok(Ok(upgraded)) = tokio::time::timeout(connect, upgrade).await else {
                return;
            };
            let stream = websocket::WsStream::accepted(TokioIo::new(upgraded)).await;
            let stream = Guarded {
                stream,
                _active: active,
            };
            self.link(Box::new(stream), outside, place).await;
        });
        let mut answer = Response::new(body);
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("upgrade"),
        );
        headers.insert(
            header::UPGRADE,
            header::HeaderValue::from_static("websocket"),
        );
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        answer
    }

    /// The session inside of a link.
    async fn link(
        self: Arc<Self>,
        stream: BoxStream,
        outside: Arc<Outside>,
        handshake: OwnedSemaphorePermit,
    ) {
        let from = outside.from;
        self.admit(stream, from, || {
            lock(&outside.place).take();
            drop(handshake);
        })
        .await;
    }
}

fn text(status: StatusCode, text: &'static str, active: Active) -> Response<AnswerBody> {
    let body = Kind::Text(Full::new(Bytes::from_static(text.as_bytes())));
    let mut answer = Response::new(AnswerBody::new(body, active));
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn busy(active: Active) -> Response<AnswerBody> {
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        "Too many connections are being made; try again in a moment.\n",
        active,
    )
}

/// The body of any answer.
struct AnswerBody {
    kind: Kind,
    _active: Active,
}

enum Kind {
    Web(WebBody),
    Link(grpc::Outgoing),
    Text(Full<Bytes>),
}

impl AnswerBody {
    fn new(kind: Kind, active: Active) -> Self {
        Self {
            kind,
            _active: active,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = WebError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WebError>>> {
        match &mut self.kind {
            Kind::Web(body) => Pin::new(body).poll_frame(cx),
            Kind::Link(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Kind::Text(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Web(body) => body.is_end_stream(),
            Kind::Link(body) => body.is_end_stream(),
            Kind::Text(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Web(body) => body.size_hint(),
            Kind::Link(body) => body.size_hint(),
            Kind::Text(body) => body.size_hint(),
        }
    }
}

/// A stream whose connection is in use as long as it lives.
struct Guarded<S> {
    stream: S,
    _active: Active,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
