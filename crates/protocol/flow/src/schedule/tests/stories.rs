//! One situation each.

use super::*;

#[test]
fn a_job_goes_through_its_phases_and_gives_everything_back() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.here(number, 2, vec![]);
    }
    let asked = Needs {
        take: gpus(1),
        ..needs(&[1, 2], 2)
    };
    let out = bench.submit(1, asked);
    assert_eq!(told(&out, "deploy"), ["site-1", "site-2"]);
    assert_eq!((bench.used(1), bench.used(2)), (1, 1));
    assert!(told(&bench.ready(1, 1, 1), "start").is_empty());
    assert_eq!(told(&bench.ready(1, 2, 1), "start"), ["site-1", "site-2"]);
    assert!(runs(&bench.started(1, 2)).is_none());
    assert_eq!(runs(&bench.started(1, 1)), Some(vec![]));
    let out = bench.over(1, RunResult::Completed);
    let end = ending(&out).unwrap();
    assert_eq!(end.how, How::Run(RunResult::Completed));
    assert!(end.pending.is_empty());
    assert!(
        told(&out, "stop").is_empty(),
        "they come to it by themselves"
    );
    assert_eq!(bench.used(1), 1, "nothing is free before it is said to be");
    bench.ended(1, 1, "");
    assert_eq!((bench.used(1), bench.used(2)), (0, 1));
    // The other says nothing: it is told to stop, and told again when it comes back.
    assert_eq!(told(&bench.wait(at(11)), "stop"), ["site-2"]);
    bench.away(2);
    assert_eq!(bench.used(2), 1);
    let out = bench.here(2, 2, vec![(job(1), InHand::Running)]);
    assert_eq!(told(&out, "stop"), ["site-2"]);
    bench.ended(1, 2, "");
    assert_eq!(bench.used(2), 0);
    assert_eq!(bench.it.state(&job(1)), None);
}

#[test]
fn the_queue_goes_by_priority_and_then_by_time() {
    let mut bench = Bench::new();
    bench.here(1, 1, vec![]);
    let asks = |priority| Needs {
        take: gpus(1),
        priority,
        ..needs(&[1], 1)
    };
    for (number, priority) in [(1, 0), (2, 0), (3, 5), (4, 0)] {
        bench.submit(number, asks(priority));
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        let held = bench.held(1);
        let running = held.first().unwrap().clone();
        let number: usize = running.as_str()[4..].parse().unwrap();
        order.push(number);
        bench.ready(number, 1, 1);
        bench.started(number, 1);
        bench.over(number, RunResult::Completed);
        bench.ended(number, 1, "");
    }
    assert_eq!(order, [1, 3, 2, 4]);
}

#[test]
fn who_waits_for_room_is_not_passed_by_whoever_needs_the_same() {
    let mut bench = Bench::new();
    bench.here(1, 2, vec![]);
    bench.here(2, 2, vec![]);
    let asks = |sites: &[usize], count| Needs {
        take: gpus(count),
        ..needs(sites, sites.len())
    };
    bench.submit(1, asks(&[1], 1));
    let out = bench.submit(2, asks(&[1, 2], 2));
    assert!(
        waits(&out)
            .unwrap()
            .contains("site-1 is busy: 2 gpus wanted, 1 of 2 free")
    );
    // It would fit, and would keep the one ahead waiting.
    let out = bench.submit(3, asks(&[2], 1));
    assert!(told(&out, "deploy").is_empty());
    assert!(
        waits(&out)
            .unwrap()
            .contains("site-2 is kept for a job ahead")
    );
    // What waits for a site that is not there keeps nothing.
    bench.submit(4, asks(&[7], 1));
    bench.abort(2);
    assert_eq!(bench.held(2), [job(3)]);
}

#[test]
fn a_site_too_small_for_good_keeps_nobody_waiting() {
    let mut bench = Bench::new();
    bench.here(1, 1, vec![]);
    let out = bench.submit(
        1,
        Needs {
            take: gpus(3),
            ..needs(&[1], 1)
        },
    );
    assert!(
        waits(&out)
            .unwrap()
            .contains("site-1 has too little: 3 gpus wanted, 1 of 1 free")
    );
    let out = bench.submit(
        2,
        Needs {
            take: gpus(1),
            ..needs(&[1], 1)
        },
    );
    assert_eq!(told(&out, "deploy"), ["site-1"]);
    // Somebody adds GPUs.
    bench.ready(2, 1, 1);
    bench.ended(2, 1, "broken");
    let out = bench.feed(ScheduleEvent::Changed {
        site: site(1),
        capacity: capacity(4),
    });
    assert_eq!(told(&out, "deploy"), ["site-1"]);
}

