//! What a site's process shares: the jobs in hand, and what they are made of.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use firesteel_base::{Durations, JobId, SiteName, limits};
use firesteel_bridge::BridgeListener;
use firesteel_net::{Options, Session};
use firesteel_observe::{Console, Logger, Logs};
use firesteel_pki::{Kit, SiteConfig};
use firesteel_wire::node::{
    Answer, Declined, Deploy, Ended, InHand, Ready, Stage, Started, ToNode, to_node, to_server,
};
use tokio::sync::{Semaphore, mpsc, watch};

use super::environments::Environments;
use super::job::{self, Command};
use super::place::{self, JobPlace, Note};
use super::resources::Stock;
use super::warm::Pool;
use super::{asks, facts};
use crate::relay::Uplink;

/// How long what was said of a job's end is said again to a server that is there
/// anew: it may have been on its way when the connection was cut.
const SAID: Duration = Duration::from_secs(120);

/// Sentences of that kind that are kept.
const SAID_MOST: usize = 256;

/// Messages to the server that wait for the connection. What more there would be is
/// state, and is told anew when there is room.
const MESSAGES: usize = 1024;

/// What the server wants of one job and its task has not looked at. A server says a
/// handful of things about a job.
const COMMANDS: usize = 64;

/// What the site's tasks share. Clones are the same.
#[derive(Clone)]
pub(super) struct Desk(Arc<Shared>);

pub(super) struct Shared {
    pub(super) kit: Kit,
    pub(super) config: SiteConfig,
    pub(super) site: SiteName,
    pub(super) workspace: PathBuf,
    /// A number by which the server knows this process again.
    pub(super) instance: u64,
    pub(super) started: SystemTime,
    pub(super) durations: Durations,
    pub(super) net: Options,
    pub(super) console: Console,
    pub(super) logs: Logs,
    pub(super) logger: Logger,
    pub(super) listener: BridgeListener,
    pub(super) environments: Arc<Environments>,
    pub(super) stock: Stock,
    pub(super) pool: Pool,
    pub(super) deploys: Semaphore,
    asks: Arc<Semaphore>,
    /// The session with the server while there is one.
    pub(super) session: watch::Sender<Option<Session>>,
    /// Becomes a reason when the site's process is to end.
    pub(super) stop: watch::Receiver<Option<String>>,
    outgoing: mpsc::Sender<to_server::Body>,
    /// There was no room to say something.
    missed: AtomicBool,
    jobs: Mutex<HashMap<String, Held>>,
    /// The relay through which the server is reached, if there is one.
    uplink: Mutex<Option<Uplink>>,
    said: Mutex<VecDeque<(Instant, to_server::Body)>>,
}

/// A job in hand.
struct Held {
    commands: mpsc::Sender<Command>,
    stage: Stage,
    attempt: u32,
    /// Its logs, while its agent is up.
    logs: Option<Logs>,
}

/// What a desk is made from.
pub(super) struct Parts {
    pub(super) kit: Kit,
    pub(super) config: SiteConfig,
    pub(super) site: SiteName,
    pub(super) workspace: PathBuf,
    pub(super) durations: Durations,
    pub(super) net: Options,
    pub(super) console: Console,
    pub(super) logs: Logs,
    pub(super) listener: BridgeListener,
    pub(super) pool: Pool,
    pub(super) stop: watch::Receiver<Option<String>>,
}

impl std::ops::Deref for Desk {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Desk {
    /// A desk, and what it says to the server.
    pub(super) fn new(parts: Parts) -> (Self, mpsc::Receiver<to_server::Body>) {
        let (outgoing, queue) = mpsc::channel(MESSAGES);
        let logger = parts.logs.logger("firesteel.site").for_site(&parts.site);
        let shared = Shared {
            environments: Environments::new(&parts.config.environments),
            stock: Stock::new(&parts.config.resources, parts.config.max_jobs),
            instance: firesteel_node::parts::random(),
            started: SystemTime::now(),
            deploys: Semaphore::new(limits::DEPLOYS),
            asks: Arc::new(Semaphore::new(limits::ASKS)),
            session: watch::Sender::new(None),
            kit: parts.kit,
            config: parts.config,
            site: parts.site,
            workspace: parts.workspace,
            durations: parts.durations,
            net: parts.net,
            console: parts.console,
            logs: parts.logs,
            listener: parts.listener,
            pool: parts.pool,
            stop: parts.stop,
            logger,
            outgoing,
            missed: AtomicBool::new(false),
            jobs: Mutex::default(),
            uplink: Mutex::default(),
            said: Mutex::default(),
        };
        (Self(Arc::new(shared)), queue)
    }

