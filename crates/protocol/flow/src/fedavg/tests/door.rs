//! The one door of FedAvg's tests: operations in, a trace of what was asked out.

use std::collections::HashMap;
use std::time::Duration;

use expect_test::Expect;
use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, SiteName, TaskKey, Time};

use crate::fedavg::{
    FedAvg, FedAvgConfig, KeyMetric, LatePolicy, MetricMode, OnFailure, Returning,
};
use crate::testing::kill_and_restore;
use crate::{
    Action, Event, FoldKey, ModelHandle, ParamsType, Restore, RoundRecord, SiteResult, TaskStage,
    UpdateInfo, Workflow,
};

/// Runs operations, separated by `;` or lines, and compares the trace.
///
/// Settings: `sites a b c`, `rounds 3`, `start_round 4`, `min 2`,
/// `quorum_start 2`, `quorum_round 2`, `require a`, `round 60s`, `task 30s`,
/// `grace 5s`, `late next`, `on_failure exclude`, `max_failures 2`,
/// `returning next`, `weight a 2`, `type DIFF`, `exclude bn`, `best acc max`,
/// `stop acc >= 0.9`, `patience 2`; `show releases`, `fold by hand`.
///
/// What happens, each after an optional moment (`10s`) to which time is moved
/// first, with every tick on the way: `start` (all sites, a model) or
/// `start a b without model`; `a ok [steps=10] [acc=0.5] [DIFF] [empty]
/// [r0#1]`; `a training`; `a fails [code]`; `a leaves`; `a refuses`; `a joins`;
/// `folded`, `fold fails [a]`; `tick`; `abort`; `restart a b [without a.r0#0]`;
/// `status`. A `!` after a report tells it twice.
pub(super) fn check(ops: &str, expect: Expect) {
    let mut door = Door::new();
    for op in ops.split([';', '\n']).map(str::trim) {
        if !op.is_empty() {
            door.run(op);
        }
    }
    expect.assert_eq(&door.trace);
    door.finish();
}

struct Door {
    config: FedAvgConfig,
    /// The configuration of the workflow that `log` was told to.
    log_config: Option<FedAvgConfig>,
    log: Vec<(Event, Time)>,
    flow: Option<FedAvg>,
    now: Time,
    keys: HashMap<SiteName, TaskKey>,
    names: HashMap<ModelHandle, String>,
    fold: Option<FoldKey>,
    folds_by_hand: bool,
    shows_releases: bool,
    trace: String,
}

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

fn seconds(word: &str) -> Option<f64> {
    word.strip_suffix('s')?.parse().ok()
}

fn duration(word: &str) -> Duration {
    Duration::from_secs_f64(seconds(word).unwrap())
}

impl Door {
    fn new() -> Self {
        Self {
            config: FedAvgConfig::new(Vec::new(), 1),
            log_config: None,
            log: Vec::new(),
            flow: None,
            now: Time::ZERO,
            keys: HashMap::new(),
            names: HashMap::new(),
            fold: None,
            folds_by_hand: false,
            shows_releases: false,
            trace: String::new(),
        }
    }

    fn run(&mut self, op: &str) {
        let mut words: Vec<&str> = op.split_whitespace().collect();
        if let Some(at) = seconds(words[0]) {
            self.advance(Time((at * 1e6) as u64));
            words.remove(0);
        }
        if words.is_empty() || self.set(&words) {
            return;
        }
        let times = if words.last() == Some(&"!") { 2 } else { 1 };
        let words = words.strip_suffix(&["!"][..]).unwrap_or(&words).to_vec();
        match words[0] {
            "status" => {
                let status = self.flow().status().to_string();
                self.say(&format!("status: {status}"));
            }
            "restart" => self.restart(&words[1..]),
            _ => {
                let event = self.event(&words);
                (0..times).for_each(|_| self.tell(event.clone()));
            }
        }
    }

