//! The loop that carries out what the workflow decides.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_aggregate::UpdateKind;
use firesteel_base::{
    Durations, Failure, FailureCode, Hint, JobId, Phase, Round, SiteName, TaskKey, Time, limits,
};
use firesteel_flow::{
    Action, Assignment, Event, FedAvg, FoldKey, ModelHandle, ModelRole, Outcome, ParamsType,
    Restore, RoundRecord, Status, TaskStage, UpdateInfo, Workflow,
};
use firesteel_net::BoxStream;
use firesteel_store::{KeptModels, ModelObject, ObjectId, Objects, RunDir, Snapshots, StoreError};
use firesteel_wire::control::{
    Assign, Cancel, EndJob, Key, Object, RoundCommitted, StartJob, TaskState, Update, to_server,
    to_site,
};
use firesteel_wire::snapshot::{JobSnapshot, KeptModel};
use firesteel_wire::spec::JobSpec;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::fold::{self, Folding, Refolded};
use crate::link::{self, Inbound, Link, Reception, Told};
use crate::report::JobReport;
use crate::watch::Watch;

/// Messages from all sites on their way to the driver.
const INBOX: usize = 1024;

/// Status is told at most this often between rounds: with a thousand sites each
/// telling costs a copy of a thousand states.
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// Sites that one sentence names before it only counts.
const NAMED: usize = 8;

/// What a job is driven with.
pub struct JobParts {
    /// Its id.
    pub id: JobId,
    /// What it is.
    pub spec: JobSpec,
    /// Its seed: the spec's, or one that was drawn.
    pub seed: u64,
    /// Where it lives.
    pub run: Arc<RunDir>,
    /// Its models in flight.
    pub objects: Objects,
    /// Who is told.
    pub watch: Watch,
    /// How long things may take.
    pub durations: Durations,
    /// Threads that sum.
    pub threads: usize,
}

/// Why a job could not be driven at all. What happens to a job that runs is in
/// its [`JobReport`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// A disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The initial model.
    #[error("the initial model cannot be used")]
    InitialModel(#[source] firesteel_store::ObjectError),
    /// The settings.
    #[error("the job's settings contradict each other: {0}")]
    Config(firesteel_flow::ConfigError),
    /// The snapshot to go on from.
    #[error("the run cannot be resumed: {problem}")]
    Resume {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
}

impl Hint for JobError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::InitialModel(error) => error.hint(),
            Self::Config(error) => error.hint(),
            Self::Resume { hint, .. } => Some(hint.clone()),
        }
    }
}

/// What comes back from work that was done beside the loop.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is by far the more frequent"
)]
enum Done {
    Verified {
        key: TaskKey,
        update: Update,
        object: Option<ModelObject>,
        result: Result<(), Failure>,
    },
    Folded {
        key: FoldKey,
        result: Box<Refolded>,
    },
}

/// A job that is being driven.
pub struct Job {
    parts: JobParts,
    flow: FedAvg,
    kept: KeptModels,
    snapshots: Snapshots,
    sites: Vec<SiteName>,
    index: HashMap<SiteName, usize>,
    links: Vec<Option<Link>>,
    /// Sites that are not here and that the workflow does not wait for.
    given_up: HashSet<usize>,
    models: HashMap<ModelHandle, ModelObject>,
    saved: HashMap<ModelRole, KeptModel>,
    next_handle: u64,
    /// The initial model, whose dtypes trainers see while the server's copy is
    /// wider; none when it is not.
    narrow: Option<ModelObject>,
    /// The wide model that was last handed out, and what trainers see of it.
    narrowed: Option<(ModelHandle, ModelObject)>,
    /// The model of the open round, which updates are checked against.
    handed_out: Option<ModelObject>,
    clock_base: Time,
    clock_start: Instant,
    resumed: Option<Round>,
    /// The last round that a snapshot was written of.
    committed: Option<Round>,
    /// Until when sites that were there before a restart may come back.
    awaited_until: Option<Instant>,
    done: mpsc::Sender<Done>,
    status: watch::Sender<Option<Status>>,
    status_told: Instant,
    /// Why the job is being ended by the server itself.
    broken: Option<Failure>,
    ended: Option<Outcome>,
    /// What has happened and is not decided upon; the first is being so.
    events: VecDeque<Event>,
}

