//! The loop that everything goes through: what happens to jobs and sites is taken
//! in, the scheduler decides, the decisions are written down, and then they are
//! carried out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use firesteel_api::{EventKind, JobState, Problem, problem::Code};
use firesteel_base::{JobId, SiteName, Time, limits};
use firesteel_carry::Connection;
use firesteel_flow::schedule::{
    Capacity, InHand, JobState as Phase, ScheduleAction, ScheduleEvent, ScheduleSettings,
    Scheduler, SitePart,
};
use firesteel_jobs::Change;
use firesteel_net::Session;
use firesteel_wire::node::{ToNode, to_node};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::drive::{RunEnd, RunHandle};
use super::facts;
use super::journal::event;
use super::record::{Record, micros};
use super::shared::{Shared, lock_read, lock_write};

/// Inputs that are decided upon together and share one flush.
const TOGETHER: usize = 256;

/// Between two tries to write what could not be written: a full disk is emptied by
/// people.
const RETRY: Duration = Duration::from_secs(1);

/// What comes in.
pub(crate) enum Input {
    /// A job is in the store and wants to be scheduled.
    Submitted(Box<Record>),
    /// Something for the scheduler alone.
    Event(ScheduleEvent),
    /// A site has said hello.
    Here(Box<Here>),
    /// A session with a site is over.
    Gone { site: SiteName, number: u64 },
    /// A site's facts have changed.
    Facts { site: SiteName, facts: Value },
    /// An agent has called in a job's scope.
    Called {
        job: JobId,
        site: SiteName,
        connection: Connection,
    },
    /// Something worth a line has happened in a job's run.
    Told {
        job: JobId,
        events: Vec<EventKind>,
        status: Option<String>,
    },
    /// A job's run is over.
    RunOver { job: JobId, end: Box<RunEnd> },
    /// Somebody wants a job ended.
    Abort {
        job: JobId,
        reason: String,
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// A job is to be forgotten.
    Delete {
        job: JobId,
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// A question for a site.
    Ask {
        site: SiteName,
        ask: Box<firesteel_wire::node::Ask>,
        done: oneshot::Sender<Result<Value, Problem>>,
    },
    /// The answer to one.
    Answer {
        site: SiteName,
        id: u64,
        answer: Result<Value, Problem>,
    },
    /// The connections of a job's run, for relays that are a party to it.
    Connections {
        job: JobId,
        done: oneshot::Sender<Result<mpsc::Sender<Connection>, String>>,
    },
}

/// A site that has said hello.
pub(crate) struct Here {
    pub(crate) site: SiteName,
    /// The session's number.
    pub(crate) number: u64,
    pub(crate) session: Session,
    pub(crate) outgoing: mpsc::Sender<ToNode>,
    pub(crate) facts: Value,
    pub(crate) jobs: Vec<(JobId, InHand)>,
}

/// A site's session.
pub(super) struct SiteLink {
    pub(super) number: u64,
    pub(super) session: Session,
    pub(super) outgoing: mpsc::Sender<ToNode>,
}

/// What is done once everything is written down.
pub(super) enum Effect {
    Action(ScheduleAction),
    /// A site is taken: the scopes of what it runs are made, and it is told.
    Welcome {
        site: SiteName,
        scopes: Vec<JobId>,
    },
    Reply(oneshot::Sender<Result<(), Problem>>, Result<(), Problem>),
    Removed(JobId, oneshot::Sender<Result<(), Problem>>),
}

pub(super) struct Asked {
    site: SiteName,
    done: oneshot::Sender<Result<Value, Problem>>,
}

pub(crate) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) scheduler: Scheduler,
    pub(super) clock: Instant,
    pub(super) links: HashMap<SiteName, SiteLink>,
    pub(super) runs: HashMap<JobId, RunHandle>,
    /// How the runs that are over went, until the scheduler says that the jobs are.
    pub(super) ends: HashMap<JobId, RunEnd>,
    pub(super) scopes: HashMap<(SiteName, JobId), AbortHandle>,
    pub(super) asks: HashMap<u64, Asked>,
    pub(super) next_ask: u64,
    pub(super) changes: Vec<Change>,
    pub(super) effects: Vec<Effect>,
    pub(super) touched: BTreeSet<JobId>,
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let durations = shared.durations;
        let settings = ScheduleSettings {
            max_jobs: shared.max_jobs,
            gather: durations.connect,
            deploy: durations.idle,
            start: durations.trainer_start,
            stop: durations.stop_grace,
        };
        Self {
            shared,
            scheduler: Scheduler::new(settings),
            clock: Instant::now(),
            links: HashMap::new(),
            runs: HashMap::new(),
            ends: HashMap::new(),
            scopes: HashMap::new(),
            asks: HashMap::new(),
            next_ask: 1,
            changes: Vec::new(),
            effects: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes up the jobs that an earlier process had not come to an end with.
    pub(crate) fn restore(&mut self, records: Vec<Record>) {
        for record in records {
            let state = match record.state {
                JobState::Submitted | JobState::Queued => Phase::Queued,
                JobState::Deploying => Phase::Deploying,
                JobState::Starting => Phase::Starting,
                JobState::Running => Phase::Running,
                // It was on its way out: whoever has something of it is pending.
                _ => Phase::Stopping,
            };
            let id = record.id.clone();
            let mut record = record;
            if record.state == JobState::Stopping {
                self.close_stopped(&mut record);
            }
            let restored = firesteel_flow::schedule::Restored {
                job: id.clone(),
                number: record.row.number,
                needs: facts::needs(&record.spec),
                state,
                sites: record
                    .sites
                    .iter()
                    .filter_map(|site| Some((site.clone(), record.parts.get(site)?.clone())))
                    .collect(),
            };
            if matches!(state, Phase::Queued | Phase::Deploying | Phase::Starting) {
                record.sites.clear();
                record.parts.clear();
            }
            lock_write(&self.shared.records).insert(id.clone(), record);
            self.touched.insert(id);
            let actions = self.scheduler.restore(restored);
            self.take_all(actions);
        }
    }

    /// A job that was being stopped when the server ended: nothing of it runs here
    /// any more, and its sites are told when they connect.
    fn close_stopped(&mut self, record: &mut Record) {
        record.state = match &record.abort {
            Some(_) => JobState::Aborted,
            None => JobState::Failed,
        };
        record.status = match &record.abort {
            Some(reason) => format!("aborted: {reason}"),
            None => "failed; the server was stopped while its sites were being told".to_owned(),
        };
        let still = record.parts.iter().filter(|(_, part)| {
            !matches!(part, SitePart::Waiting | SitePart::Out(_) | SitePart::Ended)
        });
        record.pending = still.map(|(site, _)| site.to_string()).collect();
        let now = self.wall();
        record.ended = Some(now);
        let kind = EventKind::State {
            state: record.state,
            status: record.status.clone(),
        };
        self.changes.push(event(&record.id, now, &kind));
    }

    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut stop: watch::Receiver<Option<String>>,
    ) {
        let mut batch = Vec::new();
        self.settle().await;
        loop {
            let wake = match self.scheduler.next_wakeup() {
                Some(at) => self.clock + Duration::from_micros(at.0),
                None => Instant::now() + Duration::from_secs(3600),
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(Option::is_some) => break,
                taken = inbox.recv_many(&mut batch, TOGETHER) => {
                    if taken == 0 {
                        break;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    batch.push(Input::Event(ScheduleEvent::Tick));
                }
            }
            for input in batch.drain(..) {
                self.take(input);
            }
            self.settle().await;
        }
        // Jobs that run go on when the server does; here they only let go.
        for (_, run) in self.runs.drain() {
            if let Some(task) = run.task {
                task.abort();
            }
        }
        for (_, scope) in self.scopes.drain() {
            scope.abort();
        }
        let closing = self.links.drain().map(|(_, link)| async move {
            link.session.close("the server is being stopped").await;
        });
        futures_util::future::join_all(closing).await;
    }

    /// Writes down what was decided, then does it.
    async fn settle(&mut self) {
        let now = self.wall();
        let mut settled = Vec::new();
        {
            let records = lock_read(&self.shared.records);
            for job in std::mem::take(&mut self.touched) {
                if let Some(record) = records.get(&job) {
                    self.changes.push(record.change(now));
                    if record.is_settled() {
                        settled.push(job);
                    }
                }
            }
        }
        let changes = std::mem::take(&mut self.changes);
        let changed = !changes.is_empty() || !self.effects.is_empty();
        let mut said = false;
        while let Err(error) = self.shared.jobs.write(changes.clone()).await {
            // Nothing is done that is not written down.
            if !said {
                let text = firesteel_node::parts::sentence(&error);
                self.shared
                    .logger
                    .error(&format!("{text}; it is tried again until it can be"));
                said = true;
            }
            tokio::time::sleep(RETRY).await;
        }
        if !settled.is_empty() {
            let mut records = lock_write(&self.shared.records);
            for job in settled {
                records.remove(&job);
            }
        }
        for effect in std::mem::take(&mut self.effects) {
            self.perform(effect);
        }
        if changed {
            self.show_sites();
            self.shared.changes.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn wall(&self) -> u64 {
        micros(SystemTime::now())
    }

    fn now(&self) -> Time {
        Time::ZERO + self.clock.elapsed()
    }

    // ----- what comes in --------------------------------------------------

    fn take(&mut self, input: Input) {
        match input {
            Input::Submitted(record) => {
                let event = ScheduleEvent::Submitted {
                    job: record.id.clone(),
                    number: record.row.number,
                    needs: facts::needs(&record.spec),
                };
                lock_write(&self.shared.records).insert(record.id.clone(), *record);
                self.feed(event);
            }
            Input::Event(event) => {
                if let ScheduleEvent::Ended { job, site, .. } = &event {
                    self.end_scope(site, job);
                }
                self.feed(event);
            }
            Input::Here(here) => self.here(*here),
            Input::Gone { site, number } => self.gone(&site, number),
            Input::Facts { site, facts } => {
                let capacity = facts::capacity(&facts);
                self.shared.site_facts(&site, facts);
                self.feed(ScheduleEvent::Changed { site, capacity });
            }
            Input::Called {
                job,
                site,
                connection,
            } => {
                let taken = self.runs.get(&job);
                if taken.is_some_and(|run| run.connections.try_send(connection).is_ok()) {
                    self.feed(ScheduleEvent::Started { job, site });
                }
            }
            Input::Told {
                job,
                events,
                status,
            } => self.told(&job, &events, status),
            Input::RunOver { job, end } => {
                let result = end.result;
                self.ends.insert(job.clone(), *end);
                if let Some(run) = self.runs.get_mut(&job) {
                    run.task = None;
                }
                self.feed(ScheduleEvent::RunOver { job, result });
            }
            Input::Abort { job, reason, done } => self.abort(job, reason, done),
            Input::Delete { job, done } => self.delete(job, done),
            Input::Ask { site, ask, done } => self.ask(site, *ask, done),
            Input::Answer { site, id, answer } => {
                if let std::collections::hash_map::Entry::Occupied(asked) = self.asks.entry(id)
                    && asked.get().site == site
                {
                    let _ = asked.remove().done.send(answer);
                }
            }
            Input::Connections { job, done } => {
                let run = self.runs.get(&job).filter(|run| run.task.is_some());
                let answer = run.map(|run| run.connections.clone());
                let _ = done.send(answer.ok_or_else(|| format!("job {job} does not run")));
            }
        }
    }

    fn feed(&mut self, event: ScheduleEvent) {
        let now = self.now();
        let actions = self.scheduler.handle(event, now);
        self.take_all(actions);
    }

    fn here(&mut self, here: Here) {
        let Here {
            site,
            number,
            session,
            outgoing,
            facts,
            jobs,
        } = here;
        let capacity: Capacity = facts::capacity(&facts);
        self.shared.site_here(&site, &session, facts);
        if let Some(old) = self.links.insert(
            site.clone(),
            SiteLink {
                number,
                session,
                outgoing,
            },
        ) {
            self.shared.logger.for_site(&site).warning(&format!(
                "{site} connected again; its new connection is used"
            ));
            tokio::spawn(async move { old.session.close("the site has connected anew").await });
        }
        self.end_scopes_of(&site);
        let event = ScheduleEvent::Connected {
            site: site.clone(),
            capacity,
            jobs: jobs.clone(),
        };
        let now = self.now();
        let actions = self.scheduler.handle(event, now);
        // Where its agents call in must be there before it is told that it is welcome.
        let scopes = jobs.into_iter().map(|(job, _)| job).filter(|job| {
            let parts = self.scheduler.parts(job);
            self.runs.contains_key(job)
                && parts.iter().any(|(at, part)| {
                    *at == site && matches!(part, SitePart::Starting | SitePart::Started)
                })
        });
        let scopes = scopes.collect();
        self.effects.push(Effect::Welcome { site, scopes });
        self.take_all(actions);
    }

    fn gone(&mut self, site: &SiteName, number: u64) {
        let current = self.links.get(site);
        if current.is_none_or(|link| link.number != number) {
            return;
        }
        self.links.remove(site);
        self.end_scopes_of(site);
        self.shared.site_gone(site);
        let lost: Vec<u64> = self
            .asks
            .iter()
            .filter(|(_, asked)| asked.site == *site)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some(asked) = self.asks.remove(&id) {
                let _ = asked.done.send(Err(away(site)));
            }
        }
        self.feed(ScheduleEvent::Disconnected { site: site.clone() });
    }

    fn told(&mut self, job: &JobId, events: &[EventKind], status: Option<String>) {
        let now = self.wall();
        let mut records = lock_write(&self.shared.records);
        let Some(record) = records.get_mut(job) else {
            return;
        };
        if let Some(status) = status
            && record.state == JobState::Running
        {
            record.status = status;
        }
        for kind in events {
            match kind {
                EventKind::RoundStarted { .. } => {
                    record.started.get_or_insert(now);
                }
                EventKind::RoundDone { .. } => {
                    record.rounds_done = record.rounds_done.saturating_add(1);
                }
                _ => {}
            }
            self.changes.push(event(job, now, kind));
            self.touched.insert(job.clone());
        }
    }

    fn abort(&mut self, job: JobId, reason: String, done: oneshot::Sender<Result<(), Problem>>) {
        let state = lock_read(&self.shared.records)
            .get(&job)
            .map(|record| record.state);
        let refused = match state {
            None => Some("it has ended".to_owned()),
            Some(state) if state.is_terminal() => Some(format!("it is {state}")),
            // Its end is on its way: that is what was asked for.
            Some(JobState::Stopping) => {
                let _ = done.send(Ok(()));
                return;
            }
            Some(_) => None,
        };
        if let Some(why) = refused {
            let problem = Problem::new(
                Code::WrongState,
                format!("job {job} cannot be aborted: {why}"),
            );
            let _ = done.send(Err(problem));
            return;
        }
        if let Some(record) = lock_write(&self.shared.records).get_mut(&job) {
            record.abort = Some(reason.clone());
        }
        self.feed(ScheduleEvent::Abort { job, reason });
        self.effects.push(Effect::Reply(done, Ok(())));
    }

    fn delete(&mut self, job: JobId, done: oneshot::Sender<Result<(), Problem>>) {
        let known = lock_read(&self.shared.records).get(&job).map(|record| {
            (
                record.state,
                record.pending.iter().cloned().collect::<Vec<_>>(),
            )
        });
        if let Some((state, pending)) = known {
            let problem = if state.is_terminal() {
                let sites = if pending.is_empty() {
                    "its sites".to_owned()
                } else {
                    pending.join(", ")
                };
                Problem::new(
                    Code::WrongState,
                    format!("job {job} is {state}, but {sites} may still have something of it"),
                )
                .with_hint("try again when they have connected")
            } else {
                Problem::new(
                    Code::WrongState,
                    format!("job {job} is {state}; only a job that has ended can be deleted"),
                )
                .with_hint("abort it first")
            };
            let _ = done.send(Err(problem));
            return;
        }
        self.changes.push(Change::Delete { job: job.clone() });
        self.effects.push(Effect::Removed(job, done));
    }

    fn ask(
        &mut self,
        site: SiteName,
        mut ask: firesteel_wire::node::Ask,
        done: oneshot::Sender<Result<Value, Problem>>,
    ) {
        // Who asked may have gone: theirs is not kept.
        self.asks.retain(|_, asked| !asked.done.is_closed());
        if self.asks.len() >= limits::WAITING_ASKS {
            let problem = Problem::new(Code::TooMany, "too many questions to sites are open");
            let _ = done.send(Err(problem));
            return;
        }
        ask.id = self.next_ask;
        self.next_ask += 1;
        let id = ask.id;
        if self.tell(&site, to_node::Body::Ask(ask)) {
            self.asks.insert(id, Asked { site, done });
        } else {
            let _ = done.send(Err(away(&site)));
        }
    }

    // ----- what was decided -----------------------------------------------

    /// Writes decisions down, and has them carried out after that.
    fn take_all(&mut self, actions: Vec<ScheduleAction>) {
        for action in actions {
            self.note(&action);
            self.effects.push(Effect::Action(action));
        }
    }

    /// What lists say of the sites' resources.
    fn show_sites(&self) {
        let mut sites = lock_write(&self.shared.sites);
        for (name, site) in sites.iter_mut() {
            if let Ok(name) = SiteName::new(name) {
                site.taken = self.scheduler.site(&name);
            }
        }
    }
}

fn away(site: &SiteName) -> Problem {
    Problem::new(Code::SiteAway, format!("site {site} is not connected"))
}
