//! Whatever happens, in whatever order: nothing is given away twice, nothing is
//! kept for nobody, and every job comes to its end.

use proptest::prelude::*;

use super::*;

const SITES: usize = 4;
const JOBS: usize = 6;

/// What may happen, by numbers.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        job: usize,
        gpus: u64,
        least: usize,
        priority: i64,
        named: bool,
    },
    Here {
        site: usize,
    },
    Away {
        site: usize,
    },
    /// The site's process is started anew, and knows nothing.
    Fresh {
        site: usize,
    },
    /// A site answers what it was told first and has not answered.
    Answer {
        site: usize,
        well: bool,
    },
    Over {
        job: usize,
        well: bool,
    },
    Abort {
        job: usize,
    },
    Wait {
        seconds: u64,
    },
    Resize {
        site: usize,
        gpus: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let site = 0..SITES;
    let job = 0..JOBS;
    prop_oneof![
        3 => (job.clone(), 0..3u64, 1..=SITES, -1..2i64, any::<bool>()).prop_map(
            |(job, gpus, least, priority, named)| Step::Submit { job, gpus, least, priority, named }
        ),
        2 => site.clone().prop_map(|site| Step::Here { site }),
        1 => site.clone().prop_map(|site| Step::Away { site }),
        1 => site.clone().prop_map(|site| Step::Fresh { site }),
        12 => (site.clone(), prop::bool::weighted(0.9))
            .prop_map(|(site, well)| Step::Answer { site, well }),
        2 => (job.clone(), any::<bool>()).prop_map(|(job, well)| Step::Over { job, well }),
        1 => job.prop_map(|job| Step::Abort { job }),
        2 => (0..70u64).prop_map(|seconds| Step::Wait { seconds }),
        1 => (site, 0..5u64).prop_map(|(site, gpus)| Step::Resize { site, gpus }),
    ]
}

/// A site that does what it is told, when it gets to it.
#[derive(Default)]
struct Station {
    here: bool,
    gpus: u64,
    told: std::collections::VecDeque<ScheduleAction>,
    hand: BTreeMap<JobId, InHand>,
}

struct World {
    bench: Bench,
    stations: Vec<Station>,
    /// The most that each site ever had.
    most: Vec<u64>,
    asked: BTreeMap<JobId, Needs>,
    runs: BTreeSet<JobId>,
    ended: BTreeSet<JobId>,
}

