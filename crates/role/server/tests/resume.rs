//! Jobs that go on after their server was gone.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::sync::Arc;

use common::{Answer, Place, Server, job, last_model, model, until, values_in};
use firesteel_base::{Failure, FailureCode, Phase, Round};
use firesteel_flow::Outcome;
use firesteel_store::RunDir;
use firesteel_wire::snapshot::JobSnapshot;
use serde_json::{Value, json};

fn adds(value: f32) -> impl FnMut(&firesteel_wire::control::Assign) -> Answer + Send + 'static {
    move |task| {
        let sent = task.model.as_ref().and_then(|model| model.inline.clone());
        let before = sent.map_or(0.0, |bytes| values_in(&bytes)[0]);
        Answer::Params(vec![before * 1.1 + value])
    }
}

async fn workers(server: &Server) {
    server.worker("site-1", adds(0.3)).await;
    server.worker("site-2", adds(0.7)).await;
}

/// Runs a job up to `round`, which is open, and aborts it there.
async fn aborted_in(place: &Place, spec: &Value, round: u32) -> Arc<RunDir> {
    let server = place.start(spec);
    let run = Arc::clone(&server.run);
    server.worker("site-1", adds(0.3)).await;
    let mut site = server.site("site-2").await;
    let mut answer = adds(0.7);
    loop {
        let task = site.task().await;
        if task.key.as_ref().unwrap().round == round {
            break;
        }
        let answer = answer(&task);
        site.answer(&task, answer).await;
    }
    server
        .abort
        .send_replace(Some("the lights went out".into()));
    let (_, abort) = site.end().await;
    assert!(abort);
    site.stop().await;
    assert_eq!(server.report().await.status(), "aborted");
    run
}