    fn set(&mut self, words: &[&str]) -> bool {
        let config = &mut self.config;
        let rest = || words[1..].join(" ");
        match words {
            ["sites", names @ ..] => {
                config.sites = names.iter().map(|name| site(name)).collect();
                config.min_clients = names.len();
            }
            ["rounds", n] => config.num_rounds = n.parse().unwrap(),
            ["start_round", n] => config.start_round = Round(n.parse().unwrap()),
            ["min", n] => config.min_clients = n.parse().unwrap(),
            ["quorum_start", n] => config.quorum_start = n.parse().ok(),
            ["quorum_round", n] => config.quorum_round = n.parse().ok(),
            ["require", names @ ..] => {
                config.required_sites = names.iter().map(|name| site(name)).collect();
            }
            ["round", limit] => config.round = Some(duration(limit)),
            ["task", limit] => config.task = Some(duration(limit)),
            ["grace", limit] => config.grace = Some(duration(limit)),
            ["late", "next"] => config.late = LatePolicy::CountNextRound,
            ["on_failure", "exclude"] => config.on_failure = OnFailure::Exclude,
            ["max_failures", n] => config.max_failures = n.parse().unwrap(),
            ["returning", "next"] => config.returning = Returning::NextRound,
            ["weight", name, weight] => {
                config
                    .site_weights
                    .insert(site(name), weight.parse().unwrap());
            }
            ["type", "FULL"] => config.params_type = Some(ParamsType::Full),
            ["type", "DIFF"] => config.params_type = Some(ParamsType::Diff),
            ["exclude", pattern] => config.exclude.push((*pattern).to_owned()),
            ["best", name, mode] => {
                config.key_metric = Some(KeyMetric {
                    name: (*name).to_owned(),
                    mode: if *mode == "min" {
                        MetricMode::Min
                    } else {
                        MetricMode::Max
                    },
                });
            }
            ["stop", ..] => config.stop = Some(rest().parse().unwrap()),
            ["patience", n] => config.patience = n.parse().ok(),
            ["show", "releases"] => self.shows_releases = true,
            ["fold", "by", "hand"] => self.folds_by_hand = true,
            _ => return false,
        }
        true
    }

    fn event(&mut self, words: &[&str]) -> Event {
        match words {
            ["start", rest @ ..] => {
                let (there, without) = split(rest, "without");
                let sites = match there {
                    [] => self.config.sites.clone(),
                    ["nobody"] => Vec::new(),
                    some => some.iter().map(|name| site(name)).collect(),
                };
                let model = (without.is_none()).then(|| self.name(0, "init".to_owned()));
                Event::Started { sites, model }
            }
            ["tick"] => Event::Tick,
            ["abort"] => Event::Abort {
                reason: "stopped by hand".to_owned(),
            },
            ["folded", notes @ ..] => {
                let key = self.fold.expect("a fold was asked for");
                self.folded(key, notes)
            }
            ["fold", "fails", blamed @ ..] => Event::FoldFailed {
                key: self.fold.expect("a fold was asked for"),
                failure: Failure::new(FailureCode::Internal, Phase::Aggregate, "cannot be summed"),
                blame: (blamed.iter())
                    .map(|name| {
                        let why =
                            Failure::new(FailureCode::NotFinite, Phase::Verify, "`w` holds NaN");
                        (site(name), why)
                    })
                    .collect(),
            },
            [name, "joins"] => Event::SiteJoined { site: site(name) },
            [name, "leaves"] => Event::SiteLeft {
                site: site(name),
                failure: Failure::new(
                    FailureCode::Disconnected,
                    Phase::Train,
                    "was not heard of for its lease",
                ),
            },
            [name, "refuses"] => Event::SiteLeft {
                site: site(name),
                failure: Failure::new(
                    FailureCode::ScriptMissing,
                    Phase::Start,
                    "has no script `client.py`",
                )
                .with_hint("check train_script"),
            },
            [name, "ok", details @ ..] => self.update(name, details),
            [name, "fails", rest @ ..] => Event::TaskFailed {
                key: self.key(name, rest),
                failure: Failure::new(FailureCode::Raised, Phase::Train, "raised ValueError: x")
                    .with_hint("see the traceback"),
            },
            [name, stage, rest @ ..] => Event::TaskProgress {
                key: self.key(name, rest),
                stage: match *stage {
                    "accepts" => TaskStage::Accepted,
                    "trains" => TaskStage::Training,
                    "sends" => TaskStage::Returning,
                    other => panic!("`{other}` is no operation"),
                },
            },
            other => panic!("`{other:?}` is no operation"),
        }
    }

