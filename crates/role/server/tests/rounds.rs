//! Whole jobs with sites that keep to the protocol: sums, failures, ends.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    Answer, Place, job, last_model, log, model, model_of, summary, until, values_in, within,
};
use firesteel_base::{Failure, FailureCode, Phase, Round};
use firesteel_flow::Outcome;
use firesteel_store::ObjectId;
use firesteel_tensor::DType;
use firesteel_wire::control::{Update, to_server, to_site};
use serde_json::{Value, json};

fn raised(words: &str) -> Failure {
    Failure::new(FailureCode::Raised, Phase::Train, words)
}

#[tokio::test]
async fn a_job_averages_what_its_sites_send() {
    let place = Place::new();
    let server = place.start(&job(2, 3));
    let run = Arc::clone(&server.run);
    for (name, value) in [("site-1", 1.0), ("site-2", 4.0)] {
        server
            .worker(name, move |task| {
                let round = task.key.as_ref().unwrap().round as f32;
                Answer::Params(vec![value + round, -value])
            })
            .await;
    }
    let report = server.report().await;
    assert_eq!(report.status(), "completed", "{}", log(&run));
    assert_eq!(values_in(&last_model(run.path())), [4.5, -2.5]);
    assert!(report.failures.is_empty());
    assert_eq!(report.resumed_after, None);
    let lines = std::fs::read_to_string(run.path().join("metrics/rounds.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
}

/// The bytes of the last model when the sites answer in this order.
async fn bits_in_order(order: [usize; 3]) -> Vec<u8> {
    // Sums of these differ with their order unless it is kept.
    let sent = [[1e8f32, 0.1, 3.3], [-1e8, 0.7, 1e-9], [1.0, 1e20, -2.2]];
    let place = Place::new();
    let server = place.start(&job(3, 1));
    let run = Arc::clone(&server.run);
    let mut sites = Vec::new();
    for n in 1..=3 {
        sites.push(server.site(&format!("site-{n}")).await);
    }
    let mut tasks = Vec::new();
    for site in &mut sites {
        tasks.push(site.task().await);
    }
    for at in order {
        sites[at].update(&tasks[at], model(&sent[at])).await;
    }
    for site in sites {
        tokio::spawn(site.work(|_| Answer::Silence));
    }
    assert_eq!(server.report().await.status(), "completed");
    last_model(run.path())
}

#[tokio::test]
async fn the_bits_do_not_depend_on_the_order_of_arrival() {
    let first = bits_in_order([0, 1, 2]).await;
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(bits_in_order(order).await, first, "{order:?}");
    }
}

#[tokio::test]
async fn a_failed_site_is_reported_once_with_its_round_and_newest_failure() {
    let place = Place::new();
    let mut spec = job(3, 3);
    spec["min_clients"] = json!(2);
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    for name in ["site-1", "site-3"] {
        server.worker(name, |_| Answer::Params(vec![2.0])).await;
    }
    server
        .worker("site-2", |task| match task.key.as_ref().unwrap().round {
            0 => Answer::Fail(raised("first")),
            1 => Answer::Fail(raised("second").with_hint("do this")),
            _ => Answer::Params(vec![5.0]),
        })
        .await;
    let report = server.report().await;
    assert_eq!(report.status(), "completed with 2 of 3 sites");
    let told: Vec<_> = report
        .failures
        .iter()
        .map(|one| (&*one.site, one.round, &*one.failure.message))
        .collect();
    assert_eq!(told, [("site-2", Some(Round(1)), "second")]);
    assert_eq!(report.failures[0].failure.hint, "do this");
    assert_eq!(values_in(&last_model(run.path())), [3.0]);
    let summary = summary(run.path());
    assert_eq!(summary["status"], "completed_with_failures");
}

#[tokio::test]
async fn without_its_quorum_a_job_fails_at_once_and_says_why() {
    let place = Place::new();
    let server = place.start(&job(2, 2));
    let run = Arc::clone(&server.run);
    let mut patient = server.site("site-1").await;
    server
        .worker("site-2", |_| {
            Answer::Fail(raised("no data").with_hint("bring some"))
        })
        .await;
    patient.task().await;
    let started = Instant::now();
    let (reason, abort) = patient.end().await;
    assert!(abort && reason.contains("no data"), "{reason}");
    patient.stop().await;
    let report = server.report().await;
    assert!(started.elapsed() < place.durations.stop_grace);
    let Outcome::Failed { cause, hint, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(cause.contains("site-2: no data"), "{cause}");
    assert_eq!(hint, "bring some");
    assert_eq!(report.failures.len(), 1);
    assert_eq!(summary(run.path())["status"], "failed");
}

/// What the server makes of one site's answer; the other site is fine.
async fn refused(
    spec: impl FnOnce(&mut Value),
    answer: impl FnMut() -> Answer + Send + 'static,
) -> Failure {
    let place = Place::new();
    let mut value = job(2, 1);
    value["min_clients"] = json!(1);
    value["initial_model"] = json!(place.initial(&model(&[1.0, 2.0])));
    spec(&mut value);
    let server = place.start(&value);
    server
        .worker("site-1", |_| Answer::Params(vec![3.0, 4.0]))
        .await;
    let mut answer = answer;
    server.worker("site-2", move |_| answer()).await;
    let mut report = server.report().await;
    assert_eq!(report.status(), "completed with 1 of 2 sites");
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    let failure = report.failures.remove(0);
    assert_eq!((&*failure.site, failure.round), ("site-2", Some(Round(0))));
    failure.failure
}

#[tokio::test]
async fn an_update_that_is_none_is_refused_with_its_cause() {
    let one = |bytes: Vec<u8>| move || Answer::Bytes(bytes.clone());
    let update = |update: Update| move || Answer::Whole(Box::new(update.clone()));
    let good = || Some(common::inline(model(&[1.0, 1.0])));
    let same = |_: &mut Value| {};

    let failure = refused(same, one(model(&[f32::NAN, 1.0]))).await;
    assert_eq!(
        (failure.code, failure.phase),
        (FailureCode::NotFinite, Phase::Verify),
        "{failure}"
    );
    assert!(failure.message.contains("`w`: 1 of 2 values"), "{failure}");

    let failure = refused(same, one(model(&[1.0]))).await;
    assert_eq!(failure.code, FailureCode::ShapeMismatch, "{failure}");

    let failure = refused(same, one(model_of(DType::F64, &[2], &[0; 16]))).await;
    assert_eq!(failure.code, FailureCode::DtypeMismatch, "{failure}");

    let failure = refused(same, one(b"no model at all".to_vec())).await;
    assert_eq!(failure.code, FailureCode::Malformed, "{failure}");

    let failure = refused(same, || Answer::Diff(model(&[1.0, 1.0]))).await;
    assert_eq!(failure.code, FailureCode::ParamsType, "{failure}");

    let failure = refused(same, update(Update::default())).await;
    assert_eq!(failure.code, FailureCode::Misuse, "{failure}");

    let metrics = (0..5000).map(|n| (format!("m{n}"), 1.0)).collect();
    let failure = refused(
        same,
        update(Update {
            model: good(),
            metrics,
            ..Update::default()
        }),
    )
    .await;
    assert_eq!(failure.code, FailureCode::Malformed);
    assert_eq!(failure.message, "sent 5000 metrics, the limit is 4096");

    let steps = Some(f64::NAN);
    let failure = refused(
        same,
        update(Update {
            model: good(),
            steps,
            ..Update::default()
        }),
    )
    .await;
    assert_eq!(failure.code, FailureCode::Misuse, "{failure}");

    // Of an object that nobody offers.
    let mut nowhere = common::inline(Vec::new());
    (nowhere.inline, nowhere.id) = (None, 77);
    let failure = refused(
        same,
        update(Update {
            model: Some(nowhere),
            ..Update::default()
        }),
    )
    .await;
    assert_eq!(failure.code, FailureCode::Malformed);
    assert!(
        failure.message.contains("gone before it could be fetched"),
        "{failure}"
    );

    // A model in a message beyond what a message may hold.
    let values = vec![1.0; 20_000];
    let initial = model(&values);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    std::fs::write(&path, &initial).unwrap();
    let large = |value: &mut Value| {
        value["initial_model"] = json!(path);
        value["site"] = json!({});
    };
    let place = Place::new();
    let mut value = job(2, 1);
    value["min_clients"] = json!(1);
    large(&mut value);
    let server = place.start(&value);
    let objects = server.objects.clone();
    let stored = initial.clone();
    server
        .worker("site-1", move |_| {
            Answer::Stored(objects.from_bytes(stored.clone()).unwrap())
        })
        .await;
    server
        .worker("site-2", move |_| Answer::Bytes(initial.clone()))
        .await;
    let report = server.report().await;
    assert_eq!(report.failures[0].failure.code, FailureCode::Malformed);
    assert!(
        report.failures[0]
            .failure
            .message
            .contains("bytes of model in a message, the limit is 65536")
    );
}

#[tokio::test]
async fn a_code_of_a_later_version_is_a_failure_with_its_sentence() {
    let place = Place::new();
    let mut spec = job(2, 1);
    spec["min_clients"] = json!(1);
    let server = place.start(&spec);
    server.worker("site-1", |_| Answer::Params(vec![1.0])).await;
    let mut site = server.site("site-2").await;
    let task = site.task().await;
    let failure = firesteel_wire::control::FailureMessage {
        code: "melted".into(),
        phase: "later".into(),
        message: "the core melted".into(),
        ..Default::default()
    };
    let failed = firesteel_wire::control::TaskFailed {
        key: task.key.clone(),
        failure: Some(failure),
    };
    site.say(to_server::Body::TaskFailed(failed)).await;
    tokio::spawn(site.work(|_| Answer::Silence));
    let report = server.report().await;
    let failure = &report.failures[0].failure;
    assert_eq!(
        (failure.code, &*failure.message),
        (FailureCode::Internal, "the core melted")
    );
}

#[tokio::test]
async fn an_update_whose_file_is_cut_before_the_fold_is_its_sites_failure() {
    let place = Place::new();
    let mut spec = job(2, 1);
    spec["min_clients"] = json!(1);
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut cut = server.site("site-1").await;
    let mut whole = server.site("site-2").await;
    let (of_cut, of_whole) = (cut.task().await, whole.task().await);

    // Received, checked, and then somebody cuts the file.
    let object = server
        .objects
        .from_bytes(model(&vec![1.0; 50_000]))
        .unwrap();
    let path = object.path().unwrap().to_owned();
    let working = tokio::spawn(async move {
        cut.answer(&of_cut, Answer::Stored(object)).await;
        cut.work(|_| Answer::Silence).await;
    });
    let status = server.status.clone();
    until(|| {
        status
            .borrow()
            .as_ref()
            .filter(|now| now.have == 1)
            .map(|_| ())
    })
    .await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();

    let object = server
        .objects
        .from_bytes(model(&vec![3.0; 50_000]))
        .unwrap();
    whole.answer(&of_whole, Answer::Stored(object)).await;
    tokio::spawn(whole.work(|_| Answer::Silence));
    let report = server.report().await;
    working.await.unwrap();
    assert_eq!(
        report.status(),
        "completed with 1 of 2 sites",
        "{}",
        log(&run)
    );
    let told = &report.failures[0];
    assert_eq!(&*told.site, "site-1");
    assert_eq!(
        (told.failure.code, told.failure.phase),
        (FailureCode::Malformed, Phase::Aggregate)
    );
    let message = &told.failure.message;
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    let values = values_in(&last_model(run.path()));
    assert!(values.iter().all(|&value| value == 3.0));
}

#[tokio::test]
async fn models_in_flight_are_let_go_of() {
    let place = Place::new();
    let rounds = 6;
    let server = place.start(&job(2, rounds));
    let objects = server.objects.clone();
    let ids = Arc::new(Mutex::new(Vec::new()));
    for name in ["site-1", "site-2"] {
        let (objects, ids) = (objects.clone(), Arc::clone(&ids));
        server
            .worker(name, move |task| {
                let mut ids = ids.lock().unwrap();
                ids.extend(task.model.as_ref().map(|model| ObjectId(model.id)));
                let object = objects.from_bytes(model(&vec![1.0; 50_000])).unwrap();
                ids.push(object.id());
                Answer::Stored(object)
            })
            .await;
    }
    let run = Arc::clone(&server.run);
    assert_eq!(server.report().await.status(), "completed", "{}", log(&run));
    let ids = ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 2 * (2 * rounds as usize - 1));
    // The driver is gone, so nothing must be left; files that wait to be used
    // again are bounded.
    until(|| {
        ids.iter()
            .all(|&id| objects.get(id).is_none())
            .then_some(())
    })
    .await;
    let left = std::fs::read_dir(objects.dir()).unwrap().count();
    assert!(left <= 8, "{left} files");
}

#[tokio::test]
async fn updates_for_rounds_that_are_over_pile_up_nowhere() {
    let place = Place::new();
    let mut spec = job(2, 4);
    spec["min_clients"] = json!(1);
    spec["policy"]["grace_s"] = json!(0.0);
    let server = place.start(&spec);
    let objects = server.objects.clone();
    let run = Arc::clone(&server.run);
    let mut slow = server.site("site-2").await;
    let mut worker = server.site("site-1").await;
    let stored = objects.clone();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = Arc::clone(&gate);
    let first = slow.task().await;
    let working = tokio::spawn(async move {
        loop {
            match worker.next().await {
                Some(to_site::Body::Assign(task)) => {
                    if task.key.as_ref().unwrap().round == 3 {
                        open.acquire().await.unwrap().forget();
                    }
                    let object = stored.from_bytes(model(&vec![1.0; 50_000])).unwrap();
                    worker.answer(&task, Answer::Stored(object)).await;
                }
                Some(to_site::Body::EndJob(_)) => return worker.stop().await,
                Some(_) => {}
                None => return,
            }
        }
    });
    // Round 3 is open: the answer to round 0 comes, many times.
    until(|| {
        run.models_dir()
            .join("round-000001.safetensors")
            .exists()
            .then_some(())
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let object = objects.from_bytes(model(&vec![9.0; 50_000])).unwrap();
        let late = Update {
            key: first.key.clone(),
            model: Some(firesteel_wire::control::Object {
                inline: None,
                id: object.id().0,
                length: object.len(),
            }),
            ..Update::default()
        };
        slow.say(to_server::Body::Update(late)).await;
        held.push(object);
    }
    server.logged("came too late and was dropped").await;
    let ids: Vec<_> = held.iter().map(firesteel_store::ModelObject::id).collect();
    // Verified beside the loop: when the server lets go, only ours are left.
    let mut task = slow.task().await;
    while task.key.as_ref().unwrap().round != 3 {
        task = slow.task().await;
    }
    drop(held);
    until(|| {
        ids.iter()
            .all(|&id| objects.get(id).is_none())
            .then_some(())
    })
    .await;
    gate.add_permits(1);
    tokio::spawn(slow.work(|_| Answer::Silence));
    let report = server.report().await;
    assert_eq!(report.status(), "completed with 1 of 2 sites");
    within(working).await.unwrap();
    assert!(
        values_in(&last_model(run.path()))
            .iter()
            .all(|&value| value == 1.0)
    );
}

#[tokio::test]
async fn a_late_update_is_checked_against_the_model_it_will_be_added_to() {
    let place = Place::new();
    let mut spec = job(2, 2);
    spec["min_clients"] = json!(1);
    spec["policy"]["grace_s"] = json!(0.0);
    spec["policy"]["late"] = json!("next_round");
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut slow = server.site("site-2").await;
    let mut fast = server.site("site-1").await;
    let late = slow.task().await;
    let task = fast.task().await;
    assert!(late.model.is_none(), "the first round makes the model");
    fast.update(&task, model(&[1.0, 1.0])).await;
    let task = fast.task().await;
    // The job has a model by now, and this is not of its shape.
    slow.update(&late, model(&[1.0])).await;
    server.logged("has shape").await;
    fast.update(&task, model(&[2.0, 2.0])).await;
    tokio::spawn(slow.work(|_| Answer::Silence));
    tokio::spawn(fast.work(|_| Answer::Silence));
    let report = server.report().await;
    assert_eq!(report.failures[0].failure.code, FailureCode::ShapeMismatch);
    assert_eq!(report.failures[0].round, Some(Round(1)));
    assert_eq!(values_in(&last_model(run.path())), [2.0, 2.0]);
}

#[tokio::test]
async fn a_deadline_of_the_environment_is_one() {
    let mut place = Place::new();
    place.durations.round = Some(Duration::from_millis(200));
    let server = place.start(&job(1, 1));
    let mut site = server.site("site-1").await;
    site.task().await;
    site.end().await;
    site.stop().await;
    let report = server.report().await;
    let Outcome::Failed { cause, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(cause.contains("deadline"), "{cause}");
}

fn half(values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|&value| half_bits(value).to_le_bytes())
        .collect();
    model_of(DType::F16, &[values.len() as u64], &data)
}

/// For values that half precision has: powers of two and their small sums.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    let fraction = (bits >> 13) & 0x3ff;
    if value == 0.0 {
        return 0;
    }
    assert!(
        (1..31).contains(&exponent) && bits & 0x1fff == 0,
        "{value} is no half"
    );
    u16::try_from(sign | (exponent as u32) << 10 | fraction).unwrap()
}

#[tokio::test]
async fn a_site_that_joins_in_mid_round_does_not_take_the_narrow_model_from_the_others() {
    let place = Place::new();
    let mut spec = job(2, 2);
    spec["min_clients"] = json!(1);
    spec["policy"] = json!({});
    spec["aggregation"] = json!({"master_dtype": "float32"});
    spec["initial_model"] = json!(place.initial(&half(&vec![1.0; 50_000])));
    let server = place.start(&spec);
    let objects = server.objects.clone();
    let mut first = server.site("site-1").await;
    let early = first.task().await.model.unwrap();
    let mut second = server.site("site-2").await;
    let late = second.task().await.model.unwrap();
    assert_eq!(early.id, late.id);
    let object = objects
        .get(ObjectId(early.id))
        .expect("it waits for a worker and is fetched late");
    assert_eq!(object.header().get("w").unwrap().dtype, DType::F16);
    drop(object);
    server.abort.send_replace(Some("enough".into()));
    for mut site in [first, second] {
        site.end().await;
        site.stop().await;
    }
    assert_eq!(server.report().await.status(), "aborted");
}

#[tokio::test]
async fn narrow_differences_are_added_to_the_wide_model() {
    let place = Place::new();
    let mut spec = job(2, 2);
    spec["aggregation"] = json!({"master_dtype": "float32"});
    spec["trainer"]["transfer"] = json!("DIFF");
    spec["initial_model"] = json!(place.initial(&half(&[1.0, 2.0])));
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let seen = Arc::new(Mutex::new(Vec::new()));
    // One quarter of the last place of 2.0 in half precision: lost but for the
    // wide copy, in which two rounds of it add up.
    let step = 2.0f32.powi(-11);
    for name in ["site-1", "site-2"] {
        let seen = Arc::clone(&seen);
        server
            .worker(name, move |task| {
                let model = task.model.as_ref().unwrap().inline.clone().unwrap();
                seen.lock().unwrap().push(model);
                Answer::Diff(half(&[0.5, step]))
            })
            .await;
    }
    assert_eq!(server.report().await.status(), "completed", "{}", log(&run));
    assert_eq!(values_in(&last_model(run.path())), [2.0, 2.0 + 2.0 * step]);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    assert_eq!(&seen[0][..], &half(&[1.0, 2.0])[..]);
    assert_eq!(
        &seen[3][..],
        &half(&[1.5, 2.0])[..],
        "rounded for the sites"
    );
}

#[tokio::test]
async fn a_tracking_event_of_the_far_future_does_not_end_the_job() {
    let place = Place::new();
    let mut spec = job(1, 1);
    spec["tracking"] = json!(["tensorboard"]);
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    for time in ["1e19", "-1", "1e308", "\"now\"", "null", "1.5"] {
        site.metric(&format!(
            r#"{{"key": "loss", "value": 0.5, "step": 1, "time": {time}}}"#
        ))
        .await;
    }
    site.metric("no JSON").await;
    site.metric("[]").await;
    site.update(&task, model(&[1.0])).await;
    tokio::spawn(site.work(|_| Answer::Silence));
    assert_eq!(server.report().await.status(), "completed", "{}", log(&run));
    let tracked = std::fs::read_to_string(run.path().join("metrics/tracked.jsonl")).unwrap();
    assert_eq!(tracked.lines().count(), 6);
}

#[tokio::test]
async fn a_server_that_cannot_save_fails_once_and_leaves_nothing_half_applied() {
    let place = Place::new();
    let mut spec = job(1, 1);
    spec["initial_model"] = json!(place.initial(&model(&[1.0])));
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    std::fs::remove_dir_all(run.models_dir()).unwrap();
    site.update(&task, model(&[2.0])).await;
    let (_, abort) = site.end().await;
    assert!(abort);
    site.stop().await;
    let report = server.report().await;
    let Outcome::Failed { cause, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(cause.contains("models"), "{cause}");
    // What people are shown and what files say is the same.
    let summary = summary(run.path());
    assert_eq!(summary["status"], "failed");
    assert!(
        summary["message"].as_str().unwrap().contains("models"),
        "{summary}"
    );
    assert_eq!(run.snapshots().unwrap().load_latest().unwrap(), None);
}

#[tokio::test]
async fn a_server_that_cannot_save_in_mid_job_gives_no_further_task() {
    let place = Place::new();
    let server = place.start(&job(1, 5));
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    std::fs::remove_dir_all(run.models_dir()).unwrap();
    site.update(&task, model(&[2.0])).await;
    loop {
        match site.next().await {
            Some(to_site::Body::EndJob(end)) => break assert!(end.abort),
            Some(to_site::Body::Assign(assign)) => panic!("{assign:?}"),
            Some(to_site::Body::RoundCommitted(round)) => panic!("{round:?}"),
            Some(_) => {}
            None => panic!("the connection ended first"),
        }
    }
    site.stop().await;
    assert_eq!(server.report().await.status(), "failed");
}