#[tokio::test]
async fn a_job_resumed_after_an_abort_in_mid_round_ends_with_the_same_bits() {
    let spec = job(2, 5);
    let place = Place::new();
    let server = place.start(&spec);
    let whole = Arc::clone(&server.run);
    workers(&server).await;
    assert_eq!(server.report().await.status(), "completed");
    for round in 0..5 {
        let place = Place::new();
        let run = aborted_in(&place, &spec, round).await;
        drop(run);
        let server = place.resume(&spec);
        let run = Arc::clone(&server.run);
        workers(&server).await;
        let report = server.report().await;
        assert_eq!(
            report.status(),
            "completed",
            "round {round}: {:?}",
            report.outcome
        );
        assert_eq!(report.resumed_after, round.checked_sub(1).map(Round));
        assert_eq!(
            last_model(run.path()),
            last_model(whole.path()),
            "round {round}"
        );
        let lines = std::fs::read_to_string(run.path().join("metrics/rounds.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 5, "{lines}");
    }
}

#[tokio::test]
async fn the_jobs_clock_and_seed_go_on_over_a_resume() {
    let mut spec = job(2, 4);
    spec["seed"] = Value::Null;
    let place = Place::new();
    let run = aborted_in(&place, &spec, 2).await;
    let newest = |run: &RunDir| {
        let loaded = run.snapshots().unwrap().load_latest().unwrap().unwrap();
        (loaded.round, JobSnapshot::decode(&loaded.bytes).unwrap())
    };
    let (round, before) = newest(&run);
    assert_eq!(
        round,
        Round(1),
        "the abort is kept with the last round that made a model"
    );
    drop(run);
    let server = place.resume(&spec);
    let run = Arc::clone(&server.run);
    let site = server.site("site-1").await;
    let start = site.start.clone().unwrap();
    assert_eq!((start.resume_round, start.seed), (Some(1), before.seed));
    tokio::spawn(site.work(adds(0.3)));
    server.worker("site-2", adds(0.7)).await;
    assert_eq!(server.report().await.status(), "completed");
    let (round, after) = newest(&run);
    assert_eq!((round, after.seed), (Round(3), before.seed));
    assert!(after.clock > before.clock);
}

#[tokio::test]
async fn a_site_that_was_dismissed_takes_part_again_after_a_resume() {
    let mut spec = job(2, 3);
    spec["min_clients"] = json!(1);
    spec["policy"]["on_failure"] = json!("exclude");
    let place = Place::new();
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    server
        .worker("site-2", |_| {
            Answer::Fail(Failure::new(FailureCode::Raised, Phase::Train, "no disk"))
        })
        .await;
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    site.update(&task, model(&[1.0])).await;
    site.task().await;
    server.abort.send_replace(Some("to mend site-2".into()));
    site.end().await;
    site.stop().await;
    assert_eq!(server.report().await.status(), "aborted");
    drop(run);
    let server = place.resume(&spec);
    let run = Arc::clone(&server.run);
    server.worker("site-1", |_| Answer::Params(vec![1.0])).await;
    server.worker("site-2", |_| Answer::Params(vec![3.0])).await;
    let report = server.report().await;
    // It had missed the first round.
    assert_eq!(report.status(), "completed with 1 of 2 sites");
    assert_eq!(values_in(&last_model(run.path())), [2.0]);
}

#[tokio::test]
async fn a_job_that_failed_is_tried_again() {
    let spec = job(2, 3);
    let place = Place::new();
    let server = place.start(&spec);
    server.worker("site-1", adds(0.3)).await;
    let mut good = adds(0.7);
    server
        .worker("site-2", move |task| {
            match task.key.as_ref().unwrap().round {
                1 => Answer::Fail(Failure::new(FailureCode::Raised, Phase::Train, "no disk")),
                _ => good(task),
            }
        })
        .await;
    assert_eq!(server.report().await.status(), "failed");
    let server = place.resume(&spec);
    workers(&server).await;
    let report = server.report().await;
    assert_eq!(report.status(), "completed", "{:?}", report.outcome);
    assert_eq!(report.resumed_after, Some(Round(0)));
    assert!(report.failures.is_empty());
}

#[tokio::test]
async fn a_job_that_is_done_says_so_again() {
    let spec = job(2, 2);
    let place = Place::new();
    let server = place.start(&spec);
    workers(&server).await;
    assert_eq!(server.report().await.status(), "completed");
    let server = place.resume(&spec);
    let report = server.report().await;
    assert_eq!(
        (report.status(), report.resumed_after),
        ("completed".into(), Some(Round(1)))
    );
}

#[tokio::test]
async fn sites_that_do_not_come_back_within_their_lease_are_done_without() {
    let mut spec = job(2, 3);
    spec["min_clients"] = json!(1);
    spec["policy"] = json!({});
    let mut place = Place::new();
    // Killed, not ended: the snapshot is that of the last commit, round open.
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut first = server.site("site-1").await;
    let mut second = server.site("site-2").await;
    for site in [&mut first, &mut second] {
        let task = site.task().await;
        site.update(&task, model(&[1.0])).await;
    }
    first.task().await;
    server.job.abort();
    until(|| server.job.is_finished().then_some(())).await;
    drop((server, run));
    place.durations.lease = std::time::Duration::from_millis(300);
    let server = place.resume(&spec);
    server.worker("site-1", |_| Answer::Params(vec![3.0])).await;
    let report = server.report().await;
    assert_eq!(
        report.status(),
        "completed with 1 of 2 sites",
        "{:?}",
        report.outcome
    );
    assert!(
        report.failures[0]
            .failure
            .message
            .contains("within its lease"),
        "{:?}",
        report.failures
    );
}

/// A job that is aborted in round 3, whose best model is that of round 0, which
/// was rated in round 1.
async fn with_a_best_model(place: &Place) -> (Value, Arc<RunDir>) {
    let mut spec = job(1, 5);
    spec["keep_models"] = json!(1);
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    for (round, accuracy) in [(0, 0.1), (1, 0.9), (2, 0.2)] {
        let task = site.task().await;
        assert_eq!(task.key.as_ref().unwrap().round, round);
        site.answer(&task, Answer::Rated(vec![round as f32], accuracy))
            .await;
    }
    site.task().await;
    server.abort.send_replace(Some("enough".into()));
    site.end().await;
    site.stop().await;
    assert_eq!(server.report().await.status(), "aborted");
    let best = std::fs::read(run.models_dir().join("best.safetensors")).unwrap();
    assert_eq!(values_in(&best), [0.0]);
    (spec, run)
}

/// Resumes it; what the log says, and which model is the best one in the end.
async fn resumed_with(place: &Place, spec: &Value) -> (String, Option<f32>) {
    let server = place.resume(spec);
    let run = Arc::clone(&server.run);
    server
        .worker("site-1", |_| Answer::Rated(vec![7.0], 0.5))
        .await;
    let report = server.report().await;
    assert_eq!(report.status(), "completed", "{:?}", report.outcome);
    let best = std::fs::read(run.models_dir().join("best.safetensors")).ok();
    (common::log(&run), best.map(|bytes| values_in(&bytes)[0]))
}

#[tokio::test]
async fn the_best_model_survives_a_resume() {
    let place = Place::new();
    let (spec, run) = with_a_best_model(&place).await;
    drop(run);
    let (log, best) = resumed_with(&place, &spec).await;
    assert_eq!(best, Some(0.0));
    assert!(!log.contains("best model"), "{log}");
    // What was before the resume is part of what the job came to.
    let run = place.resume(&spec);
    let path = run.run.path().to_owned();
    assert_eq!(run.report().await.status(), "completed");
    let summary = common::summary(&path);
    assert_eq!(
        (&summary["best_round"], &summary["best_key_metric"]),
        (&json!(1), &json!(0.9))
    );
    assert_eq!(
        (&summary["final_round"], &summary["final_key_metric"]),
        (&json!(4), &json!(0.5))
    );
    assert_eq!(summary["models"]["best"], "models/best.safetensors");
    assert_eq!(summary["models"]["latest"], "models/last.safetensors");
}

#[tokio::test]
async fn a_best_model_that_is_gone_or_damaged_is_said_and_chosen_anew() {
    for damage in ["gone", "damaged"] {
        let place = Place::new();
        let (spec, run) = with_a_best_model(&place).await;
        let path = run.models_dir().join("best.safetensors");
        std::fs::remove_file(&path).unwrap();
        if damage == "damaged" {
            std::fs::write(&path, "FSxx").unwrap();
        }
        drop(run);
        let (log, best) = resumed_with(&place, &spec).await;
        // The model of round 2, which round 3 rated.
        assert_eq!(best, Some(2.0), "{damage}");
        assert!(log.contains("best model"), "{damage}: {log}");
    }
}

#[tokio::test]
async fn a_newer_best_model_is_not_taken_for_the_one_of_the_snapshot() {
    let place = Place::new();
    let (spec, run) = with_a_best_model(&place).await;
    // As a process leaves it that dies between a round's best model and its snapshot.
    let mut kept = run.kept_models(1).unwrap();
    let objects = run.objects().unwrap();
    let newer = objects.from_bytes(model(&[99.0])).unwrap();
    kept.save_best(Round(2), &newer).unwrap();
    drop((kept, objects, newer, run));
    let (log, best) = resumed_with(&place, &spec).await;
    assert_eq!(best, Some(2.0));
    assert!(log.contains("best model"), "{log}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_said_and_the_one_before_is_used() {
    let spec = job(2, 5);
    let place = Place::new();
    let run = aborted_in(&place, &spec, 3).await;
    std::fs::write(run.path().join("state/round-000002.snapshot"), "x").unwrap();
    drop(run);
    let server = place.resume(&spec);
    let run = Arc::clone(&server.run);
    workers(&server).await;
    let report = server.report().await;
    assert_eq!(report.status(), "completed", "{:?}", report.outcome);
    assert_eq!(report.resumed_after, Some(Round(1)));
    assert!(common::log(&run).contains("is damaged; going back to the one before"));
}

#[tokio::test]
async fn a_run_whose_snapshots_are_all_damaged_is_not_started_anew_in_silence() {
    let spec = job(2, 5);
    let place = Place::new();
    let run = aborted_in(&place, &spec, 3).await;
    let models = last_model(run.path());
    for entry in std::fs::read_dir(run.path().join("state")).unwrap() {
        std::fs::write(entry.unwrap().path(), "x").unwrap();
    }
    let path = run.path().to_owned();
    drop(run);
    let server = place.resume(&spec);
    let error = common::within(server.job).await.unwrap().unwrap_err();
    assert!(
        error.to_string().contains("no snapshot that can be read"),
        "{error}"
    );
    assert_eq!(last_model(&path), models);
}

#[tokio::test]
async fn without_its_global_model_a_job_says_so() {
    let spec = job(2, 5);
    let place = Place::new();
    let run = aborted_in(&place, &spec, 3).await;
    std::fs::remove_file(run.models_dir().join("last.safetensors")).unwrap();
    drop(run);
    let server = place.resume(&spec);
    let report = server.report().await;
    let Outcome::Failed { cause, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(cause.contains("did not outlive the restart"), "{cause}");
}
