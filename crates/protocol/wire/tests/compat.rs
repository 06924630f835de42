//! The bytes of every released version are read as they were meant, and this
//! build writes its own version with the same bytes.
//!
//! `testdata/control-v1.txt`, `bridge-v1.txt` and `snapshot-v1.txt` hold a name
//! and the bytes of a frame, or of a file, per line. A change there is a change of
//! the format: it needs another version, and those lines must go on being read.
//! `testdata/malformed-v1.txt` is written by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::{Bytes, BytesMut};
use expect_test::{ExpectFile, expect_file};
use firesteel_base::{Failure, FailureCode, Phase, Time};
use firesteel_flow::{ModelHandle, ModelRole};
use firesteel_wire::bridge::{self, FromAgent, FromTrainer, from_agent, from_trainer};
use firesteel_wire::control::*;
use firesteel_wire::frame;
use firesteel_wire::node;
use firesteel_wire::snapshot::{JobSnapshot, KeptModel};
use firesteel_wire::spec::JobSpec;
use firesteel_wire::stream;
use prost::Message;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap())
        .collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}

/// Writes the messages and compares with the file, reads the file and compares
/// with the messages.
fn check<M: Message + Default + PartialEq + std::fmt::Debug>(
    file: ExpectFile,
    text: &str,
    messages: &[(&str, M)],
) {
    let written: String = messages
        .iter()
        .map(|(name, message)| format!("{name}: {}\n", hex(&frame::encode(message).unwrap())))
        .collect();
    file.assert_eq(&written);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split_once(": ").unwrap())
        .collect();
    assert_eq!(lines.len(), messages.len());
    for ((name, bytes), (known, message)) in lines.into_iter().zip(messages) {
        assert_eq!(name, *known);
        let mut buffer = BytesMut::from(&from_hex(bytes)[..]);
        let read: M = frame::decode(&mut buffer, "M").unwrap().unwrap();
        assert!(read == *message && buffer.is_empty(), "{name}: {read:?}");
        // Fields of a later version, of every wire type, are passed over.
        let mut newer = message.encode_to_vec();
        newer.extend(from_hex(
            "c03e01 c13e0000000000000000 c23e03616263 c53e00000000",
        ));
        assert!(M::decode(&newer[..]).unwrap() == *message, "{name}");
    }
}

fn key() -> Key {
    Key {
        round: 300,
        site: "site-1".into(),
        attempt: 2,
    }
}

fn object() -> Object {
    Object {
        inline: Some(Bytes::from_static(b"model")),
        id: 0,
        length: 5,
    }
}

fn metrics() -> BTreeMap<String, f64> {
    [("accuracy".to_owned(), 0.75), ("loss".to_owned(), -1.5)].into()
}