    /// The relay through which the server is reached.
    pub(super) fn uplink(&self) -> Option<Uplink> {
        let uplink = self.uplink.lock();
        uplink.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_uplink(&self, uplink: Option<Uplink>) {
        let mut known = self.uplink.lock().unwrap_or_else(PoisonError::into_inner);
        *known = uplink;
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        // Whole after every change.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up the jobs that an earlier process had.
    pub(super) fn take_up(&self) {
        for (job, place, note) in place::left(&self.workspace) {
            match note {
                Some(note) if note.stage.is_some() => self.resume(&job, note),
                Some(note) => {
                    if let Err(error) = place.tidy() {
                        self.logger.warning(&format!(
                            "the folder of job {job} cannot be tidied: {error}"
                        ));
                    }
                    if !note.logged {
                        job::finish_log(self, &job, &place, note);
                    }
                }
                // It was on its way: the server deploys it anew.
                None => {
                    let _ = place.tidy();
                }
            }
        }
    }

    fn resume(&self, job: &JobId, note: Note) {
        let stage = note.stage.unwrap_or(Stage::Ready);
        let attempt = note.attempt;
        let (commands, received) = mpsc::channel(COMMANDS);
        let held = Held {
            commands,
            stage,
            attempt,
            logs: None,
        };
        self.jobs().insert(job.as_str().to_owned(), held);
        job::resume(self.clone(), job.clone(), note, received);
    }

    /// What the server says of jobs.
    pub(super) fn handle(&self, message: ToNode) {
        match message.body {
            Some(to_node::Body::Deploy(deploy)) => self.deploy(deploy),
            Some(to_node::Body::Start(start)) => self.start(start.job),
            Some(to_node::Body::Stop(stop)) => {
                let command = Command::Stop {
                    reason: stop.reason,
                    forget: stop.forget,
                };
                if !self.command(&stop.job, command) {
                    self.stop_unknown(stop.job, stop.forget);
                }
            }
            Some(to_node::Body::Ask(ask)) => self.ask(ask),
            // A second welcome says nothing new; an empty body is of a newer server.
            _ => {}
        }
    }

    fn start(&self, job: String) {
        if !self.command(&job, Command::Start) {
            self.say(to_server::Body::Ended(Ended {
                job,
                error: "the job was started, but never made ready here".to_owned(),
            }));
        }
    }

    fn deploy(&self, deploy: Deploy) {
        let job = match JobId::new(&deploy.job) {
            Ok(job) => job,
            Err(error) => {
                return self.say(to_server::Body::Declined(Declined {
                    job: deploy.job,
                    attempt: deploy.attempt,
                    code: "bundle".to_owned(),
                    reason: error.to_string(),
                    hint: String::new(),
                }));
            }
        };
        let mut jobs = self.jobs();
        if let Some(held) = jobs.get_mut(job.as_str()) {
            held.attempt = deploy.attempt;
            match held.commands.try_send(Command::Deploy(deploy)) {
                // Its task is at its very end.
                Err(mpsc::error::TrySendError::Closed(Command::Deploy(again))) => {
                    return self.begin(&mut jobs, job, again);
                }
                // A server that deploys a job so often knows why.
                Ok(()) | Err(_) => return,
            }
        }
        self.begin(&mut jobs, job, deploy);
    }

    fn begin(&self, jobs: &mut HashMap<String, Held>, job: JobId, deploy: Deploy) {
        let (commands, received) = mpsc::channel(COMMANDS);
        let held = Held {
            commands,
            stage: Stage::Deploying,
            attempt: deploy.attempt,
            logs: None,
        };
        jobs.insert(job.as_str().to_owned(), held);
        job::begin(self.clone(), job, deploy, received);
    }

    /// Passes a command on; false when there is no such job.
    fn command(&self, job: &str, command: Command) -> bool {
        let jobs = self.jobs();
        let held = jobs.get(job);
        held.is_some_and(|held| {
            use mpsc::error::TrySendError;
            // One that has so much before it has been told the same already.
            !matches!(
                held.commands.try_send(command),
                Err(TrySendError::Closed(_))
            )
        })
    }

    /// Nothing of it runs here: it may have ended before, or never begun.
    fn stop_unknown(&self, job: String, forget: bool) {
        if forget && let Ok(id) = JobId::new(&job) {
            let place = JobPlace::new(&self.workspace, &id);
            if let Err(error) = place.forget() {
                self.logger.warning(&format!(
                    "the folder of job {job} cannot be removed: {error}"
                ));
            }
        }
        self.say(to_server::Body::Ended(Ended {
            job,
            error: String::new(),
        }));
    }

    fn ask(&self, ask: firesteel_wire::node::Ask) {
        let desk = self.clone();
        let room = Arc::clone(&self.asks);
        tokio::spawn(async move {
            let answer = match room.try_acquire_owned() {
                Ok(_permit) => asks::answer(&desk, &ask).await,
                Err(_) => Err(asks::too_many()),
            };
            let (body, error) = match answer {
                Ok(value) => (value.to_string(), false),
                Err(problem) => (asks::written(&problem), true),
            };
            desk.say(to_server::Body::Answer(Answer {
                id: ask.id,
                body: body.into(),
                error,
            }));
        });
    }

    /// Says something to the server, as soon as it is there.
    pub(super) fn say(&self, body: to_server::Body) {
        if matches!(
            body,
            to_server::Body::Ended(_) | to_server::Body::Declined(_)
        ) {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_back((Instant::now(), body.clone()));
            while said.len() > SAID_MOST {
                said.pop_front();
            }
        }
        // Its reader is gone only when the process ends.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outgoing.try_send(body) {
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether something could not be said since this was asked last.
    pub(super) fn missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// What a server that is there anew is told again.
    pub(super) fn again(&self) -> Vec<to_server::Body> {
        let mut again: Vec<to_server::Body> = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.retain(|(at, _)| at.elapsed() < SAID);
            said.iter().map(|(_, body)| body.clone()).collect()
        };
        for (job, held) in self.jobs().iter() {
            let job = job.clone();
            match held.stage {
                Stage::Ready => again.push(to_server::Body::Ready(Ready {
                    job,
                    attempt: held.attempt,
                })),
                Stage::Running => again.push(to_server::Body::Started(Started { job })),
                _ => {}
            }
        }
        again
    }

    /// The jobs in hand, as a hello names them.
    pub(super) fn in_hand(&self) -> Vec<InHand> {
        let jobs = self.jobs();
        jobs.iter()
            .map(|(job, held)| InHand {
                job: job.clone(),
                stage: held.stage.into(),
            })
            .collect()
    }

    /// The names of the jobs in hand.
    pub(super) fn names(&self) -> Vec<String> {
        self.jobs().keys().cloned().collect()
    }

    /// Where a job is, for people.
    pub(super) fn stages(&self) -> Vec<(String, Stage)> {
        let jobs = self.jobs();
        jobs.iter()
            .map(|(job, held)| (job.clone(), held.stage))
            .collect()
    }

    /// A job has come to another stage.
    pub(super) fn at(&self, job: &JobId, stage: Stage) {
        if let Some(held) = self.jobs().get_mut(job.as_str()) {
            held.stage = stage;
        }
    }

    /// The logs of a job whose agent is up.
    pub(super) fn logs_of(&self, job: &str) -> Option<Logs> {
        self.jobs().get(job).and_then(|held| held.logs.clone())
    }

    /// A job's logs are open.
    pub(super) fn keep_logs(&self, job: &JobId, logs: &Logs) {
        if let Some(held) = self.jobs().get_mut(job.as_str()) {
            held.logs = Some(logs.clone());
        }
    }

    /// A job's task is at its end. False when a command for it came meanwhile, which
    /// is to be obeyed first.
    pub(super) fn leave(&self, job: &JobId, commands: &mpsc::Receiver<Command>) -> bool {
        // Commands are sent under the same lock.
        let mut jobs = self.jobs();
        if !commands.is_empty() {
            return false;
        }
        jobs.remove(job.as_str());
        true
    }

    /// Waits until no job is in hand.
    pub(super) async fn emptied(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.jobs().is_empty() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the site has to offer, as JSON.
    pub(super) fn facts(&self) -> bytes::Bytes {
        facts::json(self).to_string().into()
    }
}

/// Between two looks at whether all jobs have ended.
const LOOK: Duration = Duration::from_millis(20);