#[test]
fn named_sites_are_waited_for_a_little_and_join_later() {
    let mut bench = Bench::new();
    bench.here(1, 0, vec![]);
    let out = bench.submit(1, needs(&[1, 2, 3], 1));
    assert!(told(&out, "deploy").is_empty());
    assert_eq!(bench.it.next_wakeup(), Some(at(10)));
    assert_eq!(told(&bench.wait(at(10)), "deploy"), ["site-1"]);
    bench.ready(1, 1, 1);
    assert_eq!(runs(&bench.started(1, 1)), Some(vec![]));
    // One comes while it runs, and nothing waits for it.
    assert_eq!(told(&bench.here(2, 0, vec![]), "deploy"), ["site-2"]);
    assert_eq!(told(&bench.ready(1, 2, 1), "start"), ["site-2"]);
    bench.started(1, 2);
    let parts = bench.it.parts(&job(1));
    let states: Vec<_> = parts.iter().map(|(_, part)| part.as_str()).collect();
    assert_eq!(states, ["started", "started", "waiting"]);
}

#[test]
fn an_empty_list_means_all_that_are_there() {
    let mut bench = Bench::new();
    let out = bench.submit(1, needs(&[], 2));
    assert_eq!(
        waits(&out),
        Some("0 of at least 2 sites are there with room")
    );
    bench.here(4, 0, vec![]);
    let out = bench.here(2, 0, vec![]);
    assert_eq!(told(&out, "deploy"), ["site-2", "site-4"]);
    // Who comes now is none of its sites.
    assert!(told(&bench.here(3, 0, vec![]), "deploy").is_empty());
}

#[test]
fn a_required_site_that_declines_ends_the_job_in_that_phase() {
    let mut bench = Bench::new();
    for number in 1..=3 {
        bench.here(number, 0, vec![]);
    }
    let asked = Needs {
        required: vec![site(2)],
        ..needs(&[1, 2, 3], 1)
    };
    bench.submit(1, asked.clone());
    bench.ready(1, 1, 1);
    let out = bench.declined(1, 2);
    assert_eq!(told(&out, "stop"), ["site-1", "site-3"]);
    assert_eq!(bench.it.state(&job(1)), Some(JobState::Stopping));
    bench.ended(1, 1, "");
    let out = bench.ended(1, 3, "");
    let end = ending(&out).unwrap();
    assert_eq!(end.phase, JobPhase::Deploy);
    let How::TooFew { cause } = &end.how else {
        panic!("{:?}", end.how);
    };
    assert_eq!(
        cause,
        "site-2, which is required, takes no part: site-2 declined: it has no data `digits`"
    );
    // And in the next phase.
    bench.submit(2, asked);
    for number in 1..=3 {
        bench.ready(2, number, 1);
    }
    let out = bench.ended(2, 2, "its disk is full");
    assert_eq!(bench.it.state(&job(2)), Some(JobState::Stopping));
    assert!(ending(&out).is_none());
    bench.ended(2, 1, "");
    let out = bench.ended(2, 3, "");
    assert_eq!(ending(&out).unwrap().phase, JobPhase::Start);
}

#[test]
fn a_slow_site_is_waited_for_unless_the_policy_says_how_long() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.here(number, 0, vec![]);
    }
    bench.submit(1, needs(&[1, 2], 1));
    bench.ready(1, 1, 1);
    // It is fetching, and each sign of that counts.
    bench.now = at(50);
    bench.feed(ScheduleEvent::Progress {
        job: job(1),
        site: site(2),
    });
    assert!(told(&bench.wait(at(100)), "start").is_empty());
    let out = bench.wait(at(110));
    assert_eq!(told(&out, "start"), ["site-1"]);
    assert_eq!(told(&out, "stop"), ["site-2"]);
    let out = bench.started(1, 1);
    assert_eq!(runs(&out), Some(vec!["site-2".to_owned()]));
    // With a limit to the patience.
    bench.submit(
        2,
        Needs {
            grace: Some(Duration::from_secs(5)),
            ..needs(&[1, 2], 1)
        },
    );
    bench.ready(2, 1, 1);
    assert_eq!(told(&bench.wait(at(115)), "start"), ["site-1"]);
    assert_eq!(runs(&bench.started(2, 1)), Some(vec![]));
    // It was only late, and joins.
    assert_eq!(told(&bench.ready(2, 2, 1), "start"), ["site-2"]);
}

