//! One connection: its task, and the ways to open and to take streams.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_base::limits;
use futures_util::future::poll_fn;
use h2::{Ping, PingPong, Reason, RecvStream, client, server};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Notify, mpsc, watch};

use super::gate::{Gate, Outbox};
use super::stream::MuxStream;

/// How a connection divides its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a frame, its head included.
    pub frame: usize,
    /// Bytes taken from streams and not yet written.
    pub unwritten: usize,
    /// Bytes that the peer may send on one stream before we have read any.
    pub stream_window: u32,
    /// For how long a connection that is being closed may take.
    pub drain: Duration,
}

/// The header that names a stream's kind, in a request and in the answer to a
/// parked one.
const KIND: &str = "firesteel-kind";
/// The one that names its scope, if it has any.
const SCOPE: &str = "firesteel-scope";
const URI: &str = "https://firesteel/";
const PARKED: &str = "/parked";

/// A stream that the peer has opened.
pub(crate) struct Incoming {
    /// What for.
    pub kind: u16,
    /// The scope that it belongs to.
    pub scope: Option<Arc<str>>,
    /// The stream.
    pub stream: MuxStream,
}

/// Where streams go that the peer opens.
pub(crate) trait Arrivals: Send + Sync {
    /// Whether such a stream can be taken now.
    fn room(&self, kind: u16, scope: Option<&str>) -> bool;
    /// Takes it, or refuses it where there is no room any more.
    fn arrived(self: Arc<Self>, incoming: Incoming);
}

/// A connection's near end. Cheap to clone; the task that moves its bytes ends
/// with [`Connection::close`] or with the connection.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    side: Side,
    gate: Gate,
    /// One clone per stream, and this.
    streams: Arc<()>,
    ping: Mutex<Option<PingPong>>,
    stop: Notify,
    ended: watch::Sender<Option<Arc<str>>>,
}

enum Side {
    Dialed(client::SendRequest<Bytes>),
    Accepted(Mutex<mpsc::Receiver<Parked>>),
}

/// A request that waits for us to open a stream on it.
struct Parked {
    body: RecvStream,
    respond: server::SendResponse<Bytes>,
}

