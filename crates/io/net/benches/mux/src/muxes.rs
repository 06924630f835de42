//! The candidates, each as pairs of streams that one end opened.

use std::task::Poll;

use firesteel_net::{Kind, Listener, Options, dial};
use futures_util::StreamExt as _;
use futures_util::future::poll_fn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsStream;
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use crate::{Stream, Streams, pairs};

pub const BARE: [&str; 2] = ["tcp", "tls"];
pub const ALL: [&str; 8] = [
    "tcp",
    "tls",
    "yamux-16k",
    "yamux-128k",
    "tokio-yamux",
    "async_smux",
    "session",
    "session-single",
];

pub async fn open(name: &str, count: usize) -> Streams {
    match name {
        "tcp" => {
            let (near, far) = pairs::tcp().await;
            bare(Box::new(near), Box::new(far))
        }
        "tls" => {
            let (near, far) = pairs::tls().await;
            bare(Box::new(near), Box::new(far))
        }
        "yamux-16k" => yamux(count, 16 * 1024).await,
        "yamux-128k" => yamux(count, 128 * 1024).await,
        "tokio-yamux" => tokio_yamux(count).await,
        "async_smux" => smux(count).await,
        "session" => session(count, Options::default()).await,
        "session-single" => session(count, Options::default().single_connection()).await,
        other => panic!("no candidate `{other}`"),
    }
}

fn bare(near: Stream, far: Stream) -> Streams {
    Streams {
        pairs: vec![(near, far)],
        keep: Box::new(()),
    }
}

/// Some announce a stream only with its first byte.
async fn greet(near: &mut Stream) {
    near.write_all(b"x").await.unwrap();
    near.flush().await.unwrap();
}

async fn greeted(far: &mut Stream) {
    far.read_exact(&mut [0]).await.unwrap();
}

async fn session(count: usize, mut options: Options) -> Streams {
    // One bulk connection, as the others have one.
    options.bulk_connections = options.bulk_connections.min(1);
    let authority = firesteel_net::dev::Authority::new("bench").unwrap();
    let server = authority.server("server", &["localhost"]).unwrap();
    let site = authority.site("site").unwrap().identity().unwrap();
    let listener = Listener::bind(
        "127.0.0.1:0".parse().unwrap(),
        server.identity().unwrap(),
        options.clone(),
    )
    .await
    .unwrap();
    let address = listener.local_address().to_string();
    let (near, far) = tokio::join!(
        dial(&address, "localhost", &site, options),
        listener.accept()
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    let mut pairs: Vec<(Stream, Stream)> = Vec::new();
    for _ in 0..count {
        let opened = near.open(Kind::TRANSFER).await.unwrap();
        let (_, taken) = far.accept().await.unwrap();
        pairs.push((Box::new(opened), Box::new(taken)));
    }
    Streams {
        pairs,
        keep: Box::new((near, far, listener)),
    }
}

type Opener = mpsc::Sender<oneshot::Sender<Stream>>;

fn drive_yamux(
    io: TlsStream<TcpStream>,
    mode: yamux::Mode,
    split: usize,
) -> (Opener, mpsc::Receiver<Stream>) {
    let mut config = yamux::Config::default();
    config.set_split_send_size(split);
    // It writes heads and bodies apart; a record for each would be unfair.
    let io = tokio::io::BufWriter::with_capacity(split + 64, io);
    let mut connection = yamux::Connection::new(io.compat(), config, mode);
    let (opener, mut wanted) = mpsc::channel::<oneshot::Sender<Stream>>(8);
    let (taken, streams) = mpsc::channel::<Stream>(256);
    tokio::spawn(poll_fn(move |cx| {
        loop {
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    let _ = taken.try_send(Box::new(stream.compat()));
                    continue;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            match wanted.poll_recv(cx) {
                Poll::Ready(Some(reply)) => {
                    let Poll::Ready(Ok(stream)) = connection.poll_new_outbound(cx) else {
                        return Poll::Ready(());
                    };
                    let _ = reply.send(Box::new(stream.compat()));
                }
                _ => return Poll::Pending,
            }
        }
    }));
    (opener, streams)
}

async fn yamux(count: usize, split: usize) -> Streams {
    let (near, far) = pairs::tls().await;
    let (opener, near_in) = drive_yamux(near, yamux::Mode::Client, split);
    let (far_out, mut taken) = drive_yamux(far, yamux::Mode::Server, split);
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (reply, stream) = oneshot::channel();
        opener.send(reply).await.unwrap();
        let mut near = stream.await.unwrap();
        greet(&mut near).await;
        let mut far = taken.recv().await.unwrap();
        greeted(&mut far).await;
        pairs.push((near, far));
    }
    Streams {
        pairs,
        keep: Box::new((opener, near_in, far_out, taken)),
    }
}

async fn tokio_yamux(count: usize) -> Streams {
    let (near, far) = pairs::tls().await;
    let config = tokio_yamux::Config::default();
    let mut client = tokio_yamux::Session::new_client(near, config);
    let mut server = tokio_yamux::Session::new_server(far, config);
    let mut control = client.control();
    tokio::spawn(async move { while let Some(Ok(_)) = client.next().await {} });
    let (taken, mut streams) = mpsc::channel(256);
    tokio::spawn(async move {
        while let Some(Ok(stream)) = server.next().await {
            let _ = taken.send(stream).await;
        }
    });
    let mut pairs = Vec::new();
    for _ in 0..count {
        let mut near: Stream = Box::new(control.open_stream().await.unwrap());
        greet(&mut near).await;
        let mut far: Stream = Box::new(streams.recv().await.unwrap());
        greeted(&mut far).await;
        pairs.push((near, far));
    }
    Streams {
        pairs,
        keep: Box::new((control, streams)),
    }
}

async fn smux(count: usize) -> Streams {
    let (near, far) = pairs::tls().await;
    let (connector, near_acceptor, near_worker) = async_smux::MuxBuilder::client()
        .with_connection(near)
        .build();
    let (far_connector, mut acceptor, far_worker) = async_smux::MuxBuilder::server()
        .with_connection(far)
        .build();
    tokio::spawn(near_worker);
    tokio::spawn(far_worker);
    let mut pairs = Vec::new();
    for _ in 0..count {
        let mut near: Stream = Box::new(connector.connect().unwrap());
        greet(&mut near).await;
        let mut far: Stream = Box::new(acceptor.accept().await.unwrap());
        greeted(&mut far).await;
        pairs.push((near, far));
    }
    Streams {
        pairs,
        keep: Box::new((connector, near_acceptor, far_connector, acceptor)),
    }
}