#[test]
fn a_job_is_aborted_in_every_phase() {
    for phase in ["queued", "deploying", "starting", "running"] {
        let mut bench = Bench::new();
        let asked = needs(&[1, 2, 3], 3);
        if phase != "queued" {
            for number in 1..=3 {
                bench.here(number, 0, vec![]);
            }
        }
        bench.submit(1, asked);
        if matches!(phase, "starting" | "running") {
            (1..=3).for_each(|number| drop(bench.ready(1, number, 1)));
        }
        if phase == "running" {
            (1..=3).for_each(|number| drop(bench.started(1, number)));
        }
        assert_eq!(bench.it.state(&job(1)).unwrap().as_str(), phase);
        bench.away(2);
        let out = bench.abort(1);
        if phase == "queued" {
            let end = ending(&out).unwrap();
            assert_eq!(end.phase, JobPhase::Queue);
            assert!(end.pending.is_empty());
            assert_eq!(bench.it.state(&job(1)), None);
            continue;
        }
        assert_eq!(told(&out, "stop"), ["site-1", "site-3"], "{phase}");
        let aborts = out
            .iter()
            .any(|a| matches!(a, ScheduleAction::AbortRun { .. }));
        assert_eq!(aborts, phase == "running");
        assert!(bench.abort(1).is_empty(), "once is enough");
        bench.ended(1, 1, "");
        bench.now = at(3);
        let mut out = if phase == "running" {
            bench.ended(1, 3, "");
            bench.over(1, RunResult::Aborted)
        } else {
            bench.ended(1, 3, "")
        };
        let end = ending(&out).unwrap().clone();
        assert_eq!(end.pending, [site(2)], "{phase}");
        // It is told when it comes back, and then the job is over and done with.
        out = bench.here(2, 0, vec![(job(1), InHand::Running)]);
        assert_eq!(told(&out, "stop"), ["site-2"]);
        assert_eq!(told(&bench.ended(1, 2, ""), "confirmed"), ["site-2"]);
        assert_eq!(bench.it.state(&job(1)), None);
    }
}

#[test]
fn a_site_that_does_not_confirm_is_pending_after_the_limit() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.here(number, 0, vec![]);
    }
    bench.running(1, &[1, 2]);
    bench.abort(1);
    bench.ended(1, 1, "");
    bench.over(1, RunResult::Aborted);
    assert!(ending(&bench.wait(at(9))).is_none());
    let out = bench.wait(at(10));
    assert_eq!(ending(&out).unwrap().pending, [site(2)]);
    // A site that was started anew has nothing of it.
    bench.away(2);
    assert_eq!(told(&bench.here(2, 0, vec![]), "confirmed"), ["site-2"]);
}

#[test]
fn a_cut_in_any_phase_is_no_failure() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.here(number, 1, vec![]);
    }
    bench.submit(
        1,
        Needs {
            take: gpus(1),
            ..needs(&[1, 2], 2)
        },
    );
    bench.ready(1, 1, 1);
    // While it fetches: it is asked anew, and what answers the first try is late.
    bench.away(2);
    let out = bench.here(2, 1, vec![]);
    assert!(out.contains(&ScheduleAction::Deploy {
        job: job(1),
        site: site(2),
        attempt: 2
    }));
    assert!(bench.ready(1, 2, 1).is_empty());
    assert_eq!(told(&bench.ready(1, 2, 2), "start"), ["site-1", "site-2"]);
    // While it starts: the order was lost.
    bench.away(2);
    assert_eq!(
        told(&bench.here(2, 1, vec![(job(1), InHand::Ready)]), "start"),
        ["site-2"]
    );
    bench.started(1, 1);
    // It had started, and that was not heard.
    bench.away(2);
    let out = bench.here(2, 1, vec![(job(1), InHand::Running)]);
    assert_eq!(runs(&out), Some(vec![]));
    // While it runs: nothing at all; and when its process was started anew, from
    // the beginning.
    bench.away(2);
    assert!(bench.here(2, 1, vec![(job(1), InHand::Running)]).is_empty());
    bench.away(2);
    let out = bench.here(2, 1, vec![]);
    assert_eq!(told(&out, "deploy"), ["site-2"]);
    assert_eq!(told(&bench.ready(1, 2, 3), "start"), ["site-2"]);
    bench.started(1, 2);
    assert_eq!((bench.used(1), bench.used(2)), (1, 1));
}

