//! The tests that every workflow must pass, whatever it does.
//!
//! [`kill_and_restore`] replays a log of events and kills the workflow after
//! each; [`World`] drives a workflow through a federation where anything may
//! happen, checks what a driver can check, and may be killed at any event.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;

use firesteel_base::{Failure, FailureCode, Phase, Round, SiteName, TaskKey, Time};

use crate::{
    Action, Assignment, Event, FoldRequest, JobStage, ModelHandle, Outcome, ParamsType, Restore,
    RoundRecord, SiteResult, TaskStage, UpdateInfo,
};

/// Replays `log` twice: once undisturbed, once with the workflow replaced by its
/// restored snapshot after every event. Both must ask for the same at each step.
pub(crate) fn kill_and_restore<W: Restore<ConfigError: Debug>>(
    config: &W::Config,
    log: &[(Event, Time)],
) {
    let create = || W::create(config.clone()).expect("the configuration is sound");
    let mut whole = create();
    let mut killed = create();
    for (step, (event, now)) in log.iter().enumerate() {
        let expected = whole.handle(event.clone(), *now);
        let actions = killed.handle(event.clone(), *now);
        // As text: a NaN among the metrics is equal to itself there.
        let (actions, expected) = (format!("{actions:?}"), format!("{expected:?}"));
        assert_eq!(actions, expected, "step {step}: {event:?} at {now}");
        let bytes = killed.snapshot();
        assert_eq!(bytes, whole.snapshot(), "step {step}: {event:?} at {now}");
        killed = W::restore(config.clone(), &bytes).expect("its own snapshot is sound");
        assert_eq!(
            killed.snapshot(),
            bytes,
            "step {step}: restore is no inverse"
        );
        assert_eq!(killed.next_wakeup(), whole.next_wakeup(), "step {step}");
        assert_eq!(killed.status(), whole.status(), "step {step}");
        assert_eq!(killed.models(), whole.models(), "step {step}");
        assert_eq!(killed.outcome(), whole.outcome(), "step {step}");
    }
}

/// No cut, flipped or random bytes make `restore` panic; what it accepts can be
/// driven on without a panic.
pub(crate) fn restore_hostile<W: Restore>(config: &W::Config, bytes: &[u8]) {
    if let Ok(mut flow) = W::restore(config.clone(), bytes) {
        let models = flow.models();
        let sites = flow.status().sites.into_iter().map(|one| one.site);
        let sites = sites.collect();
        flow.handle(Event::Resumed { sites, models }, Time::from_secs(1));
        flow.handle(Event::Tick, Time(u64::MAX));
        flow.snapshot();
        flow.handle(
            Event::Abort {
                reason: "enough".to_owned(),
            },
            Time(u64::MAX),
        );
    }
}

/// A stream of choices that shrinks to the dull ones: zero is what happens when
/// nothing goes wrong.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    bytes: Vec<u8>,
    at: usize,
}

impl Choices {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    /// A number below `count`; zero once the stream is used up.
    fn pick(&mut self, count: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % count
    }
}

/// How rough the world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Every task is answered well, in any order and at any pace, though
    /// reports may come twice.
    Fair,
    /// Tasks fail, sites leave, come back or fall silent until their lease ends,
    /// folds fail, old answers come again.
    Rough,
}

/// A driver of one job in a made-up federation. It panics when the workflow asks
/// for what cannot be right.
pub(crate) struct World<W: Restore> {
    config: W::Config,
    flow: W,
    sites: Vec<SiteName>,
    weather: Weather,
    choices: Choices,
    now: Time,
    /// What will happen, in order of time and then of being thought of.
    queue: BTreeMap<(Time, u64), Event>,
    queued: u64,
    next_model: u64,
    live: BTreeSet<ModelHandle>,
    /// Whose each update is, and for which key.
    updates: HashMap<ModelHandle, TaskKey>,
    keys: HashSet<TaskKey>,
    /// The snapshot that was written with the last commit.
    committed: Option<Vec<u8>>,
    /// Whether a kill has made the workflow forget what came after a commit.
    forgot: bool,
    fold: Option<FoldRequest>,
    /// The updates that a committed fold has counted.
    counted: HashSet<ModelHandle>,
    counted_work: HashSet<(SiteName, Round)>,
    /// Every event so far, for a replay.
    log: Vec<(Event, Time)>,
    pub(crate) records: Vec<RoundRecord>,
    pub(crate) outcome: Option<Outcome>,
}

/// Events after which a job that has not ended never will.
const EVENTS_AT_MOST: usize = 20_000;

