//! The loop that carries out what the workflow decides.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_aggregate::{Options, UpdateKind};
use firesteel_base::{
    Durations, Failure, FailureCode, Hint, JobId, Phase, Round, SiteName, TaskKey, Time, limits,
};
use firesteel_carry::filter::{self, Encoding};
use firesteel_carry::{Carrier, CarryError, Connection, Fetched, Offer, Order, Progress, Way};
use firesteel_codec::{Chain, Kind};
use firesteel_flow::{
    Action, Assignment, Event, FedAvg, FoldKey, FoldRequest, ModelHandle, ModelRole, Outcome,
    ParamsType, Restore, RoundRecord, Status, TaskStage, UpdateInfo, Workflow,
};
use firesteel_store::{
    KeptModels, ModelObject, ObjectId, Objects, PartName, RunDir, Snapshots, Spool, StoreError,
};
use firesteel_wire::control::{
    Assign, Cancel, EndJob, Hello, Key, Object, RoundCommitted, StartJob, TaskState, Update,
    to_server, to_site,
};
use firesteel_wire::snapshot::{JobSnapshot, KeptModel};
use firesteel_wire::spec::{FilterDirection, Hierarchy, JobSpec, Method};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::fetches::Fetches;
use crate::fold::{self, Folding, Held, Refolded};
use crate::link::{self, Inbound, Link, Reception, Told};
use crate::presence::{Presence, Welcomed};
use crate::relays::{self, Part, Relays, Summed};
use crate::report::JobReport;
use crate::watch::Watch;

/// Messages from all sites on their way to the driver.
const INBOX: usize = 1024;

/// Status is told at most this often between rounds: with a thousand sites each
/// telling costs a copy of a thousand states.
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// Sites that one sentence names before it only counts.
const NAMED: usize = 8;

/// Makes the ways of models to and from one site; asked once for each.
pub type Carriers = Box<dyn Fn(&SiteName) -> Arc<dyn Carrier> + Send>;

/// What a job is driven with.
pub struct JobParts {
    /// Its id.
    pub id: JobId,
    /// The epoch of the lease under which it is driven, never zero and never the
    /// same again: what sites did under another one does not count.
    pub epoch: u64,
    /// What it is.
    pub spec: JobSpec,
    /// Its seed: the spec's, or one that was drawn.
    pub seed: u64,
    /// Where it lives.
    pub run: Arc<RunDir>,
    /// Its models in flight.
    pub objects: Objects,
    /// How they travel.
    pub carriers: Carriers,
    /// The budget of updates on the disk; none where sites share it with the server.
    pub spool: Option<Spool>,
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
pub(crate) enum Done {
    Encoded {
        assignment: Assignment,
        object: ModelObject,
        result: Result<Vec<(String, ModelObject, Option<ModelObject>)>, Failure>,
    },
    Fetched {
        key: TaskKey,
        update: Update,
        object: u64,
        result: Result<Fetched, CarryError>,
    },
    Verified {
        key: TaskKey,
        update: Update,
        object: Option<Held>,
        result: Result<(), Failure>,
    },
    Summed {
        key: FoldKey,
        relay: SiteName,
        result: Box<Result<Summed, Failure>>,
    },
    Folded {
        key: FoldKey,
        result: Box<Refolded>,
    },
}

/// What comes in while a job is driven, beside what its sites say.
struct Inputs {
    connections: mpsc::Receiver<Connection>,
    abort: watch::Receiver<Option<String>>,
    gone: mpsc::Receiver<(SiteName, Failure)>,
}

/// A job that is being driven.
pub struct Job {
    pub(crate) parts: JobParts,
    flow: FedAvg,
    kept: KeptModels,
    snapshots: Snapshots,
    sites: Vec<SiteName>,
    pub(crate) index: HashMap<SiteName, usize>,
    pub(crate) relays: Relays,
    /// Where connections of sites below relays come from, until the door has it.
    below: Option<mpsc::Receiver<Connection>>,
    links: Vec<Option<Link>>,
    carriers: Vec<Arc<dyn Carrier>>,
    presence: Presence,
    fetches: Fetches,
    /// How updates are checked and summed.
    pub(crate) options: Options,
    /// Models in the form in which they travel, by the filters that made it.
    encoded: HashMap<ModelHandle, HashMap<String, ModelObject>>,
    /// What filters lost, to be added the next time.
    residuals: HashMap<String, ModelObject>,
    /// Tasks whose model is being filtered.
    encoding: HashSet<TaskKey>,
    /// The sites to which a model is offered, to be told when it is not any more.
    pub(crate) offered: HashMap<ModelHandle, Vec<usize>>,
    /// Whether somebody may still connect.
    open: bool,
    /// Sites that are not here and that the workflow does not wait for.
    given_up: HashSet<usize>,
    pub(crate) models: HashMap<ModelHandle, Held>,
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
    pub(crate) done: mpsc::Sender<Done>,
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
    /// `connections` are those of sites, in whatever order and at whatever
    /// time; `abort` becomes a reason when the job is to be ended; `status` is
    /// where the job stands. With `resume` it goes on after the last round that
    /// the run directory holds.
    ///
    /// # Errors
    /// [`JobError`] when it cannot even start.
    pub async fn run(
        parts: JobParts,
        resume: bool,
        connections: mpsc::Receiver<Connection>,
        abort: watch::Receiver<Option<String>>,
        status: watch::Sender<Option<Status>>,
    ) -> Result<JobReport, JobError> {
        let (_, gone) = mpsc::channel(1);
        Self::run_without(parts, resume, connections, abort, status, gone).await
    }

