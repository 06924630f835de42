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
const URI: &str = "https://firesteel/";
const PARKED: &str = "/parked";

/// A stream that the peer has opened.
pub(crate) struct Incoming {
    /// What for.
    pub kind: u16,
    /// The stream.
    pub stream: MuxStream,
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
    incoming: mpsc::Sender<Incoming>,
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
        tokio::spawn(park(this.clone(), incoming.clone()));
    }
    Ok(this)
}

/// Starts the accepting end; see [`dial`].
pub(crate) async fn accept<T>(
    io: T,
    shape: Shape,
    incoming: mpsc::Sender<Incoming>,
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
    pub async fn open(&self, kind: u16) -> io::Result<MuxStream> {
        match &self.0.side {
            Side::Dialed(send) => {
                let request = Request::post(URI)
                    .header(KIND, kind)
                    .body(())
                    .expect("the URI and a number are valid");
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
                let answer = Response::builder()
                    .header(KIND, kind)
                    .body(())
                    .expect("a number is a valid header");
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
        incoming: &mpsc::Sender<Incoming>,
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
        let Some(kind) = kind(&head.headers) else {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return;
        };
        let Ok(place) = incoming.try_reserve() else {
            respond.send_reset(Reason::REFUSED_STREAM);
            return;
        };
        // An error here: the peer has given the stream up already.
        if let Ok(send) = respond.send_response(Response::new(()), false) {
            place.send(Incoming {
                kind,
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
async fn park(connection: Connection, incoming: mpsc::Sender<Incoming>) {
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
        let Some(kind) = kind(&head.headers).filter(|_| head.status == StatusCode::OK) else {
            continue;
        };
        let Ok(place) = incoming.try_reserve() else {
            let mut stream = stream;
            stream.send_reset(Reason::REFUSED_STREAM);
            continue;
        };
        place.send(Incoming {
            kind,
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

fn kind(headers: &http::HeaderMap) -> Option<u16> {
    headers.get(KIND)?.to_str().ok()?.parse().ok()
}

fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}
