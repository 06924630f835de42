//! Strangers, sites that do not keep to the protocol, and how a job says goodbye.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Answer, Place, Server, Site, hello, job, key_of, last_model, model, until, values_in, within,
};
use firesteel_base::FailureCode;
use firesteel_flow::{JobStage, Outcome};
use firesteel_wire::control::{Hello, Metric, ToServer, ToSite, Update, to_server, to_site};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// What a stranger is told; then its connection is closed.
async fn turned_away(server: &Server, bytes: &[u8]) -> Option<String> {
    let mut stream = server.stream(64 * 1024).await;
    within(stream.write_all(bytes)).await.unwrap();
    within(stream.shutdown()).await.unwrap();
    let (mut reader, _writer) = firesteel_net::split(stream);
    let mut told = None;
    while let Some(message) = within(reader.next::<ToSite>("ToSite")).await.unwrap() {
        match message.body {
            Some(to_site::Body::Refused(refused)) => told = Some(refused.reason),
            other => panic!("{other:?}"),
        }
    }
    told
}

fn frame(body: to_server::Body) -> Vec<u8> {
    firesteel_wire::frame::encode(&ToServer { body: Some(body) })
        .unwrap()
        .to_vec()
}

#[tokio::test]
async fn a_stranger_is_turned_away_and_disturbs_nobody() {
    let place = Place::new();
    let server = place.start(&job(1, 1));
    let run = Arc::clone(&server.run);
    let greeting = |change: fn(&mut Hello)| {
        let mut hello = hello("site-1");
        change(&mut hello);
        frame(to_server::Body::Hello(hello))
    };
    let metric = to_server::Body::Metric(Metric { event: "{}".into() });
    let long = [&(2u32 << 20).to_le_bytes()[..], &[0; 64]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "is not a site of this job",
            greeting(|hello| hello.site = "site-9".into()),
        ),
        ("must not be empty", greeting(|hello| hello.site.clear())),
        (
            "use letters, digits",
            greeting(|hello| hello.site = "../../etc".into()),
        ),
        (
            "has 70000 characters",
            greeting(|hello| hello.site = "x".repeat(70_000)),
        ),
        (
            "speaks protocols 2 to 9, this server speaks 1: upgrade the older",
            greeting(|hello| (hello.protocol_min, hello.protocol_max) = (2, 9)),
        ),
        (
            // What a stranger says of itself is quoted, and not at any length.
            r#"(build "\u{1b}[2J"#,
            greeting(|hello| {
                hello.protocol_max = 0;
                hello.build = format!("\u{1b}[2J{}", "x".repeat(10_000));
            }),
        ),
        ("was no hello", frame(metric)),
        ("was no hello", vec![0, 0, 0, 0]),
        ("does not speak the protocol", long),
        (
            "does not speak the protocol",
            vec![3, 0, 0, 0, 255, 255, 255],
        ),
        ("ended within a message", vec![9, 0, 0, 0, 1, 2]),
        ("was no hello", Vec::new()),
    ];
    for (words, bytes) in cases {
        let told = turned_away(&server, &bytes).await.unwrap_or_default();
        assert!(told.contains(words), "{words:?} in {told:?}");
        assert!(told.len() < 400, "{} bytes", told.len());
        server.logged(words).await;
    }
    server.worker("site-1", |_| Answer::Params(vec![2.0])).await;
    assert_eq!(server.report().await.status(), "completed");
    assert_eq!(values_in(&last_model(run.path())), [2.0]);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let mut place = Place::new();
    place.durations.connect = Duration::from_millis(400);
    let server = place.start(&job(1, 1));
    let (mut silent, _writer) = server.dial(1024).await;
    assert!(
        within(silent.next::<ToSite>("ToSite"))
            .await
            .unwrap()
            .is_none()
    );
    server.logged("did not end its handshake").await;
    // One that greets and then does not read has no place either.
    let (_reader, mut writer) = server.dial(16).await;
    let body = Some(to_server::Body::Hello(hello("site-1")));
    let _ = within(writer.send(&ToServer { body })).await;
    until(|| (server.log().matches("did not end its handshake").count() == 2).then_some(())).await;
    assert!(!server.log().contains("the site has joined"));
    server.worker("site-1", |_| Answer::Params(vec![2.0])).await;
    assert_eq!(server.report().await.status(), "completed");
}

#[tokio::test]
async fn a_second_hello_changes_nothing() {
    let place = Place::new();
    let server = place.start(&job(2, 1));
    let run = Arc::clone(&server.run);
    server.worker("site-2", |_| Answer::Params(vec![4.0])).await;
    let mut site = server.site("site-1").await;
    site.say(to_server::Body::Hello(hello("site-2"))).await;
    let task = site.task().await;
    site.say(to_server::Body::Hello(hello("site-1"))).await;
    site.update(&task, model(&[2.0])).await;
    tokio::spawn(site.work(|_| Answer::Silence));
    assert_eq!(server.report().await.status(), "completed");
    assert_eq!(values_in(&last_model(run.path())), [3.0]);
}