fn to_server() -> Vec<(&'static str, ToServer)> {
    use to_server::Body;
    let mut failure = Failure::new(FailureCode::Raised, Phase::Train, "raised ValueError: x");
    failure.hint = "see the traceback".into();
    failure.traceback = Some("Traceback\nValueError: x".into());
    failure.log_tail = vec!["epoch 1".into(), "epoch 2".into()];
    let bodies = vec![
        (
            "hello",
            Body::Hello(Hello {
                protocol_min: 1,
                protocol_max: 3,
                features: vec!["relay".into(), "zstd".into()],
                build: "0.1.0".into(),
                site: "site-1".into(),
                ..Hello::default()
            }),
        ),
        ("task-accepted", Body::TaskAccepted(key())),
        (
            "task-queued",
            Body::TaskProgress(TaskProgress {
                key: Some(key()),
                ..TaskProgress::default()
            }),
        ),
        (
            "task-sending",
            Body::TaskProgress(TaskProgress {
                key: Some(key()),
                state: TaskState::Sending.into(),
                ..TaskProgress::default()
            }),
        ),
        (
            "update-inline",
            Body::Update(Update {
                key: Some(key()),
                model: Some(object()),
                diff: true,
                steps: Some(12.0),
                metrics: metrics(),
                meta: r#"{"NUM_STEPS_CURRENT_ROUND":12}"#.into(),
                train_seconds: 1.25,
                partial: false,
                at_relay: false,
            }),
        ),
        (
            "update-stored",
            Body::Update(Update {
                key: Some(key()),
                model: Some(Object {
                    inline: None,
                    id: 1 << 40,
                    length: 100_000_000_000,
                }),
                ..Update::default()
            }),
        ),
        (
            "update-without-model",
            Body::Update(Update {
                key: Some(key()),
                ..Update::default()
            }),
        ),
        (
            "update-of-no-steps",
            Body::Update(Update {
                key: Some(key()),
                steps: Some(0.0),
                ..Update::default()
            }),
        ),
        (
            "task-failed",
            Body::TaskFailed(TaskFailed {
                key: Some(key()),
                failure: Some(FailureMessage::from(&failure)),
            }),
        ),
        (
            "metric",
            Body::Metric(Metric {
                event: r#"{"key":"loss","value":0.5}"#.into(),
            }),
        ),
        ("stopped", Body::Stopped(Stopped { forced: 1 })),
        (
            "hello-again",
            Body::Hello(Hello {
                protocol_min: 1,
                protocol_max: 1,
                site: "site-1".into(),
                instance: u64::MAX,
                lease_epoch: 7,
                holds: vec![key()],
                ..Hello::default()
            }),
        ),
        (
            "task-downloading",
            Body::TaskProgress(TaskProgress {
                key: Some(key()),
                state: 1,
                done: 300,
                total: 1 << 40,
            }),
        ),
        (
            "declined",
            Body::Declined(Declined {
                failure: Some(FailureMessage::from(&Failure::new(
                    FailureCode::DiskFull,
                    Phase::Start,
                    "no room",
                ))),
            }),
        ),
        (
            "partial",
            Body::Partial(Partial {
                round: 300,
                attempt: 2,
                sums: Some(Object {
                    inline: None,
                    id: 7,
                    length: 1 << 33,
                }),
                contributors: vec![key()],
                failure: None,
                blame: Vec::new(),
            }),
        ),
        (
            "partial-failed",
            Body::Partial(Partial {
                round: 300,
                attempt: 2,
                failure: Some(FailureMessage::from(&failure)),
                blame: vec![Blame {
                    site: "site-1".into(),
                    failure: Some(FailureMessage::from(&failure)),
                }],
                ..Partial::default()
            }),
        ),
    ];
    // A body that is added is missing here until it has its bytes.
    for (_, body) in &bodies {
        match body {
            Body::Hello(_)
            | Body::TaskAccepted(_)
            | Body::TaskProgress(_)
            | Body::Update(_)
            | Body::TaskFailed(_)
            | Body::Metric(_)
            | Body::Declined(_)
            | Body::Stopped(_)
            | Body::Partial(_) => {}
        }
    }
    bodies
        .into_iter()
        .map(|(name, body)| (name, ToServer { body: Some(body) }))
        .collect()
}