/// How long the made-up driver takes for a fold, at most.
const FOLD_SECONDS: usize = 3;

/// After how long the lease of a silent site ends.
const LEASE_SECONDS: u64 = 50;

impl<W: Restore<ConfigError: Debug>> World<W> {
    pub(crate) fn new(
        config: W::Config,
        sites: Vec<SiteName>,
        weather: Weather,
        choices: Choices,
    ) -> Self {
        Self {
            flow: W::create(config.clone()).expect("the configuration is sound"),
            config,
            sites,
            weather,
            choices,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            next_model: 0,
            live: BTreeSet::new(),
            updates: HashMap::new(),
            keys: HashSet::new(),
            committed: None,
            forgot: false,
            fold: None,
            counted: HashSet::new(),
            counted_work: HashSet::new(),
            log: Vec::new(),
            records: Vec::new(),
            outcome: None,
        }
    }

    /// Runs the job to its end, killing driver and workflow before each of the
    /// events whose numbers are in `kills`.
    pub(crate) fn run(&mut self, kills: &[usize]) {
        let model = Some(self.make_model());
        let mut there = Vec::new();
        for site in self.sites.clone() {
            if self.choices.pick(4) == 3 {
                self.after(1, Event::SiteJoined { site });
            } else {
                there.push(site);
            }
        }
        self.tell(Event::Started {
            sites: there,
            model,
        });
        for step in 0..EVENTS_AT_MOST {
            if let Some(outcome) = &self.outcome {
                let failed = matches!(outcome, Outcome::Failed { .. });
                if !failed || self.choices.pick(3) != 2 {
                    return self.check_end();
                }
                self.outcome = None;
                self.kill();
                continue;
            }
            if kills.contains(&step) {
                self.kill();
                continue;
            }
            let next = self.queue.first_key_value().map(|((when, _), _)| *when);
            let wakeup = self.flow.next_wakeup();
            match (next, wakeup) {
                (Some(when), None) => self.happen(when),
                (Some(when), Some(wakeup)) if when <= wakeup => self.happen(when),
                (_, Some(wakeup)) => {
                    self.now = self.now.max(wakeup);
                    self.tell(Event::Tick);
                }
                // Sites that left may stay away for ever; people see to it.
                (None, None) if self.flow.status().stage == JobStage::Gathering => {
                    for site in self.sites.clone() {
                        self.after(1, Event::SiteJoined { site });
                    }
                }
                (None, None) => panic!(
                    "the job waits for nothing that can happen: {}",
                    self.flow.status()
                ),
            }
        }
        panic!("the job does not end: {}", self.flow.status());
    }

    fn happen(&mut self, when: Time) {
        self.now = self.now.max(when);
        let (_, event) = self.queue.pop_first().expect("the caller has seen it");
        let again = (self.choices.pick(8) == 7).then(|| event.clone());
        self.tell(event);
        if let Some(again) = again {
            let delay = self.choices.pick(30) as u64;
            self.after(delay, again);
        }
    }

    fn tell(&mut self, event: Event) {
        self.log.push((event.clone(), self.now));
        if let Event::UpdateReady { key, update } = &event
            && let Some(model) = update.model
        {
            self.live.insert(model);
            self.updates.insert(model, key.clone());
        }
        if let Event::Folded { model, .. } = &event {
            self.live.insert(*model);
        }
        for action in self.flow.handle(event, self.now) {
            self.carry_out(action);
        }
        for model in self.flow.models() {
            assert!(self.live.contains(&model), "{model} is used and gone");
        }
    }

