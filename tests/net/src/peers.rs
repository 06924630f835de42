//! A server and its sites.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use firesteel_base::Durations;
use firesteel_net::dev::Authority;
use firesteel_net::pull::{Pull, Serving, serve};
use firesteel_net::{BoxStream, Identity, Kind, Listener, Options, Session, dial};
use firesteel_transfer::{Budget, ObjectRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::{Arriving, Shelf};

/// The name under which a server is reached, whatever its address.
const SERVER: &str = "server.test";

/// Certificates for a server and its sites.
pub struct Identities(Authority);

impl Identities {
    /// A new authority.
    pub fn new() -> Result<Self> {
        Ok(Self(Authority::new("tests")?))
    }

    /// The server's.
    pub fn server(&self) -> Result<Identity> {
        Ok(self.0.server("server", &[SERVER])?.identity()?)
    }

    /// A site's.
    pub fn site(&self, name: &str) -> Result<Identity> {
        Ok(self.0.site(name)?.identity()?)
    }
}

/// What either end does with a session: serves what it offers, and sends every
/// heartbeat back.
struct Attendant {
    shelf: Arc<Shelf>,
    budget: Budget,
    durations: Durations,
    heartbeats: Heartbeats,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heartbeats {
    Answered,
    Sent,
}

impl Attendant {
    /// Until the session is over.
    async fn attend(self: Arc<Self>, session: Session) {
        let peer = session.peer().name.to_string();
        let mut tasks = JoinSet::new();
        if self.heartbeats == Heartbeats::Answered
            && let Some(control) = session.control()
        {
            tasks.spawn(echo(control));
        }
        while let Some((kind, stream)) = session.accept().await {
            if kind != Kind::TRANSFER {
                continue;
            }
            let this = Arc::clone(&self);
            let serving = Serving {
                peer: peer.clone(),
                budget: self.budget.clone(),
                durations: self.durations,
            };
            tasks.spawn(async move {
                // A connection that was lost is what these tests are about; who
                // pulls sees it and says so.
                let _ = serve(stream, &*this.shelf, &serving).await;
            });
        }
    }
}

/// Sends back what comes, until it ends.
async fn echo(mut control: BoxStream) {
    let mut buffer = [0; 64];
    while let Ok(read @ 1..) = control.read(&mut buffer).await {
        let (some, _) = buffer.split_at(read);
        if control.write_all(some).await.is_err() || control.flush().await.is_err() {
            return;
        }
    }
}

/// One heartbeat over a control stream; how long it took there and back.
pub async fn beat(control: &mut BoxStream) -> Result<Duration> {
    let sent = Instant::now();
    control.write_all(b"are you there?").await?;
    control.flush().await?;
    control.read_exact(&mut [0; 14]).await?;
    Ok(sent.elapsed())
}

/// The same with three bytes behind it, each in a packet of its own: where the
/// first packet is lost, those that follow tell TCP so within a round trip,
/// and it need not wait for a timer.
pub async fn followed_beat(control: &mut BoxStream) -> Result<Duration> {
    const GAP: Duration = Duration::from_millis(3);
    let sent = Instant::now();
    control.write_all(b"are you there?").await?;
    control.flush().await?;
    for _ in 0..3 {
        tokio::time::sleep(GAP).await;
        control.write_all(b".").await?;
        control.flush().await?;
    }
    control.read_exact(&mut [0; 14]).await?;
    let took = sent.elapsed();
    control.read_exact(&mut [0; 3]).await?;
    Ok(took)
}

/// A server that takes sessions, one per site.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it offers.
    pub shelf: Arc<Shelf>,
    sessions: watch::Receiver<BTreeMap<String, Session>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on an address.
    pub async fn start(
        address: SocketAddr,
        identity: Identity,
        options: Options,
        durations: Durations,
    ) -> Result<Self> {
        let listener = Listener::bind(address, identity, options).await?;
        let address = listener.local_address();
        let shelf = Arc::new(Shelf::default());
        let attendant = Arc::new(Attendant {
            shelf: Arc::clone(&shelf),
            budget: Budget::default(),
            durations,
            heartbeats: Heartbeats::Answered,
        });
        let (told, sessions) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                // A peer that fails is nothing to the others.
                if let Ok(session) = listener.accept().await {
                    let name = session.peer().name.to_string();
                    told.send_modify(|sessions| {
                        sessions.insert(name, session.clone());
                    });
                    tasks.spawn(Arc::clone(&attendant).attend(session));
                }
            }
        });
        Ok(Self {
            address,
            shelf,
            sessions,
            task,
        })
    }

    /// A stream to a site, over the newest session that it has.
    pub async fn stream(&self, site: &str) -> Result<BoxStream> {
        let mut sessions = self.sessions.clone();
        let known = sessions.wait_for(|all| all.contains_key(site)).await?;
        let session = known.get(site).cloned().context("it was there")?;
        drop(known);
        Ok(session.open(Kind::TRANSFER).await?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A site; it dials when it needs a session and has none.
pub struct Site {
    /// Where it dials.
    address: String,
    identity: Identity,
    options: Options,
    durations: Durations,
    attendant: Arc<Attendant>,
    session: Mutex<Option<Session>>,
    budget: Budget,
}

impl Site {
    /// A site that will dial this address.
    pub fn new(
        address: SocketAddr,
        identity: Identity,
        options: Options,
        durations: Durations,
    ) -> Self {
        let attendant = Attendant {
            shelf: Arc::default(),
            budget: Budget::default(),
            durations,
            heartbeats: Heartbeats::Sent,
        };
        Self {
            address: address.to_string(),
            identity,
            options,
            durations,
            attendant: Arc::new(attendant),
            session: Mutex::default(),
            budget: Budget::default(),
        }
    }

    /// What it offers.
    pub fn shelf(&self) -> &Shelf {
        &self.attendant.shelf
    }

    /// The session that it has, or a new one.
    pub async fn session(&self) -> Result<Session> {
        let mut held = self.session.lock().await;
        if let Some(session) = &*held {
            return Ok(session.clone());
        }
        let options = self.options.clone();
        let session = dial(&self.address, SERVER, &self.identity, options).await?;
        tokio::spawn(Arc::clone(&self.attendant).attend(session.clone()));
        Ok(held.insert(session).clone())
    }

    /// A stream to the server, over a new session where the old one is over.
    pub async fn stream(&self) -> Result<BoxStream> {
        let session = self.session().await?;
        match session.open(Kind::TRANSFER).await {
            Ok(stream) => Ok(stream),
            Err(_) => {
                session.close("it fails").await;
                *self.session.lock().await = None;
                Ok(self.session().await?.open(Kind::TRANSFER).await?)
            }
        }
    }

    /// A pull from the server, ready to be started.
    pub fn pull(&self, object: ObjectRef, into: Arc<Arriving>) -> Pull {
        let name = format!("model {}", object.id);
        Pull::new("server", &name, object, into, &self.budget).durations(self.durations)
    }
}