impl World {
    fn new() -> Self {
        let station = || Station {
            gpus: 2,
            ..Station::default()
        };
        Self {
            bench: Bench::new(),
            stations: (0..SITES).map(|_| station()).collect(),
            most: vec![2; SITES],
            asked: BTreeMap::new(),
            runs: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    fn perform(&mut self, actions: Vec<ScheduleAction>) {
        for action in actions {
            match &action {
                ScheduleAction::Deploy { site, .. }
                | ScheduleAction::Start { site, .. }
                | ScheduleAction::Stop { site, .. } => {
                    let number: usize = site.as_str()[5..].parse().unwrap();
                    let station = &mut self.stations[number];
                    // What is said to nobody is lost.
                    if station.here {
                        station.told.push_back(action);
                    }
                }
                ScheduleAction::Run { job, .. } => {
                    assert!(self.runs.insert(job.clone()), "{job} runs twice");
                }
                ScheduleAction::End { job, ending } => {
                    assert!(!self.runs.contains(job), "{job} ended while it runs");
                    assert!(self.ended.insert(job.clone()), "{job} ended twice");
                    for site in &ending.pending {
                        let held = self.bench.it.site(site).unwrap();
                        assert!(
                            held.jobs.iter().any(|(of, _)| of == job),
                            "{site} has nothing"
                        );
                    }
                }
                _ => {}
            }
        }
    }

    fn connect(&mut self, number: usize) {
        let station = &mut self.stations[number];
        station.here = true;
        let jobs = station.hand.clone().into_iter().collect();
        let gpus = station.gpus;
        let out = self.bench.here(number, gpus, jobs);
        self.perform(out);
    }

    fn disconnect(&mut self, number: usize) {
        let station = &mut self.stations[number];
        if std::mem::take(&mut station.here) {
            station.told.clear();
            let out = self.bench.away(number);
            self.perform(out);
        }
    }

    fn answer(&mut self, number: usize, well: bool) {
        let station = &mut self.stations[number];
        let Some(told) = station.told.pop_front() else {
            return;
        };
        let event = match told {
            ScheduleAction::Deploy { job, site, attempt } if well => {
                station.hand.insert(job.clone(), InHand::Ready);
                ScheduleEvent::Ready { job, site, attempt }
            }
            ScheduleAction::Deploy { job, site, attempt } => {
                station.hand.remove(&job);
                let refusal = Refusal {
                    phase: JobPhase::Deploy,
                    code: "no_room".to_owned(),
                    reason: "its disk is full".to_owned(),
                    hint: String::new(),
                };
                ScheduleEvent::Declined {
                    job,
                    site,
                    attempt,
                    refusal,
                }
            }
            ScheduleAction::Start { job, site } => {
                let Some(stage) = station.hand.get_mut(&job) else {
                    return;
                };
                *stage = InHand::Running;
                if well {
                    ScheduleEvent::Started { job, site }
                } else {
                    station.hand.remove(&job);
                    let error = "it broke down".to_owned();
                    ScheduleEvent::Ended { job, site, error }
                }
            }
            ScheduleAction::Stop { job, site, .. } => {
                station.hand.remove(&job);
                let error = String::new();
                ScheduleEvent::Ended { job, site, error }
            }
            _ => return,
        };
        let out = self.bench.feed(event);
        self.perform(out);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Submit {
                job: number,
                gpus: count,
                least,
                priority,
                named,
            } => {
                let id = job(number);
                if self.asked.contains_key(&id) {
                    return;
                }
                let sites: Vec<usize> = if named { (0..SITES).collect() } else { vec![] };
                let asked = Needs {
                    take: gpus(count),
                    priority,
                    ..needs(&sites, least)
                };
                self.asked.insert(id, asked.clone());
                let out = self.bench.submit(number, asked);
                self.perform(out);
            }
            Step::Here { site } => {
                if !self.stations[site].here {
                    self.connect(site);
                }
            }
            Step::Away { site } => self.disconnect(site),
            Step::Fresh { site } => {
                self.disconnect(site);
                self.stations[site].hand.clear();
            }
            Step::Answer { site, well } => self.answer(site, well),
            Step::Over { job: number, well } => {
                if self.runs.remove(&job(number)) {
                    let result = match well {
                        true => RunResult::Completed,
                        false => RunResult::Failed,
                    };
                    let out = self.bench.over(number, result);
                    self.perform(out);
                }
            }
            Step::Abort { job } => {
                let out = self.bench.abort(job);
                self.perform(out);
            }
            Step::Wait { seconds } => {
                let until = self.bench.now + Duration::from_secs(seconds);
                let out = self.bench.wait(until);
                self.perform(out);
            }
            Step::Resize { site: number, gpus } => {
                self.stations[number].gpus = gpus;
                self.most[number] = self.most[number].max(gpus);
                if self.stations[number].here {
                    let out = self.bench.feed(ScheduleEvent::Changed {
                        site: site(number),
                        capacity: capacity(gpus),
                    });
                    self.perform(out);
                }
            }
        }
        self.check();
    }

    /// The accounts are exact.
    fn check(&self) {
        for number in 0..SITES {
            let Some(used) = self.bench.it.site(&site(number)) else {
                continue;
            };
            let mut sum = Resources::new();
            for (job, taken) in &used.jobs {
                assert_eq!(taken, &self.asked[job].take);
                sum.add(taken);
            }
            assert_eq!(used.used, sum, "site-{number}");
            // More than there is can be taken only where there was more before.
            let most = self.most[number];
            assert!(sum.get("gpus") <= most, "site-{number}: {sum} of {most}");
            // What a site has in hand is accounted for.
            for job in self.stations[number].hand.keys() {
                let held = used.jobs.iter().any(|(of, _)| of == job);
                let told = &self.stations[number].told;
                let stopping = told
                    .iter()
                    .any(|told| matches!(told, ScheduleAction::Stop { job: of, .. } if of == job));
                let unheard = !self.stations[number].here;
                assert!(
                    held || stopping || unheard,
                    "{job} at site-{number} is unaccounted for"
                );
            }
        }
        let active = (0..JOBS).filter(|number| {
            matches!(
                self.bench.it.state(&job(*number)),
                Some(
                    JobState::Deploying
                        | JobState::Starting
                        | JobState::Running
                        | JobState::Stopping
                )
            )
        });
        assert!(active.count() <= settings().max_jobs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn accounts_are_exact_and_every_job_ends(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        // Then everybody is asked to end, connects, and answers.
        for number in 0..JOBS {
            world.take(&Step::Abort { job: number });
            world.take(&Step::Over { job: number, well: true });
        }
        for number in 0..SITES {
            world.take(&Step::Here { site: number });
        }
        for _ in 0..4 {
            for number in 0..SITES {
                while !world.stations[number].told.is_empty() {
                    world.take(&Step::Answer { site: number, well: true });
                }
            }
            world.take(&Step::Wait { seconds: 200 });
        }
        for id in world.asked.keys() {
            prop_assert!(world.ended.contains(id), "{id} has not ended: {:?}", world.bench.it.state(id));
            prop_assert_eq!(world.bench.it.state(id), None);
        }
        for number in 0..SITES {
            prop_assert!(world.bench.held(number).is_empty());
            prop_assert_eq!(world.bench.used(number), 0);
            prop_assert!(world.stations[number].hand.is_empty());
        }
        prop_assert_eq!(world.bench.it.next_wakeup(), None);
    }
}
