//! A server and a site at the ends of a line, and a model between them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use firesteel_base::Durations;
use firesteel_net::{BoxStream, Congestion, Identity, Options};
use firesteel_net_tests::{Arriving, Identities, Server, Site, beat, followed_beat, model_file};
use firesteel_rig::{Link, Place, Space, Wan};
use firesteel_store::Objects;
use tokio::runtime::{Builder, Runtime};

use crate::BEAT;

/// Bytes of a tensor of the model, at most.
const TENSOR: u64 = 4 * 1024 * 1024;

pub struct Line {
    pub wan: Wan,
    server: Server,
    identity: Identity,
    options: Options,
    far_runtime: Runtime,
    far: Place,
    near_runtime: Runtime,
    near: Place,
    folder: tempfile::TempDir,
}

/// How a pull went.
pub struct Pulled {
    /// Bytes of the file.
    pub bytes: u64,
    /// From the first byte said to the last one checked, the session and the
    /// sender's manifest made before.
    pub took: Duration,
    /// What heartbeats took meanwhile.
    pub beats: Vec<Duration>,
    /// What those took that had packets behind them; they take turns.
    pub followed: Vec<Duration>,
}

impl Line {
    pub fn new(space: &Space, link: Link, seed: u64, congestion: Option<&str>) -> Result<Self> {
        let (near, far) = (space.need(Place::new()), space.need(Place::new()));
        let wan = space.need(Wan::join(&near, &far, link, seed));
        let runtime = || {
            Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
        };
        let (near_runtime, far_runtime) = (near.run(runtime)?, far.run(runtime)?);
        let identities = Identities::new()?;
        let mut options = Options::default();
        if let Some(name) = congestion {
            options.congestion = Congestion::Named(name.into());
        }
        let server = Server::start(
            (wan.near(), 0).into(),
            identities.server()?,
            options.clone(),
            Durations::default(),
        );
        let server = near.run(|| near_runtime.block_on(server))?;
        Ok(Self {
            wan,
            server,
            identity: identities.site("site-1")?,
            options,
            far_runtime,
            far,
            near_runtime,
            near,
            folder: tempfile::tempdir()?,
        })
    }

    pub fn server_address(&self) -> SocketAddr {
        self.server.address
    }

    /// Does something where the site is.
    pub fn at_the_site<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.far.run(|| self.far_runtime.block_on(work))
    }

    fn site(&self, address: SocketAddr) -> Site {
        Site::new(
            address,
            self.identity.clone(),
            self.options.clone(),
            Durations::default(),
        )
    }

    /// The control stream of a new session.
    pub async fn control(&self, address: SocketAddr) -> Result<BoxStream> {
        let session = self.site(address).session().await?;
        session.control().context("nobody has taken it")
    }

    /// One plain TCP stream of so many bytes from the server's place to the
    /// site's, from the connection on.
    pub fn plain(&self, congestion: &str, bytes: u64) -> Result<Duration> {
        let listener = self.near.run(|| TcpListener::bind((self.wan.near(), 0)))?;
        let address = listener.local_addr()?;
        let congestion = congestion.to_owned();
        let sender = std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            rustix::net::sockopt::set_tcp_congestion(&stream, &congestion)?;
            let piece = vec![0x5a; 256 * 1024];
            let mut left = bytes;
            while left > 0 {
                let some = piece.len().min(usize::try_from(left)?);
                stream.write_all(piece.split_at(some).0)?;
                left -= some as u64;
            }
            Ok(())
        });
        let mut stream = self.far.run(|| TcpStream::connect(address))?;
        let started = Instant::now();
        let mut buffer = vec![0; 256 * 1024];
        let mut received = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                read => received += read as u64,
            }
        }
        let took = started.elapsed();
        sender
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        anyhow::ensure!(received == bytes, "{received} of {bytes} bytes came");
        Ok(took)
    }

    /// A model of about so many bytes, and heartbeats beside it.
    pub fn pull(&self, address: SocketAddr, bytes: u64) -> Result<Pulled> {
        let tensors = bytes.div_ceil(TENSOR);
        let path = model_file(self.folder.path(), tensors, bytes / tensors, 5)?;
        let object = self.server.shelf.offer("site-1", 1, &path)?;
        let preparing = self.server.shelf.prepare("site-1", object);
        self.near.run(|| self.near_runtime.block_on(preparing))?;
        let objects = Objects::open(&self.folder.path().join("objects"))?;
        let room = Arriving::new(&objects, object)?;
        let site = Arc::new(self.site(address));
        let pulled = self.at_the_site(async {
            // A proxy's cuts end its session, and heartbeats are not what is
            // looked at there.
            let control = site.session().await?.control();
            let beats = Arc::new(std::sync::Mutex::new((Vec::new(), Vec::new())));
            let heard = Arc::clone(&beats);
            let beating = tokio::spawn(async move {
                let mut control = control.context("nobody has taken it")?;
                loop {
                    let next = tokio::time::sleep(BEAT);
                    let took = beat(&mut control).await?;
                    heard.lock().expect("nobody panics here").0.push(took);
                    next.await;
                    let next = tokio::time::sleep(BEAT);
                    let took = followed_beat(&mut control).await?;
                    heard.lock().expect("nobody panics here").1.push(took);
                    next.await;
                }
                #[allow(unreachable_code, reason = "it says what the task gives")]
                anyhow::Ok(())
            });
            let mut pull = site.pull(object, Arc::clone(&room));
            let started = Instant::now();
            pull.retrying(|| site.stream()).await?;
            let took = started.elapsed();
            beating.abort();
            let _ = beating.await;
            let (beats, followed) = std::mem::take(&mut *beats.lock().expect("nobody panics here"));
            anyhow::Ok(Pulled {
                bytes: object.length,
                took,
                beats,
                followed,
            })
        })?;
        let received = room.finish()?;
        anyhow::ensure!(
            received.bytes() == std::fs::read(&path)?,
            "it is not the file that was sent"
        );
        std::fs::remove_file(&path)?;
        Ok(pulled)
    }
}