fn to_site() -> Vec<(&'static str, ToSite)> {
    use to_site::Body;
    let bodies = vec![
        (
            "welcome",
            Body::Welcome(Welcome {
                protocol: 1,
                build: "0.1.0".into(),
                lease_epoch: 7,
            }),
        ),
        (
            "refused",
            Body::Refused(Refused {
                reason: "`site-9` is not a site of this job".into(),
            }),
        ),
        (
            "start-job",
            Body::StartJob(StartJob {
                job: "digits".into(),
                spec: Bytes::from_static(b"{}"),
                seed: u64::MAX,
                resume_round: None,
                run: String::new(),
                model_length: 0,
            }),
        ),
        (
            "start-job-resumed-after-its-first-round",
            Body::StartJob(StartJob {
                job: "digits".into(),
                spec: Bytes::from_static(b"{}"),
                seed: 7,
                resume_round: Some(0),
                run: "20261122-120000".into(),
                model_length: 5_000_000_000,
            }),
        ),
        (
            "assign",
            Body::Assign(Assign {
                key: Some(key()),
                task: "train".into(),
                model: Some(object()),
                start_round: 1,
                total_rounds: 500,
                meta: "{}".into(),
                task_limit_micros: Some(60_000_000),
            }),
        ),
        (
            "assign-without-model",
            Body::Assign(Assign {
                key: Some(Key {
                    round: 0,
                    attempt: 0,
                    ..key()
                }),
                task: "train".into(),
                ..Assign::default()
            }),
        ),
        (
            "cancel",
            Body::Cancel(Cancel {
                key: Some(key()),
                reason: "the round is closed".into(),
            }),
        ),
        (
            "round-committed",
            Body::RoundCommitted(RoundCommitted { round: 300 }),
        ),
        (
            "end-job",
            Body::EndJob(EndJob {
                reason: "completed".into(),
                abort: false,
            }),
        ),
        (
            "end-job-at-once",
            Body::EndJob(EndJob {
                reason: "aborted: x".into(),
                abort: true,
            }),
        ),
        (
            "collect",
            Body::Collect(Collect {
                round: 300,
                attempt: 2,
                diff: true,
                parts: vec![Weighed {
                    key: Some(key()),
                    weight: 0.5,
                }],
                model: Some(Object {
                    inline: None,
                    id: 7,
                    length: 1 << 33,
                }),
            }),
        ),
    ];
    for (_, body) in &bodies {
        match body {
            Body::Welcome(_)
            | Body::Refused(_)
            | Body::StartJob(_)
            | Body::Assign(_)
            | Body::Cancel(_)
            | Body::RoundCommitted(_)
            | Body::EndJob(_)
            | Body::Collect(_) => {}
        }
    }
    bodies
        .into_iter()
        .map(|(name, body)| (name, ToSite { body: Some(body) }))
        .collect()
}

#[test]
fn control_streams_of_version_1_have_these_bytes() {
    check(
        expect_file!["../testdata/control-v1-to-server.txt"],
        include_str!("../testdata/control-v1-to-server.txt"),
        &to_server(),
    );
    check(
        expect_file!["../testdata/control-v1-to-site.txt"],
        include_str!("../testdata/control-v1-to-site.txt"),
        &to_site(),
    );
}

fn task_key() -> bridge::TaskKey {
    bridge::TaskKey {
        name: "train".into(),
        round: 300,
        attempt: 2,
    }
}

fn from_trainer() -> Vec<(&'static str, FromTrainer)> {
    use from_trainer::Body;
    let result = |model| {
        Body::Result(bridge::TaskResult {
            key: task_key(),
            params_type: "DIFF".into(),
            model,
            metrics: metrics(),
            meta: "{}".into(),
            state_file: "state".into(),
            partial: false,
        })
    };
    use bridge::task_result::Model;
    let bodies = vec![
        (
            "hello",
            Body::Hello(bridge::Hello {
                protocol_min: 1,
                protocol_max: 2,
                token: "1.secret".into(),
                pid: 4711,
                rank: 3,
                version: "0.1.0".into(),
                copies: true,
                streams: false,
            }),
        ),
        (
            "hello-streams",
            Body::Hello(bridge::Hello {
                protocol_min: 1,
                protocol_max: 1,
                streams: true,
                ..Default::default()
            }),
        ),
        ("next", Body::Next(bridge::Next {})),
        (
            "result-inline",
            result(Some(Model::Inline(Bytes::from_static(b"model")))),
        ),
        (
            "result-file",
            result(Some(Model::File("out.safetensors".into()))),
        ),
        ("result-of-metrics", result(None)),
        (
            "log",
            Body::Log(bridge::Log {
                level: 20,
                logger: "custom.client".into(),
                message: "epoch 1".into(),
                time: 1_700_000_000_000_000,
                dropped: 5,
            }),
        ),
        (
            "metric",
            Body::Metric(bridge::Metric {
                json: r#"{"key":"loss"}"#.into(),
            }),
        ),
        (
            "failed",
            Body::Failed(bridge::Failed {
                code: "raised".into(),
                phase: "train".into(),
                message: "ValueError: x".into(),
                traceback: "Traceback".into(),
            }),
        ),
        ("bye", Body::Bye(bridge::Bye {})),
        (
            "result-partial",
            Body::Result(bridge::TaskResult {
                key: task_key(),
                partial: true,
                ..Default::default()
            }),
        ),
        (
            "offer",
            Body::Offer(bridge::Offer {
                name: "weights".into(),
                kind: bridge::StreamKind::Items.into(),
                length: 300,
                to: vec!["site-2".into()],
                times: 1,
                owned: true,
            }),
        ),
        (
            "fetch",
            Body::Fetch(bridge::Fetch {
                site: "site-1".into(),
                id: "a1".into(),
                name: "results/a.csv".into(),
                wait: 1_000_000,
            }),
        ),
        (
            "withdraw",
            Body::Withdraw(bridge::Withdraw { id: "a1".into() }),
        ),
    ];
    bodies
        .into_iter()
        .map(|(name, body)| (name, FromTrainer { body: Some(body) }))
        .collect()
}