/// Starts the dialing end. Streams that the peer opens go to `incoming`; when it
/// is full they are refused.
pub(crate) async fn dial<T>(
    io: T,
    shape: Shape,
    incoming: Arc<dyn Arrivals>,
) -> io::Result<Connection>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (send, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(shape.stream_window)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(limits::SESSION_FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(0)
        // The peer says more in its first settings frame.
        .initial_max_send_streams(limits::STREAMS)
        .max_send_buffer_size(shape.frame * 2)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(io_error)?;
    let ping = connection.ping_pong();
    let this = Connection(Arc::new(Inner {
        side: Side::Dialed(send),
        gate: Gate::new(shape.frame - FRAME_HEAD, shape.unwritten),
        streams: Arc::new(()),
        ping: Mutex::new(ping),
        stop: Notify::new(),
        ended: watch::Sender::new(None),
    }));
    let driven = this.clone();
    tokio::spawn(async move {
        let why = tokio::select! {
            ended = connection => ended.map_err(io_error),
            () = driven.0.stop.notified() => Ok(()),
        };
        driven.end(why);
    });
    for _ in 0..PARKED_STREAMS {
        tokio::spawn(park(this.clone(), Arc::clone(&incoming)));
    }
    Ok(this)
}

/// Starts the accepting end; see [`dial`].
pub(crate) async fn accept<T>(
    io: T,
    shape: Shape,
    incoming: Arc<dyn Arrivals>,
) -> io::Result<Connection>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = server::Builder::new()
        .initial_window_size(shape.stream_window)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(limits::SESSION_FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(u32::try_from(limits::STREAMS).unwrap_or(u32::MAX))
        .max_send_buffer_size(shape.frame * 2)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(io_error)?;
    let ping = connection.ping_pong();
    let (parked, free) = mpsc::channel(limits::STREAMS);
    let this = Connection(Arc::new(Inner {
        side: Side::Accepted(Mutex::new(free)),
        gate: Gate::new(shape.frame - FRAME_HEAD, shape.unwritten),
        streams: Arc::new(()),
        ping: Mutex::new(ping),
        stop: Notify::new(),
        ended: watch::Sender::new(None),
    }));
    let driven = this.clone();
    tokio::spawn(async move {
        let mut stopping = false;
        let patience = tokio::time::sleep(Duration::MAX);
        tokio::pin!(patience);
        let why = loop {
            tokio::select! {
                request = connection.accept() => match request {
                    None => break Ok(()),
                    Some(Err(error)) => break Err(io_error(error)),
                    Some(Ok((request, respond))) => {
                        driven.requested(request, respond, &parked, &incoming);
                    }
                },
                () = driven.0.stop.notified(), if !stopping => {
                    stopping = true;
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                    patience.as_mut().reset(tokio::time::Instant::now() + shape.drain);
                }
                () = &mut patience, if stopping => break Ok(()),
            }
        };
        drop(connection);
        driven.end(why);
    });
    Ok(this)
}

impl Connection {
    /// Opens a stream. On the accepting end it waits for a parked one.
    pub async fn open(&self, kind: u16, scope: Option<&str>) -> io::Result<MuxStream> {
        match &self.0.side {
            Side::Dialed(send) => {
                let request = Request::post(URI).header(KIND, kind);
                let request = match scope {
                    Some(scope) => request.header(SCOPE, scope),
                    None => request,
                };
                let request = request
                    .body(())
                    .expect("the URI, a number and a scope's name are valid");
                let mut send = send.clone().ready().await.map_err(io_error)?;
                let (answer, send) = send.send_request(request, false).map_err(io_error)?;
                Ok(MuxStream::opened(
                    send,
                    answer,
                    Outbox::new(&self.0.gate),
                    Arc::clone(&self.0.streams),
                ))
            }
            Side::Accepted(parked) => loop {
                let next = parked.lock().await.recv().await;
                let Some(Parked { body, mut respond }) = next else {
                    return Err(self.gone());
                };
                let answer = Response::builder().header(KIND, kind);
                let answer = match scope {
                    Some(scope) => answer.header(SCOPE, scope),
                    None => answer,
                };
                let answer = answer
                    .body(())
                    .expect("a number and a scope's name are valid headers");
                // It may have been given up meanwhile: then the next.
                if let Ok(send) = respond.send_response(answer, false) {
                    return Ok(MuxStream::taken(
                        send,
                        body,
                        Outbox::new(&self.0.gate),
                        Arc::clone(&self.0.streams),
                    ));
                }
            },
        }
    }

    /// Streams that are open on it.
    pub fn streams(&self) -> usize {
        Arc::strong_count(&self.0.streams) - 1
    }

    /// Sends a ping, ahead of all data, and waits for its echo.
    pub async fn ping(&self) -> io::Result<Duration> {
        let mut ping = self.0.ping.lock().await;
        let ping = ping.as_mut().ok_or_else(|| self.gone())?;
        // What an earlier caller did not wait for.
        let _ = poll_fn(|cx| std::task::Poll::Ready(ping.poll_pong(cx))).await;
        let start = Instant::now();
        loop {
            match ping.send_ping(Ping::opaque()) {
                Ok(()) => break,
                // One of an earlier caller is still under way.
                Err(error) if error.is_io() || self.has_ended() => return Err(io_error(error)),
                Err(_) => {
                    poll_fn(|cx| ping.poll_pong(cx)).await.map_err(io_error)?;
                }
            }
        }
        poll_fn(|cx| ping.poll_pong(cx)).await.map_err(io_error)?;
        Ok(start.elapsed())
    }

    /// Ends it, and all its streams with an error.
    pub fn close(&self) {
        self.0.stop.notify_one();
    }

    pub fn has_ended(&self) -> bool {
        self.0.ended.borrow().is_some()
    }

    /// Waits for its end, and says why: nothing when it ended in order.
    pub async fn ended(&self) -> Arc<str> {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }

    fn end(&self, why: io::Result<()>) {
        self.0.gate.close();
        let why: Arc<str> = match why {
            Ok(()) => Arc::default(),
            Err(error) => crate::session::chain(&error).into(),
        };
        self.0.ended.send_replace(Some(why));
    }

    fn gone(&self) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, "the connection was closed")
    }

    fn requested(
        &self,
        request: Request<RecvStream>,
        mut respond: server::SendResponse<Bytes>,
        parked: &mpsc::Sender<Parked>,
        incoming: &Arc<dyn Arrivals>,
    ) {
        let (head, body) = request.into_parts();
        if head.uri.path() == PARKED {
            if let Err(error) = parked.try_send(Parked { body, respond }) {
                let mut parked = match error {
                    mpsc::error::TrySendError::Full(parked)
                    | mpsc::error::TrySendError::Closed(parked) => parked,
                };
                parked.respond.send_reset(Reason::REFUSED_STREAM);
            }
            return;
        }
        let Some((kind, scope)) = purpose(&head.headers) else {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return;
        };
        if !incoming.room(kind, scope.as_deref()) {
            respond.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        // An error here: the peer has given the stream up already.
        if let Ok(send) = respond.send_response(Response::new(()), false) {
            Arc::clone(incoming).arrived(Incoming {
                kind,
                scope,
                stream: MuxStream::taken(
                    send,
                    body,
                    Outbox::new(&self.0.gate),
                    Arc::clone(&self.0.streams),
                ),
            });
        }
    }
}