    fn update(&mut self, name: &str, details: &[&str]) -> Event {
        let key = self.key(name, details);
        let handle = 1000 + self.names.len() as u64;
        let model = self.name(handle, update_name(&key));
        let mut update = UpdateInfo {
            model: Some(model),
            params_type: ParamsType::Full,
            steps: Some(1.0),
            metrics: Vec::new(),
        };
        for detail in details {
            match detail.split_once('=') {
                Some(("steps", "none")) => update.steps = None,
                Some(("steps", steps)) => update.steps = Some(steps.parse().unwrap()),
                Some((metric, value)) => {
                    update
                        .metrics
                        .push((metric.to_owned(), value.parse().unwrap()));
                }
                None if *detail == "DIFF" => update.params_type = ParamsType::Diff,
                None if *detail == "empty" => update.model = None,
                None => assert!(detail.starts_with('r'), "`{detail}` is no detail"),
            }
        }
        Event::UpdateReady { key, update }
    }

    /// The key given as `r0#1`, or the last one that the site was assigned.
    fn key(&self, name: &str, details: &[&str]) -> TaskKey {
        let site = site(name);
        let given = details.iter().find_map(|detail| {
            let (round, attempt) = detail.strip_prefix('r')?.split_once('#')?;
            Some((round.parse().ok()?, attempt.parse().ok()?))
        });
        match given {
            Some((round, attempt)) => TaskKey {
                round: Round(round),
                site,
                attempt: Attempt(attempt),
            },
            None => self.keys[&site].clone(),
        }
    }

    fn name(&mut self, handle: u64, name: String) -> ModelHandle {
        self.names.insert(ModelHandle(handle), name);
        ModelHandle(handle)
    }

    fn folded(&mut self, key: FoldKey, notes: &[&str]) -> Event {
        let handle = 100_000 + self.names.len() as u64;
        let attempt = key.attempt.0;
        let again = if attempt == 0 {
            String::new()
        } else {
            format!("#{attempt}")
        };
        Event::Folded {
            key,
            model: self.name(handle, format!("g{}{again}", key.round)),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        }
    }

    fn flow(&mut self) -> &mut FedAvg {
        let config = &self.config;
        self.flow.get_or_insert_with(|| {
            self.log_config = Some(config.clone());
            FedAvg::new(config.clone()).unwrap()
        })
    }

    /// Moves time forward, with a tick whenever one is wanted.
    fn advance(&mut self, to: Time) {
        while let Some(wakeup) = self.flow().next_wakeup().filter(|wakeup| *wakeup < to) {
            assert!(wakeup > self.now, "a tick at {wakeup} changed nothing");
            self.now = wakeup;
            self.tell(Event::Tick);
        }
        self.now = to;
    }

    fn tell(&mut self, event: Event) {
        let now = self.now;
        self.log.push((event.clone(), now));
        for action in self.flow().handle(event, now) {
            if let Some(line) = self.show(&action) {
                self.say(&line);
            }
            match action {
                Action::Assign(assignment) => {
                    for key in assignment.keys {
                        self.keys.insert(key.site.clone(), key);
                    }
                }
                Action::Fold(request) => self.fold = Some(request.key),
                _ => {}
            }
        }
        if !self.folds_by_hand
            && let Some(key) = self.fold.take()
        {
            let event = self.folded(key, &[]);
            self.tell(event);
        }
    }

    fn restart(&mut self, words: &[&str]) {
        let bytes = self.flow().snapshot();
        let (sites, lost) = split(words, "without");
        let flow = FedAvg::restore(self.config.clone(), &bytes).unwrap();
        let lost = lost.unwrap_or_default();
        let models = (flow.models().into_iter())
            .filter(|model| !lost.contains(&self.names[model].as_str()))
            .collect();
        if self.log_config.as_ref() != Some(&self.config) {
            self.finish();
            self.log_config = None;
        }
        self.flow = Some(flow);
        let sites = sites.iter().map(|name| site(name)).collect();
        self.tell(Event::Resumed { sites, models });
    }

    /// Every scenario also passes with the workflow killed after each event.
    fn finish(&mut self) {
        if let Some(config) = self.log_config.take() {
            kill_and_restore::<FedAvg>(&config, &self.log);
        }
    }

