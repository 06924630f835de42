//! What becomes of trainers that work, and of those that do not.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, too"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, alive, files_in, inline, model, stored, until, values_in};
use firesteel_base::FailureCode::{self, *};
use firesteel_base::Phase::{self, *};
use firesteel_store::ObjectId;
use firesteel_wire::control::{RoundCommitted, TaskState, to_server, to_site};
use serde_json::json;

#[tokio::test]
async fn one_process_does_the_tasks_of_all_rounds() {
    let bench = Bench::new().await;
    let mut server = bench.agent("lines pids\nconnect\nserve 0.5").await;
    server.assign(0, 0, None).await;
    assert!(matches!(
        server.next().await,
        Some(to_server::Body::TaskAccepted(_))
    ));
    for state in [
        TaskState::Queued,
        TaskState::Starting,
        TaskState::Training,
        TaskState::Sending,
    ] {
        match server.next().await {
            Some(to_server::Body::TaskProgress(progress)) => assert_eq!(progress.state(), state),
            other => panic!("{other:?} instead of {state:?}"),
        }
    }
    let update = server.update().await;
    assert_eq!(
        values_in(update.model.unwrap().inline.as_ref().unwrap()),
        [0.5]
    );
    assert_eq!((update.steps, update.diff), (Some(2.0), false));
    server.assign(1, 0, Some(inline(model(&[1.0])))).await;
    let update = server.update().await;
    assert_eq!(
        values_in(update.model.unwrap().inline.as_ref().unwrap()),
        [1.6]
    );
    assert_eq!(bench.pids().len(), 1);
    assert_eq!(server.end(false).await, 0);
    bench.all_gone().await;
    bench.slot_comes_back().await;
}

#[tokio::test]
async fn a_large_model_comes_and_goes_as_a_file_and_is_kept_until_its_round_is_committed() {
    let bench = Bench::new().await;
    let mut server = bench.agent("connect\nserve 1").await;
    let object = bench.objects.from_bytes(model(&[2.0; 50_000])).unwrap();
    server.assign(0, 0, Some(stored(&object))).await;
    let update = server.update().await.model.unwrap();
    assert!(update.inline.is_none());
    let result = bench
        .objects
        .get(ObjectId(update.id))
        .expect("held until the commit");
    assert_eq!(values_in(result.bytes())[49_999], 3.2);
    assert_eq!(files_in(&bench.outbox()), 0);
    drop(result);
    server
        .say(to_site::Body::RoundCommitted(RoundCommitted { round: 0 }))
        .await;
    until(|| {
        bench
            .objects
            .get(ObjectId(update.id))
            .is_none()
            .then_some(())
    })
    .await;
    // The task's model is not held beyond the task, either.
    let id = object.id();
    drop(object);
    assert!(bench.objects.get(id).is_none());
    server.end(false).await;
}

/// A trainer that ends badly, and what the server is told of it.
struct Case {
    script: &'static str,
    code: FailureCode,
    phase: Phase,
    message: &'static str,
    hint: &'static str,
}