    /// The same where somebody knows better than connections do which sites take
    /// no (further) part: each that `gone` names is not waited for, until it
    /// connects all the same.
    ///
    /// # Errors
    /// [`JobError`] when it cannot even start.
    pub async fn run_without(
        parts: JobParts,
        resume: bool,
        connections: mpsc::Receiver<Connection>,
        abort: watch::Receiver<Option<String>>,
        status: watch::Sender<Option<Status>>,
        gone: mpsc::Receiver<(SiteName, Failure)>,
    ) -> Result<JobReport, JobError> {
        let (done, finished) = mpsc::channel(64);
        let (mut job, first) = Self::prepare(parts, resume, done, status)?;
        let inputs = Inputs {
            connections,
            abort,
            gone,
        };
        job.main(first, inputs, finished).await;
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
                            models.insert(model.handle, Held::Here(object));
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
                    models.insert(ModelHandle(0), Held::Here(object));
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
            models.get(&initial).and_then(Held::here).cloned()
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
        let (relays, below) = Relays::new();
        let job = Self {
            relays,
            below: Some(below),
            next_handle: last.map_or(1, |handle| handle.0 + (1 << 20)),
            index: sites.iter().cloned().zip(0..).collect(),
            links: sites.iter().map(|_| None).collect(),
            carriers: sites.iter().map(|site| (parts.carriers)(site)).collect(),
            presence: Presence::default(),
            options: fold::options(&parts.spec),
            fetches: Fetches::default(),
            encoded: HashMap::new(),
            residuals: HashMap::new(),
            encoding: HashSet::new(),
            offered: HashMap::new(),
            open: true,
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

    async fn main(&mut self, first: Event, inputs: Inputs, mut finished: mpsc::Receiver<Done>) {
        let Inputs {
            connections,
            mut abort,
            mut gone,
        } = inputs;
        let (inbox, mut inbound) = mpsc::channel(INBOX);
        let reception = Arc::new(Reception {
            sites: self.index.clone(),
            relays: self.parts.spec.hierarchy == Hierarchy::Aggregate,
            start: StartJob {
                job: self.parts.id.as_str().to_owned(),
                spec: Bytes::from(self.parts.spec.to_json()),
                seed: self.parts.seed,
                resume_round: self.resumed.map(|round| round.0),
                run: self.parts.run.run().to_owned(),
                model_length: self
                    .models
                    .values()
                    .filter_map(Held::here)
                    .map(ModelObject::len)
                    .max()
                    .unwrap_or(0),
            },
            connect: self.parts.durations.connect,
            lease_epoch: self.parts.epoch,
        });
        self.feed(first);
        let mut abort_open = true;
        let mut door = Door::new((connections, self.below.take()), reception, inbox);
        let mut display = Instant::now() + self.parts.watch.interval();
        while self.ended.is_none() {
            let wake = self.wakeup(display);
            tokio::select! {
                Some(said) = inbound.recv() => self.on_inbound(said),
                () = door.tend() => self.open = door.open,
                Some(done) = finished.recv() => self.on_done(done),
                Some((site, why)) = gone.recv() => self.on_gone(&site, why),
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
                for (key, done, total) in self.fetches.progress() {
                    self.parts.watch.sending(key, done, total);
                }
                self.parts.watch.tick();
                self.end_leases(now);
                self.end_relay_leases(now, self.parts.durations.lease);
                if self.awaited_until.take_if(|until| *until <= now).is_some() {
                    self.give_up_absent(
                        FailureCode::Disconnected,
                        "did not come back within its lease",
                    );
                }
                // Nobody can dial any more, and nobody is about to join: who is
                // not here will not come.
                if !self.open
                    && inbound.is_empty()
                    && door.serving.len() == self.connected() + self.relays.connected()
                {
                    self.give_up_absent(
                        FailureCode::Internal,
                        "is not connected, and cannot connect any more",
                    );
                }
            }
        }
        self.fetches.give_up_all();
        self.farewell(&mut inbound, &mut door, &mut gone).await;
    }

    /// Somebody knows that a site takes no part, whatever its connection says.
    fn on_gone(&mut self, site: &SiteName, why: Failure) {
        let Some(&index) = self.index.get(site) else {
            return;
        };
        if let Some(link) = self.link(index).take() {
            link.cut();
        }
        self.presence.leaving(index);
        self.given_up.insert(index);
        self.fetches.give_up_site(site);
        self.feed(Event::SiteLeft {
            site: site.clone(),
            failure: why,
        });
    }

    /// Sites that did not come back in time are not waited for any longer.
    fn end_leases(&mut self, now: Instant) {
        let mut expired = self.presence.expired(now);
        if !self.open {
            // Nobody can come back any more.
            expired.extend(self.presence.all_away());
        }
        for site in expired {
            self.presence.leaving(site);
            self.lost(site, "the site did not come back within its lease");
        }
    }

    /// A site takes no further part, unless it joins anew.
    fn lost(&mut self, site: usize, why: impl Into<String>) {
        let name = self.name(site);
        self.fetches.give_up_site(&name);
        let failure = Failure::new(FailureCode::Disconnected, Phase::Train, why);
        self.feed(Event::SiteLeft {
            site: name,
            failure,
        });
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
    async fn farewell(
        &mut self,
        inbound: &mut mpsc::Receiver<Inbound>,
        door: &mut Door,
        gone: &mut mpsc::Receiver<(SiteName, Failure)>,
    ) {
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
        if door.open {
            // They are about to dial, and would do so for a whole lease.
            let away = self.presence.all_away();
            waited_for.extend(away.into_iter().map(|site| (site, 0)));
        }
        self.relays.tell(&end());
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
                let said = tokio::select! {
                    said = inbound.recv() => said,
                    () = door.tend() => continue,
                    Some((site, _)) = gone.recv() => {
                        if let Some(site) = self.index.get(&site) {
                            waited_for.remove(site);
                        }
                        continue;
                    }
                };
                match said {
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
                    Some(Inbound::Joined { site, link, .. }) => {
                        if link.tell(end()) == Told::Yes {
                            waited_for.insert(site, link.connection);
                        }
                    }
                    Some(Inbound::Said { .. } | Inbound::Turned { .. } | Inbound::Relay { .. }) => {
                    }
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
        self.relays.dismiss();
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
    pub(crate) fn feed(&mut self, event: Event) {
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
            Inbound::Joined {
                site,
                link,
                hello,
                way,
            } => self.on_joined(site, link, &hello, way),
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
                *self.link(site) = None;
                let message = match why {
                    Some(error) => format!("the connection was lost: {}", fold::sentence(&error)),
                    None => "the site closed its connection".to_owned(),
                };
                self.disconnected(site, message);
            }
            Inbound::Relay { relay, news } => self.on_relay(relay, news),
            Inbound::Turned { why } => self.parts.watch.warn(&format!("turned away: {why}")),
        }
    }

    fn on_joined(&mut self, site: usize, link: Link, hello: &Hello, way: Way) {
        let name = self.name(site);
        let welcomed = self.presence.joined(site, hello, self.parts.epoch);
        let moved = self.relays.joined(site, &way);
        self.carrier(site).connected(way);
        if let Some(old) = self.link(site).replace(link) {
            old.cut();
            self.parts.watch.warn(&format!(
                "{name} connected again; its new connection is used"
            ));
        }
        self.given_up.remove(&site);
        match welcomed {
            Welcomed::Anew => {
                // What was on its way is of an agent that is no more.
                self.fetches.give_up_site(&name);
                self.parts.watch.joined(&name);
                self.feed(Event::SiteJoined { site: name });
            }
            Welcomed::Back { asked, cancelled } => {
                self.parts.watch.back(&name);
                if moved {
                    self.offer_again(site);
                }
                if let Some(Round(round)) = self.committed {
                    let committed = to_site::Body::RoundCommitted(RoundCommitted { round });
                    self.tell(&name, committed);
                }
                if let Some(key) = cancelled {
                    let reason = "it was given up while the site was away".to_owned();
                    let key = Some(key);
                    self.tell(&name, to_site::Body::Cancel(Cancel { key, reason }));
                }
                if let Some(asked) = asked {
                    self.tell(&name, to_site::Body::Assign(asked));
                }
            }
        }
    }

    /// A connection is lost. A site that dials again within its lease has missed
    /// nothing.
    fn disconnected(&mut self, site: usize, why: String) {
        if !self.open || !self.presence.comes_back(site) {
            return self.lost(site, why);
        }
        let lease = self.parts.durations.lease;
        self.presence.away(site, Instant::now() + lease);
        let name = self.name(site);
        self.parts.watch.away(&name, &why, lease);
    }

    /// The way of models to a site, by its relay if it is below one.
    fn carrier_to(&self, site: usize) -> &Arc<dyn Carrier> {
        match self.relays.carrier(site) {
            Some(carrier) => carrier,
            None => self.carrier(site),
        }
    }

    fn carrier(&self, site: usize) -> &Arc<dyn Carrier> {
        self.carriers
            .get(site)
            .expect("there is one for each site of the list")
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
            (_, to_server::Body::Hello(_)) => return,
            (_, to_server::Body::Declined(declined)) => {
                let failure = declined.failure.map_or_else(
                    || {
                        Failure::new(
                            FailureCode::Internal,
                            Phase::Start,
                            "the site declined the job",
                        )
                    },
                    Failure::from,
                );
                self.presence.leaving(site);
                let name = self.name(site);
                return self.feed(Event::SiteLeft {
                    site: name,
                    failure,
                });
            }
            // Before the job's end: whoever runs the site has ended it.
            (_, to_server::Body::Stopped(_)) => return self.presence.leaving(site),
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
                self.parts.watch.task(&key, &progress);
                let stage = match state {
                    TaskState::Queued | TaskState::Starting => TaskStage::Accepted,
                    TaskState::Training => TaskStage::Training,
                    TaskState::Sending => TaskStage::Returning,
                };
                self.feed(Event::TaskProgress { key, stage });
            }
            (key, to_server::Body::Update(update)) => self.on_update(site, key, update),
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
                self.task_failed(key, failure);
            }
            (
                _,
                to_server::Body::Metric(_)
                | to_server::Body::Hello(_)
                | to_server::Body::Declined(_)
                | to_server::Body::Partial(_)
                | to_server::Body::Stopped(_),
            ) => {}
        }
    }

