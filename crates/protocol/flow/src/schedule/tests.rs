mod properties;
mod scale;
mod stories;

use std::time::Duration;

use super::*;

/// Durations that make arithmetic easy.
pub(super) fn settings() -> ScheduleSettings {
    ScheduleSettings {
        max_jobs: 4,
        gather: Duration::from_secs(10),
        deploy: Duration::from_secs(60),
        start: Duration::from_secs(120),
        stop: Duration::from_secs(10),
    }
}

pub(super) fn site(number: usize) -> SiteName {
    SiteName::new(&format!("site-{number}")).unwrap()
}

pub(super) fn job(number: usize) -> JobId {
    JobId::new(&format!("job-{number}")).unwrap()
}

pub(super) fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

pub(super) fn needs(sites: &[usize], least: usize) -> Needs {
    Needs {
        sites: sites.iter().map(|number| site(*number)).collect(),
        min_sites: least,
        ..Needs::default()
    }
}

pub(super) fn gpus(count: u64) -> Resources {
    Resources::new().with("gpus", count)
}

pub(super) fn capacity(count: u64) -> Capacity {
    Capacity {
        amounts: gpus(count),
        ..Capacity::default()
    }
}

/// A scheduler and the time.
pub(super) struct Bench {
    pub(super) it: Scheduler,
    pub(super) now: Time,
    numbers: u64,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self {
            it: Scheduler::new(settings()),
            now: Time::ZERO,
            numbers: 0,
        }
    }

    pub(super) fn feed(&mut self, event: ScheduleEvent) -> Vec<ScheduleAction> {
        self.it.handle(event, self.now)
    }

    pub(super) fn wait(&mut self, until: Time) -> Vec<ScheduleAction> {
        self.now = until;
        self.feed(ScheduleEvent::Tick)
    }

    pub(super) fn submit(&mut self, number: usize, needs: Needs) -> Vec<ScheduleAction> {
        self.numbers += 1;
        let number_of = self.numbers;
        self.feed(ScheduleEvent::Submitted {
            job: job(number),
            number: number_of,
            needs,
        })
    }

    pub(super) fn here(
        &mut self,
        number: usize,
        count: u64,
        jobs: Vec<(JobId, InHand)>,
    ) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Connected {
            site: site(number),
            capacity: capacity(count),
            jobs,
        })
    }

    pub(super) fn away(&mut self, number: usize) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Disconnected { site: site(number) })
    }

    pub(super) fn ready(&mut self, of: usize, at: usize, attempt: u32) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Ready {
            job: job(of),
            site: site(at),
            attempt,
        })
    }

    pub(super) fn declined(&mut self, of: usize, at: usize) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Declined {
            job: job(of),
            site: site(at),
            attempt: 1,
            refusal: Refusal {
                phase: JobPhase::Deploy,
                code: "data_missing".to_owned(),
                reason: "it has no data `digits`".to_owned(),
                hint: String::new(),
            },
        })
    }

    pub(super) fn started(&mut self, of: usize, at: usize) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Started {
            job: job(of),
            site: site(at),
        })
    }

    pub(super) fn ended(&mut self, of: usize, at: usize, error: &str) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Ended {
            job: job(of),
            site: site(at),
            error: error.to_owned(),
        })
    }

    pub(super) fn over(&mut self, of: usize, result: RunResult) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::RunOver {
            job: job(of),
            result,
        })
    }

    pub(super) fn abort(&mut self, of: usize) -> Vec<ScheduleAction> {
        self.feed(ScheduleEvent::Abort {
            job: job(of),
            reason: "no longer needed".to_owned(),
        })
    }

    /// A job that runs at these sites.
    pub(super) fn running(&mut self, of: usize, sites: &[usize]) {
        self.submit(of, needs(sites, sites.len()));
        for number in sites {
            self.ready(of, *number, 1);
        }
        for number in sites {
            self.started(of, *number);
        }
        assert_eq!(self.it.state(&job(of)), Some(JobState::Running));
    }

    pub(super) fn used(&self, number: usize) -> u64 {
        self.it
            .site(&site(number))
            .map_or(0, |site| site.used.get("gpus"))
    }

    pub(super) fn held(&self, number: usize) -> Vec<JobId> {
        let held = self.it.site(&site(number));
        held.map_or_else(Vec::new, |site| {
            site.jobs.into_iter().map(|(job, _)| job).collect()
        })
    }
}

/// The sites that are to do this.
pub(super) fn told(actions: &[ScheduleAction], what: &str) -> Vec<String> {
    let told = actions.iter().filter_map(|action| match action {
        ScheduleAction::Deploy { site, .. } if what == "deploy" => Some(site),
        ScheduleAction::Start { site, .. } if what == "start" => Some(site),
        ScheduleAction::Stop { site, .. } if what == "stop" => Some(site),
        ScheduleAction::Gone { site, .. } if what == "gone" => Some(site),
        ScheduleAction::Confirmed { site, .. } if what == "confirmed" => Some(site),
        _ => None,
    });
    told.map(ToString::to_string).collect()
}

pub(super) fn ending(actions: &[ScheduleAction]) -> Option<&Ending> {
    actions.iter().find_map(|action| match action {
        ScheduleAction::End { ending, .. } => Some(ending),
        _ => None,
    })
}

pub(super) fn runs(actions: &[ScheduleAction]) -> Option<Vec<String>> {
    actions.iter().find_map(|action| match action {
        ScheduleAction::Run { out, .. } => {
            Some(out.iter().map(|(site, _)| site.to_string()).collect())
        }
        _ => None,
    })
}

/// Why a queued job waits, as last said.
pub(super) fn waits(actions: &[ScheduleAction]) -> Option<&str> {
    actions.iter().rev().find_map(|action| match action {
        ScheduleAction::Waits { why, .. } => Some(why.as_str()),
        _ => None,
    })
}