const CASES: &[Case] = &[
    Case {
        script: "say hello\nexit 0",
        code: Exited,
        phase: Start,
        message: "exited with code 0 before it called flare.init()",
        hint: "must call flare.init()",
    },
    Case {
        script: r#"err Traceback (most recent call last):\n  File "c.py", line 1, in <module>\nModuleNotFoundError: No module named 'tourch'
exit 1"#,
        code: ImportFailed,
        phase: Start,
        message: "raised before flare.init(): ModuleNotFoundError: No module named 'tourch'",
        hint: "install `tourch`",
    },
    Case {
        script: "signal SEGV",
        code: Signaled,
        phase: Start,
        message: "SIGSEGV (a segmentation fault)",
        hint: "faulthandler",
    },
    Case {
        script: "connect\nexit 3",
        code: NeverReceived,
        phase: Start,
        message: "exited with code 3 before it asked for a task",
        hint: "must call flare.receive()",
    },
    Case {
        script: "connect\nbye\nexit 0",
        code: NeverReceived,
        phase: Start,
        message: "exited with code 0 before it asked for a task",
        hint: "must call flare.receive()",
    },
    Case {
        script: "connect\nnext\nexit 0",
        code: Exited,
        phase: Train,
        message: "exited with code 0 before it sent its result",
        hint: "must call flare.send()",
    },
    Case {
        script: "connect\nnext\nbye\nexit 0",
        code: Exited,
        phase: Train,
        message: "exited with code 0 before it sent its result",
        hint: "must call flare.send()",
    },
    Case {
        script: "connect\nnext\nerr the last words\nexit 7",
        code: Exited,
        phase: Train,
        message: "exited with code 7 before it sent its result",
        hint: "must call flare.send()",
    },
    Case {
        script: "connect\nnext\nsignal ABRT",
        code: Signaled,
        phase: Train,
        message: "SIGABRT",
        hint: "faulthandler",
    },
    Case {
        script: "connect\nnext\nsignal KILL",
        code: Signaled,
        phase: Train,
        message: "sent by something outside of Firesteel",
        hint: "",
    },
    Case {
        script: "connect\nnext\nfailed ValueError: no such column\nexit 1",
        code: Raised,
        phase: Train,
        message: "the training script raised ValueError: no such column",
        hint: "",
    },
    Case {
        // It said that it failed, and a thread of it goes on.
        script: "connect\nnext\nfailed ValueError: no such column\nhang",
        code: Raised,
        phase: Train,
        message: "the training script raised ValueError: no such column",
        hint: "",
    },
    Case {
        script: "connect\nnext\nnext\nhang",
        code: Misuse,
        phase: Train,
        message: "asked for another task without a result for the one it had",
        hint: "call flare.send()",
    },
    Case {
        script: "connect\nnext\nbye\nhang",
        code: Misuse,
        phase: Train,
        message: "closed its connection and went on without sending its result",
        hint: "flare.shutdown() only at the end",
    },
    Case {
        script: "connect\nnext\ndrop\nhang",
        code: Misuse,
        phase: Train,
        message: "closed its connection and went on without sending its result",
        hint: "",
    },
    Case {
        script: "garbage",
        code: Misuse,
        phase: Train,
        message: "closed its connection",
        hint: "",
    },
    Case {
        script: "inline 100000\nhang",
        code: Malformed,
        phase: Send,
        message: "bytes of model in its message, the limit is 65536",
        hint: "",
    },
    Case {
        script: "connect\nnext\ntype WHOLE\nexit 0",
        code: Malformed,
        phase: Send,
        message: "params_type is \"WHOLE\", expected \"FULL\" or \"DIFF\"",
        hint: "",
    },
];

#[tokio::test]
async fn slow_every_end_of_a_trainer_is_told_with_its_cause_and_the_next_task_gets_another() {
    for case in CASES {
        let bench = Bench::new().await;
        let mut server = bench.agent(&format!("lines pids\n{}", case.script)).await;
        server.assign(0, 0, None).await;
        let started = Instant::now();
        let failure = server.failure().await;
        let story = format!("{}: {failure:?}", case.script);
        assert!(started.elapsed() < Duration::from_secs(10), "{story}");
        assert_eq!(
            (failure.code, failure.phase),
            (case.code, case.phase),
            "{story}"
        );
        assert!(failure.message.contains(case.message), "{story}");
        assert!(failure.hint.contains(case.hint), "{story}");
        if case.script.contains("the last words") {
            assert!(
                failure.log_tail.contains(&"the last words".to_owned()),
                "{story}"
            );
        }
        if case.script.contains("ValueError") {
            assert!(
                failure.traceback.unwrap().starts_with("Traceback"),
                "{}",
                case.script
            );
        }
        // Whatever it was, the next task is done by another trainer.
        std::fs::write(bench.path("client.txt"), "lines pids\nconnect\nserve 1").unwrap();
        let before = bench.pids();
        let stays = matches!(
            case.script,
            "inline 100000\nhang" | "connect\nnext\nnext\nhang"
        );
        if stays || case.script.contains("WHOLE") {
            // These live on, or were told before their end.
            server.end(true).await;
        } else {
            server.assign(1, 0, None).await;
            server.update().await;
            assert_eq!(bench.pids().len(), before.len() + 1, "{}", case.script);
            server.end(false).await;
        }
        bench.all_gone().await;
        bench.slot_comes_back().await;
    }
}

#[tokio::test]
async fn a_script_or_command_that_is_not_there_is_named() {
    let mut bench = Bench::new().await;
    bench.change = |spec| spec["trainer"]["script"] = json!("/nowhere/client.py");
    let mut server = bench.agent("").await;
    for round in 0..2 {
        server.assign(round, 0, None).await;
        let failure = server.failure().await;
        assert_eq!(failure.code, ScriptMissing);
        assert!(failure.message.contains("/nowhere/client.py"), "{failure}");
    }
    server.end(false).await;
    bench.change = |_| {};
    bench.command = vec!["no-such-command".into()];
    let mut server = bench.agent("").await;
    for round in 0..2 {
        server.assign(round, 0, None).await;
        let failure = server.failure().await;
        assert_eq!(failure.code, SpawnFailed, "{failure}");
        assert!(failure.message.contains("no-such-command"), "{failure}");
    }
    server.end(false).await;
    bench.slot_comes_back().await;
}