fn from_agent() -> Vec<(&'static str, FromAgent)> {
    use bridge::task::Model;
    use from_agent::Body;
    let task = |model| {
        Body::Task(bridge::Task {
            key: task_key(),
            start_round: 1,
            total_rounds: 500,
            meta: "{}".into(),
            model,
        })
    };
    let bodies = vec![
        (
            "welcome",
            Body::Welcome(bridge::Welcome {
                protocol: 1,
                json: "{}".into(),
            }),
        ),
        ("task-without-model", task(None)),
        (
            "task-inline",
            task(Some(Model::Inline(Bytes::from_static(b"model")))),
        ),
        ("task-file", task(Some(Model::File(100_000_000_000)))),
        ("task-copied", task(Some(Model::Copied(100_000_000_000)))),
        (
            "chunk",
            Body::Chunk(bridge::Chunk {
                data: Bytes::from_static(b"piece"),
            }),
        ),
        ("accepted", Body::Accepted(bridge::Accepted {})),
        (
            "refused",
            Body::Refused(bridge::Refused {
                code: "misuse".into(),
                message: "the token is not valid here".into(),
                hint: "start it anew".into(),
            }),
        ),
        (
            "end",
            Body::End(bridge::End {
                reason: "completed".into(),
            }),
        ),
        (
            "offered",
            Body::Offered(bridge::Offered { id: "a1".into() }),
        ),
        (
            "fetched",
            Body::Fetched(bridge::Fetched {
                id: "a1".into(),
                name: "weights".into(),
                kind: bridge::StreamKind::Items.into(),
                length: 300,
                owned: true,
            }),
        ),
    ];
    bodies
        .into_iter()
        .map(|(name, body)| (name, FromAgent { body: Some(body) }))
        .collect()
}

#[test]
fn bridges_of_version_1_have_these_bytes() {
    check(
        expect_file!["../testdata/bridge-v1-from-trainer.txt"],
        include_str!("../testdata/bridge-v1-from-trainer.txt"),
        &from_trainer(),
    );
    check(
        expect_file!["../testdata/bridge-v1-from-agent.txt"],
        include_str!("../testdata/bridge-v1-from-agent.txt"),
        &from_agent(),
    );
}

#[test]
fn streams_between_sites_of_version_1_have_these_bytes() {
    let ask = stream::Ask {
        asker: "site-2".into(),
        site: "site-1".into(),
        id: "a1".into(),
        name: "results/a.csv".into(),
        wait: 1_000_000,
        ticket: 300,
    };
    check(
        expect_file!["../testdata/stream-v1-ask.txt"],
        include_str!("../testdata/stream-v1-ask.txt"),
        &[("ask", ask)],
    );
    let answer = |body| stream::Answer { body: Some(body) };
    let found = stream::answer::Body::Found(stream::Found {
        id: "a1".into(),
        name: "weights".into(),
        kind: bridge::StreamKind::Items.into(),
        length: 300,
    });
    let refused = stream::answer::Body::Refused(bridge::Refused {
        code: "not-offered".into(),
        message: "site site-1 offers nothing under this ref to this site".into(),
        hint: "site-1 offers \"weights\"".into(),
    });
    check(
        expect_file!["../testdata/stream-v1-answer.txt"],
        include_str!("../testdata/stream-v1-answer.txt"),
        &[("found", answer(found)), ("refused", answer(refused))],
    );
}

