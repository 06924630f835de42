//! Tasks that come, go and end at any moment; workers; trainers that a person runs.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, too"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bench, Server, files_in, inline, model, stored, until, values_in, within};
use firesteel_agent::{Agent, AgentError};
use firesteel_base::FailureCode;
use firesteel_bridge::{
    AttachProfile, BridgeClient, Dial, Outcome, Outgoing, ResultModel, read_profile,
};
use firesteel_carry::{Connection, Once};
use firesteel_net::{pipe, split};
use firesteel_wire::control::{
    Assign, Refused, StartJob, TaskState, ToSite, Welcome, to_server, to_site,
};
use tokio::io::AsyncWriteExt;

/// In which moment something happens to a task, and how it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The agent has no task.
    Idle,
    /// It waits for a worker.
    Queued,
    /// Its trainer has not connected.
    Starting,
    /// Its trainer has connected and not asked.
    Connected,
    /// Its trainer works.
    Training,
    /// Its trainer works and ignores requests to end.
    Stubborn,
    /// Its trainer has answered and asked for the next one.
    Done,
    /// Its trainer has answered and left, and its process lives.
    Left,
}

const MOMENTS: [Moment; 8] = [
    Moment::Idle,
    Moment::Queued,
    Moment::Starting,
    Moment::Connected,
    Moment::Training,
    Moment::Stubborn,
    Moment::Done,
    Moment::Left,
];

/// An agent at that moment; the worker that somebody else has.
async fn agent_at(bench: &mut Bench, moment: Moment) -> (Server, Option<firesteel_agent::Slot>) {
    let mut occupied = None;
    let script = match moment {
        Moment::Idle | Moment::Queued | Moment::Done => "lines pids\nconnect\nserve 1",
        Moment::Starting => "lines pids\nwait go\nconnect\nserve 1",
        Moment::Connected => "lines pids\nconnect\ntouch here\nwait go\nserve 1",
        Moment::Training => "lines pids\nconnect\nnext\ntouch here\nwait go\nsend 1\nserve 1",
        Moment::Left => "lines pids\nconnect\nnext\nsend 1\nbye\ntouch here\nwait go",
        Moment::Stubborn => {
            // The shell ignores the request, and what it runs does so too.
            let command = format!("trap '' TERM; exec {} train $0", common::PROCESSES);
            bench.command = ["/bin/sh", "-c", &command].map(str::to_owned).to_vec();
            "lines pids\nconnect\nnext\ntouch here\nhang"
        }
    };
    if moment == Moment::Queued {
        occupied = Some(bench.slots.acquire().await);
    }
    let mut server = bench.agent(script).await;
    if moment == Moment::Idle {
        return (server, occupied);
    }
    server.assign(0, 0, None).await;
    match moment {
        Moment::Idle => {}
        Moment::Queued => server.state(TaskState::Queued).await,
        Moment::Starting => until(|| (bench.pids().len() == 1).then_some(())).await,
        Moment::Connected => bench.exists("here").await,
        Moment::Training | Moment::Stubborn => {
            server.state(TaskState::Training).await;
            bench.exists("here").await;
        }
        Moment::Done => drop(server.update().await),
        Moment::Left => {
            server.update().await;
            bench.exists("here").await;
        }
    }
    (server, occupied)
}