#[tokio::test]
async fn a_site_speaks_for_itself_only() {
    let place = Place::new();
    let server = place.start(&job(2, 1));
    let run = Arc::clone(&server.run);
    let mut liar = server.site("site-1").await;
    let mut other = server.site("site-2").await;
    let task = liar.task().await;
    let theirs = other.task().await;
    let key = key_of(&task, "site-2");
    let update = Update {
        key: Some(key.clone()),
        model: Some(common::inline(model(&[1e6]))),
        ..Update::default()
    };
    liar.say(to_server::Body::Update(update)).await;
    let failed = firesteel_wire::control::TaskFailed {
        key: Some(key),
        failure: None,
    };
    liar.say(to_server::Body::TaskFailed(failed.clone())).await;
    liar.say(to_server::Body::TaskFailed(
        firesteel_wire::control::TaskFailed {
            key: None,
            ..failed
        },
    ))
    .await;
    liar.say(to_server::Body::TaskAccepted(key_of(&task, "no/name")))
        .await;
    until(|| (server.log().matches("work that is not its own").count() == 4).then_some(())).await;
    liar.update(&task, model(&[2.0])).await;
    other.update(&theirs, model(&[4.0])).await;
    tokio::spawn(liar.work(|_| Answer::Silence));
    tokio::spawn(other.work(|_| Answer::Silence));
    let report = server.report().await;
    assert_eq!(report.status(), "completed");
    assert!(report.failures.is_empty());
    assert_eq!(values_in(&last_model(run.path())), [3.0]);
}

#[tokio::test]
async fn answers_to_other_rounds_and_attempts_do_not_count() {
    let place = Place::new();
    let server = place.start(&job(1, 1));
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    for (round, attempt) in [(1, 0), (0, 1), (u32::MAX, u32::MAX)] {
        let mut other = task.clone();
        let key = other.key.as_mut().unwrap();
        (key.round, key.attempt) = (round, attempt);
        site.update(&other, model(&[1e6])).await;
    }
    site.update(&task, model(&[2.0])).await;
    site.update(&task, model(&[3.0])).await;
    tokio::spawn(site.work(|_| Answer::Silence));
    assert_eq!(server.report().await.status(), "completed");
    assert_eq!(values_in(&last_model(run.path())), [2.0]);
}

#[tokio::test]
async fn the_old_connection_of_a_site_that_dialed_again_does_not_end_the_new_one() {
    let place = Place::new();
    let server = place.start(&job(2, 2));
    let run = Arc::clone(&server.run);
    let mut old = server.site("site-1").await;
    let mut other = server.site("site-2").await;
    let first = old.task().await;
    let theirs = other.task().await;
    let mut new = server.site("site-1").await;
    let again = new.task().await;
    assert_eq!(
        (
            first.key.as_ref().unwrap().attempt,
            again.key.as_ref().unwrap().attempt
        ),
        (0, 1)
    );
    // The server hangs up on the old one, whose answer does not count.
    let update = Update {
        key: again.key.clone(),
        model: Some(common::inline(model(&[1e6]))),
        ..Update::default()
    };
    let _ = old
        .writer
        .send(&ToServer {
            body: Some(to_server::Body::Update(update)),
        })
        .await;
    while old.next().await.is_some() {}
    drop(old);
    server.logged("connected again").await;
    other.update(&theirs, model(&[4.0])).await;
    new.update(&again, model(&[2.0])).await;
    // What the old one's end would have done shows in the next round.
    let again = new.task().await;
    new.update(&again, model(&[2.0])).await;
    tokio::spawn(new.work(|_| Answer::Silence));
    tokio::spawn(other.work(|_| Answer::Params(vec![4.0])));
    let report = server.report().await;
    assert_eq!(report.status(), "completed", "{:?}", report.outcome);
    assert_eq!(values_in(&last_model(run.path())), [3.0]);
}

#[tokio::test]
async fn a_site_that_stops_reading_is_out_and_delays_nobody() {
    let place = Place::new();
    let mut spec = job(2, 200);
    spec["min_clients"] = json!(1);
    spec["policy"]["grace_s"] = json!(0.0);
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    // Its pipe takes the handshake and not much more.
    let (reader, writer) = server.dial(2048).await;
    let mut deaf = Site {
        name: "site-2".into(),
        reader,
        writer,
        start: None,
    };
    deaf.say(to_server::Body::Hello(hello("site-2"))).await;
    while !matches!(deaf.next().await, Some(to_site::Body::StartJob(_))) {}
    server.worker("site-1", |_| Answer::Params(vec![2.0])).await;
    let mut report = server.report().await;
    assert_eq!(report.status(), "completed with 1 of 2 sites");
    let failure = report.failures.remove(0).failure;
    assert_eq!(failure.code, FailureCode::Disconnected);
    assert!(
        failure.message.contains("did not read its messages"),
        "{failure}"
    );
    assert!(common::log(&run).contains("site-2: the site did not read its messages"));
    // It was hung up on, not left to itself.
    let hung_up = async { while let Ok(Some(_)) = deaf.reader.next::<ToSite>("ToSite").await {} };
    within(hung_up).await;
}