impl Job {
    /// Drives a job to its end.
    ///
    /// `streams` are the connections of sites, in whatever order and at whatever
    /// time; `abort` becomes a reason when the job is to be ended; `status` is
    /// where the job stands. With `resume` it goes on after the last round that
    /// the run directory holds.
    ///
    /// # Errors
    /// [`JobError`] when it cannot even start.
    pub async fn run(
        parts: JobParts,
        resume: bool,
        streams: mpsc::Receiver<BoxStream>,
        abort: watch::Receiver<Option<String>>,
        status: watch::Sender<Option<Status>>,
    ) -> Result<JobReport, JobError> {
        let (done, finished) = mpsc::channel(64);
        let (mut job, first) = Self::prepare(parts, resume, done, status)?;
        job.main(first, streams, abort, finished).await;
        let outcome = job.ended.take().unwrap_or(Outcome::Aborted {
            reason: "the server stopped".to_owned(),
        });
        Ok(JobReport::new(&job.parts, outcome, job.resumed))
    }

    fn prepare(
        mut parts: JobParts,
        resume: bool,
        done: mpsc::Sender<Done>,
        status: watch::Sender<Option<Status>>,
    ) -> Result<(Self, Event), JobError> {
        let kept = parts.run.kept_models(parts.spec.keep_models as usize)?;
        let snapshots = parts.run.snapshots()?;
        let mut config = parts.spec.fedavg();
        config.round = config.round.or(parts.durations.round);
        config.task = config.task.or(parts.durations.task);
        let sites = parts.spec.site_names();
        let mut models = HashMap::new();
        let mut saved = HashMap::new();
        let mut clock_base = Time::ZERO;
        let mut resumed = None;
        let loaded = if resume {
            snapshots.load_latest()?
        } else {
            None
        };
        // The first round's model is there without a snapshot when the process
        // died between the two; later ones are not.
        let made = kept.last().filter(|(round, _)| *round > config.start_round);
        if resume && loaded.is_none() && made.is_some() {
            return Err(JobError::Resume {
                problem: "it has models of several rounds, but no snapshot that can be read"
                    .to_owned(),
                hint: "start the job anew with resume=False, from `models/last.safetensors` if need be"
                    .to_owned(),
            });
        }
        let (flow, first) = match loaded {
            Some(loaded) => {
                for warning in &loaded.warnings {
                    parts.watch.warn(warning);
                }
                let refused = |problem: String| JobError::Resume {
                    problem,
                    hint: "start the job anew with resume=False".to_owned(),
                };
                let snapshot = JobSnapshot::decode(&loaded.bytes)
                    .map_err(|error| refused(error.to_string()))?;
                let flow = FedAvg::restore(config, &snapshot.workflow)
                    .map_err(|error| refused(error.to_string()))?;
                clock_base = snapshot.clock;
                parts.seed = snapshot.seed;
                resumed = Some(loaded.round);
                for model in snapshot.models {
                    let path = match (model.role, model.made_in) {
                        (ModelRole::Initial, _) | (_, None) => kept.initial(),
                        (ModelRole::Latest, Some(round)) => kept.of_round(Round(round)),
                        // A process that died before its snapshot may have put a
                        // newer one in the best one's place.
                        (ModelRole::Best, Some(round)) => kept
                            .best()
                            .filter(|(made_in, _)| made_in.0 == round)
                            .map(|(_, path)| path)
                            .or_else(|| kept.of_round(Round(round))),
                    };
                    // A model that is gone is not offered to the workflow, which
                    // knows what to do without the best one.
                    let Some(path) = path else { continue };
                    match parts.objects.import_kept(&path) {
                        Ok(object) => {
                            parts.watch.saved(model.role.as_str(), path);
                            models.insert(model.handle, object);
                            saved.insert(model.role, model);
                        }
                        Err(error) if model.role == ModelRole::Best => {
                            parts.watch.warn(&format!(
                                "the best model cannot be read: {}",
                                fold::sentence(&error)
                            ));
                        }
                        Err(error) => return Err(refused(fold::sentence(&error))),
                    }
                }
                let held = models.keys().copied().collect();
                (
                    flow,
                    Event::Resumed {
                        sites: Vec::new(),
                        models: held,
                    },
                )
            }
            None => {
                let flow = FedAvg::create(config).map_err(JobError::Config)?;
                let model = match &parts.spec.initial_model {
                    None => None,
                    Some(path) => Some(
                        parts
                            .objects
                            .import_copy(std::path::Path::new(path))
                            .map_err(JobError::InitialModel)?,
                    ),
                };
                let handle = model.map(|object| {
                    models.insert(ModelHandle(0), object);
                    ModelHandle(0)
                });
                (
                    flow,
                    Event::Started {
                        sites: Vec::new(),
                        model: handle,
                    },
                )
            }
        };
        let initial = saved
            .get(&ModelRole::Initial)
            .map_or(ModelHandle(0), |kept: &KeptModel| kept.handle);
        let wide = parts.spec.aggregation.master_dtype.is_some();
        let narrow = if wide {
            models.get(&initial).cloned()
        } else {
            None
        };
        if wide && narrow.is_none() {
            return Err(JobError::Resume {
                problem: "the initial model, whose dtypes the sites work in, is gone".to_owned(),
                hint: "start the job anew with resume=False".to_owned(),
            });
        }
        // Handles of an earlier process are never given out again.
        let last = flow
            .models()
            .into_iter()
            .chain(models.keys().copied())
            .max();
        let job = Self {
            next_handle: last.map_or(1, |handle| handle.0 + (1 << 20)),
            index: sites.iter().cloned().zip(0..).collect(),
            links: sites.iter().map(|_| None).collect(),
            given_up: HashSet::new(),
            sites,
            flow,
            kept,
            snapshots,
            models,
            saved,
            narrow,
            narrowed: None,
            handed_out: None,
            clock_base,
            clock_start: Instant::now(),
            resumed,
            committed: resumed,
            awaited_until: resumed.map(|_| Instant::now() + parts.durations.lease),
            done,
            status,
            status_told: Instant::now(),
            broken: None,
            ended: None,
            events: VecDeque::new(),
            parts,
        };
        Ok((job, first))
    }