fn to_server_of_a_node() -> Vec<(&'static str, node::ToServer)> {
    use node::to_server::Body;
    let bodies = vec![
        (
            "hello",
            Body::Hello(node::Hello {
                protocol_min: 1,
                protocol_max: 2,
                features: vec!["logs".into()],
                build: "0.1.0".into(),
                name: "site-1".into(),
                instance: u64::MAX,
                facts: Bytes::from_static(b"{}"),
                jobs: vec![node::InHand {
                    job: "j1".into(),
                    stage: node::Stage::Running.into(),
                }],
            }),
        ),
        (
            "ready",
            Body::Ready(node::Ready {
                job: "j1".into(),
                attempt: 300,
            }),
        ),
        (
            "declined",
            Body::Declined(node::Declined {
                job: "j1".into(),
                attempt: 1,
                code: "data_missing".into(),
                reason: "no data".into(),
                hint: "name it".into(),
            }),
        ),
        (
            "ended",
            Body::Ended(node::Ended {
                job: "j1".into(),
                error: "no space".into(),
            }),
        ),
        (
            "answer",
            Body::Answer(node::Answer {
                id: 300,
                body: Bytes::from_static(b"[]"),
                error: true,
            }),
        ),
        (
            "facts",
            Body::Facts(node::Facts {
                facts: Bytes::from_static(b"{}"),
            }),
        ),
        ("started", Body::Started(node::Started { job: "j1".into() })),
    ];
    bodies
        .into_iter()
        .map(|(name, body)| (name, node::ToServer { body: Some(body) }))
        .collect()
}

fn to_node() -> Vec<(&'static str, node::ToNode)> {
    use node::to_node::Body;
    let bodies = vec![
        (
            "welcome",
            Body::Welcome(node::Welcome {
                protocol: 1,
                build: "0.1.0".into(),
                instance: 7,
                clock: 1_700_000_000_000_000,
            }),
        ),
        (
            "refused",
            Body::Refused(node::Refused {
                reason: "no".into(),
                retry: true,
            }),
        ),
        (
            "deploy",
            Body::Deploy(node::Deploy {
                job: "j1".into(),
                attempt: 2,
                name: "digits".into(),
                bundle_length: 1 << 40,
                bundle_sha256: Bytes::from_static(&[7; 32]),
                resources: Bytes::from_static(b"{}"),
                sites: vec!["site-1".into(), "site-2".into()],
            }),
        ),
        ("start", Body::Start(node::Start { job: "j1".into() })),
        (
            "stop",
            Body::Stop(node::Stop {
                job: "j1".into(),
                reason: "aborted".into(),
                forget: true,
            }),
        ),
        (
            "ask",
            Body::Ask(node::Ask {
                id: 3,
                request: Bytes::from_static(b"{}"),
                name: "admin@example.org".into(),
                organization: "example".into(),
                role: "lead".into(),
            }),
        ),
    ];
    bodies
        .into_iter()
        .map(|(name, body)| (name, node::ToNode { body: Some(body) }))
        .collect()
}

#[test]
fn messages_about_whole_jobs_of_version_1_have_these_bytes() {
    check(
        expect_file!["../testdata/node-v1-to-server.txt"],
        include_str!("../testdata/node-v1-to-server.txt"),
        &to_server_of_a_node(),
    );
    check(
        expect_file!["../testdata/node-v1-to-node.txt"],
        include_str!("../testdata/node-v1-to-node.txt"),
        &to_node(),
    );
    check(
        expect_file!["../testdata/node-v1-bundle-wanted.txt"],
        include_str!("../testdata/node-v1-bundle-wanted.txt"),
        &[(
            "wanted",
            node::BundleWanted {
                job: "j1".into(),
                offset: 1 << 33,
            },
        )],
    );
    check(
        expect_file!["../testdata/node-v1-bundle-is.txt"],
        include_str!("../testdata/node-v1-bundle-is.txt"),
        &[(
            "is",
            node::BundleIs {
                length: 1 << 33,
                sha256: Bytes::from_static(&[7; 32]),
                refused: "gone".into(),
            },
        )],
    );
}