/// Keeps one request parked with the peer, until the connection ends.
async fn park(connection: Connection, incoming: Arc<dyn Arrivals>) {
    let Side::Dialed(send) = &connection.0.side else {
        return;
    };
    loop {
        let request = Request::post(URI_PARKED)
            .body(())
            .expect("the URI is valid");
        let Ok(mut send) = send.clone().ready().await else {
            return;
        };
        let Ok((answer, stream)) = send.send_request(request, false) else {
            return;
        };
        drop(send);
        let ended = connection.ended();
        let answer = tokio::select! {
            answer = answer => answer,
            _ = ended => return,
        };
        let Ok(answer) = answer else {
            if connection.has_ended() {
                return;
            }
            // The peer holds enough, or has refused for reasons of its own; we
            // ask again when it has shown that it lives.
            if connection.ping().await.is_err() {
                return;
            }
            continue;
        };
        let (head, body) = answer.into_parts();
        let purpose = purpose(&head.headers).filter(|_| head.status == StatusCode::OK);
        let Some((kind, scope)) = purpose else {
            continue;
        };
        if !incoming.room(kind, scope.as_deref()) {
            let mut stream = stream;
            stream.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        Arc::clone(&incoming).arrived(Incoming {
            kind,
            scope,
            stream: MuxStream::taken(
                stream,
                body,
                Outbox::new(&connection.0.gate),
                Arc::clone(&connection.0.streams),
            ),
        });
    }
}

const URI_PARKED: &str = "https://firesteel/parked";

/// Requests that the dialing end keeps parked: as many streams can the accepting
/// end open at once without waiting for a round trip.
const PARKED_STREAMS: usize = 4;

/// Bytes of a request's headers; ours have less than 100.
const HEADERS: u32 = 4096;

/// Bytes of a frame's head.
const FRAME_HEAD: usize = 9;

/// A stream's kind, and its scope if it has one.
fn purpose(headers: &http::HeaderMap) -> Option<(u16, Option<Arc<str>>)> {
    let kind = headers.get(KIND)?.to_str().ok()?.parse().ok()?;
    let scope = match headers.get(SCOPE) {
        None => None,
        Some(scope) => {
            let scope = scope.to_str().ok();
            Some(
                scope
                    .filter(|scope| crate::session::is_scope(scope))?
                    .into(),
            )
        }
    };
    Some((kind, scope))
}

fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}
