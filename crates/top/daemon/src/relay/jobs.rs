//! The jobs in which this relay is a party.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use firesteel_base::{Durations, JobId, SiteName};
use firesteel_carry::{Connection, Dial, Dialing, Way};
use firesteel_net::{BoxStream, Session, read_one, write_one};
use firesteel_node::parts::{cores, sentence};
use firesteel_observe::Logger;
use firesteel_relay::tunnel::HOPS;
use firesteel_relay::{Party, PartyParts, UplinkError, scope};
use firesteel_store::{InMemory, Objects, Spool, SpoolBudget};
use firesteel_wire::relay::{JobIs, JobWanted};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::upward::Upward;

/// Bytes of a first message: an id.
const MESSAGE: usize = 4096;

/// Connections that wait for a job to take them.
const BACKLOG: usize = 64;

/// What jobs need of the relay.
pub(super) struct JobsParts {
    pub(super) relay: SiteName,
    pub(super) workspace: PathBuf,
    pub(super) upward: Upward,
    pub(super) durations: Durations,
    pub(super) logger: Logger,
    pub(super) instance: u64,
    pub(super) stop: watch::Receiver<Option<String>>,
}

/// The jobs in which this relay is a party, by their ids.
pub(super) struct Jobs {
    parts: JobsParts,
    running: Mutex<HashMap<JobId, Running>>,
    /// One is begun at a time, so that none is begun twice.
    beginning: tokio::sync::Mutex<()>,
}

struct Running {
    connections: mpsc::Sender<Connection>,
    task: JoinHandle<()>,
}

impl Jobs {
    pub(super) fn new(parts: JobsParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            running: Mutex::default(),
            beginning: tokio::sync::Mutex::new(()),
        })
    }

    /// Has a neighbor below take part in the job that it names on this stream.
    pub(super) async fn answer(self: &Arc<Self>, mut stream: BoxStream, session: Session) {
        let connect = self.parts.durations.connect;
        let wanted = read_one::<JobWanted>(&mut stream, "JobWanted", MESSAGE);
        let Ok(Ok(Some(wanted))) = timeout(connect, wanted).await else {
            return;
        };
        let found = self.find(&wanted, &session).await;
        let refused = found.as_ref().err().cloned().unwrap_or_default();
        if write_one(&mut stream, &JobIs { refused }).await.is_err() {
            return;
        }
        let Ok((connections, scope)) = found else {
            return;
        };
        // It dials at once, or not at all.
        let Ok(Some(control)) = timeout(connect, scope.accept_control()).await else {
            return;
        };
        let way = Way::Session(scope);
        // A job that has just ended takes nobody any more, which the neighbor sees.
        let _ = connections.send(Connection { control, way }).await;
    }

    async fn find(
        self: &Arc<Self>,
        wanted: &JobWanted,
        session: &Session,
    ) -> Result<(mpsc::Sender<Connection>, Session), String> {
        let job = JobId::new(&wanted.job).map_err(|error| error.to_string())?;
        let hops = wanted.hops.saturating_add(1);
        if hops > HOPS {
            return Err(format!(
                "it has passed {HOPS} relays: do two of them name each other?"
            ));
        }
        let connections = self.begin(&job, hops).await?;
        let connect = self.parts.durations.connect;
        let scope = scope(session, job.as_str(), connect).await;
        Ok((connections, scope.map_err(|error| sentence(&error))?))
    }

    /// Where a job's connections go; it is begun when it is not known yet.
    async fn begin(
        self: &Arc<Self>,
        job: &JobId,
        hops: u32,
    ) -> Result<mpsc::Sender<Connection>, String> {
        let _beginning = self.beginning.lock().await;
        if let Some(running) = self.lock().get(job) {
            return Ok(running.connections.clone());
        }
        let parts = &self.parts;
        // Whoever is above says whether there is such a job.
        let mut dial = JobDial {
            upward: parts.upward.clone(),
            job: job.clone(),
            hops,
            last: None,
            first: None,
        };
        dial.first = Some(dial.once().await?);
        let root = parts.workspace.join("jobs").join(job.as_str());
        let opened = open(&root);
        let (objects, spool) = opened.map_err(|why| {
            parts.logger.error(&why);
            "the relay has no room for the job".to_owned()
        })?;
        let (connections, incoming) = mpsc::channel(BACKLOG);
        let party = PartyParts {
            relay: parts.relay.clone(),
            objects,
            spool,
            threads: cores(),
            logger: parts.logger.for_job(job.as_str()),
            durations: parts.durations,
            instance: parts.instance,
            stop: parts.stop.clone(),
        };
        let (this, id) = (Arc::clone(self), job.clone());
        let logger = parts.logger.for_job(job.as_str());
        logger.info("takes part in the job");
        let task = tokio::spawn(async move {
            match Party::run(party, Box::new(dial), incoming).await {
                Ok(()) => logger.info("the job has ended"),
                Err(error) => logger.error(&sentence(&error)),
            }
            this.lock().remove(&id);
            if this.parts.stop.borrow().is_some() {
                // What was received is gone on with when the relay is there again.
                return;
            }
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(root)).await;
            if let Ok(Err(error)) = removed {
                logger.warning(&format!("the job's folder was not removed: {error}"));
            }
        });
        let running = Running {
            connections: connections.clone(),
            task,
        };
        self.lock().insert(job.clone(), running);
        Ok(connections)
    }

    /// Waits for jobs to end that were told to.
    pub(super) async fn end(&self) {
        let tasks: Vec<_> = self
            .lock()
            .drain()
            .map(|(_, running)| running.task)
            .collect();
        for task in tasks {
            let abort = task.abort_handle();
            if timeout(self.parts.durations.drain, task).await.is_err() {
                abort.abort();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Running>> {
        // Nothing that may panic is done under it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's place on the relay's disk.
fn open(root: &std::path::Path) -> Result<(Objects, Spool), String> {
    std::fs::create_dir_all(root)
        .map_err(|error| format!("`{}` could not be made: {error}", root.display()))?;
    let objects = Objects::open(&root.join("objects")).map_err(|error| sentence(&error))?;
    let spool = Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Allow);
    Ok((objects, spool.map_err(|error| sentence(&error))?))
}

/// Dials whoever is above for a job.
struct JobDial {
    upward: Upward,
    job: JobId,
    hops: u32,
    /// The scope of the connection before this one.
    last: Option<Session>,
    /// The connection with which the job was begun.
    first: Option<Connection>,
}

impl JobDial {
    /// Makes a connection, or says why there is none, in the words of whoever
    /// refused it.
    async fn once(&mut self) -> Result<Connection, String> {
        if let Some(last) = self.last.take() {
            last.close("the relay connects anew").await;
        }
        let link = self.upward.link(self.upward.connect()).await?;
        let scope = match link.job(self.job.as_str(), self.hops).await {
            Ok(scope) => scope,
            Err(UplinkError::Refused { why }) => return Err(why),
            Err(error) => return Err(sentence(&error)),
        };
        let control = scope.open_control().await;
        let control = control.map_err(|error| sentence(&error))?;
        self.last = Some(scope.clone());
        let way = Way::Session(scope);
        Ok(Connection { control, way })
    }
}

impl Dial for JobDial {
    fn dial(&mut self) -> Dialing<'_> {
        Box::pin(async move {
            match self.first.take() {
                Some(first) => Ok(first),
                None => self.once().await.map_err(io::Error::other),
            }
        })
    }
}