    /// An update is fetched unless it is here, then checked: at once when it is
    /// small, beside the loop when reading it takes time.
    fn on_update(&mut self, site: usize, key: TaskKey, update: Update) {
        let malformed = |message| Failure::new(FailureCode::Malformed, Phase::Verify, message);
        if update.metrics.len() > limits::METRICS {
            let (count, limit) = (update.metrics.len(), limits::METRICS);
            let failure = malformed(format!("sent {count} metrics, the limit is {limit}"));
            return self.task_failed(key, failure);
        }
        if update.at_relay {
            if self.presence.has(site, &key) {
                return;
            }
            if !self.relays.is_below(site) {
                let why = "says that a relay has its update, and is below none".to_owned();
                return self.task_failed(key, malformed(why));
            }
            // Its relay has checked it.
            return self.on_done(Done::Verified {
                object: Some(Held::Below(key.clone())),
                key,
                update,
                result: Ok(()),
            });
        }
        let Some(object) = &update.model else {
            return self.verify(key, update, None);
        };
        if let Some(bytes) = &object.inline {
            let (count, limit) = (bytes.len(), limits::INLINE_OBJECT);
            if count > limit {
                let message =
                    format!("sent {count} bytes of model in a message, the limit is {limit}");
                return self.task_failed(key, malformed(message));
            }
            return match self.parts.objects.from_bytes(&bytes[..]) {
                Ok(object) => self.verify(key, update, Some(Held::Here(object))),
                Err(error) => {
                    let why = fold::sentence(&error);
                    self.task_failed(key, malformed(format!("the update is not a model: {why}")));
                }
            };
        }
        match self.carrier(site).here(object) {
            Some(object) => self.verify(key, update, Some(Held::Here(object))),
            None => self.fetch(site, key, update),
        }
    }