#[tokio::test]
async fn a_trainer_that_never_connects_is_ended_after_trainer_start() {
    let mut bench = Bench::new().await;
    bench.durations.trainer_start = Duration::from_millis(200);
    let mut server = bench.agent("lines pids\nhang").await;
    server.assign(0, 0, None).await;
    let failure = server.failure().await;
    assert_eq!((failure.code, failure.phase), (NeverStarted, Start));
    assert!(
        failure
            .message
            .contains("within 0.2 s of its start (trainer-start)"),
        "{failure}"
    );
    bench.all_gone().await;
    bench.slot_comes_back().await;
    server.end(false).await;
}

#[tokio::test]
async fn a_worker_is_given_back_when_no_trainer_can_be_started() {
    let bench = Bench::new().await;
    // The outbox cannot be made: there is a file in its place.
    bench.touch("outbox-site-1");
    let mut server = bench.agent("connect\nserve 1").await;
    for round in 0..2 {
        server.assign(round, 0, None).await;
        let failure = server.failure().await;
        assert!(failure.message.contains("outbox-site-1"), "{failure}");
        bench.slot_comes_back().await;
    }
    std::fs::remove_file(bench.path("outbox-site-1")).unwrap();
    server.assign(2, 0, None).await;
    server.update().await;
    server.end(false).await;
}

#[tokio::test]
async fn a_trainer_that_ends_between_two_tasks_is_no_failure() {
    for end in ["exit 0", "exit 1", "bye\nexit 0", "drop\nexit 0"] {
        let bench = Bench::new().await;
        let script = format!("lines pids\nconnect\nnext\nsend 1\n{end}");
        let mut server = bench.agent(&script).await;
        for round in 0..3 {
            server.assign(round, 0, None).await;
            server.update().await;
            bench.all_gone().await;
        }
        assert_eq!(bench.pids().len(), 3, "{end}");
        assert_eq!(server.end(false).await, 0);
        assert_eq!(
            bench
                .log()
                .contains("ended badly after its result was taken"),
            end == "exit 1"
        );
    }
}

#[tokio::test]
async fn what_a_trainer_said_last_is_heard_before_its_end() {
    let bench = Bench::new().await;
    for end in ["exit 0", "exit 1", "signal KILL"] {
        for _ in 0..5 {
            // It does not wait for the answer to its result.
            let mut server = bench.agent(&format!("inline 40000\n{end}")).await;
            server.assign(0, 0, None).await;
            let update = server.update().await;
            assert_eq!(
                values_in(update.model.unwrap().inline.as_ref().unwrap()).len(),
                10_000
            );
            server.end(false).await;
        }
    }
}

#[tokio::test]
async fn a_trainer_that_left_and_lives_on_makes_room_for_the_next_task() {
    let bench = Bench::new().await;
    let mut server = bench
        .agent("lines pids\nconnect\nnext\nsend 1\nbye\nhang")
        .await;
    server.assign(0, 0, None).await;
    server.update().await;
    std::fs::write(bench.path("client.txt"), "lines pids\nconnect\nserve 1").unwrap();
    server.assign(1, 0, None).await;
    server.update().await;
    let pids = bench.pids();
    assert_eq!(pids.len(), 2);
    assert!(!alive(pids[0]));
    assert_eq!(server.end(false).await, 1);
}

#[tokio::test]
async fn a_trainer_that_comes_back_is_given_its_task_again() {
    let bench = Bench::new().await;
    let mut server = bench
        .agent("lines pids\nconnect\nnext\ndrop\nconnect\nserve 2")
        .await;
    server.assign(0, 0, Some(inline(model(&[10.0])))).await;
    let update = server.update().await;
    assert_eq!(
        values_in(update.model.unwrap().inline.as_ref().unwrap()),
        [13.0]
    );
    server.assign(1, 0, Some(inline(model(&[10.0])))).await;
    server.update().await;
    assert_eq!(bench.pids().len(), 1);
    assert_eq!(server.end(false).await, 0);
}

#[tokio::test]
async fn a_result_for_a_stale_attempt_is_dropped_with_its_file() {
    let bench = Bench::new().await;
    let mut server = bench.agent("connect\nnext\nstale\nsend 1\nserve 1").await;
    server.assign(0, 0, None).await;
    let update = server.update().await;
    assert_eq!(update.key, Some(server.key(0, 0)));
    assert_eq!(
        values_in(update.model.unwrap().inline.as_ref().unwrap()),
        [1.0]
    );
    assert_eq!(files_in(&bench.outbox()), 0);
    assert!(bench.log().contains("no longer wanted"));
    server.end(false).await;
}