    fn carry_out(&mut self, action: Action) {
        if self.outcome.is_some() {
            assert!(
                matches!(action, Action::Release { .. }),
                "after the end: {action:?}"
            );
        }
        match action {
            Action::Assign(assignment) => self.assign(assignment),
            Action::Fold(request) => self.answer_fold(request),
            Action::Save { model, .. } => assert!(self.live.contains(&model)),
            Action::Release { model } => {
                assert!(!self.flow.models().contains(&model), "{model} is in use");
                self.live.remove(&model);
            }
            Action::Commit(record) => self.commit(*record),
            Action::Finish(outcome) => self.outcome = Some(outcome),
            Action::Cancel { key, .. } => assert!(self.keys.contains(&key)),
            Action::Dismiss { .. } | Action::Warn(_) => {}
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        assert!(!assignment.keys.is_empty());
        if let Some(model) = assignment.model {
            assert!(self.live.contains(&model), "{model} is handed out and gone");
        }
        for key in assignment.keys {
            let is_new = self.keys.insert(key.clone());
            assert!(is_new || self.forgot, "{key} was assigned before");
            self.work(key);
        }
    }

    /// Decides what a site makes of a task.
    fn work(&mut self, key: TaskKey) {
        let seconds = 1 + self.choices.pick(30) as u64;
        let fate = match self.weather {
            Weather::Fair => 0,
            Weather::Rough => self.choices.pick(12),
        };
        for (share, stage) in [(3, TaskStage::Accepted), (2, TaskStage::Training)] {
            if self.choices.pick(3) == 0 {
                let key = key.clone();
                self.after(seconds / share, Event::TaskProgress { key, stage });
            }
        }
        let site = key.site.clone();
        let gone = |code| Failure::new(code, Phase::Train, "is gone");
        match fate {
            8 => self.after(
                seconds,
                Event::TaskFailed {
                    key,
                    failure: gone(FailureCode::Raised),
                },
            ),
            // Leaves, and is back a while later.
            9 => {
                let failure = gone(FailureCode::Disconnected);
                let back = seconds + self.choices.pick(40) as u64;
                self.after(
                    seconds,
                    Event::SiteLeft {
                        site: site.clone(),
                        failure,
                    },
                );
                self.after(back, Event::SiteJoined { site });
            }
            // Falls silent until its lease ends, and is back long after.
            10 => {
                let failure = gone(FailureCode::Disconnected);
                self.after(
                    LEASE_SECONDS,
                    Event::SiteLeft {
                        site: site.clone(),
                        failure,
                    },
                );
                self.after(3 * LEASE_SECONDS, Event::SiteJoined { site });
            }
            // Answers with what is no update.
            11 => {
                let update = UpdateInfo {
                    model: None,
                    ..update_of(&key, ModelHandle(0))
                };
                self.after(seconds, Event::UpdateReady { key, update });
            }
            _ => {
                let model = self.new_handle();
                let update = update_of(&key, model);
                self.after(seconds, Event::UpdateReady { key, update });
            }
        }
    }

    fn answer_fold(&mut self, request: FoldRequest) {
        assert!(!request.inputs.is_empty());
        if let Some(base) = request.base {
            assert!(self.live.contains(&base), "the base {base} is gone");
        }
        let order: Vec<_> = (request.inputs.iter())
            .map(|input| self.sites.iter().position(|site| *site == input.site))
            .collect();
        assert!(order.is_sorted(), "not in site order: {order:?}");
        for input in &request.inputs {
            assert!(self.live.contains(&input.model), "{} is gone", input.model);
            assert!(input.weight > 0.0 && input.weight.is_finite());
            assert_eq!(self.updates[&input.model].site, input.site);
            assert!(!self.counted.contains(&input.model), "counted before");
        }
        let key = request.key;
        let blamed = (self.weather == Weather::Rough && self.choices.pick(10) == 9).then(|| {
            request.inputs[self.choices.pick(request.inputs.len())]
                .site
                .clone()
        });
        self.fold = Some(request);
        let seconds = self.choices.pick(FOLD_SECONDS) as u64;
        let failure = Failure::new(FailureCode::NotFinite, Phase::Aggregate, "holds NaN");
        match blamed {
            Some(site) => self.after(
                seconds,
                Event::FoldFailed {
                    key,
                    failure: failure.clone(),
                    blame: vec![(site, failure)],
                },
            ),
            None => {
                let model = self.new_handle();
                let notes = Vec::new();
                self.after(seconds, Event::Folded { key, model, notes });
            }
        }
    }

    fn commit(&mut self, record: RoundRecord) {
        let contributed: Vec<_> = (record.sites.iter())
            .filter_map(|one| match &one.result {
                SiteResult::Contributed { trained_in, .. } => Some((one.site.clone(), *trained_in)),
                _ => None,
            })
            .collect();
        assert!(record.started <= record.ended);
        if let Some(result) = record.result {
            assert!(self.live.contains(&result));
            let fold = self.fold.take().expect("a model was made by a fold");
            assert_eq!(fold.key.round, record.round);
            let folded: Vec<_> = (fold.inputs.iter())
                .map(|input| (input.site.clone(), input.trained_in))
                .collect();
            assert_eq!(folded, contributed, "the record is of what was folded");
            for input in &fold.inputs {
                assert!(self.counted.insert(input.model), "counted twice");
            }
            for work in contributed {
                assert!(
                    self.counted_work.insert(work),
                    "a site's work counted twice"
                );
            }
        }
        self.records.push(record);
        self.committed = Some(self.flow.snapshot());
    }

    /// Ends the driver without a warning and starts it again, from the state it
    /// had or the one it had at the last commit. What was on its way to it may
    /// still arrive, updates may be lost, sites come back sooner, later or not
    /// at all.
    fn kill(&mut self) {
        let mut bytes = self.flow.snapshot();
        if let Some(committed) = (self.choices.pick(2) == 1)
            .then(|| self.committed.clone())
            .flatten()
        {
            self.forgot |= committed != bytes;
            bytes = committed;
        }
        self.flow = W::restore(self.config.clone(), &bytes).expect("its own snapshot is sound");
        assert_eq!(self.flow.snapshot(), bytes);
        self.fold = None;
        let rough = self.weather == Weather::Rough;
        let mut kept = BTreeMap::new();
        for (when, event) in std::mem::take(&mut self.queue) {
            let survives = match &event {
                Event::SiteJoined { .. } => true,
                // The process that was folding is gone.
                Event::Folded { .. } | Event::FoldFailed { .. } => false,
                _ => self.choices.pick(2) == 1,
            };
            if survives {
                kept.insert(when, event);
            }
        }
        self.queue = kept;
        let used: HashSet<_> = self.flow.models().into_iter().collect();
        for model in self.live.clone() {
            let is_update = self.updates.contains_key(&model);
            let is_lost = is_update && self.choices.pick(4) == 3;
            if is_lost || !used.contains(&model) {
                self.live.remove(&model);
            }
        }
        let mut there = Vec::new();
        for site in self.sites.clone() {
            match self.choices.pick(6) {
                4 => self.after(10, Event::SiteJoined { site }),
                5 if rough => {
                    let failure = Failure::new(FailureCode::Disconnected, Phase::Train, "is gone");
                    self.after(LEASE_SECONDS, Event::SiteLeft { site, failure });
                }
                5 => self.after(20, Event::SiteJoined { site }),
                _ => there.push(site),
            }
        }
        let models = self.live.iter().copied().collect();
        self.tell(Event::Resumed {
            sites: there,
            models,
        });
    }

    fn check_end(&mut self) {
        assert_eq!(self.flow.outcome(), self.outcome.as_ref());
        assert_eq!(self.flow.next_wakeup(), None);
        if !self.forgot {
            kill_and_restore::<W>(&self.config, &self.log);
        }
        // What still arrives is let go of.
        let late: Vec<_> = std::mem::take(&mut self.queue).into_values().collect();
        for event in late {
            self.tell(event);
        }
        let updates = |model: &ModelHandle| self.updates.contains_key(model);
        let leaked: Vec<_> = self.live.iter().copied().filter(updates).collect();
        assert!(leaked.is_empty(), "never released: {leaked:?}");
        assert!(self.live.len() <= 2, "more than the newest and the best");
    }

    fn after(&mut self, seconds: u64, event: Event) {
        let when = Time(self.now.0 + seconds * 1_000_000);
        self.queued += 1;
        self.queue.insert((when, self.queued), event);
    }

    fn make_model(&mut self) -> ModelHandle {
        let model = self.new_handle();
        self.live.insert(model);
        model
    }

    fn new_handle(&mut self) -> ModelHandle {
        self.next_model += 1;
        ModelHandle(self.next_model)
    }
}

/// What a site's trainer makes of a task: the same however often it is asked.
fn update_of(key: &TaskKey, model: ModelHandle) -> UpdateInfo {
    let letters: u32 = key.site.as_str().bytes().map(u32::from).sum();
    let steps = 1 + (letters + key.round.0) % 7;
    UpdateInfo {
        model: Some(model),
        params_type: ParamsType::Full,
        steps: Some(f64::from(steps)),
        metrics: vec![(
            "accuracy".to_owned(),
            f64::from((letters * 31 + key.round.0 * 17) % 100) / 100.0,
        )],
    }
}

/// What a job has done, without the names and moments that a restart changes.
pub(crate) fn essence(records: &[RoundRecord], outcome: &Option<Outcome>) -> String {
    let rounds = records.iter().map(|record| {
        let sites: Vec<_> = (record.sites.iter())
            .map(|one| match &one.result {
                SiteResult::Contributed {
                    weight,
                    steps,
                    metrics,
                    trained_in,
                    ..
                } => format!("{} {weight} {steps:?} {metrics:?} {trained_in}", one.site),
                other => format!("{} {other:?}", one.site),
            })
            .collect();
        let best = (record.best.as_ref()).map(|best| (best.made_in, best.rated_in, best.value));
        format!("{} {sites:?} {:?} {best:?}\n", record.round, record.metrics)
    });
    rounds.collect::<String>() + &format!("{outcome:?}")
}