#[tokio::test]
async fn a_job_whose_sites_cannot_come_any_more_fails_and_does_not_wait() {
    let place = Place::new();
    let mut server = place.start(&job(3, 1));
    let mut here = server.site("site-1").await;
    // One that left and one that never came.
    let gone = server.site("site-2").await;
    server.streams = None;
    drop(gone);
    let (reason, abort) = here.end().await;
    assert!(abort && reason.contains("can get at most 2"), "{reason}");
    here.stop().await;
    let report = server.report().await;
    let Outcome::Failed { cause, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(
        cause.contains("site-2: is not connected, and cannot connect any more"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_job_that_no_site_ever_joined_fails_when_none_can() {
    let place = Place::new();
    let mut server = place.start(&job(3, 1));
    server.streams = None;
    assert_eq!(server.report().await.status(), "failed");
}

#[tokio::test]
async fn a_site_that_leaves_while_others_may_come_is_waited_for() {
    let place = Place::new();
    let server = place.start(&job(2, 1));
    let gone = server.site("site-2").await;
    drop(gone);
    server.worker("site-1", |_| Answer::Params(vec![2.0])).await;
    until(|| {
        let status = server.status.borrow();
        let status = status.as_ref()?;
        (status.stage == JobStage::Gathering && status.have == 1).then_some(())
    })
    .await;
    server.worker("site-2", |_| Answer::Params(vec![4.0])).await;
    assert_eq!(server.report().await.status(), "completed");
}

#[tokio::test]
async fn a_site_that_comes_back_in_mid_round_is_asked_again() {
    let place = Place::new();
    let mut spec = job(3, 1);
    spec["min_clients"] = json!(2);
    let server = place.start(&spec);
    let mut first = server.site("site-1").await;
    server.worker("site-3", |_| Answer::Params(vec![2.0])).await;
    let mut site = server.site("site-2").await;
    site.task().await;
    let kept = first.task().await;
    drop(site);
    server.logged("the site closed its connection").await;
    let mut site = server.site("site-2").await;
    let task = site.task().await;
    assert_eq!(task.key.as_ref().unwrap().attempt, 1);
    site.update(&task, model(&[4.0])).await;
    first.update(&kept, model(&[3.0])).await;
    tokio::spawn(site.work(|_| Answer::Silence));
    tokio::spawn(first.work(|_| Answer::Silence));
    assert_eq!(server.report().await.status(), "completed");
}

/// Ends a job of three sites, of which two came and one of these does not let go.
async fn ended(place: &Place, last_words: impl AsyncFnOnce(Site)) -> (Duration, String) {
    let mut spec = job(3, 1);
    spec["policy"] = Value::Null;
    spec.as_object_mut().unwrap().remove("policy");
    let server = place.start(&spec);
    let run = Arc::clone(&server.run);
    let mut good = server.site("site-1").await;
    let mut slow = server.site("site-2").await;
    server.abort.send_replace(Some("a person said so".into()));
    let (reason, abort) = good.end().await;
    assert!(abort && reason.contains("a person said so"), "{reason}");
    good.stop().await;
    slow.end().await;
    let started = Instant::now();
    last_words(slow).await;
    assert_eq!(server.report().await.status(), "aborted");
    (started.elapsed(), common::log(&run))
}

#[tokio::test]
async fn the_farewell_waits_for_those_who_are_there_and_no_longer_than_they_take() {
    let place = Place::new();
    // Nobody waits for the third, who never came.
    let (took, log) = ended(&place, async |site| site.stop().await).await;
    assert!(took < place.durations.stop_grace, "{took:?}");
    assert!(!log.contains("did not confirm"), "{log}");
    // To say so is enough.
    let mut kept = None;
    let (took, _) = ended(&place, async |mut site: Site| {
        site.say(to_server::Body::Stopped(Default::default())).await;
        kept = Some(site);
    })
    .await;
    assert!(took < place.durations.stop_grace, "{took:?}");
}

#[tokio::test]
async fn a_site_that_never_lets_go_is_named_and_left() {
    let mut place = Place::new();
    (place.durations.stop_grace, place.durations.drain) =
        (Duration::from_millis(50), Duration::from_millis(50));
    let mut kept = None;
    let (_, log) = ended(&place, async |site| kept = Some(site)).await;
    assert!(
        log.contains("1 sites did not confirm the end of the job") && log.contains("site-2"),
        "{log}"
    );
    // Its connection does not outlive the job.
    let mut site: Site = kept.unwrap();
    while site.next().await.is_some() {}
}

#[tokio::test]
async fn metrics_that_come_with_the_end_are_kept() {
    let place = Place::new();
    let server = place.start(&job(1, 1));
    let run = Arc::clone(&server.run);
    let mut site = server.site("site-1").await;
    let task = site.task().await;
    site.update(&task, model(&[2.0])).await;
    let (_, abort) = site.end().await;
    assert!(!abort);
    site.metric(r#"{"key": "last", "value": 1}"#).await;
    site.stop().await;
    assert_eq!(server.report().await.status(), "completed");
    let tracked = std::fs::read_to_string(run.path().join("metrics/tracked.jsonl")).unwrap();
    assert!(tracked.contains("last"), "{tracked}");
}
