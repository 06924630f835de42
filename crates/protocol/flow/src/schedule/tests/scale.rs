//! A start with many sites, some of which never answer.

use super::*;

const SITES: usize = 144;

/// 144 sites, of which two never answer the deploy and two never the start.
/// Everything the scheduler said until the job ran or ended.
fn start(needs: Needs) -> (Bench, Vec<ScheduleAction>) {
    let mut bench = Bench::new();
    for number in 1..=SITES {
        bench.here(number, 0, vec![]);
    }
    let silent_at_deploy = [17, 99];
    let silent_at_start = [3, 140];
    let mut all = Vec::new();
    let mut next = bench.submit(1, needs);
    loop {
        let state = bench.it.state(&job(1));
        all.append(&mut next.clone());
        let mut after = Vec::new();
        for action in next {
            // Every site answers a little later than the one before.
            bench.now = bench.now + Duration::from_millis(20);
            let answer = |site: &SiteName| site.as_str()[5..].parse::<usize>().unwrap();
            match action {
                ScheduleAction::Deploy { site, attempt, .. } => {
                    let number = answer(&site);
                    if !silent_at_deploy.contains(&number) {
                        after.append(&mut bench.ready(1, number, attempt));
                    }
                }
                ScheduleAction::Start { site, .. } => {
                    let number = answer(&site);
                    if !silent_at_start.contains(&number) {
                        after.append(&mut bench.started(1, number));
                    }
                }
                ScheduleAction::Stop { site, .. } => {
                    let number = answer(&site);
                    if !silent_at_deploy.contains(&number) && !silent_at_start.contains(&number) {
                        after.append(&mut bench.ended(1, number, ""));
                    }
                }
                _ => {}
            }
        }
        let over = matches!(state, None | Some(JobState::Running | JobState::Ended));
        if after.is_empty() {
            if over {
                return (bench, all);
            }
            let wake = bench.it.next_wakeup().expect("something is waited for");
            after = bench.wait(wake.max(bench.now));
        }
        next = after;
    }
}

fn all_sites(least: usize) -> Needs {
    let numbers: Vec<usize> = (1..=SITES).collect();
    needs(&numbers, least)
}

#[test]
fn it_runs_with_those_that_answer_and_names_the_others() {
    let (bench, actions) = start(all_sites(140));
    assert_eq!(bench.it.state(&job(1)), Some(JobState::Running));
    let out = runs(&actions).unwrap();
    assert_eq!(out, ["site-3", "site-17", "site-99", "site-140"]);
    let parts = bench.it.parts(&job(1));
    let started = parts.iter().filter(|(_, part)| *part == SitePart::Started);
    assert_eq!(started.count(), 140);
    let why = |number: usize| {
        let part = parts.iter().find(|(name, _)| *name == site(number));
        match part.map(|(_, part)| part) {
            Some(SitePart::Out(why)) => (why.phase, why.code.clone()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(why(17), (JobPhase::Deploy, "no_answer".to_owned()));
    assert_eq!(why(140), (JobPhase::Start, "never_started".to_owned()));
    assert_eq!(told(&actions, "stop").len(), 4);
}

#[test]
fn it_ends_and_says_so_where_one_more_is_needed() {
    let (_, actions) = start(all_sites(141));
    assert!(runs(&actions).is_none());
    let end = ending(&actions).unwrap();
    assert_eq!(end.phase, JobPhase::Start);
    let How::TooFew { cause } = &end.how else {
        panic!("{:?}", end.how);
    };
    assert!(
        cause.starts_with("140 of 144 sites can start, 141 are needed"),
        "{cause}"
    );
    for name in ["site-3 ", "site-17 ", "site-99 ", "site-140 "] {
        assert!(cause.contains(name), "{name} in {cause}");
    }
    let pending: Vec<_> = end.pending.iter().map(SiteName::as_str).collect();
    assert_eq!(pending, ["site-140", "site-17", "site-3", "site-99"]);
}

#[test]
fn it_ends_in_the_phase_in_which_a_required_site_is_missing() {
    for (number, phase) in [(99, JobPhase::Deploy), (3, JobPhase::Start)] {
        let asked = Needs {
            required: vec![site(number)],
            ..all_sites(10)
        };
        let (_, actions) = start(asked);
        let end = ending(&actions).unwrap();
        assert_eq!(end.phase, phase);
        let How::TooFew { cause } = &end.how else {
            panic!("{:?}", end.how);
        };
        let expected = format!("site-{number}, which is required, takes no part");
        assert!(cause.starts_with(&expected), "{cause}");
    }
}
