//! The agent's loop.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_base::{
    Durations, Failure, FailureCode, Hint, Phase, Round, SiteName, TaskKey, limits,
};
use firesteel_bridge::stream::Streams;
use firesteel_bridge::{
    AttachProfile, BridgeListener, Connection, ModelSource, TrainerMessage, Work, write_profile,
};
use firesteel_carry::filter::{self, Encoding};
use firesteel_carry::{Carrier, Dial, Offer};
use firesteel_codec::{Chain, Kind};
use firesteel_launch::{
    ExternalSpec, Supervisor, TrainerEvent, TrainerSpec, WarmSpec, check_script,
};
use firesteel_net::{LinkError, Reader, Writer};
use firesteel_observe::{Level, Logger};
use firesteel_store::{
    DiskUse, ModelObject, Objects, Outbox, SiteDisk, SiteState, SpaceError, check_disks,
    site_disk_need,
};
use firesteel_wire::PROTOCOL;
use firesteel_wire::bridge::{TaskResult, task_result};
use firesteel_wire::control::{
    Assign, Declined, FailureMessage, Hello, Key, Metric, Object, Stopped, TaskFailed,
    TaskProgress, TaskState, ToServer, ToSite, Update, to_server, to_site,
};
use firesteel_wire::spec::{FilterDirection, Filters, JobSpec, Mode};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::arriving::{Arrival, Arriving};
use crate::held::{self, Held};
use crate::local::Local;
use crate::reach::{Reach, Reached, Reaching};
use crate::shared::SharedSpec;
use crate::slots::{Slot, Slots};
use crate::trainer::{Happened, Trainer};
use crate::verdict::{Stage, judge};
use crate::welcome::{self, Facts};

/// Numbers that trainers logged and that wait for the server; more are dropped.
const UNSAID: usize = 1024;

/// Between asking a trainer to end and ending it, at the most, when its job is
/// aborted: whoever aborts one is told within 10 s that nothing of it is left.
const ABORT_GRACE: Duration = Duration::from_secs(5);

/// How a site's trainers come about.
#[derive(Clone)]
pub enum Launch {
    /// By a supervisor, as the job says.
    Supervised(Supervisor),
    /// By a person, who finds this file.
    Attached(PathBuf),
    /// As this says once the job is known.
    Later(Arc<dyn Launcher>),
}

/// Decides how trainers come about once the job is known.
pub trait Launcher: Send + Sync {
    /// One of the other two ways of [`Launch`], or why there is none.
    fn launch<'a>(&'a self, spec: &'a JobSpec) -> Launching<'a>;
}

/// A decision on its way.
pub type Launching<'a> = Pin<Box<dyn Future<Output = Result<Launch, String>> + Send + 'a>>;

/// What an agent works with.
pub struct AgentParts {
    /// The site it acts for.
    pub site: SiteName,
    /// How its trainers come about.
    pub launch: Launch,
    /// Where they connect.
    pub listener: BridgeListener,
    /// The workers of this machine.
    pub slots: Slots,
    /// A trainer for each task, not for the whole job: there are more sites than
    /// workers.
    pub per_task: bool,
    /// The models in flight on this machine.
    pub objects: Objects,
    /// Where its trainers offer and fetch; `None`: they cannot.
    pub streams: Option<Arc<dyn Streams>>,
    /// The site's own filters, beside those of the job.
    pub filters: Filters,
    /// How they come and go.
    pub carrier: Arc<dyn Carrier>,
    /// A random number by which the server knows this process again when it
    /// connects anew; zero when it will not.
    pub instance: u64,
    /// Becomes a reason when the site is to leave the job.
    pub stop: Option<watch::Receiver<Option<String>>>,
    /// Where results are kept until their round is committed, for the next process
    /// of this site; none where there will be none.
    pub kept: Option<PathBuf>,
    /// Where its trainers leave their results.
    pub outbox: PathBuf,
    /// Opened when first used: a site without state has no folder for it.
    pub state_dir: PathBuf,
    /// The directory its trainers run in.
    pub cwd: PathBuf,
    /// What the site has of its own for the job.
    pub local: Local,
    /// Who writes the logs.
    pub logger: Logger,
    /// How long things may take.
    pub durations: Durations,
}