#[tokio::test]
async fn a_job_that_ends_at_any_moment_leaves_no_process_and_no_worker_behind() {
    for moment in MOMENTS {
        for abort in [false, true] {
            let mut bench = Bench::new().await;
            let (server, occupied) = agent_at(&mut bench, moment).await;
            let started = Instant::now();
            server.end(abort).await;
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(5),
                "{moment:?}, abort {abort}: {took:?}"
            );
            bench.all_gone().await;
            drop(occupied);
            bench.slot_comes_back().await;
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_at_any_moment_leaves_no_process_behind() {
    for moment in MOMENTS {
        let mut bench = Bench::new().await;
        let (mut server, occupied) = agent_at(&mut bench, moment).await;
        drop(server.writer.take());
        drop(server.reader);
        // Where it had something to say, it finds out by that.
        let _ = within(server.agent).await.unwrap();
        bench.all_gone().await;
        drop(occupied);
        bench.slot_comes_back().await;
    }
}

#[tokio::test]
async fn a_task_can_be_canceled_and_another_given_at_any_moment() {
    for moment in MOMENTS {
        for per_task in [false, true] {
            let mut bench = Bench::new().await;
            bench.per_task = per_task;
            let (mut server, occupied) = agent_at(&mut bench, moment).await;
            server.cancel(0, 0).await;
            // A trainer of this task that is not ended finds the next script's
            // work to be its own.
            std::fs::write(bench.path("client.txt"), "lines pids\nconnect\nserve 1").unwrap();
            server.assign(1, 0, Some(inline(model(&[10.0])))).await;
            drop(occupied);
            bench.touch("go");
            let update = server.update().await;
            assert_eq!(update.key, Some(server.key(1, 0)), "{moment:?}");
            assert_eq!(
                values_in(update.model.unwrap().inline.as_ref().unwrap()),
                [12.0],
                "{moment:?}"
            );
            server.end(false).await;
            bench.all_gone().await;
            bench.slot_comes_back().await;
        }
    }
}

#[tokio::test]
async fn a_task_that_is_canceled_while_its_trainer_starts_gives_its_worker_back() {
    for moment in [Moment::Starting, Moment::Connected] {
        let mut bench = Bench::new().await;
        bench.per_task = true;
        let (mut server, _) = agent_at(&mut bench, moment).await;
        server.cancel(0, 0).await;
        bench.touch("go");
        // Nothing is given to this site any more, and others wait.
        bench.slot_comes_back().await;
        bench.all_gone().await;
        server.end(false).await;
    }
}

#[tokio::test]
async fn a_newer_task_takes_the_place_of_the_one_in_hand_and_the_same_one_does_not() {
    let mut bench = Bench::new().await;
    let (mut server, _) = agent_at(&mut bench, Moment::Training).await;
    server.assign(0, 0, None).await;
    server.cancel(0, 7).await;
    server.assign(0, 1, None).await;
    bench.touch("go");
    let update = server.update().await;
    assert_eq!(update.key, Some(server.key(0, 1)));
    assert_eq!(bench.pids().len(), 2);
    server.end(false).await;
}

#[tokio::test]
async fn a_task_that_waits_for_a_worker_keeps_its_model() {
    let bench = Bench::new().await;
    let occupied = bench.slots.acquire().await;
    let mut server = bench.agent("connect\nserve 1").await;
    let object = bench.objects.from_bytes(model(&[10.0; 50_000])).unwrap();
    server.assign(0, 0, Some(stored(&object))).await;
    server.state(TaskState::Queued).await;
    // As the server does when the next round's model is made.
    drop(object);
    drop(occupied);
    let update = server.update().await.model.unwrap();
    let result = bench
        .objects
        .get(firesteel_store::ObjectId(update.id))
        .unwrap();
    assert_eq!(values_in(result.bytes())[0], 12.0);
    drop(result);
    server.end(false).await;
}

#[tokio::test]
async fn a_model_that_is_gone_fails_the_task_with_that_cause() {
    let mut bench = Bench::new().await;
    bench.per_task = true;
    let mut server = bench.agent("connect\nserve 1").await;
    let gone = bench.objects.from_bytes(model(&[10.0; 50_000])).unwrap();
    let reference = stored(&gone);
    drop(gone);
    server.assign(0, 0, Some(reference)).await;
    let failure = server.failure().await;
    assert!(
        failure
            .message
            .contains("the round's model could not be fetched")
            && failure.message.contains("was gone"),
        "{failure}"
    );
    // The trainer that was started for it does not keep the worker.
    bench.slot_comes_back().await;
    server.end(false).await;
}

#[tokio::test]
async fn many_sites_share_few_workers() {
    let mut bench = Bench::new().await;
    bench.per_task = true;
    std::fs::write(bench.path("client.txt"), "lines pids\nconnect\nserve 1").unwrap();
    let mut servers = Vec::new();
    for n in 1..=6 {
        servers.push(bench.agent_of(&format!("site-{n}")).await);
    }
    for round in 0..2 {
        for server in &mut servers {
            server.assign(round, 0, None).await;
        }
        for server in &mut servers {
            assert!(server.update().await.model.is_some());
        }
    }
    assert_eq!(bench.pids().len(), 12, "a trainer for each task");
    for server in servers {
        server.end(false).await;
    }
    bench.all_gone().await;
    bench.slot_comes_back().await;
}

#[tokio::test]
async fn a_trainer_that_logs_without_end_starves_nobody() {
    let bench = Bench::new().await;
    let script = "lines pids\nconnect\nnext\ntouch here\nchatter 3000000\nhang";
    let mut server = bench.agent(script).await;
    server.assign(0, 0, None).await;
    let started = Instant::now();
    bench.exists("here").await;
    bench.logged("of a great many").await;
    server.end(true).await;
    // To write all that takes longer.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    bench.all_gone().await;
}

#[tokio::test]
async fn a_script_that_does_not_end_with_its_job_is_forced_and_counted() {
    let bench = Bench::new().await;
    let mut server = bench.agent("lines pids\nconnect\nserve 1\nhang").await;
    server.assign(0, 0, None).await;
    server.update().await;
    assert_eq!(server.end(false).await, 1);
    assert!(
        bench
            .log()
            .contains("was still running 0.3 s after it had no more to do"),
        "{}",
        bench.log()
    );
    bench.all_gone().await;
}

// ----- a trainer that a person runs -------------------------------------------

fn attach(profile: &Path) -> (BridgeClient, AttachProfile) {
    let profile = read_profile(profile).unwrap();
    let dial = Dial {
        socket: Path::new(&profile.socket),
        token: &profile.token,
        rank: 0,
        version: "test",
        connect: Duration::from_secs(10),
    };
    (
        BridgeClient::connect(dial, &mut || Ok(())).unwrap(),
        profile,
    )
}

/// Does something that blocks, as a person's process would.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    within(tokio::task::spawn_blocking(work)).await.unwrap()
}

/// Answers every task until the end.
fn serve(client: &BridgeClient) -> u32 {
    let mut done = 0;
    while let Outcome::Task(task) = client.next(None, &mut || Ok(())).unwrap() {
        let result = Outgoing {
            params_type: "FULL".into(),
            model: ResultModel::Inline(model(&[5.0]).into()),
            metrics: Default::default(),
            meta: String::new(),
            state_file: String::new(),
            partial: false,
        };
        client
            .send_result(&task.key, result, &mut || Ok(()))
            .unwrap();
        done += 1;
    }
    done
}

async fn attached(bench: &mut Bench) -> Server {
    let profile = bench.path("attach.json");
    bench.attached = Some(profile.clone());
    let server = bench.agent("").await;
    until(|| profile.exists().then_some(())).await;
    server
}

#[tokio::test]
async fn a_persons_trainer_attaches_itself_leaves_and_comes_back() {
    let mut bench = Bench::new().await;
    let mut server = attached(&mut bench).await;
    let path = bench.path("attach.json");
    server.assign(0, 0, None).await;
    let at = path.clone();
    let first = apart(move || {
        let (client, profile) = attach(&at);
        assert!(matches!(
            client.next(None, &mut || Ok(())).unwrap(),
            Outcome::Task(_)
        ));
        client.close(&mut || Ok(()));
        profile.token
    })
    .await;
    let failure = server.failure().await;
    assert!(
        failure
            .message
            .contains("closed its connection before it sent a result"),
        "{failure}"
    );
    // The old secret is of no use any more, the new one is.
    let renewed = || {
        read_profile(&path)
            .ok()
            .is_some_and(|profile| profile.token != first)
    };
    until(|| renewed().then_some(())).await;
    server.assign(1, 0, None).await;
    let at = path.clone();
    let working = tokio::task::spawn_blocking(move || {
        let (client, _) = attach(&at);
        serve(&client)
    });
    assert!(server.update().await.model.is_some());
    server.assign(2, 0, None).await;
    server.update().await;
    assert_eq!(server.end(false).await, 0);
    assert_eq!(within(working).await.unwrap(), 2);
    assert!(bench.pids().is_empty());
}

#[tokio::test]
async fn a_job_does_not_wait_for_a_person_at_its_end() {
    let mut bench = Bench::new().await;
    let mut server = attached(&mut bench).await;
    server.assign(0, 0, None).await;
    server.state(TaskState::Queued).await;
    assert_eq!(server.end(true).await, 0);
}

#[tokio::test]
async fn a_task_fails_with_its_cause_where_no_trainer_can_attach_itself() {
    let mut bench = Bench::new().await;
    bench.touch("file");
    bench.attached = Some(bench.path("file/attach.json"));
    let mut server = bench.agent("").await;
    for round in 0..2 {
        server.assign(round, 0, None).await;
        let failure = server.failure().await;
        assert_eq!(failure.code, FailureCode::SpawnFailed);
        assert!(failure.message.contains("attach.json"), "{failure}");
    }
    server.end(false).await;
}

// ----- the server's side of the protocol ----------------------------------------

/// What an agent makes of a server that answers its hello with these bytes.
async fn met_with(bench: &Bench, bytes: &[u8]) -> Result<(), AgentError> {
    std::fs::write(bench.path("client.txt"), "connect\nserve 1").unwrap();
    let (near, mut far) = pipe(64 * 1024);
    let agent = tokio::spawn(Agent::run(
        bench.parts("site-1"),
        Box::new(Once::new(Connection::local(near))),
    ));
    within(far.write_all(bytes)).await.unwrap();
    within(far.shutdown()).await.unwrap();
    let (mut reader, _writer) = split(far);
    let ended = within(agent).await.unwrap();
    while let Ok(Some(_)) =
        within(reader.next::<firesteel_wire::control::ToServer>("ToServer")).await
    {}
    ended
}

#[tokio::test]
async fn a_server_that_does_not_keep_to_the_protocol_ends_the_agent_with_a_sentence() {
    let bench = Bench::new().await;
    let frame = |bodies: Vec<to_site::Body>| -> Vec<u8> {
        let frames = bodies
            .into_iter()
            .map(|body| firesteel_wire::frame::encode(&ToSite { body: Some(body) }).unwrap());
        frames.flat_map(|frame| frame.to_vec()).collect()
    };
    let welcome = || to_site::Body::Welcome(Welcome::default());
    let start = |spec: String| {
        to_site::Body::StartJob(StartJob {
            job: "test".into(),
            spec: spec.into(),
            ..StartJob::default()
        })
    };
    let spec = bench.spec().to_string();
    let assign = || to_site::Body::Assign(Assign::default());
    let cases = [
        (
            frame(vec![to_site::Body::Refused(Refused {
                reason: "not you".into(),
            })]),
            "refused this site: not you",
        ),
        (Vec::new(), "closed the connection before it gave the job"),
        (
            frame(vec![welcome()]),
            "closed the connection before it gave the job",
        ),
        (frame(vec![assign()]), "sent work before the job"),
        (
            frame(vec![welcome(), start("{}".into())]),
            "a job that cannot be read",
        ),
        (
            frame(vec![welcome(), start(spec.clone()), assign()]),
            "sent a task without a key",
        ),
        (
            vec![2, 0, 0, 0, 255, 255],
            "the connection to the server failed",
        ),
        (vec![255; 8], "the connection to the server failed"),
        (vec![9, 0, 0, 0, 1], "the connection to the server failed"),
    ];
    for (bytes, words) in cases {
        let error = met_with(&bench, &bytes).await.unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} in {error:?}");
    }
    // An empty body is what a newer server says; the end of the stream is the end.
    let mut bytes = vec![0, 0, 0, 0];
    bytes.extend(frame(vec![welcome(), start(spec), welcome()]));
    assert!(matches!(
        met_with(&bench, &bytes).await,
        Err(AgentError::Closed | AgentError::Protocol(_)) | Ok(())
    ));
    bench.slot_comes_back().await;
}

#[tokio::test]
async fn what_a_cancelled_trainer_had_written_is_removed() {
    let bench = Bench::new().await;
    let mut server = bench
        .agent("lines pids\nconnect\nnext\nleave half.part\ntouch here\nhang")
        .await;
    server.assign(0, 0, None).await;
    bench.exists("here").await;
    server.cancel(0, 0).await;
    bench.all_gone().await;
    until(|| (files_in(&bench.outbox()) == 0).then_some(())).await;
    let next = server.end(false).await;
    assert_eq!(next, 0);
}

#[tokio::test]
async fn a_message_of_a_newer_server_is_passed_over() {
    let bench = Bench::new().await;
    let mut server = bench.agent("connect\nserve 1").await;
    let newer = ToSite { body: None };
    within(server.writer.as_mut().unwrap().send(&newer))
        .await
        .unwrap();
    server.assign(0, 0, None).await;
    assert!(matches!(
        server.next().await,
        Some(to_server::Body::TaskAccepted(_))
    ));
    server.update().await;
    server.end(false).await;
}
