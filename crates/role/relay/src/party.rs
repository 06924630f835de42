//! A relay's part in one job: the sites below it speak with the server through it,
//! each on a stream of its own; their updates stay here, and their sums go up.
//!
//! Nothing is decided here. The server's workflow knows every site, and says
//! whose updates are summed, and how much each counts.

mod collect;
mod held;
mod neighbor;
mod site;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use firesteel_aggregate::Options;
use firesteel_base::{Durations, Hint, Round, SiteName, limits};
use firesteel_carry::update::{self, sentence};
use firesteel_carry::{Carrier, Connection, Depot, Dial, Offer, Remote, Way};
use firesteel_net::{BoxStream, Kind, LinkError, Reader, Session, Writer, split};
use firesteel_observe::Logger;
use firesteel_store::{Objects, Spool};
use firesteel_wire::PROTOCOL;
use firesteel_wire::control::{
    EndJob, Hello, StartJob, Stopped, ToServer, ToSite, Welcome, to_server, to_site,
};
use firesteel_wire::spec::{JobSpec, SpecError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use held::HeldUpdates;
use neighbor::Models;

/// What a relay takes part in a job with.
pub struct PartyParts {
    /// Its name.
    pub relay: SiteName,
    /// The models in flight of this job.
    pub objects: Objects,
    /// The budget of updates on the disk.
    pub spool: Spool,
    /// Threads that sum.
    pub threads: usize,
    /// Who writes the logs.
    pub logger: Logger,
    /// How long things may take.
    pub durations: Durations,
    /// A random number by which the server knows this process again.
    pub instance: u64,
    /// Becomes a reason when it is to leave the job.
    pub stop: watch::Receiver<Option<String>>,
}

/// Why a relay could not take part, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartyError {
    /// The connection up.
    #[error("the connection up failed")]
    Link(#[from] LinkError),
    /// No connection could be made.
    #[error("whoever is above could not be reached")]
    Dial(#[source] io::Error),
    /// It was not there for too long.
    #[error("whoever is above was not reached for {lease:?}")]
    Lease {
        /// How long it was tried.
        lease: Duration,
        /// The last problem.
        #[source]
        source: Box<PartyError>,
    },
    /// The server said no.
    #[error("the server refused this relay: {0}")]
    Refused(String),
    /// It ended first.
    #[error("the connection was closed before the job was given")]
    Closed,
    /// Not what the protocol says.
    #[error("the server sent {0}")]
    Protocol(&'static str),
    /// The job spec is not one.
    #[error("the server sent a job that cannot be read")]
    Spec(#[from] SpecError),
}

impl Hint for PartyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Spec(error) => error.hint(),
            Self::Refused(_) => Some(
                "the job's hierarchy must be `aggregate`, and the relay's certificate a relay's"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// A relay's part in one job.
pub struct Party;

/// What the tasks of one relay's part in a job share.
struct Shared {
    relay: SiteName,
    logger: Logger,
    durations: Durations,
    threads: usize,
    objects: Objects,
    spool: Spool,
    /// For what goes up and comes from there.
    up: Arc<Remote>,
    /// For what comes from below and goes there.
    down: Arc<Depot>,
    /// What the job is; known once the server has said so.
    options: Options,
    start: StartJob,
    epoch: u64,
    state: Mutex<State>,
    /// Counts changes of the state that somebody may wait for.
    changed: watch::Sender<u64>,
    models: Models,
    connections: AtomicU64,
}

/// What changes.
#[derive(Default)]
struct State {
    /// The session with whoever is above, while there is one.
    session: Option<Session>,
    /// What is said there beside what sites say.
    say: Option<mpsc::Sender<to_server::Body>>,
    held: HeldUpdates,
    /// Each site's neighbor: a relay, or none when it is connected here.
    via: HashMap<SiteName, Option<SiteName>>,
    /// Ways of models to the neighbors below.
    carriers: HashMap<String, Arc<Remote>>,
    /// The relays below.
    relays: HashMap<SiteName, neighbor::Below>,
}

impl Party {
    /// Takes part in a job until it ends; sites and relays below come out of
    /// `connections`.
    ///
    /// # Errors
    /// [`PartyError`].
    pub async fn run(
        parts: PartyParts,
        mut dial: Box<dyn Dial>,
        mut connections: mpsc::Receiver<Connection>,
    ) -> Result<(), PartyError> {
        let mut stop = parts.stop.clone();
        let told = parts.logger.clone();
        let warn = move |text: &str| told.warning(text);
        let (objects, spool, durations) =
            (parts.objects.clone(), parts.spool.clone(), parts.durations);
        let up = Depot::warning(objects.clone(), None, durations, warn.clone());
        let up = Arc::new(Remote::new(&up, "whoever is above"));
        let down = Depot::warning(objects, Some(spool), durations, warn);
        let mut known: Option<Arc<Shared>> = None;
        loop {
            let epoch = known.as_ref().map_or(0, |shared| shared.epoch);
            let reached = tokio::select! {
                reached = reach(&parts, &mut dial, epoch) => reached?,
                _ = stopped(&mut stop) => return Ok(()),
            };
            let Reached {
                reader,
                writer,
                way,
                start,
                epoch,
            } = reached;
            let shared = match known.take().filter(|shared| shared.epoch == epoch) {
                Some(shared) => shared,
                // What was done for another server process does not count for this.
                None => {
                    let spec = JobSpec::parse(&start.spec)?;
                    Arc::new(Shared {
                        relay: parts.relay.clone(),
                        logger: parts.logger.for_job(&start.job),
                        durations: parts.durations,
                        threads: parts.threads.max(1),
                        objects: parts.objects.clone(),
                        spool: parts.spool.clone(),
                        up: Arc::clone(&up),
                        down: Arc::clone(&down),
                        options: update::options(&spec),
                        start,
                        epoch,
                        state: Mutex::default(),
                        changed: watch::Sender::new(0),
                        models: Models::default(),
                        connections: AtomicU64::new(0),
                    })
                }
            };
            let Way::Session(session) = &way else {
                return Err(PartyError::Protocol("no session to open streams in"));
            };
            let session = session.clone();
            up.connected(way);
            let served = serve(
                &shared,
                (reader, writer, session),
                &mut connections,
                &mut stop,
            );
            if served.await {
                return Ok(());
            }
            shared.logger.warning(
                "the connection up is lost; the sites below are connected again when it is back",
            );
            known = Some(shared);
        }
    }
}

/// Whoever is above, and what it said first.
struct Reached {
    reader: Reader,
    writer: Writer,
    way: Way,
    start: StartJob,
    epoch: u64,
}

/// Dials until the server answers, refuses, or the lease is over.
async fn reach(
    parts: &PartyParts,
    dial: &mut Box<dyn Dial>,
    epoch: u64,
) -> Result<Reached, PartyError> {
    let hello = Hello {
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        site: parts.relay.as_str().to_owned(),
        instance: parts.instance,
        lease_epoch: epoch,
        relay: true,
        ..Hello::default()
    };
    let lease = parts.durations.lease;
    let until = Instant::now() + lease;
    let mut backoff = firesteel_transfer::Backoff::default();
    loop {
        let once = once(dial, &hello);
        let problem = match tokio::time::timeout(parts.durations.connect, once).await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(error @ (PartyError::Refused(_) | PartyError::Protocol(_)))) => {
                return Err(error);
            }
            Ok(Err(error)) => error,
            Err(_) => PartyError::Dial(io::ErrorKind::TimedOut.into()),
        };
        if !dial.again() {
            return Err(problem);
        }
        if Instant::now() >= until {
            let source = Box::new(problem);
            return Err(PartyError::Lease { lease, source });
        }
        parts.logger.debug(&sentence(&problem));
        tokio::time::sleep(backoff.next(random())).await;
    }
}

async fn once(dial: &mut Box<dyn Dial>, hello: &Hello) -> Result<Reached, PartyError> {
    let Connection { control, way } = dial.dial().await.map_err(PartyError::Dial)?;
    let (mut reader, mut writer) = split(control);
    let body = to_server::Body::Hello(hello.clone());
    writer.send(&ToServer { body: Some(body) }).await?;
    let mut epoch = None;
    loop {
        let message = reader.next::<ToSite>("ToSite").await?;
        match message.ok_or(PartyError::Closed)?.body {
            Some(to_site::Body::Welcome(Welcome { lease_epoch, .. })) => epoch = Some(lease_epoch),
            Some(to_site::Body::Refused(refused)) => {
                return Err(PartyError::Refused(refused.reason));
            }
            Some(to_site::Body::StartJob(start)) => {
                let epoch = epoch.ok_or(PartyError::Protocol("a job before its welcome"))?;
                return Ok(Reached {
                    reader,
                    writer,
                    way,
                    start,
                    epoch,
                });
            }
            Some(to_site::Body::EndJob(_)) => return Err(PartyError::Closed),
            _ => {}
        }
    }
}

/// Serves until the job's end, or until the connection up is lost; whether it was
/// the end.
async fn serve(
    shared: &Arc<Shared>,
    (mut reader, mut writer, session): (Reader, Writer, Session),
    connections: &mut mpsc::Receiver<Connection>,
    stop: &mut watch::Receiver<Option<String>>,
) -> bool {
    let (say, mut said) = mpsc::channel::<to_server::Body>(64);
    {
        let mut state = shared.state();
        state.session = Some(session);
        state.say = Some(say.clone());
    }
    shared.touch();
    // Both end with this connection: sites come back, and are asked anew.
    let mut neighbors = JoinSet::new();
    let mut collecting: Option<tokio::task::JoinHandle<()>> = None;
    let mut ending: Option<EndJob> = None;
    let mut over = Box::pin(tokio::time::sleep(Duration::MAX));
    let end = loop {
        tokio::select! {
            message = reader.next::<ToSite>("ToSite"), if ending.is_none() => match message {
                Ok(Some(ToSite { body: Some(to_site::Body::Collect(collect)) })) => {
                    if let Some(old) = collecting.take() {
                        old.abort();
                    }
                    let (shared, say) = (Arc::clone(shared), say.clone());
                    collecting = Some(tokio::spawn(async move {
                        let partial = collect::answer(&shared, collect).await;
                        // When nobody takes it, it is asked for again.
                        let _ = say.send(to_server::Body::Partial(partial)).await;
                    }));
                }
                Ok(Some(ToSite { body: Some(to_site::Body::RoundCommitted(committed)) })) => {
                    shared.committed(Round(committed.round));
                    shared.tell_relays(&to_site::Body::RoundCommitted(committed));
                }
                Ok(Some(ToSite { body: Some(to_site::Body::EndJob(end)) })) => {
                    shared.tell_relays(&to_site::Body::EndJob(end.clone()));
                    ending = Some(end);
                    // A site has stop-grace to end its trainers.
                    let limit = shared.durations.stop_grace + shared.durations.drain;
                    over = Box::pin(tokio::time::sleep(limit));
                }
                // What a newer server says.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break false,
            },
            Some(connection) = connections.recv() => {
                let shared = Arc::clone(shared);
                neighbors.spawn(neighbor::serve(shared, connection));
            }
            Some(_) = neighbors.join_next() => {}
            Some(body) = said.recv() => {
                if writer.send(&ToServer { body: Some(body) }).await.is_err() {
                    break false;
                }
            }
            () = &mut over, if ending.is_some() => break true,
            _ = stopped(stop) => break true,
        }
        if ending.is_some() && neighbors.is_empty() {
            break true;
        }
    };
    if let Some(collecting) = collecting {
        collecting.abort();
    }
    {
        let mut state = shared.state();
        state.session = None;
        state.say = None;
        state.relays.clear();
    }
    shared.touch();
    if end {
        let body = to_server::Body::Stopped(Stopped::default());
        // Nobody waits for it.
        let _ = writer.send(&ToServer { body: Some(body) }).await;
        let _ = writer.close().await;
    }
    end
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed for which somebody may wait.
    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn number(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// A stream up for a site below.
    async fn stream_up(&self) -> Option<BoxStream> {
        let session = self.state().session.clone()?;
        session.open(Kind::BELOW).await.ok()
    }

    /// The way of models to and from a neighbor below: it outlives connections.
    fn carrier(&self, name: &str) -> Arc<Remote> {
        let mut state = self.state();
        let carrier = state.carriers.entry(name.to_owned());
        Arc::clone(carrier.or_insert_with(|| Arc::new(Remote::new(&self.down, name))))
    }

    /// A round is committed: its updates are part of the model for good.
    fn committed(&self, round: Round) {
        let dropped = self.state().held.committed(round);
        for attempt in dropped.attempts {
            self.up.withdraw(Offer::Update {
                round: round.0,
                attempt,
            });
        }
        // Unmapping and unlinking take milliseconds per 100 MB.
        tokio::task::spawn_blocking(move || drop(dropped.updates));
    }

    fn tell_relays(&self, body: &to_site::Body) {
        for below in self.state().relays.values() {
            // One that does not read has lost its connection soon.
            let _ = below.say.try_send(body.clone());
        }
    }

    /// Room for a message's bytes.
    fn is_inline(length: u64) -> bool {
        length <= limits::INLINE_OBJECT as u64
    }
}

async fn stopped(stop: &mut watch::Receiver<Option<String>>) -> String {
    if let Ok(reason) = stop.wait_for(Option::is_some).await
        && let Some(reason) = reason.clone()
    {
        return reason;
    }
    // Nobody will ask.
    std::future::pending().await
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