/// Why an agent could not do its work. What happens to a trainer is told to the
/// server instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The connection to the server.
    #[error("the connection to the server failed")]
    Link(#[from] LinkError),
    /// No connection could be made.
    #[error("the server could not be reached")]
    Dial(#[source] std::io::Error),
    /// The server was gone for too long.
    #[error("the server was not reached for {lease:?}")]
    Lease {
        /// How long it was tried.
        lease: Duration,
        /// The last problem.
        #[source]
        source: Box<AgentError>,
    },
    /// The server said no.
    #[error("the server refused this site: {0}")]
    Refused(String),
    /// The server has no use for this site: the job ended first.
    #[error("the server closed the connection before it gave the job")]
    Closed,
    /// The server did not keep to the protocol.
    #[error("the server sent {0}")]
    Protocol(&'static str),
    /// This site has no room for the job.
    #[error("the job was declined: {0}")]
    Declined(String),
    /// No trainer can be started here.
    #[error("trainers cannot be started: {0}")]
    Launch(String),
    /// The job spec is not one.
    #[error("the server sent a job that cannot be read")]
    Spec(#[from] firesteel_wire::spec::SpecError),
}

/// A site's agent, for one job.
pub struct Agent {
    pub(crate) parts: AgentParts,
    /// None while there is no connection.
    writer: Option<Writer>,
    epoch: u64,
    /// The filters of updates on their way out.
    pub(crate) out: Chain,
    job: String,
    pub(crate) spec: SharedSpec,
    seed: u64,
    pub(crate) task: Option<Task>,
    trainer: Option<Trainer>,
    slot: Option<Slot>,
    /// Results, held until their rounds are committed.
    held: Held,
    /// The last task that ended without a result, and how, to be told again.
    failed: Option<TaskFailed>,
    /// Told when the server is there again.
    unsaid: VecDeque<to_server::Body>,
    ending: Option<Ending>,
    /// Why no trainer can attach itself.
    unattachable: Option<Failure>,
    script: String,
    forced: u32,
}

/// The task in hand.
pub(crate) struct Task {
    pub(crate) key: TaskKey,
    pub(crate) assign: Assign,
    /// Its model, when it is none of the message's: held from here on, for it may
    /// wait longer for a worker than the server keeps it.
    pub(crate) model: Option<ModelObject>,
    /// It is on its way.
    pub(crate) arriving: Option<Arriving>,
    state: TaskState,
    pub(crate) delivered: Option<Instant>,
}

/// The job's end.
struct Ending {
    reason: String,
}

impl Agent {
    /// Acts for a site until the job ends or the server is gone; whichever comes,
    /// no trainer of it is left.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn run(parts: AgentParts, dial: Box<dyn Dial>) -> Result<(), AgentError> {
        let mut reach = Reach {
            dial,
            connect: parts.durations.connect,
            lease: parts.durations.lease,
            logger: parts.logger.for_site(&parts.site),
        };
        let mut held = Held::new(parts.kept.clone(), reach.logger.clone());
        let epoch = held.restore(&parts.objects);
        let hello = hello(&parts, epoch, held::keys(held.all()).collect());
        let mut reached = reach.reach(&hello).await?;
        let (mut parts, mut known) = (parts, epoch);
        loop {
            let anew = reached.epoch == 0 || reached.epoch != known;
            if anew {
                // What was done for another server process does not count for this one.
                held.begin(reached.epoch);
            }
            let mut spec = SharedSpec::parse(&reached.start.spec)?;
            if let Some(code) = &parts.local.code {
                spec = spec.rooted(code);
            }
            if let Some(start) = spec.trainer.start_s {
                parts.durations.trainer_start = seconds(start);
            }
            if let Some(grace) = spec.trainer.stop_grace_s {
                parts.durations.stop_grace = seconds(grace);
            }
            if let Launch::Later(later) = &parts.launch
                && spec.trainer.mode != Mode::Noop
            {
                let later = Arc::clone(later);
                parts.launch = later.launch(&spec).await.map_err(AgentError::Launch)?;
            }
            let logger = parts
                .logger
                .for_job(&reached.start.job)
                .for_site(&parts.site);
            parts = AgentParts { logger, ..parts };
            let Reached {
                reader,
                writer,
                way,
                start,
                epoch,
            } = reached;
            parts.carrier.connected(way);
            let out = spec
                .filters
                .chain(FilterDirection::Result, &parts.site)
                .then(&parts.filters.chain(FilterDirection::Result, &parts.site));
            let mut agent = Self {
                out,
                script: spec.script_at(parts.site.as_str()).to_owned(),
                parts,
                writer: Some(writer),
                epoch,
                job: start.job,
                seed: start.seed,
                spec,
                task: None,
                trainer: None,
                slot: None,
                held,
                failed: None,
                unsaid: VecDeque::new(),
                ending: None,
                unattachable: None,
                forced: 0,
            };
            // Where models are shared, the server has seen to it.
            if anew
                && agent.parts.instance != 0
                && let Err(error) = agent.check_disk(start.model_length)
            {
                let mut failure =
                    Failure::new(FailureCode::DiskFull, Phase::Start, sentence(&error));
                failure.hint = error.hint().unwrap_or_default();
                agent.parts.logger.error(&told(&failure));
                let declined = Declined {
                    failure: Some(FailureMessage::from(&failure)),
                };
                agent.say(to_server::Body::Declined(declined)).await?;
                if let Some(writer) = &mut agent.writer {
                    writer.close().await?;
                }
                return Err(AgentError::Declined(failure.message));
            }
            if anew {
                agent.roll_back(start.resume_round.map(Round));
            }
            // What an earlier process left there.
            agent.clear_outbox();
            let result = agent.serve(reader, reach).await;
            // Whatever happened, the trainer goes before the agent does.
            if let Some(trainer) = &mut agent.trainer {
                trainer.stop(Duration::ZERO).await;
            }
            // A file that was lent for a result that never came, say.
            agent.clear_outbox();
            match result? {
                None => return Ok(()),
                Some((again, other)) => {
                    known = agent.epoch;
                    (reach, reached) = (again, other);
                    (parts, held) = (agent.parts, agent.held);
                }
            }
        }
    }

    /// Whether the disk has room for what the job will add to it here.
    fn check_disk(&self, model_len: u64) -> Result<(), SpaceError> {
        let filtered = if self.out.is_empty() { 0 } else { model_len };
        let need = site_disk_need(&SiteDisk {
            model_len,
            update_len: model_len,
            filtered_len: filtered,
            site_state_len: 0,
        });
        check_disks(&[DiskUse {
            dir: self.parts.objects.dir(),
            what: "the site's directory",
            needed: need.required,
        }])
    }

    /// Serves until the job's end, or until another server process drives the job.
    async fn serve(
        &mut self,
        reader: Reader,
        reach: Reach,
    ) -> Result<Option<(Reach, Reached)>, AgentError> {
        if let Launch::Attached(path) = &self.parts.launch
            && !self.is_noop()
        {
            let path = path.clone();
            self.expect_attached(&path);
        }
        let mut reader = Some(reader);
        let mut reach = Some(reach);
        let mut reaching: Option<Reaching> = None;
        self.again().await?;
        loop {
            // A trainer that logs without end must not keep the thread from its
            // timers and from the other sites of a simulation.
            tokio::task::coop::consume_budget().await;
            self.deliver().await?;
            if self.ending.is_some() && self.trainer.is_none() {
                let stopped = to_server::Body::Stopped(Stopped {
                    forced: self.forced,
                });
                self.say(stopped).await?;
                if let Some(writer) = &mut self.writer {
                    writer.close().await?;
                }
                return Ok(None);
            }
            if self.writer.is_none()
                && self.ending.is_none()
                && let Some(reach) = reach.take()
            {
                reader = None;
                let mut holds: Vec<Key> = held::keys(self.held.all()).collect();
                holds.extend(self.task.as_ref().map(|task| Key::from(&task.key)));
                let hello = hello(&self.parts, self.epoch, holds);
                reaching = Some(Reaching::start(reach, hello));
            }
            let wants_slot = self.slot.is_none()
                && self.trainer.is_none()
                && self.task.is_some()
                && !self.is_noop()
                && matches!(self.parts.launch, Launch::Supervised(_));
            let limit = self.trainer.as_ref().and_then(|trainer| trainer.limit);
            let slots = self.parts.slots.clone();
            tokio::select! {
                message = next_message(&mut reader), if reader.is_some() => match message {
                    Ok(Some(message)) => self.on_server(message).await?,
                    // It has said all it had to; the trainer may still be at its end.
                    Ok(None) if self.ending.is_some() => reader = None,
                    Ok(None) if self.parts.instance == 0 => {
                        let why = "the server closed the connection before the job's end";
                        self.parts.logger.warning(why);
                        return Ok(None);
                    }
                    Err(error) if self.parts.instance == 0 => return Err(error.into()),
                    Ok(None) => self.cut_off("the server closed the connection"),
                    Err(error) => self.cut_off(&sentence(&error)),
                },
                reached = ended(&mut reaching), if reaching.is_some() => {
                    reaching = None;
                    let (with, reached) = reached?;
                    if reached.epoch != self.epoch {
                        return Ok(Some((with, reached)));
                    }
                    reach = Some(with);
                    self.parts.carrier.connected(reached.way);
                    self.writer = Some(reached.writer);
                    reader = Some(reached.reader);
                    self.parts.logger.info("connected to the server again");
                    self.again().await?;
                }
                reason = stopped(&mut self.parts.stop), if self.ending.is_none() => {
                    // The server is told, and need not wait for this site.
                    self.on_end(reason, true).await?;
                }
                arrival = next_arrival(&mut self.task) => self.on_arrival(arrival).await?,
                happened = next_of(&mut self.trainer) => self.on_trainer(happened).await?,
                slot = slots.acquire(), if wants_slot => {
                    self.slot = Some(slot);
                    self.start_trainer().await?;
                }
                () = until(limit), if limit.is_some() => self.on_limit().await?,
            }
        }
    }

    /// The connection is lost: work goes on, and the server is dialed anew.
    fn cut_off(&mut self, why: &str) {
        if self.writer.take().is_some() && self.ending.is_none() {
            self.parts.logger.warning(&format!(
                "the connection to the server was lost ({why}); work goes on and it is dialed again"
            ));
        }
    }

    /// Tells a server that is there again what it may have missed.
    async fn again(&mut self) -> Result<(), AgentError> {
        let mut updates = Vec::new();
        for held in self.held.all() {
            if let Some(object) = &held.object {
                self.parts.carrier.offer(offer_of(&held.key), object);
            }
            updates.push(held.update.clone());
        }
        for update in updates {
            self.say(to_server::Body::Update(update)).await?;
        }
        if let Some(failed) = self.failed.clone() {
            self.say(to_server::Body::TaskFailed(failed)).await?;
        }
        for body in std::mem::take(&mut self.unsaid) {
            self.say(body).await?;
        }
        if let Some(task) = &self.task {
            let (key, state) = (Key::from(&task.key), task.state);
            self.say(to_server::Body::TaskAccepted(key)).await?;
            self.progress(state).await?;
        }
        Ok(())
    }

    /// Says something. Without a connection, what is state is told by
    /// [`Agent::again`], and what trainers logged waits for it.
    pub(crate) async fn say(&mut self, body: to_server::Body) -> Result<(), AgentError> {
        let Some(writer) = &mut self.writer else {
            if matches!(body, to_server::Body::Metric(_)) && self.unsaid.len() < UNSAID {
                self.unsaid.push_back(body);
            }
            return Ok(());
        };
        let message = ToServer { body: Some(body) };
        match writer.send(&message).await {
            Ok(()) => Ok(()),
            Err(error @ LinkError::Frame(_)) => Err(error.into()),
            Err(error) if self.parts.instance == 0 => Err(error.into()),
            Err(error) => {
                self.cut_off(&sentence(&error));
                if let Some(body @ to_server::Body::Metric(_)) = message.body {
                    self.unsaid.push_back(body);
                }
                Ok(())
            }
        }
    }

    // ----- what the server says -------------------------------------------

    async fn on_server(&mut self, message: ToSite) -> Result<(), AgentError> {
        match message.body {
            Some(to_site::Body::Assign(assign)) => self.on_assign(assign).await,
            Some(to_site::Body::Cancel(cancel)) => {
                let ours = self
                    .task
                    .as_ref()
                    .is_some_and(|task| cancel.key.as_ref() == Some(&Key::from(&task.key)));
                if ours {
                    self.drop_task(&cancel.reason).await;
                }
                Ok(())
            }
            Some(to_site::Body::RoundCommitted(committed)) => {
                for done in self.held.committed(Round(committed.round)) {
                    self.parts.carrier.withdraw(offer_of(&done.key));
                }
                self.parts.carrier.tidy();
                Ok(())
            }
            Some(to_site::Body::EndJob(end)) => self.on_end(end.reason, end.abort).await,
            // A second welcome says nothing new; an empty body is of a newer server.
            _ => Ok(()),
        }
    }

    async fn on_assign(&mut self, assign: Assign) -> Result<(), AgentError> {
        let Some(Ok(key)) = assign.key.as_ref().map(TaskKey::try_from) else {
            return Err(AgentError::Protocol("a task without a key"));
        };
        if self.task.as_ref().is_some_and(|task| task.key == key) {
            return Ok(()); // told twice
        }
        // It was asked while the server could not be told that it is done.
        if let Some(held) = self.held.get(&key) {
            let update = held.update.clone();
            return self.say(to_server::Body::Update(update)).await;
        }
        let failed = self.failed.take_if(|failed| failed.key == assign.key);
        if let Some(failed) = failed {
            return self.say(to_server::Body::TaskFailed(failed)).await;
        }
        self.failed = None;
        if self.task.is_some() {
            self.drop_task("a newer task has come").await;
        }
        let stored = assign.model.as_ref().filter(|model| model.inline.is_none());
        let model = stored.and_then(|model| self.parts.carrier.here(model));
        let encoded = !self
            .spec
            .filters
            .chain(FilterDirection::TaskData, &self.parts.site)
            .is_empty();
        let arriving = assign
            .model
            .as_ref()
            .filter(|_| encoded || (stored.is_some() && model.is_none()))
            .map(|named| {
                let objects = encoded.then(|| self.parts.objects.clone());
                Arriving::start(&*self.parts.carrier, named.clone(), objects)
            });
        // Acknowledged before its model has been looked at.
        self.say(to_server::Body::TaskAccepted(Key::from(&key)))
            .await?;
        self.task = Some(Task {
            key,
            assign,
            model,
            arriving,
            state: TaskState::Queued,
            delivered: None,
        });
        if let Some(failure) = self.unattachable.clone() {
            return self.fail(failure).await;
        }
        self.progress(TaskState::Queued).await
    }

    /// The task's model has come further.
    async fn on_arrival(&mut self, arrival: Arrival) -> Result<(), AgentError> {
        let Some(task) = &mut self.task else {
            return Ok(());
        };
        match arrival {
            Arrival::Further => {
                let state = task.state;
                self.progress(state).await
            }
            Arrival::Ended(Ok(model)) => {
                if let Some(arrived) = task.arriving.take() {
                    // What is left of fetches of earlier models will not be gone on with.
                    self.parts.carrier.tidy();
                    let seconds = arrived.started.elapsed().as_secs_f64();
                    let (bytes, travelled) = (model.len(), arrived.progress.travelled());
                    let rate = travelled as f64 / 1e6 / seconds.max(1e-6);
                    self.parts.logger.for_round(task.key.round).debug(&format!(
                        "model of {bytes} bytes received in {seconds:.3} s: {travelled} bytes travelled, {rate:.1} MB/s"
                    ));
                }
                let state = task.state;
                task.model = Some(model);
                self.progress(state).await
            }
            Arrival::Ended(Err(why)) => {
                task.arriving = None;
                let message = format!("the round's model could not be fetched: {why}");
                let failure = Failure::new(FailureCode::Malformed, Phase::Start, message);
                self.fail(failure).await
            }
        }
    }

    /// Gives up the task in hand. A trainer that works on it cannot be asked to
    /// leave off: it is ended, and the next task starts another.
    async fn drop_task(&mut self, reason: &str) {
        let Some(task) = self.task.take() else { return };
        self.parts
            .logger
            .for_round(task.key.round)
            .info(&format!("task dropped: {reason}"));
        if task.delivered.is_some()
            && let Some(trainer) = &mut self.trainer
            && trainer.process.is_some()
        {
            trainer.stop(self.parts.durations.stop_grace).await;
        }
    }

    async fn on_end(&mut self, reason: String, abort: bool) -> Result<(), AgentError> {
        let mut grace = self.parts.durations.stop_grace;
        if abort {
            grace = grace.min(ABORT_GRACE);
        }
        let working = self
            .task
            .take()
            .is_some_and(|task| task.delivered.is_some());
        self.slot = None;
        self.ending = Some(Ending { reason });
        let Some(trainer) = &mut self.trainer else {
            return Ok(());
        };
        if trainer.process.is_none() {
            // Somebody else's process: it is told, and left to itself.
            self.dismiss().await;
            self.trainer = None;
        } else if !trainer.met {
            // It has not even connected; nothing of it is worth waiting for.
            self.forced += 1;
            trainer.stop(Duration::ZERO).await;
        } else if abort || working {
            self.dismiss().await;
            if let Some(trainer) = &mut self.trainer {
                trainer.stop(grace).await;
            }
        } else if trainer.exit.is_none() {
            self.let_go().await;
        }
        Ok(())
    }

    // ----- trainers -------------------------------------------------------

    async fn start_trainer(&mut self) -> Result<(), AgentError> {
        let Launch::Supervised(supervisor) = self.parts.launch.clone() else {
            return Ok(());
        };
        // Whatever goes wrong, the worker is given back.
        let slot = self.slot.take();
        let Some(task) = &self.task else {
            return Ok(());
        };
        let round = task.key.round;
        if let Err(failure) = check_script(Path::new(&self.script)) {
            return self.fail(failure).await;
        }
        let expected = match self.parts.listener.expect_with(self.parts.streams.clone()) {
            Ok(expected) => expected,
            Err(error) => {
                let failure = Failure::new(
                    FailureCode::Internal,
                    Phase::Start,
                    format!("no token could be made: {error}"),
                );
                return self.fail(failure).await;
            }
        };
        if let Err(error) = std::fs::create_dir_all(&self.parts.outbox) {
            let message = format!(
                "could not create `{}`: {error}",
                self.parts.outbox.display()
            );
            return self
                .fail(Failure::new(FailureCode::DiskFull, Phase::Start, message))
                .await;
        }
        let spec = self.trainer_spec(round, expected.token(), slot.as_ref().and_then(Slot::gpus));
        match supervisor.spawn(spec).await {
            Ok(process) => {
                let start = self.parts.durations.trainer_start;
                self.trainer = Some(Trainer::new(Some(process), expected, slot, Some(start)));
                self.progress(TaskState::Starting).await
            }
            Err(error) => {
                let mut failure =
                    Failure::new(FailureCode::SpawnFailed, Phase::Start, sentence(&error));
                failure.hint = error.hint().unwrap_or_default();
                self.fail(failure).await
            }
        }
    }

    fn trainer_spec(&self, round: Round, token: &str, gpus: Option<&str>) -> TrainerSpec {
        let settings = self.spec.settings(&self.parts.site);
        let mut env = self.spec.trainer.env.clone();
        env.extend(settings.env);
        env.extend(self.parts.local.env.clone());
        if let Some(gpus) = gpus {
            env.insert("CUDA_VISIBLE_DEVICES".into(), gpus.to_owned());
        }
        let socket = self.parts.listener.path().to_string_lossy().into_owned();
        env.insert("FIRESTEEL_BRIDGE".into(), socket);
        env.insert("FIRESTEEL_TOKEN".into(), token.to_owned());
        let cwd = self.parts.cwd.clone();
        let args = welcome::args(&self.spec, &self.parts.site);
        match self.spec.trainer.mode {
            Mode::External => {
                let command = settings
                    .command
                    .unwrap_or_else(|| self.spec.trainer.command.clone());
                let mut argv = self.parts.local.command(command);
                argv.push(self.script.clone());
                argv.extend(args);
                TrainerSpec::External(ExternalSpec {
                    argv,
                    cwd,
                    env,
                    terminal: None,
                })
            }
            _ => TrainerSpec::Warm(WarmSpec {
                script: PathBuf::from(&self.script),
                args,
                cwd,
                env,
                seed: Some(format!("{}/{}/{}", self.seed, self.parts.site, round.0)),
            }),
        }
    }

    fn expect_attached(&mut self, path: &Path) {
        let failed =
            |problem: String| Failure::new(FailureCode::SpawnFailed, Phase::Start, problem);
        let written = match self.parts.listener.expect_with(self.parts.streams.clone()) {
            Err(error) => Err(failed(format!("no token could be made: {error}"))),
            Ok(expected) => {
                let profile = AttachProfile {
                    schema_version: AttachProfile::SCHEMA_VERSION,
                    execution_mode: "attach".to_owned(),
                    socket: self.parts.listener.path().to_string_lossy().into_owned(),
                    token: expected.token().to_owned(),
                    site: self.parts.site.as_str().to_owned(),
                    job: self.job.clone(),
                };
                let _ = std::fs::create_dir_all(&self.parts.outbox);
                write_profile(path, &profile)
                    .map(|()| expected)
                    .map_err(|error| failed(sentence(&error)))
            }
        };
        match written {
            Ok(expected) => {
                self.trainer = Some(Trainer::new(None, expected, None, None));
                self.parts.logger.info(&format!(
                    "waiting for a trainer to attach itself with {}",
                    path.display()
                ));
            }
            // Its tasks fail with that: the server is to know why.
            Err(failure) => self.unattachable = Some(failure),
        }
    }

    async fn on_trainer(&mut self, happened: Happened) -> Result<(), AgentError> {
        match happened {
            Happened::Connected(connection) => self.on_connected(*connection).await?,
            Happened::Said(said) => self.on_said(said).await?,
            Happened::Hung(error) => self.on_hung(error).await?,
            Happened::Process(event) => self.on_process(event).await?,
        }
        if self.trainer.as_ref().is_some_and(Trainer::is_gone) {
            self.on_gone().await?;
        }
        Ok(())
    }

    async fn on_connected(&mut self, mut connection: Connection) -> Result<(), AgentError> {
        if connection.copies() {
            self.parts.logger.info(
                "no descriptor can be passed to this trainer: models are copied through its socket",
            );
        }
        let state = self.state_file();
        let facts = Facts {
            job: &self.job,
            site: &self.parts.site,
            outbox: &self.parts.outbox,
            data: self.parts.local.data.as_ref(),
            streams: self.parts.streams.is_some(),
            state_file: state.as_deref(),
            seed: self.spec.seed.map(|_| self.seed),
        };
        let welcomed = connection.welcome(&welcome::json(&self.spec, &facts)).await;
        if let Some(trainer) = &mut self.trainer {
            trainer.limit = None;
            trainer.connect(connection);
        }
        match welcomed {
            Ok(()) => Ok(()),
            Err(error) => self.on_hung(Some(error)).await,
        }
    }

    async fn on_said(&mut self, said: TrainerMessage) -> Result<(), AgentError> {
        match said {
            TrainerMessage::Next => {
                let working = self.working();
                let Some(trainer) = &mut self.trainer else {
                    return Ok(());
                };
                trainer.asks = true;
                if working && trainer.holds {
                    // Both would wait for each other.
                    let failure = Failure::new(
                        FailureCode::Misuse,
                        Phase::Train,
                        "the training script asked for another task without a result for the one it had",
                    )
                    .with_hint("call flare.send() for every model that flare.receive() returns");
                    return self.fail(failure).await;
                }
                Ok(())
            }
            TrainerMessage::Result(result) => self.on_result(result).await,
            TrainerMessage::Log(log) => {
                let level = level_of(log.level);
                let logger = self.parts.logger.named(&log.logger);
                if log.dropped > 0 {
                    logger.warning(&format!("{} lines of log were dropped here", log.dropped));
                }
                logger.log(level, &log.message, &[]);
                Ok(())
            }
            TrainerMessage::Metric(metric) => {
                self.say(to_server::Body::Metric(Metric { event: metric.json }))
                    .await
            }
            TrainerMessage::Failed(failed) => {
                let grace = self.parts.durations.stop_grace;
                if let Some(trainer) = &mut self.trainer {
                    trainer.crash = Some(failed);
                    // A person's process need not end with its script.
                    if trainer.process.is_none() {
                        trainer.hang_up();
                    } else {
                        // Ours does, unless a thread of it goes on.
                        trainer.limit.get_or_insert(Instant::now() + grace);
                    }
                }
                Ok(())
            }
            TrainerMessage::Bye => self.on_hung(None).await,
            _ => Ok(()),
        }
    }

    async fn on_hung(
        &mut self,
        error: Option<firesteel_bridge::ConnectionError>,
    ) -> Result<(), AgentError> {
        if let Some(error) = error {
            self.parts.logger.debug(&format!(
                "the trainer's connection ended: {}",
                sentence(&error)
            ));
        }
        let grace = self.parts.durations.stop_grace;
        let working = self.working();
        if let Some(trainer) = &mut self.trainer {
            trainer.hang_up();
            // Its process usually ends at once; one that goes on without a
            // connection will never answer.
            if trainer.process.is_some()
                && trainer.exit.is_none()
                && trainer.limit.is_none()
                && working
            {
                trainer.limit = Some(Instant::now() + grace);
            }
        }
        Ok(())
    }

    async fn on_process(&mut self, event: TrainerEvent) -> Result<(), AgentError> {
        match event {
            TrainerEvent::Started { pid } => {
                self.parts
                    .logger
                    .debug(&format!("trainer started as process {pid}"));
                Ok(())
            }
            TrainerEvent::Output(lines) => {
                let logger = self.parts.logger.named(&self.custom_logger());
                lines.iter().for_each(|line| logger.info(&line.text));
                Ok(())
            }
            TrainerEvent::Exited(report) => {
                let drain = self.parts.durations.drain;
                if let Some(trainer) = &mut self.trainer {
                    trainer.exit = Some(report);
                    // What it had sent is still in the socket and is read first;
                    // a grandchild that keeps it open is not waited for long.
                    trainer.limit = Some(Instant::now() + drain);
                }
                Ok(())
            }
            TrainerEvent::SpawnFailed(failure) => {
                // One that was being stopped was started for an earlier task.
                let stopping = self.trainer.take().is_some_and(|trainer| trainer.stopping);
                if stopping {
                    Ok(())
                } else {
                    self.fail(failure).await
                }
            }
            _ => Ok(()),
        }
    }

    /// Its process has ended and everything it said has been heard.
    async fn on_gone(&mut self) -> Result<(), AgentError> {
        let working = self.working();
        let Some(trainer) = self.trainer.take() else {
            return Ok(());
        };
        let attached = trainer.process.is_none();
        let unhappy =
            trainer.exit.as_ref().is_some_and(|exit| !exit.success()) || trainer.crash.is_some();
        let waits = self.task.is_some() && (working || !trainer.met || trainer.served == 0);
        if waits && !trainer.stopping {
            let failure = judge(
                trainer.stage(working),
                trainer.crash.as_ref(),
                trainer.exit.as_ref(),
            );
            self.fail(failure).await?;
        } else if unhappy && !trainer.stopping {
            // Between two tasks, or after the last: worth knowing, no task's fault.
            let failure = judge(
                Stage::Connected,
                trainer.crash.as_ref(),
                trainer.exit.as_ref(),
            );
            let told = told(&failure);
            let when = if trainer.served == 0 {
                "without a task"
            } else {
                "after its result was taken"
            };
            self.parts
                .logger
                .warning(&format!("the training script ended badly {when}: {told}"));
        }
        if !attached && (unhappy || waits || trainer.stopping) {
            self.clear_outbox();
        }
        drop(trainer);
        if attached
            && self.ending.is_none()
            && let Launch::Attached(path) = &self.parts.launch
        {
            let path = path.clone();
            self.expect_attached(&path);
        }
        Ok(())
    }

    async fn on_limit(&mut self) -> Result<(), AgentError> {
        let start = self.parts.durations.trainer_start;
        let grace = self.parts.durations.stop_grace;
        let working = self.working();
        let Some(trainer) = &mut self.trainer else {
            return Ok(());
        };
        trainer.limit = None;
        if trainer.exit.is_some() {
            trainer.hang_up();
            return self.on_gone().await;
        }
        if !trainer.met && self.ending.is_none() {
            trainer.stop(grace).await;
            let failure = Failure::new(
                FailureCode::NeverStarted,
                Phase::Start,
                format!("nothing was heard from the trainer within {} s of its start (trainer-start)", start.as_secs_f64()),
            )
            .with_hint("the training script must call flare.init(); if its imports take longer, raise SimEnv(durations={\"trainer_start\": …})");
            return self.fail(failure).await;
        }
        if working && let Some(crash) = trainer.crash.clone() {
            // It said so, and its process did not end.
            trainer.stop(Duration::ZERO).await;
            return self.fail(judge(Stage::Working, Some(&crash), None)).await;
        }
        if trainer.is_connected() || !working {
            self.forced += 1;
            let had = if self.task.is_some() {
                "closed its connection"
            } else {
                "had no more to do"
            };
            let why = format!(
                "the training script was still running {} s after it {had}; it was ended",
                grace.as_secs_f64()
            );
            self.parts.logger.warning(&why);
            if let Some(trainer) = &mut self.trainer {
                trainer.stop(Duration::ZERO).await;
            }
            return Ok(());
        }
        trainer.stop(grace).await;
        let failure = Failure::new(
            FailureCode::Misuse,
            Phase::Train,
            "the training script closed its connection and went on without sending its result",
        )
        .with_hint("call flare.send() for every model that flare.receive() returns, and flare.shutdown() only at the end");
        self.fail(failure).await
    }

    fn working(&self) -> bool {
        self.task
            .as_ref()
            .is_some_and(|task| task.delivered.is_some())
    }

    // ----- tasks ----------------------------------------------------------

    /// Hands the task to the trainer when both are there.
    async fn deliver(&mut self) -> Result<(), AgentError> {
        if self.is_noop() {
            return self.answer_at_once().await;
        }
        let per_task = self.parts.per_task || !self.spec.trainer.launch_once;
        let grace = self.parts.durations.stop_grace;
        let Some(trainer) = &mut self.trainer else {
            return Ok(());
        };
        if trainer.has_left() && self.task.is_some() {
            // It may come back, or end; else it makes room for another.
            trainer.limit = Some(Instant::now() + grace);
        }
        if !trainer.asks || trainer.stopping || trainer.dismissed {
            return Ok(());
        }
        // One that has no task, since it was given up meanwhile, must not keep a
        // worker from others.
        let idle = trainer.served > 0 || self.task.is_none();
        let spent = per_task && idle && trainer.process.is_some();
        if self.ending.is_some() || spent {
            self.let_go().await;
            return Ok(());
        }
        // A trainer that lost its connection and came back is given its task again.
        let held = trainer.holds;
        let Some(task) = self
            .task
            .as_mut()
            .filter(|task| task.arriving.is_none() && (task.delivered.is_none() || !held))
        else {
            return Ok(());
        };
        let model = match source(task.model.as_ref(), task.assign.model.as_ref()) {
            Ok(model) => model,
            Err(failure) => {
                self.fail(failure).await?;
                if per_task {
                    self.let_go().await;
                }
                return Ok(());
            }
        };
        if let Some(object) = &task.assign.model
            && let Ok(outbox) = Outbox::create(&self.parts.outbox)
        {
            // The result will be about as long as the model.
            self.parts.objects.lend(&outbox, object.length);
        }
        let work = Work {
            name: task.assign.task.clone(),
            round: task.key.round,
            attempt: task.key.attempt,
            start_round: Round(task.assign.start_round),
            total_rounds: task.assign.total_rounds,
            meta: task.assign.meta.clone(),
            model,
        };
        task.delivered = Some(Instant::now());
        trainer.asks = false;
        trainer.holds = true;
        let limit = self.parts.durations.connect;
        let sent = match &mut trainer.sender {
            Some(sender) => tokio::time::timeout(limit, sender.send_task(work)).await,
            None => return Ok(()),
        };
        match sent {
            Ok(Ok(())) => self.progress(TaskState::Training).await,
            Ok(Err(error)) => self.on_hung(Some(error)).await,
            // It asked and does not read: as good as gone.
            Err(_) => self.on_hung(None).await,
        }
    }

    /// Dismisses the trainer, which has nothing in hand, and gives it until
    /// stop-grace to end.
    async fn let_go(&mut self) {
        self.dismiss().await;
        let grace = self.parts.durations.stop_grace;
        if let Some(trainer) = &mut self.trainer
            && trainer.process.is_some()
        {
            trainer.limit = Some(Instant::now() + grace);
            if let Some(slot) = &mut trainer.slot {
                slot.leave();
            }
        }
    }

    /// Tells the trainer that no further task comes.
    async fn dismiss(&mut self) {
        let reason = self
            .ending
            .as_ref()
            .map_or("this trainer's task is done", |ending| &ending.reason);
        let limit = self.parts.durations.connect;
        if let Some(trainer) = &mut self.trainer
            && !trainer.dismissed
        {
            trainer.dismissed = true;
            if let Some(sender) = &mut trainer.sender {
                // One that does not listen is ended by its limit.
                let _ = tokio::time::timeout(limit, sender.end(reason)).await;
            }
        }
    }

    async fn on_result(&mut self, result: TaskResult) -> Result<(), AgentError> {
        let matches = self.task.as_ref().is_some_and(|task| {
            task.delivered.is_some()
                && task.key.round.0 == result.key.round
                && task.key.attempt.0 == result.key.attempt
                && task.assign.task == result.key.name
        });
        if !matches {
            // Its task was given up meanwhile; the script goes on with the next.
            if let Some(task_result::Model::File(name)) = &result.model {
                // Taken, so that the file goes.
                let _ = self.adopt(name);
            }
            if let Some(trainer) = &mut self.trainer {
                trainer.served += 1;
                if let Some(sender) = &mut trainer.sender {
                    let _ = sender.accept().await;
                }
            }
            self.parts
                .logger
                .info("a result came for a task that is no longer wanted; it was dropped");
            return Ok(());
        }
        self.progress(TaskState::Sending).await?;
        let update = match self.update_of(result).await {
            Ok(update) => update,
            Err(failure) => return self.refuse(failure).await,
        };
        let (update, object) = update;
        let key = update.key.clone();
        match self.say(to_server::Body::Update(update.clone())).await {
            // Metrics and meta that fit the trainer's message need not fit ours.
            Err(AgentError::Link(LinkError::Frame(error))) => {
                let failure = Failure::new(
                    FailureCode::Malformed,
                    Phase::Send,
                    format!("the result's metrics and meta do not fit a message: {error}"),
                )
                .with_hint("send fewer metrics, or shorter names");
                return self.refuse(failure).await;
            }
            said => said?,
        }
        if let Some(task) = self.task.take_if(|task| key == Some(Key::from(&task.key))) {
            let key = task.key;
            self.hold(key, update, object);
        }
        if let Some(trainer) = &mut self.trainer {
            trainer.served += 1;
            if let Some(sender) = &mut trainer.sender
                && let Err(error) = sender.accept().await
            {
                return self.on_hung(Some(error)).await;
            }
        }
        Ok(())
    }

    /// Holds a result until its round is committed.
    pub(crate) fn hold(&mut self, key: TaskKey, update: Update, object: Option<ModelObject>) {
        if self.parts.instance == 0 {
            // Nobody will ask again: the params alone are kept for the server, and
            // those of one round at a time.
            self.held.clear();
            if object.is_none() {
                return;
            }
        }
        self.held.add(held::Result {
            key,
            update,
            object,
        });
    }

    /// Tells the trainer that its result is of no use, and fails the task.
    async fn refuse(&mut self, failure: Failure) -> Result<(), AgentError> {
        if let Some(trainer) = &mut self.trainer {
            trainer.served += 1;
            if let Some(sender) = &mut trainer.sender {
                let _ = sender.refuse(&failure).await;
            }
        }
        self.fail(failure).await
    }

    /// Takes a file out of the outbox.
    fn adopt(&self, name: &str) -> Result<ModelObject, firesteel_store::ObjectError> {
        let outbox = Outbox::create(&self.parts.outbox)?;
        self.parts.objects.adopt(&outbox, name)
    }

    async fn update_of(
        &mut self,
        result: TaskResult,
    ) -> Result<(Update, Option<ModelObject>), Failure> {
        let Some(task) = &self.task else {
            return Err(Failure::new(
                FailureCode::Internal,
                Phase::Send,
                "there is no task",
            ));
        };
        let round = task.key.round;
        if result.metrics.len() > limits::METRICS || result.meta.len() > limits::META_BYTES {
            let message = format!(
                "the result has {} metrics and {} bytes of meta, the limits are {} and {}",
                result.metrics.len(),
                result.meta.len(),
                limits::METRICS,
                limits::META_BYTES
            );
            return Err(Failure::new(FailureCode::Malformed, Phase::Send, message));
        }
        if !matches!(&*result.params_type, "" | "FULL" | "DIFF") {
            let kind: String = result.params_type.chars().take(32).collect();
            let message =
                format!("the result's params_type is {kind:?}, expected \"FULL\" or \"DIFF\"");
            return Err(Failure::new(FailureCode::Malformed, Phase::Send, message));
        }
        let mut offered = None;
        let model = match result.model {
            None => None,
            Some(task_result::Model::Inline(bytes)) if bytes.len() > limits::INLINE_OBJECT => {
                let message = format!(
                    "the result has {} bytes of model in its message, the limit is {}",
                    bytes.len(),
                    limits::INLINE_OBJECT
                );
                return Err(Failure::new(FailureCode::Malformed, Phase::Send, message));
            }
            Some(task_result::Model::Inline(bytes)) if self.out.is_empty() => Some(Object {
                length: bytes.len() as u64,
                inline: Some(bytes),
                id: 0,
            }),
            Some(model) => {
                let taken = match model {
                    task_result::Model::Inline(bytes) => self.parts.objects.from_bytes(&bytes[..]),
                    task_result::Model::File(name) => self.adopt(&name),
                };
                let mut object = taken.map_err(|error| {
                    let mut failure = Failure::new(
                        FailureCode::Malformed,
                        Phase::Send,
                        format!("the result's file cannot be taken: {}", sentence(&error)),
                    );
                    failure.hint = error.hint().unwrap_or_default();
                    failure
                })?;
                if !self.out.is_empty() {
                    let diff = result.params_type == "DIFF";
                    object = filtered(self.filtering(object, task.key.clone(), diff)).await?;
                }
                let small = object.len() <= limits::INLINE_OBJECT as u64;
                Some(if small {
                    Object {
                        inline: Some(Bytes::copy_from_slice(object.bytes())),
                        id: object.id().0,
                        length: object.len(),
                    }
                } else {
                    let name = offer_of(&task.key);
                    let object = offered.insert(object);
                    self.parts.carrier.offer(name, object)
                })
            }
        };
        if !result.state_file.is_empty() {
            self.keep_state(&result.state_file, round)?;
        }
        let meta: serde_json::Value = serde_json::from_str(&result.meta).unwrap_or_default();
        let steps = meta
            .get("NUM_STEPS_CURRENT_ROUND")
            .and_then(serde_json::Value::as_f64);
        let update = Update {
            key: Some(Key::from(&task.key)),
            model,
            diff: result.params_type == "DIFF",
            steps,
            metrics: result.metrics,
            meta: result.meta,
            train_seconds: task.delivered.map_or(0.0, |at| at.elapsed().as_secs_f64()),
            partial: result.partial,
            at_relay: false,
        };
        Ok((update, offered))
    }

    /// Runs an update through the filters of its way out: once, for what is sent
    /// again is the same file.
    pub(crate) fn filtering(&self, model: ModelObject, key: TaskKey, diff: bool) -> Filtering {
        let (objects, chain, residual) = (
            self.parts.objects.clone(),
            self.out.clone(),
            self.residual_dir(),
        );
        let seed = filter::seed(self.seed, key.site.as_str(), key.round.0, key.attempt.0);
        let work = move || {
            let kept = match chain.feeds_back() {
                true => Some(SiteState::open(&residual)?),
                false => None,
            };
            let draft = kept.as_ref().map(|kept| kept.draft(key.round, key.attempt));
            // What an earlier try of this round left does not count.
            let before = match (&kept, key.round.0.checked_sub(1)) {
                (Some(kept), Some(round)) => kept.current(Round(round))?,
                _ => None,
            };
            let before = before.map(|path| objects.import_kept(&path)).transpose()?;
            let encoding = Encoding {
                chain: &chain,
                kind: if diff { Kind::Diff } else { Kind::Full },
                seed,
                before,
                after: draft.as_deref(),
            };
            let encoded = filter::encode(&objects, &model, encoding)?;
            if let (Some(kept), Some(draft), true) = (kept, draft, encoded.lost) {
                kept.commit(&draft, key.round)?;
            }
            Ok::<_, filter::FilterError>(encoded.model)
        };
        tokio::task::spawn_blocking(work)
    }

    /// Where the site keeps what its filters lost, to be added the next time.
    fn residual_dir(&self) -> PathBuf {
        self.parts.state_dir.with_file_name("residual")
    }

    /// Ends the task without a result.
    pub(crate) async fn fail(&mut self, mut failure: Failure) -> Result<(), AgentError> {
        failure.hint = failure.hint.replace("<site>", self.parts.site.as_str());
        let Some(task) = self.task.take() else {
            return Ok(());
        };
        let logger = self.parts.logger.for_round(task.key.round);
        logger.error(&told(&failure));
        let failed = TaskFailed {
            key: Some(Key::from(&task.key)),
            failure: Some(FailureMessage::from(&failure)),
        };
        if self.parts.instance != 0 {
            self.failed = Some(failed.clone());
        }
        self.say(to_server::Body::TaskFailed(failed)).await
    }

    pub(crate) async fn progress(&mut self, state: TaskState) -> Result<(), AgentError> {
        let Some(task) = &mut self.task else {
            return Ok(());
        };
        task.state = state;
        let arriving = task.arriving.as_ref().map(|arriving| &arriving.progress);
        let progress = TaskProgress {
            key: Some(Key::from(&task.key)),
            state: state.into(),
            done: arriving.map_or(0, |progress| progress.done()),
            total: arriving.map_or(0, |progress| progress.total()),
        };
        self.say(to_server::Body::TaskProgress(progress)).await
    }

    // ----- the site's own state -------------------------------------------

    /// Forgets what was kept after `round`, or at all when the job begins anew:
    /// an earlier try of its first round may have kept something.
    fn roll_back(&self, round: Option<Round>) {
        for dir in [self.parts.state_dir.clone(), self.residual_dir()] {
            self.roll_back_in(&dir, round);
        }
    }

    fn roll_back_in(&self, dir: &Path, round: Option<Round>) {
        if !dir.exists() {
            return;
        }
        let rolled = match round {
            Some(round) => SiteState::open(dir)
                .and_then(|state| state.rollback_to(round))
                .map_err(|error| sentence(&error)),
            None => std::fs::remove_dir_all(dir).map_err(|error| error.to_string()),
        };
        if let Err(why) = rolled {
            self.parts
                .logger
                .error(&format!("the site's state could not be rolled back: {why}"));
        }
    }

    /// Removes results that nobody will ask for.
    fn clear_outbox(&self) {
        if !self.parts.outbox.exists() {
            return;
        }
        let cleared = Outbox::create(&self.parts.outbox).and_then(|outbox| outbox.clear());
        if let Err(error) = cleared {
            self.parts.logger.warning(&sentence(&error));
        }
    }

    /// The state that the next task starts from.
    fn state_file(&self) -> Option<PathBuf> {
        if !self.parts.state_dir.exists() {
            return None;
        }
        let before = self.task.as_ref().map_or(Round(u32::MAX), |task| {
            Round(task.key.round.0.saturating_sub(1))
        });
        let first = self.task.as_ref().is_some_and(|task| task.key.round.0 == 0);
        if first {
            return None;
        }
        SiteState::open(&self.parts.state_dir)
            .and_then(|state| state.current(before))
            .unwrap_or_else(|error| {
                self.parts.logger.error(&format!(
                    "the site's state could not be read: {}",
                    sentence(&error)
                ));
                None
            })
    }

    fn keep_state(&self, name: &str, round: Round) -> Result<(), Failure> {
        let failed = |problem: String| {
            Failure::new(
                FailureCode::Malformed,
                Phase::Send,
                format!("flare.state cannot be kept: {problem}"),
            )
        };
        let plain = !name.starts_with('.') && !name.contains(['/', '\0']) && name.len() <= 255;
        let path = self.parts.outbox.join(name);
        let regular = plain && std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        if !regular {
            return Err(failed(format!("there is no file {name:?} in the outbox")));
        }
        SiteState::open(&self.parts.state_dir)
            .and_then(|state| state.commit(&path, round))
            .map(drop)
            .map_err(|error| failed(sentence(&error)))
    }

    fn custom_logger(&self) -> String {
        let stem = Path::new(&self.script).file_stem().unwrap_or_default();
        format!("custom.{}", stem.to_string_lossy())
    }
}

/// Filters at work, on a thread of their own.
pub(crate) type Filtering = JoinHandle<Result<ModelObject, filter::FilterError>>;

/// What came of it.
pub(crate) async fn filtered(filtering: Filtering) -> Result<ModelObject, Failure> {
    match filtering.await {
        Ok(encoded) => encoded.map_err(|error| error.failure(Phase::Send)),
        Err(_) => Err(Failure::new(
            FailureCode::Internal,
            Phase::Send,
            "the agent panicked while an update was filtered",
        )),
    }
}

/// What the server is told of this agent.
fn hello(parts: &AgentParts, epoch: u64, holds: Vec<Key>) -> Hello {
    Hello {
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        features: Vec::new(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        site: parts.site.as_str().to_owned(),
        instance: parts.instance,
        lease_epoch: epoch,
        holds,
        relay: false,
    }
}

/// The name under which a result is offered.
pub(crate) fn offer_of(key: &TaskKey) -> Offer {
    Offer::Update {
        round: key.round.0,
        attempt: key.attempt.0,
    }
}

async fn next_message(reader: &mut Option<Reader>) -> Result<Option<ToSite>, LinkError> {
    match reader {
        Some(reader) => reader.next::<ToSite>("ToSite").await,
        None => std::future::pending().await,
    }
}

async fn ended(reaching: &mut Option<Reaching>) -> Result<(Reach, Reached), AgentError> {
    match reaching {
        Some(reaching) => reaching.ended().await,
        None => std::future::pending().await,
    }
}

async fn stopped(stop: &mut Option<watch::Receiver<Option<String>>>) -> String {
    if let Some(stop) = stop
        && let Ok(reason) = stop.wait_for(Option::is_some).await
        && let Some(reason) = reason.clone()
    {
        return reason;
    }
    // Nobody will ask.
    std::future::pending().await
}

async fn next_arrival(task: &mut Option<Task>) -> Arrival {
    match task.as_mut().and_then(|task| task.arriving.as_mut()) {
        Some(arriving) => arriving.next().await,
        None => std::future::pending().await,
    }
}

async fn next_of(trainer: &mut Option<Trainer>) -> Happened {
    match trainer {
        Some(trainer) => trainer.next().await,
        None => std::future::pending().await,
    }
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit.into()).await,
        None => std::future::pending().await,
    }
}

/// The model of a task, for the trainer; `held` is the one that is no part of the
/// message.
fn source(held: Option<&ModelObject>, object: Option<&Object>) -> Result<ModelSource, Failure> {
    let Some(object) = object else {
        return Ok(ModelSource::None);
    };
    if let Some(bytes) = object.inline.as_ref().filter(|_| held.is_none()) {
        return Ok(ModelSource::Inline(bytes.clone()));
    }
    let failed = |problem: String| {
        Failure::new(
            FailureCode::Internal,
            Phase::Train,
            format!("the task's model cannot be handed out: {problem}"),
        )
    };
    let model = held.ok_or_else(|| failed("it is gone".to_owned()))?;
    match model.open_shared() {
        Ok(Some(descriptor)) => Ok(ModelSource::File {
            file: descriptor.into(),
            length: model.len(),
        }),
        Ok(None) => Ok(ModelSource::Inline(Bytes::copy_from_slice(model.bytes()))),
        Err(error) => Err(failed(sentence(&error))),
    }
}

/// A checked number of seconds.
fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX)
}

/// A failure for the log: its sentence, what to do, and the traceback below.
fn told(failure: &Failure) -> String {
    let mut text = failure.to_string();
    if !failure.hint.is_empty() {
        text.push_str("; hint: ");
        text.push_str(&failure.hint);
    }
    if let Some(traceback) = &failure.traceback {
        text.push('\n');
        text.push_str(traceback.trim_end());
    }
    text
}

fn level_of(python: u32) -> Level {
    match python {
        0..=9 => Level::Trace,
        10..=19 => Level::Debug,
        20..=29 => Level::Info,
        30..=39 => Level::Warning,
        _ => Level::Error,
    }
}

/// The error and its sources as one sentence.
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