#[test]
fn snapshots_of_version_1_have_these_bytes() {
    let kept = |handle, role, made_in| KeptModel {
        handle: ModelHandle(handle),
        role,
        made_in,
    };
    let snapshot = JobSnapshot {
        clock: Time(1_234_567_890),
        seed: u64::MAX,
        models: vec![
            kept(0, ModelRole::Initial, None),
            kept(1 << 20, ModelRole::Latest, Some(4)),
            kept(7, ModelRole::Best, Some(0)),
        ],
        workflow: b"FSWF".to_vec(),
    };
    expect_file!["../testdata/snapshot-v1.txt"]
        .assert_eq(&format!("{}\n", hex(&snapshot.encode())));
    let bytes = from_hex(include_str!("../testdata/snapshot-v1.txt").trim());
    assert_eq!(JobSnapshot::decode(&bytes).unwrap(), snapshot);
    for end in 0..bytes.len() {
        // A cut is another snapshot, or none, and never a panic.
        let cut = JobSnapshot::decode(&bytes[..end]);
        assert!(cut.is_err() || cut.unwrap() != snapshot, "{end}");
    }
}

#[test]
fn a_job_of_version_1_is_read() {
    let text = include_bytes!("../testdata/job-v1.json");
    let spec = JobSpec::parse(text).unwrap();
    assert_eq!(JobSpec::parse(&spec.to_json()).unwrap(), spec);
    let kept: serde_json::Value = serde_json::from_slice(text).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&spec.to_json()).unwrap();
    // Every field is there, so that one that is renamed is missed.
    assert_eq!(kept, written);
}

/// What becomes of bytes that a stranger sends: how many messages are read, and
/// what is said of the rest.
fn read<M: Message + Default + PartialEq>(bytes: &[u8], name: &'static str) -> String {
    let mut buffer = BytesMut::from(bytes);
    let mut told = Vec::new();
    loop {
        match frame::decode::<M>(&mut buffer, name) {
            Ok(Some(message)) if message == M::default() => {
                told.push("of a later version".to_owned())
            }
            Ok(Some(_)) => told.push("read".to_owned()),
            Ok(None) if buffer.is_empty() => break,
            Ok(None) => {
                told.push(format!("waits for more than {}", buffer.len()));
                break;
            }
            Err(error) => {
                told.push(error.to_string());
                break;
            }
        }
        assert!(buffer.capacity() <= 1 << 21);
    }
    told.join("; ")
}

#[test]
fn malformed_bytes_are_refused_with_a_sentence() {
    let lines = include_str!("../testdata/malformed-v1.txt").lines();
    let mut count = 0;
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts: Vec<&str> = line.split('|').map(str::trim).collect();
        let [what, bytes, expected] = parts[..] else {
            panic!("{line}")
        };
        let bytes = from_hex(bytes);
        assert_eq!(read::<ToServer>(&bytes, "ToServer"), expected, "{what}");
        let expected = expected.replace("ToServer", "ToSite");
        if !what.starts_with("(to server)") {
            assert_eq!(read::<ToSite>(&bytes, "ToSite"), expected, "{what}");
        }
        count += 1;
    }
    assert!(count >= 15);
}

#[test]
fn every_cut_and_every_flipped_bit_is_read_or_refused() {
    let mut all: Vec<Vec<u8>> = to_server()
        .iter()
        .map(|(_, m)| frame::encode(m).unwrap().to_vec())
        .collect();
    all.extend(
        to_site()
            .iter()
            .map(|(_, m)| frame::encode(m).unwrap().to_vec()),
    );
    for bytes in all {
        for end in 0..bytes.len() {
            assert!(!read::<ToServer>(&bytes[..end], "ToServer").contains("read"));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Whatever it says, it says something and takes no memory.
            read::<ToServer>(&flipped, "ToServer");
            read::<ToSite>(&flipped, "ToSite");
        }
    }
}

#[test]
fn keys_that_are_none_are_refused() {
    for site in ["", "a/b", "../x", &"x".repeat(64)] {
        let key = Key {
            site: site.into(),
            ..key()
        };
        assert!(firesteel_base::TaskKey::try_from(&key).is_err(), "{site}");
    }
}