#[test]
fn a_site_that_ends_a_running_job_is_not_waited_for() {
    let mut bench = Bench::new();
    for number in 1..=3 {
        bench.here(number, 0, vec![]);
    }
    bench.running(1, &[1, 2, 3]);
    let out = bench.ended(1, 2, "the GPU fell off the bus");
    assert_eq!(told(&out, "gone"), ["site-2"]);
    let out = bench.over(1, RunResult::CompletedWithLosses);
    let end = ending(&out).unwrap();
    let (name, why) = &end.out[0];
    assert_eq!(
        (name, why.reason.as_str()),
        (&site(2), "the GPU fell off the bus")
    );
}

#[test]
fn a_job_that_nobody_knows_is_stopped_where_it_is() {
    let mut bench = Bench::new();
    let out = bench.here(1, 0, vec![(job(9), InHand::Running)]);
    assert_eq!(told(&out, "stop"), ["site-1"]);
    assert!(bench.ended(9, 1, "").is_empty());
}

#[test]
fn no_more_jobs_run_than_may() {
    let mut bench = Bench::new();
    bench.here(1, 0, vec![]);
    for number in 1..=6 {
        bench.submit(number, needs(&[1], 1));
    }
    assert_eq!(bench.held(1).len(), 4);
    bench.abort(1);
    assert_eq!(bench.held(1).len(), 4, "it has not ended");
    bench.ended(1, 1, "");
    assert_eq!(bench.held(1), [2, 3, 4, 5].map(job));
    // Nor at a site that says how many it takes.
    let mut bench = Bench::new();
    let one = Capacity {
        jobs: Some(1),
        ..Capacity::default()
    };
    bench.feed(ScheduleEvent::Connected {
        site: site(1),
        capacity: one,
        jobs: vec![],
    });
    bench.submit(1, needs(&[1], 1));
    let out = bench.submit(2, needs(&[1], 1));
    assert!(
        waits(&out).unwrap().contains("1 of 1 jobs run there"),
        "{out:?}"
    );
}

#[test]
fn jobs_of_an_earlier_start_are_taken_up() {
    let mut bench = Bench::new();
    let restored = |number: usize, state, part: SitePart| Restored {
        job: job(number),
        number: number as u64,
        needs: Needs {
            take: gpus(1),
            ..needs(&[1], 1)
        },
        state,
        sites: vec![(site(1), part)],
    };
    let out = bench
        .it
        .restore(restored(1, JobState::Running, SitePart::Started));
    assert_eq!(
        out,
        [ScheduleAction::Run {
            job: job(1),
            out: vec![],
            resume: true
        }]
    );
    bench
        .it
        .restore(restored(2, JobState::Deploying, SitePart::Deploying));
    bench
        .it
        .restore(restored(3, JobState::Ended, SitePart::Stopping));
    assert_eq!(
        bench.used(1),
        2,
        "what they had is theirs until the site has spoken"
    );
    let out = bench.here(
        1,
        3,
        vec![
            (job(1), InHand::Running),
            (job(2), InHand::Ready),
            (job(3), InHand::Running),
        ],
    );
    assert_eq!(told(&out, "stop"), ["site-1"]);
    assert_eq!(told(&out, "deploy"), ["site-1"]);
    assert_eq!(bench.it.state(&job(2)), Some(JobState::Deploying));
    assert_eq!(bench.used(1), 3);
    assert_eq!(told(&bench.ended(3, 1, ""), "confirmed"), ["site-1"]);
    assert_eq!(bench.it.state(&job(1)), Some(JobState::Running));
}