#[tokio::test]
async fn a_result_that_fits_the_trainers_message_and_not_ours_fails_its_task_alone() {
    let bench = Bench::new().await;
    // So many fill a frame but for some bytes; ours has a few more than the trainer's.
    let (mut server, mut ours) = (None, 0);
    for last in (1500..1800).rev().step_by(12) {
        let mut one = bench
            .agent(&format!("connect\nnext\nmetrics 3980 248 {last}\nserve 1"))
            .await;
        one.assign(0, 0, None).await;
        match one.next_of_task().await {
            Ok(_) => {
                server = Some(one);
                break;
            }
            Err(failure) => {
                // Too long for the trainer's frame, or for ours.
                assert!(matches!(failure.code, Misuse | Malformed), "{failure}");
                ours += u32::from(failure.code == Malformed);
                one.assign(1, 0, None).await;
                one.update().await;
                one.end(false).await;
            }
        }
    }
    server.expect("some length fits").end(false).await;
    assert!(ours > 0, "{}", bench.log());
}

#[tokio::test]
async fn more_metrics_than_the_limit_are_refused_by_the_trainers_own_side() {
    let bench = Bench::new().await;
    let mut server = bench.agent("connect\nnext\nmetrics 5000 8 8\nexit 0").await;
    server.assign(0, 0, None).await;
    assert_eq!(server.failure().await.code, Exited);
    bench
        .logged("the number of metrics has 5001 bytes, the limit is 4096")
        .await;
    server.end(false).await;
}

#[tokio::test]
async fn what_an_earlier_process_left_in_the_outbox_is_removed() {
    let bench = Bench::new().await;
    std::fs::create_dir(bench.outbox()).unwrap();
    std::fs::write(bench.outbox().join("left.safetensors"), "x").unwrap();
    let mut server = bench.agent("connect\nnext\nleave half.part\nexit 1").await;
    server.assign(0, 0, None).await;
    server.state(TaskState::Starting).await;
    assert!(!bench.outbox().join("left.safetensors").exists());
    server.failure().await;
    until(|| (files_in(&bench.outbox()) == 0).then_some(())).await;
    server.end(false).await;
}

#[tokio::test]
async fn the_state_of_a_site_goes_from_trainer_to_trainer_and_back_with_a_resume() {
    let mut bench = Bench::new().await;
    let script = "connect\nnext\nstate seen\nexit 0";
    let mut server = bench.agent(script).await;
    let seen = |bench: &Bench| std::fs::read_to_string(bench.path("seen")).unwrap();
    for (round, expected) in [(0, "+"), (1, "++"), (2, "+++")] {
        server.assign(round, 0, None).await;
        server.update().await;
        assert_eq!(seen(&bench), expected);
    }
    server.end(true).await;
    // Round 2 was not committed.
    bench.resume_round = Some(1);
    let mut server = bench.agent(script).await;
    server.assign(2, 0, None).await;
    server.update().await;
    assert_eq!(seen(&bench), "+++");
    server.end(true).await;
}

#[tokio::test]
async fn what_a_trainer_tracks_and_logs_arrives() {
    let bench = Bench::new().await;
    let script = "connect\nnext\nchatter 3\ntrack {\"key\": \"loss\"}\nsay a line\nsend 1\nserve 1";
    let mut server = bench.agent(script).await;
    server.assign(0, 0, None).await;
    loop {
        match server.next().await {
            Some(to_server::Body::Metric(metric)) => {
                break assert_eq!(metric.event, r#"{"key": "loss"}"#);
            }
            Some(to_server::Body::TaskAccepted(_) | to_server::Body::TaskProgress(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    server.update().await;
    bench.logged("line 2 of a great many").await;
    bench.logged("a line").await;
    server.end(false).await;
}

#[tokio::test]
async fn a_supervisor_that_dies_fails_the_task_in_hand_and_every_later_one() {
    let bench = Bench::new().await;
    let mut server = bench.agent("lines pids\nconnect\nnext\nhang").await;
    server.assign(0, 0, None).await;
    server.state(TaskState::Training).await;
    common::kill(bench.supervisor.pid());
    let failure = server.failure().await;
    assert_eq!((failure.code, failure.phase), (Internal, Train));
    assert!(
        failure
            .message
            .contains("lost together with its supervisor"),
        "{failure}"
    );
    bench.all_gone().await;
    bench.supervisor.closed().await;
    server.assign(1, 0, None).await;
    let failure = server.failure().await;
    assert_eq!(failure.code, SpawnFailed);
    assert!(
        failure.message.contains("the supervisor has ended"),
        "{failure}"
    );
    assert!(failure.hint.contains("run the job again"), "{failure:?}");
    bench.slot_comes_back().await;
    server.end(false).await;
}