    async fn main(
        &mut self,
        first: Event,
        mut streams: mpsc::Receiver<BoxStream>,
        mut abort: watch::Receiver<Option<String>>,
        mut finished: mpsc::Receiver<Done>,
    ) {
        let (inbox, mut inbound) = mpsc::channel(INBOX);
        let reception = Arc::new(Reception {
            sites: self.index.clone(),
            start: StartJob {
                job: self.parts.id.as_str().to_owned(),
                spec: Bytes::from(self.parts.spec.to_json()),
                seed: self.parts.seed,
                resume_round: self.resumed.map(|round| round.0),
            },
            connect: self.parts.durations.connect,
            lease_epoch: 1,
        });
        self.feed(first);
        let mut abort_open = true;
        let mut streams_open = true;
        let mut connections = 0;
        // Whatever is left of them ends with the job.
        let mut serving = JoinSet::new();
        let mut display = Instant::now() + self.parts.watch.interval();
        while self.ended.is_none() {
            let wake = self.wakeup(display);
            tokio::select! {
                stream = streams.recv(), if streams_open => match stream {
                    Some(stream) => {
                        connections += 1;
                        serving.spawn(link::serve(connections, stream, Arc::clone(&reception), inbox.clone()));
                    }
                    None => streams_open = false,
                },
                Some(said) = inbound.recv() => self.on_inbound(said),
                // What it had to say last is in the inbox before it ends.
                Some(_) = serving.join_next() => {}
                Some(done) = finished.recv() => self.on_done(done),
                changed = abort.changed(), if abort_open => {
                    abort_open = changed.is_ok();
                    let reason = abort.borrow_and_update().clone();
                    if let Some(reason) = reason {
                        self.feed(Event::Abort { reason });
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.feed(Event::Tick),
            }
            let now = Instant::now();
            if now >= display {
                display = now + self.parts.watch.interval();
                self.feed(Event::Tick);
                self.parts.watch.tick();
                if self.awaited_until.take_if(|until| *until <= now).is_some() {
                    self.give_up_absent(
                        FailureCode::Disconnected,
                        "did not come back within its lease",
                    );
                }
                // Nobody can dial any more, and nobody is about to join: who is
                // not here will not come.
                if !streams_open && inbound.is_empty() && serving.len() == self.connected() {
                    self.give_up_absent(
                        FailureCode::Internal,
                        "is not connected, and cannot connect any more",
                    );
                }
            }
        }
        self.farewell(&mut inbound).await;
    }

    /// The name of a site, by its number in the job's list.
    fn name(&self, site: usize) -> SiteName {
        self.sites
            .get(site)
            .expect("numbers come from the job's list")
            .clone()
    }

    fn link(&mut self, site: usize) -> &mut Option<Link> {
        self.links
            .get_mut(site)
            .expect("there is one for each site of the list")
    }

    fn connected(&self) -> usize {
        self.links.iter().flatten().count()
    }

    /// Tells the workflow that it need not wait for sites that are not here.
    fn give_up_absent(&mut self, code: FailureCode, why: &str) {
        for site in 0..self.sites.len() {
            if self.link(site).is_none() && self.given_up.insert(site) {
                let failure = Failure::new(code, Phase::Start, why);
                self.feed(Event::SiteLeft {
                    site: self.name(site),
                    failure,
                });
            }
        }
    }

    /// Tells every site that it is over and waits until each has stopped.
    async fn farewell(&mut self, inbound: &mut mpsc::Receiver<Inbound>) {
        let outcome = self.ended.clone();
        let over = matches!(
            outcome,
            Some(Outcome::Completed { .. } | Outcome::CompletedWith { .. })
        );
        let reason = outcome.map_or_else(String::new, |outcome| outcome.to_string());
        let reason = firesteel_wire::control::cut(&reason, 4096);
        let end = || {
            to_site::Body::EndJob(EndJob {
                reason: reason.clone(),
                abort: !over,
            })
        };
        let mut waited_for: BTreeMap<usize, u64> = BTreeMap::new();
        for (site, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link.take()
                && link.tell(end()) == Told::Yes
            {
                waited_for.insert(site, link.connection);
            }
        }
        // A site has stop-grace to end its trainers; a little more to say so.
        let limit = self.parts.durations.stop_grace + self.parts.durations.drain;
        let waiting = async {
            while !waited_for.is_empty() {
                match inbound.recv().await {
                    Some(
                        Inbound::Left {
                            site, connection, ..
                        }
                        | Inbound::Said {
                            site,
                            connection,
                            body: to_server::Body::Stopped(_),
                        },
                    ) => {
                        if waited_for.get(&site) == Some(&connection) {
                            waited_for.remove(&site);
                        }
                    }
                    Some(Inbound::Said {
                        site,
                        body: to_server::Body::Metric(metric),
                        ..
                    }) => {
                        let name = self.name(site);
                        self.parts.watch.metric(&name, &metric.event);
                    }
                    // It came just when the job ended.
                    Some(Inbound::Joined { site, link }) => {
                        if link.tell(end()) == Told::Yes {
                            waited_for.insert(site, link.connection);
                        }
                    }
                    Some(Inbound::Said { .. } | Inbound::Turned { .. }) => {}
                    None => break,
                }
            }
        };
        if tokio::time::timeout(limit, waiting).await.is_err() {
            let count = waited_for.len();
            let names: Vec<String> = waited_for
                .keys()
                .take(NAMED)
                .map(|&site| self.name(site).to_string())
                .collect();
            let more = if count > NAMED { ", …" } else { "" };
            self.parts.watch.warn(&format!(
                "{count} sites did not confirm the end of the job within {limit:?}: {}{more}",
                names.join(", "),
            ));
        }
    }

    fn now(&self) -> Time {
        self.clock_base + self.clock_start.elapsed()
    }

    /// When the workflow wants to be woken, or the display does.
    fn wakeup(&self, display: Instant) -> Instant {
        match self.flow.next_wakeup() {
            None => display,
            Some(at) => display.min(self.clock_start + at.since(self.clock_base)),
        }
    }

    /// Gives the workflow an event and carries out what it decides. What that
    /// causes in turn waits until the actions of this event are done.
    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > 1 {
            return;
        }
        // The event being handled stays at the front, which marks the loop as busy.
        while let Some(event) = self.events.front().cloned() {
            let now = self.now();
            for action in self.flow.handle(event, now) {
                self.perform(action);
            }
            self.events.pop_front();
        }
        if self.status_told.elapsed() >= STATUS_EVERY || self.ended.is_some() {
            self.tell_status();
        }
    }

    fn tell_status(&mut self) {
        self.status_told = Instant::now();
        self.status.send_replace(Some(self.flow.status()));
    }

    // ----- what sites say -------------------------------------------------

    fn on_inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Joined { site, link } => {
                let name = self.name(site);
                if let Some(old) = self.link(site).replace(link) {
                    old.cut();
                    self.parts.watch.warn(&format!(
                        "{name} connected again; its new connection is used"
                    ));
                }
                self.given_up.remove(&site);
                self.parts.watch.joined(&name);
                self.feed(Event::SiteJoined { site: name });
            }
            Inbound::Said {
                site,
                connection,
                body,
            } => {
                if self.is_current(site, connection) {
                    self.on_message(site, body);
                }
            }
            Inbound::Left {
                site,
                connection,
                why,
            } => {
                if !self.is_current(site, connection) {
                    return;
                }
                let name = self.name(site);
                *self.link(site) = None;
                let message = match why {
                    Some(error) => format!("the connection was lost: {error}"),
                    None => "the site closed its connection".to_owned(),
                };
                let failure = Failure::new(FailureCode::Disconnected, Phase::Train, message);
                self.feed(Event::SiteLeft {
                    site: name,
                    failure,
                });
            }
            Inbound::Turned { why } => self.parts.watch.warn(&format!("turned away: {why}")),
        }
    }

    /// Whether this is the connection of the site that is in use.
    fn is_current(&self, site: usize, connection: u64) -> bool {
        let link = self.links.get(site).and_then(Option::as_ref);
        link.is_some_and(|link| link.connection == connection)
    }

    fn on_message(&mut self, site: usize, body: to_server::Body) {
        let key = match &body {
            to_server::Body::TaskAccepted(key) => Some(key),
            to_server::Body::TaskProgress(progress) => progress.key.as_ref(),
            to_server::Body::Update(update) => update.key.as_ref(),
            to_server::Body::TaskFailed(failed) => failed.key.as_ref(),
            _ => None,
        };
        let key = key.map(TaskKey::try_from);
        let key = match (key, body) {
            (_, to_server::Body::Metric(metric)) => {
                let name = self.name(site);
                return self.parts.watch.metric(&name, &metric.event);
            }
            (_, to_server::Body::Hello(_) | to_server::Body::Stopped(_)) => return,
            (Some(Ok(key)), body) if self.index.get(&key.site) == Some(&site) => (key, body),
            // A site speaks for itself only, and its tasks have keys.
            _ => {
                let name = self.name(site);
                return self.parts.watch.warn(&format!(
                    "{name} sent a message about work that is not its own; it was ignored"
                ));
            }
        };
        match key {
            (key, to_server::Body::TaskAccepted(_)) => {
                self.feed(Event::TaskProgress {
                    key,
                    stage: TaskStage::Accepted,
                });
            }
            (key, to_server::Body::TaskProgress(progress)) => {
                let state = progress.state();
                self.parts.watch.task(&key, state);
                let stage = match state {
                    TaskState::Queued | TaskState::Starting => TaskStage::Accepted,
                    TaskState::Training => TaskStage::Training,
                    TaskState::Sending => TaskStage::Returning,
                };
                self.feed(Event::TaskProgress { key, stage });
            }
            (key, to_server::Body::Update(update)) => self.on_update(key, update),
            (key, to_server::Body::TaskFailed(failed)) => {
                let failure = failed.failure.map_or_else(
                    || {
                        Failure::new(
                            FailureCode::Internal,
                            Phase::Train,
                            "the site gave no reason",
                        )
                    },
                    Failure::from,
                );
                self.feed(Event::TaskFailed { key, failure });
            }
            (
                _,
                to_server::Body::Metric(_)
                | to_server::Body::Hello(_)
                | to_server::Body::Stopped(_),
            ) => {}
        }
    }

    /// An update is taken hold of, then checked: at once when it is small, beside
    /// the loop when reading it takes time.
    fn on_update(&mut self, key: TaskKey, update: Update) {
        if update.metrics.len() > limits::METRICS {
            let message = format!(
                "sent {} metrics, the limit is {}",
                update.metrics.len(),
                limits::METRICS
            );
            let failure = Failure::new(FailureCode::Malformed, Phase::Verify, message);
            return self.feed(Event::TaskFailed { key, failure });
        }
        let inline = update
            .model
            .as_ref()
            .and_then(|model| model.inline.as_ref())
            .map_or(0, Bytes::len);
        if inline > limits::INLINE_OBJECT {
            let message = format!(
                "sent {inline} bytes of model in a message, the limit is {}",
                limits::INLINE_OBJECT
            );
            let failure = Failure::new(FailureCode::Malformed, Phase::Verify, message);
            return self.feed(Event::TaskFailed { key, failure });
        }
        let object = match self.take(update.model.as_ref()) {
            Ok(object) => object,
            Err(failure) => return self.feed(Event::TaskFailed { key, failure }),
        };
        let base = self.handed_out.clone();
        let kind = if update.diff {
            UpdateKind::Diff
        } else {
            UpdateKind::Full
        };
        let options = fold::options(&self.parts.spec, kind, 1);
        match object {
            Some(object) if object.len() > limits::INLINE_OBJECT as u64 => {
                let failed = Done::Verified {
                    key: key.clone(),
                    update: Update::default(),
                    object: None,
                    result: Err(panicked(Phase::Verify, "an update was checked")),
                };
                self.beside(failed, move || {
                    let result = fold::verify(&object, base.as_ref(), &options);
                    Done::Verified {
                        key,
                        update,
                        object: Some(object),
                        result,
                    }
                });
            }
            object => {
                let result = object.as_ref().map_or(Ok(()), |object| {
                    fold::verify(object, base.as_ref(), &options)
                });
                self.on_done(Done::Verified {
                    key,
                    update,
                    object,
                    result,
                });
            }
        }
    }

    /// Works on a thread of its own; `failed` is what is done if that panics.
    fn beside(&self, failed: Done, work: impl FnOnce() -> Done + Send + 'static) {
        let done = self.done.clone();
        let working = tokio::task::spawn_blocking(work);
        tokio::spawn(async move {
            // The receiver is gone only when the job has ended.
            let _ = done.send(working.await.unwrap_or(failed)).await;
        });
    }

    fn take(&self, object: Option<&Object>) -> Result<Option<ModelObject>, Failure> {
        let Some(object) = object else {
            return Ok(None);
        };
        match &object.inline {
            Some(bytes) => self
                .parts
                .objects
                .from_bytes(&bytes[..])
                .map(Some)
                .map_err(|error| {
                    let message = format!("the update is not a model: {}", fold::sentence(&error));
                    Failure::new(FailureCode::Malformed, Phase::Verify, message)
                }),
            None => match self.parts.objects.get(ObjectId(object.id)) {
                Some(object) => Ok(Some(object)),
                None => Err(Failure::new(
                    FailureCode::Malformed,
                    Phase::Verify,
                    "the update was gone before it could be fetched",
                )),
            },
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Verified {
                key,
                result: Err(failure),
                ..
            } => {
                self.feed(Event::TaskFailed { key, failure });
            }
            Done::Verified {
                key,
                update,
                object,
                result: Ok(()),
            } => {
                let model = object.map(|object| self.remember(object));
                self.parts.watch.update(&key, update.train_seconds);
                let update = UpdateInfo {
                    model,
                    params_type: if update.diff {
                        ParamsType::Diff
                    } else {
                        ParamsType::Full
                    },
                    steps: update.steps,
                    metrics: update.metrics.into_iter().collect(),
                };
                self.feed(Event::UpdateReady { key, update });
            }
            Done::Folded { key, result } => match *result {
                Ok(folded) => {
                    let model = self.remember(folded.model);
                    for warning in &folded.warnings {
                        self.parts.watch.warn(warning);
                    }
                    self.feed(Event::Folded {
                        key,
                        model,
                        notes: folded.notes,
                    });
                }
                Err((failure, blame)) => {
                    self.feed(Event::FoldFailed {
                        key,
                        failure,
                        blame,
                    });
                }
            },
        }
    }

    fn remember(&mut self, object: ModelObject) -> ModelHandle {
        let handle = ModelHandle(self.next_handle);
        self.next_handle += 1;
        self.models.insert(handle, object);
        handle
    }

    // ----- what the workflow asks -----------------------------------------

    fn perform(&mut self, action: Action) {
        // What the workflow decided before it hears that the server is broken
        // would be half applied.
        let goes_on = matches!(
            action,
            Action::Assign(_) | Action::Fold(_) | Action::Save { .. } | Action::Commit(_)
        );
        if self.broken.is_some() && goes_on {
            return;
        }
        match action {
            Action::Assign(assignment) => self.assign(assignment),
            Action::Cancel { key, reason } => {
                let cancel = to_site::Body::Cancel(Cancel {
                    key: Some(Key::from(&key)),
                    reason: reason.to_string(),
                });
                self.tell(&key.site, cancel);
            }
            Action::Fold(request) => {
                let key = request.key;
                self.parts.watch.folding(key.round);
                match Folding::new(&self.parts, &self.models, request) {
                    // Small sums take less time than handing them to a thread.
                    Ok(folding) if folding.is_small() => {
                        let result = Box::new(folding.run());
                        self.on_done(Done::Folded { key, result });
                    }
                    Ok(folding) => {
                        let failure = panicked(Phase::Aggregate, "the updates were summed");
                        let failed = Done::Folded {
                            key,
                            result: Box::new(Err((failure, Vec::new()))),
                        };
                        self.beside(failed, move || {
                            let result = Box::new(folding.run());
                            Done::Folded { key, result }
                        });
                    }
                    Err(failure) => self.feed(Event::FoldFailed {
                        key,
                        failure,
                        blame: Vec::new(),
                    }),
                }
            }
            Action::Save {
                model,
                role,
                made_in,
            } => self.save(model, role, made_in),
            Action::Release { model } => {
                let object = self.models.remove(&model);
                // Unmapping and unlinking take milliseconds per 100 MB.
                if let Some(object) = object.filter(|object| object.path().is_some()) {
                    tokio::task::spawn_blocking(move || drop(object));
                }
            }
            Action::Commit(record) => self.commit(&record),
            Action::Dismiss { site, failure } => self.parts.watch.dismissed(&site, &failure),
            Action::Warn(warning) => self.parts.watch.flow_warning(&warning),
            Action::Finish(outcome) => self.finish(outcome),
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        // What broke the server is the cause, not the abort that it led to.
        let outcome = match &self.broken {
            None => outcome,
            Some(failure) => Outcome::Failed {
                cause: failure.message.clone(),
                hint: failure.hint.clone(),
                round: None,
                failures: Vec::new(),
            },
        };
        self.parts.watch.finished(&outcome);
        self.ended = Some(outcome);
    }

    /// The model as trainers see it: made once, for sites may join one by one and
    /// fetch it late.
    fn handed_out(&mut self, handle: ModelHandle) -> Result<Option<ModelObject>, Failure> {
        let Some(object) = self.models.get(&handle).cloned() else {
            return Ok(None);
        };
        let Some(like) = &self.narrow else {
            return Ok(Some(object));
        };
        if let Some((known, narrowed)) = &self.narrowed
            && *known == handle
        {
            return Ok(Some(narrowed.clone()));
        }
        let narrowed = fold::narrowed(&self.parts.objects, &object, like)?;
        self.narrowed = Some((handle, narrowed.clone()));
        Ok(Some(narrowed))
    }

    fn assign(&mut self, assignment: Assignment) {
        let object = assignment
            .model
            .map_or(Ok(None), |handle| self.handed_out(handle));
        let object = match object {
            Ok(object) => object,
            Err(failure) => return self.break_down(failure),
        };
        self.handed_out = object.clone();
        if let Some(key) = assignment.keys.first() {
            self.parts.watch.assigned(key.round, &assignment);
        }
        let model = object.as_ref().map(|object| {
            let small = object.len() <= limits::INLINE_OBJECT as u64;
            Object {
                inline: small.then(|| Bytes::copy_from_slice(object.bytes())),
                id: object.id().0,
                length: object.len(),
            }
        });
        for key in &assignment.keys {
            let assign = to_site::Body::Assign(Assign {
                key: Some(Key::from(key)),
                task: assignment.task.as_str().to_owned(),
                model: model.clone(),
                start_round: assignment.start_round.0,
                total_rounds: assignment.total_rounds,
                meta: String::new(),
                task_limit_micros: assignment
                    .limit
                    .map(|limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)),
            });
            self.tell(&key.site, assign);
        }
    }

    /// Sends without waiting: a site that does not read is cut off, and no other
    /// site is delayed by it.
    fn tell(&mut self, site: &SiteName, body: to_site::Body) {
        let Some(&index) = self.index.get(site) else {
            return;
        };
        let Some(link) = self.link(index) else {
            return;
        };
        if link.tell(body) == Told::Unread
            && let Some(link) = self.link(index).take()
        {
            link.cut();
            let why = "the site did not read its messages; its connection was closed";
            self.parts.watch.warn(&format!("{site}: {why}"));
            let failure = Failure::new(FailureCode::Disconnected, Phase::Train, why);
            self.feed(Event::SiteLeft {
                site: site.clone(),
                failure,
            });
        }
    }

    fn save(&mut self, handle: ModelHandle, role: ModelRole, made_in: Option<Round>) {
        let Some(object) = self.models.get(&handle) else {
            return self.break_down(Failure::new(
                FailureCode::Internal,
                Phase::Save,
                format!("a {role} model was to be saved that is gone"),
            ));
        };
        let saved = match (role, made_in) {
            (ModelRole::Initial, _) => self.kept.save_initial(object),
            (ModelRole::Latest, round) => self.kept.save_last(round.unwrap_or_default(), object),
            (ModelRole::Best, round) => self.kept.save_best(round.unwrap_or_default(), object),
        };
        match saved {
            Ok(path) => {
                self.parts.watch.saved(role.as_str(), path);
                let made_in = made_in.map(|round| round.0);
                self.saved.insert(
                    role,
                    KeptModel {
                        handle,
                        role,
                        made_in,
                    },
                );
            }
            Err(error) => self.store_failed(&error),
        }
    }

    fn commit(&mut self, record: &RoundRecord) {
        self.parts.watch.round(record);
        // A round without a model ends the job: that is kept with the round
        // before it, from where the job can be resumed.
        let made = record.result.map(|_| record.round);
        let Some(round) = made.or(self.committed) else {
            return;
        };
        let snapshot = JobSnapshot {
            clock: self.now(),
            seed: self.parts.seed,
            models: self.saved.values().copied().collect(),
            workflow: self.flow.snapshot(),
        };
        let written = self
            .snapshots
            .save(round, &snapshot.encode())
            .and_then(|()| self.kept.prune());
        if let Err(error) = written {
            return self.store_failed(&error);
        }
        self.committed = Some(round);
        let Some(Round(round)) = made else {
            return;
        };
        for index in 0..self.sites.len() {
            let site = self.name(index);
            self.tell(
                &site,
                to_site::Body::RoundCommitted(RoundCommitted { round }),
            );
        }
    }

    fn store_failed(&mut self, error: &StoreError) {
        let code = if error.is_full() {
            FailureCode::DiskFull
        } else {
            FailureCode::Internal
        };
        let failure = Failure::new(code, Phase::Save, fold::sentence(error))
            .with_hint(error.hint().unwrap_or_default());
        self.break_down(failure);
    }

    fn break_down(&mut self, failure: Failure) {
        if self.broken.is_none() {
            self.parts.watch.error(&failure.to_string());
            // A failure of the server's own ends the job through the workflow.
            let reason = failure.message.clone();
            self.broken = Some(failure);
            self.feed(Event::Abort { reason });
        }
    }
}

/// A panic of our own, as the failure that it is for the job.
fn panicked(phase: Phase, when: &str) -> Failure {
    Failure::new(
        FailureCode::Internal,
        phase,
        format!("the server panicked while {when}"),
    )
    .with_hint("this is a bug, please report it")
}