    fn say(&mut self, line: &str) {
        let now = self.now;
        self.trace.push_str(&format!("{now} {line}\n"));
    }

    fn called(&self, model: ModelHandle) -> &str {
        &self.names[&model]
    }

    fn called_or_none(&self, model: Option<ModelHandle>) -> &str {
        model.map_or("none", |model| self.called(model))
    }

    fn show(&self, action: &Action) -> Option<String> {
        Some(match action {
            Action::Assign(assignment) => {
                let keys: Vec<_> = (assignment.keys.iter())
                    .map(|key| match key.attempt.0 {
                        0 => key.site.to_string(),
                        n => format!("{}#{n}", key.site),
                    })
                    .collect();
                let until = (assignment.deadline)
                    .map_or(String::new(), |deadline| format!(" until {deadline}"));
                format!(
                    "{} r{}: {} get {}{until}",
                    assignment.task,
                    assignment.keys[0].round,
                    keys.join(" "),
                    self.called_or_none(assignment.model)
                )
            }
            Action::Cancel { key, reason } => {
                format!("cancel {}: {reason}", update_name(key))
            }
            Action::Fold(request) => {
                let inputs: Vec<_> = (request.inputs.iter())
                    .map(|input| {
                        let diff = match input.params_type {
                            ParamsType::Full => "",
                            ParamsType::Diff => " DIFF",
                        };
                        let old = if input.trained_in == request.key.round {
                            String::new()
                        } else {
                            format!(" from r{}", input.trained_in)
                        };
                        format!("{}*{}{diff}{old}", input.site, input.weight)
                    })
                    .collect();
                let exclude = match request.exclude.as_slice() {
                    [] => String::new(),
                    some => format!(" but {}", some.join(" ")),
                };
                format!(
                    "fold r{}#{} on {}: {}{exclude}",
                    request.key.round,
                    request.key.attempt,
                    self.called_or_none(request.base),
                    inputs.join(", ")
                )
            }
            Action::Save { model, role, .. } => format!("save {role} {}", self.called(*model)),
            Action::Release { model } => {
                if !self.shows_releases {
                    return None;
                }
                format!("release {}", self.called(*model))
            }
            Action::Commit(record) => self.show_record(record),
            Action::Dismiss { site, failure } => format!("dismiss {site}: {failure}"),
            Action::Warn(warning) => format!("warn: {warning}"),
            Action::Finish(outcome) => match outcome {
                crate::Outcome::Failed { hint, .. } if !hint.is_empty() => {
                    format!("{outcome} (hint: {hint})")
                }
                _ => outcome.to_string(),
            },
        })
    }

    fn show_record(&self, record: &RoundRecord) -> String {
        let sites: Vec<_> = (record.sites.iter())
            .map(|one| {
                let what = match &one.result {
                    SiteResult::Contributed { weight, .. } => format!("*{weight}"),
                    SiteResult::Late => " late".to_owned(),
                    SiteResult::Failed(failure) => format!(" failed ({})", failure.code),
                    SiteResult::Excluded(failure) => format!(" excluded ({})", failure.code),
                    SiteResult::Absent => " absent".to_owned(),
                    SiteResult::Waiting => " waiting".to_owned(),
                };
                format!("{}{what}", one.site)
            })
            .collect();
        let mut line = format!(
            "commit r{} {}>{}: {}",
            record.round,
            self.called_or_none(record.base),
            self.called_or_none(record.result),
            sites.join(", ")
        );
        for mean in &record.metrics {
            line.push_str(&format!(
                " | {} {} of {}",
                mean.name, mean.value, mean.sites
            ));
        }
        if let Some(best) = &record.best {
            line.push_str(&format!(" | best {}", self.called(best.model)));
        }
        if !record.notes.is_empty() {
            line.push_str(&format!(" | {}", record.notes.join(" ")));
        }
        line
    }
}

fn split<'a, 'b>(words: &'b [&'a str], at: &str) -> (&'b [&'a str], Option<Vec<&'a str>>) {
    match words.iter().position(|word| *word == at) {
        Some(place) => (&words[..place], Some(words[place + 1..].to_vec())),
        None => (words, None),
    }
}

fn update_name(key: &TaskKey) -> String {
    format!("{}.r{}#{}", key.site, key.round, key.attempt)
}