    /// Has an update brought here.
    fn fetch(&mut self, site: usize, key: TaskKey, update: Update) {
        // A site that came back offers again what it holds.
        let Some(object) = update.model.clone() else {
            return;
        };
        if self.presence.has(site, &key) || self.fetches.has(&key, object.id) {
            return;
        }
        let progress = Arc::new(Progress::new(object.length));
        let id = object.id;
        let fetching = self.carrier(site).fetch(Order {
            object,
            name: format!("the update of round {}", key.round),
            part: PartName::of_update(&key),
            whole: self.parts.spec.aggregation.method != Method::Mean,
            progress: Arc::clone(&progress),
        });
        let (done, of) = (self.done.clone(), key.clone());
        let task = tokio::spawn(async move {
            let result = fetching.await;
            let fetched = Done::Fetched {
                key: of,
                update,
                object: id,
                result,
            };
            // The receiver is gone only when the job has ended.
            let _ = done.send(fetched).await;
        });
        self.parts.watch.sending(&key, 0, progress.total());
        self.fetches.started(key, id, progress, task.abort_handle());
    }

    fn verify(&mut self, key: TaskKey, update: Update, object: Option<Held>) {
        let base = self.handed_out.clone();
        let kind = if update.diff {
            UpdateKind::Diff
        } else {
            UpdateKind::Full
        };
        let options = self.options.for_kind(kind);
        match object {
            Some(object) if object.is_large() || object.is_encoded() => {
                let failed = Done::Verified {
                    key: key.clone(),
                    update: Update::default(),
                    object: None,
                    result: Err(panicked(Phase::Verify, "an update was checked")),
                };
                let (objects, spool) = (self.parts.objects.clone(), self.parts.spool.clone());
                self.beside(failed, move || {
                    let decoded = fold::decoded(object, &objects, spool.as_ref());
                    let (object, result) = match decoded {
                        Err(failure) => (None, Err(failure)),
                        Ok(object) => {
                            let result = fold::verify(&object, base.as_ref(), &options);
                            (Some(object), result)
                        }
                    };
                    Done::Verified {
                        key,
                        update,
                        object,
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

    fn task_failed(&mut self, key: TaskKey, failure: Failure) {
        if let Some(&site) = self.index.get(&key.site) {
            self.presence.answered(site, &key);
        }
        self.feed(Event::TaskFailed { key, failure });
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

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Encoded {
                mut assignment,
                object,
                result,
            } => {
                // Those that were given up meanwhile are not told of it.
                assignment.keys.retain(|key| self.encoding.remove(key));
                match result {
                    Err(failure) => self.break_down(failure),
                    Ok(made) => {
                        let Some(handle) = assignment.model else {
                            return;
                        };
                        let encoded = self.encoded.entry(handle).or_default();
                        for (name, model, residual) in made {
                            if let Some(residual) = residual {
                                self.residuals.insert(name.clone(), residual);
                            }
                            encoded.insert(name, model);
                        }
                        self.tell_assignment(&assignment, Some(&object));
                    }
                }
            }
            Done::Fetched {
                key,
                update,
                object,
                result,
            } => {
                // Nothing, when it was given up just as it ended.
                let Some(moved) = self.fetches.ended(&key, object) else {
                    return;
                };
                match result {
                    Ok(Fetched::Here(object)) => {
                        self.parts.watch.fetched(&key, moved);
                        self.verify(key, update, Some(Held::Here(object)));
                    }
                    Ok(Fetched::Live(live)) => {
                        self.parts.watch.live(&key);
                        self.verify(key, update, Some(Held::Live(live)));
                    }
                    Err(error) => self.task_failed(key, fold::not_fetched(&error)),
                }
            }
            Done::Verified {
                key,
                result: Err(failure),
                ..
            } => self.task_failed(key, failure),
            Done::Verified {
                key,
                update,
                object,
                result: Ok(()),
            } => {
                let model = object.map(|object| self.remember(object));
                if let Some(&site) = self.index.get(&key.site) {
                    self.presence.taken(site, &key);
                }
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
            Done::Summed { key, relay, result } => self.took(key, relay, *result),
            Done::Folded { key, result } => match *result {
                Ok(folded) => {
                    let model = self.remember(Held::Here(folded.model));
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

    fn remember(&mut self, object: Held) -> ModelHandle {
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
                self.fetches.give_up(&key);
                self.encoding.remove(&key);
                if let Some(&site) = self.index.get(&key.site) {
                    self.presence.cancelled(site, &key);
                }
                let cancel = to_site::Body::Cancel(Cancel {
                    key: Some(Key::from(&key)),
                    reason: reason.to_string(),
                });
                self.tell(&key.site, cancel);
            }
            Action::Fold(request) => {
                self.parts.watch.folding(request.key.round);
                if !self.collect(&request) {
                    self.fold(request, Vec::new());
                }
            }
            Action::Save {
                model,
                role,
                made_in,
            } => self.save(model, role, made_in),
            Action::Release { model } => {
                let forms = self.encoded.remove(&model).unwrap_or_default();
                for site in self.offered.remove(&model).unwrap_or_default() {
                    self.carrier(site)
                        .withdraw(Offer::Model { handle: model.0 });
                }
                self.relays.withdraw(relays::plain_offer(model));
                for form in forms.values() {
                    self.relays.withdraw(relays::filtered_offer(form));
                }
                let object = self.models.remove(&model);
                // Unmapping and unlinking take milliseconds per 100 MB.
                if let Some(object) = object.filter(Held::is_large) {
                    tokio::task::spawn_blocking(move || drop(object));
                }
            }
            Action::Commit(record) => self.commit(&record),
            Action::Dismiss { site, failure } => self.parts.watch.dismissed(&site, &failure),
            Action::Warn(warning) => self.parts.watch.flow_warning(&warning),
            Action::Finish(outcome) => self.finish(outcome),
        }
    }

    /// Sums a round's updates, those at relays by what they have summed.
    pub(crate) fn fold(&mut self, request: FoldRequest, parts: Vec<Part>) {
        let key = request.key;
        let folding = Folding::new(
            &self.parts.objects,
            &self.models,
            (request, parts),
            &self.options,
            self.parts.threads,
        );
        match folding {
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
    pub(crate) fn handed_out(
        &mut self,
        handle: ModelHandle,
    ) -> Result<Option<ModelObject>, Failure> {
        let Some(object) = self.models.get(&handle).and_then(Held::here).cloned() else {
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
        self.encode_and_tell(assignment, object);
    }

    /// Hands a task out, once its model is in the form in which it travels to each
    /// of the sites.
    fn encode_and_tell(&mut self, assignment: Assignment, object: Option<ModelObject>) {
        let (Some(plain), Some(handle)) = (&object, assignment.model) else {
            return self.tell_assignment(&assignment, object.as_ref());
        };
        let made = self.encoded.entry(handle).or_default();
        let mut missing: Vec<(String, Chain)> = Vec::new();
        for key in &assignment.keys {
            let chain = outgoing(&self.parts.spec, &key.site);
            let name = format!("{chain:?}");
            let there = chain.is_empty() || made.contains_key(&name);
            if !there && missing.iter().all(|(known, _)| *known != name) {
                missing.push((name, chain));
            }
        }
        if missing.is_empty() {
            return self.tell_assignment(&assignment, object.as_ref());
        }
        let round = assignment.keys.first().map_or(0, |key| key.round.0);
        let seed = filter::seed(self.parts.seed, "", round, 0);
        let work = missing.into_iter().map(|(name, chain)| {
            let before = self.residuals.get(&name).cloned();
            (name, chain, before)
        });
        let work: Vec<_> = work.collect();
        self.encoding.extend(assignment.keys.iter().cloned());
        let (objects, plain) = (self.parts.objects.clone(), plain.clone());
        let draft = self.parts.run.path().join("state").join("residual.draft");
        let failed = Done::Encoded {
            assignment: assignment.clone(),
            object: plain.clone(),
            result: Err(panicked(Phase::Aggregate, "a model was filtered")),
        };
        self.beside(failed, move || {
            let each = work.into_iter().map(|(name, chain, before)| {
                let encoding = Encoding {
                    after: chain.feeds_back().then_some(draft.as_path()),
                    chain: &chain,
                    kind: Kind::Full,
                    seed,
                    before,
                };
                let encoded = filter::encode(&objects, &plain, encoding)?;
                let mut residual = None;
                if encoded.lost {
                    residual = Some(objects.import_copy(&draft)?);
                    std::fs::remove_file(&draft)?;
                }
                Ok((name, encoded.model, residual))
            });
            let result: Result<Vec<_>, filter::FilterError> = each.collect();
            Done::Encoded {
                assignment,
                object: plain,
                result: result.map_err(|error| error.failure(Phase::Aggregate)),
            }
        });
    }

    fn tell_assignment(&mut self, assignment: &Assignment, object: Option<&ModelObject>) {
        let mut inline: HashMap<ObjectId, Object> = HashMap::new();
        for key in &assignment.keys {
            let Some(&site) = self.index.get(&key.site) else {
                continue;
            };
            let model = assignment.model.zip(object).map(|(handle, plain)| {
                let chain = outgoing(&self.parts.spec, &key.site);
                let encoded = self.encoded.get(&handle);
                let encoded = encoded.and_then(|made| made.get(&format!("{chain:?}")));
                let object = match chain.is_empty() {
                    true => plain.clone(),
                    false => encoded.unwrap_or(plain).clone(),
                };
                if object.len() > limits::INLINE_OBJECT as u64 {
                    return self.offer_to(site, handle, &object);
                }
                // The bytes are shared by all who get them.
                let small = inline.entry(object.id()).or_insert_with(|| Object {
                    inline: Some(Bytes::copy_from_slice(object.bytes())),
                    id: object.id().0,
                    length: object.len(),
                });
                small.clone()
            });
            let assign = Assign {
                key: Some(Key::from(key)),
                task: assignment.task.as_str().to_owned(),
                model,
                start_round: assignment.start_round.0,
                total_rounds: assignment.total_rounds,
                meta: String::new(),
                task_limit_micros: assignment
                    .limit
                    .map(|limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)),
            };
            self.presence.asked(site, &assign);
            self.tell(&key.site, to_site::Body::Assign(assign));
        }
    }

    /// Offers a model to a site until the workflow releases it.
    pub(crate) fn offer_to(
        &mut self,
        site: usize,
        handle: ModelHandle,
        object: &ModelObject,
    ) -> Object {
        let offered = self.offered.entry(handle).or_default();
        if !offered.contains(&site) {
            offered.push(site);
        }
        let mut name = relays::plain_offer(handle);
        if self.relays.is_below(site) {
            // The sites below a relay share its way, but not all have one form.
            let mut forms = self
                .encoded
                .get(&handle)
                .into_iter()
                .flat_map(HashMap::values);
            if forms.any(|form| form.id() == object.id()) {
                name = relays::filtered_offer(object);
            }
        }
        self.carrier_to(site).offer(name, object)
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
            self.disconnected(index, why.to_owned());
        }
    }

    fn save(&mut self, handle: ModelHandle, role: ModelRole, made_in: Option<Round>) {
        let Some(object) = self.models.get(&handle).and_then(Held::here) else {
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
        // All of them share what they receive into.
        if let Some(carrier) = self.carriers.first() {
            carrier.tidy();
        }
        let committed = to_site::Body::RoundCommitted(RoundCommitted { round });
        for index in 0..self.sites.len() {
            let site = self.name(index);
            self.tell(&site, committed.clone());
        }
        self.relays.tell(&committed);
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

    pub(crate) fn break_down(&mut self, failure: Failure) {
        if self.broken.is_none() {
            self.parts.watch.error(&failure.to_string());
            // A failure of the server's own ends the job through the workflow.
            let reason = failure.message.clone();
            self.broken = Some(failure);
            self.feed(Event::Abort { reason });
        }
    }
}

/// The filters of a task's model on its way to a site.
fn outgoing(spec: &JobSpec, site: &SiteName) -> Chain {
    spec.filters.chain(FilterDirection::TaskData, site)
}

/// Takes connections in for as long as somebody may dial.
struct Door {
    connections: mpsc::Receiver<Connection>,
    /// Those of sites below relays.
    below: Option<mpsc::Receiver<Connection>>,
    open: bool,
    number: u64,
    /// Whatever is left of them ends with the job.
    serving: JoinSet<()>,
    reception: Arc<Reception>,
    inbox: mpsc::Sender<Inbound>,
}

impl Door {
    fn new(
        (connections, below): (
            mpsc::Receiver<Connection>,
            Option<mpsc::Receiver<Connection>>,
        ),
        reception: Arc<Reception>,
        inbox: mpsc::Sender<Inbound>,
    ) -> Self {
        Self {
            connections,
            below,
            open: true,
            number: 0,
            serving: JoinSet::new(),
            reception,
            inbox,
        }
    }

    fn serve(&mut self, connection: Connection) {
        // Zero is no connection's.
        self.number += 1;
        let (reception, inbox) = (Arc::clone(&self.reception), self.inbox.clone());
        self.serving
            .spawn(link::serve(self.number, connection, reception, inbox));
    }

    /// Takes in the next connection, or clears away one that has ended. Nothing is
    /// lost when it is cancelled.
    async fn tend(&mut self) {
        tokio::select! {
            connection = self.connections.recv(), if self.open => match connection {
                Some(connection) => self.serve(connection),
                None => self.open = false,
            },
            Some(connection) = next(&mut self.below) => self.serve(connection),
            // What it had to say last is in the inbox before it ends.
            Some(_) = self.serving.join_next() => {}
            else => std::future::pending().await,
        }
    }
}

async fn next(below: &mut Option<mpsc::Receiver<Connection>>) -> Option<Connection> {
    match below {
        Some(below) => below.recv().await,
        None => None,
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
