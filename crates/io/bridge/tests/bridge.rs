//! Agent and trainer over a real socket.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_base::{Attempt, Failure, FailureCode, Hint, Phase, Round, limits};
use firesteel_bridge::{
    BridgeClient, BridgeListener, BridgeReceiver, BridgeSender, ClientError, Connection,
    ConnectionError, Delivery, Dial, Interrupted, Job, ModelSource, Outcome, Outgoing, ResultModel,
    TrainerMessage, Work,
};
use firesteel_wire::bridge::{self as say, FromTrainer, from_trainer};
use firesteel_wire::frame;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

const PATIENCE: Duration = Duration::from_secs(20);

struct Setup {
    listener: BridgeListener,
    rejections: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self::with(PATIENCE)
    }

    fn with(connect: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rejections = Arc::new(Mutex::new(Vec::new()));
        let seen = rejections.clone();
        let listener = BridgeListener::bind(Some(folder.path()), connect, move |rejection| {
            seen.lock().unwrap().push(rejection.to_string());
        })
        .unwrap();
        Self {
            listener,
            rejections,
            folder,
        }
    }

    /// Waits until somebody was turned away for a reason with these words.
    async fn rejected(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rejections = self.rejections.lock().unwrap().clone();
            if rejections.iter().any(|rejection| rejection.contains(words)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "nobody was rejected for `{words}`: {rejections:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// One trainer that was let in, from both ends.
    async fn pair(&self) -> (BridgeReceiver, BridgeSender, BridgeClient) {
        let mut expected = self.listener.expect().unwrap();
        let dialing = dial(self.listener.path(), expected.token());
        let mut connection = within(expected.accept()).await;
        connection.welcome("{\"site\": \"site-1\"}").await.unwrap();
        let client = dialing.await.unwrap().unwrap();
        let (receiver, sender) = connection.split();
        (receiver, sender, client)
    }
}

fn dial(socket: &Path, token: &str) -> tokio::task::JoinHandle<Result<BridgeClient, ClientError>> {
    let (socket, token) = (socket.to_owned(), token.to_owned());
    spawn_blocking(move || connect(&socket, &token))
}

fn connect(socket: &Path, token: &str) -> Result<BridgeClient, ClientError> {
    let dial = Dial {
        socket,
        token,
        rank: 0,
        version: "0.1.0",
        connect: PATIENCE,
    };
    BridgeClient::connect(dial, &mut || Ok(()))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it did not happen in time")
}

async fn hear(receiver: &mut BridgeReceiver) -> TrainerMessage {
    within(receiver.recv())
        .await
        .unwrap()
        .expect("the trainer left")
}

fn next_task(client: &BridgeClient) -> Job {
    match client.next(Some(PATIENCE), &mut || Ok(())).unwrap() {
        Outcome::Task(job) => job,
        Outcome::Ended(reason) => panic!("ended: {reason}"),
    }
}

fn work(model: ModelSource) -> Work {
    Work {
        name: "train".into(),
        round: Round(2),
        attempt: Attempt(1),
        start_round: Round(0),
        total_rounds: 5,
        meta: "{\"a\": 1}".into(),
        model,
    }
}

fn outgoing(model: ResultModel) -> Outgoing {
    Outgoing {
        params_type: "FULL".into(),
        model,
        metrics: BTreeMap::from([("accuracy".into(), 0.5)]),
        meta: "{}".into(),
        state_file: "state.safetensors".into(),
        partial: false,
    }
}

#[tokio::test]
async fn a_task_and_its_result_cross() {
    let setup = Setup::new();
    let (mut receiver, mut sender, client) = setup.pair().await;
    assert_eq!(client.welcome(), "{\"site\": \"site-1\"}");
    let trainer = spawn_blocking(move || {
        let job = next_task(&client);
        assert_eq!(
            (job.key.name.as_str(), job.round(), job.attempt()),
            ("train", Round(2), Attempt(1))
        );
        assert_eq!(
            (job.start_round, job.total_rounds, job.meta.as_str()),
            (Round(0), 5, "{\"a\": 1}")
        );
        let mut model = job.model.unwrap();
        assert_eq!(model.as_ptr() as usize % 64, 0);
        model.as_mut_slice()[0] += 1;
        client.log(20, "custom.client", "half way");
        client.metric("{\"key\": \"loss\"}");
        let result = outgoing(ResultModel::Inline(Bytes::copy_from_slice(
            model.as_slice(),
        )));
        let first = client
            .send_result(&job.key, result, &mut || Ok(()))
            .unwrap();
        assert_eq!(first, Delivery::Taken);
        let result = outgoing(ResultModel::File("model.safetensors".into()));
        let refused = client
            .send_result(&job.key, result, &mut || Ok(()))
            .unwrap_err();
        assert_eq!(refused.to_string(), "tensor `w` holds NaN");
        assert_eq!(refused.hint().unwrap(), "lower the learning rate");
        client.close(&mut || Ok(()));
    });
    assert_eq!(hear(&mut receiver).await, TrainerMessage::Next);
    sender
        .send_task(work(ModelSource::Inline(Bytes::from_static(b"abc"))))
        .await
        .unwrap();
    let TrainerMessage::Log(log) = hear(&mut receiver).await else {
        panic!()
    };
    assert_eq!(
        (log.level, log.logger.as_str(), log.message.as_str()),
        (20, "custom.client", "half way")
    );
    assert!(log.time > 1_600_000_000_000_000);
    assert!(
        matches!(hear(&mut receiver).await, TrainerMessage::Metric(metric) if metric.json.contains("loss"))
    );
    let TrainerMessage::Result(result) = hear(&mut receiver).await else {
        panic!()
    };
    assert_eq!(
        result.key,
        say::TaskKey {
            name: "train".into(),
            round: 2,
            attempt: 1
        }
    );
    assert_eq!(
        result.model,
        Some(say::task_result::Model::Inline(Bytes::from_static(b"bbc")))
    );
    assert_eq!(
        (result.metrics["accuracy"], result.state_file.as_str()),
        (0.5, "state.safetensors")
    );
    sender.accept().await.unwrap();
    let TrainerMessage::Result(result) = hear(&mut receiver).await else {
        panic!()
    };
    assert_eq!(
        result.model,
        Some(say::task_result::Model::File("model.safetensors".into()))
    );
    let failure = Failure::new(FailureCode::NotFinite, Phase::Send, "tensor `w` holds NaN")
        .with_hint("lower the learning rate");
    sender.refuse(&failure).await.unwrap();
    assert_eq!(hear(&mut receiver).await, TrainerMessage::Bye);
    assert_eq!(within(receiver.recv()).await.unwrap(), None);
    trainer.await.unwrap();
}

#[tokio::test]
async fn a_file_crosses_as_a_descriptor_and_stays_unchanged() {
    let setup = Setup::new();
    let (mut receiver, mut sender, client) = setup.pair().await;
    let path = setup.folder.path().join("model");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let expect = bytes.clone();
    let trainer = spawn_blocking(move || {
        let mut model = next_task(&client).model.unwrap();
        assert_eq!(model.as_slice(), expect);
        model.as_mut_slice().fill(0);
        let too_short = client.next(Some(PATIENCE), &mut || Ok(())).unwrap_err();
        assert!(matches!(too_short, ClientError::Model(_)), "{too_short:?}");
        assert!(next_task(&client).model.is_none());
    });
    let file = || std::fs::File::open(&path).unwrap();
    hear(&mut receiver).await;
    sender
        .send_task(work(ModelSource::File {
            file: file(),
            length: 300_000,
        }))
        .await
        .unwrap();
    hear(&mut receiver).await;
    sender
        .send_task(work(ModelSource::File {
            file: file(),
            length: 300_001,
        }))
        .await
        .unwrap();
    hear(&mut receiver).await;
    // Unlinked meanwhile: the descriptor keeps what it describes.
    std::fs::remove_file(&path).unwrap();
    sender.send_task(work(ModelSource::None)).await.unwrap();
    trainer.await.unwrap();
}

#[tokio::test]
async fn a_trainer_without_descriptors_gets_copies() {
    let setup = Setup::new();
    let mut expected = setup.listener.expect().unwrap();
    let mut socket = UnixStream::connect(setup.listener.path()).unwrap();
    let hello = say::Hello {
        copies: true,
        ..hello(expected.token())
    };
    write(&mut socket, from_trainer::Body::Hello(hello));
    let connection = within(expected.accept()).await;
    assert!(connection.copies());
    let (_, mut sender) = connection.split();
    let length = 3 * 256 * 1024 + 5;
    let bytes: Vec<u8> = (0..length as u32).map(|i| (i / 3) as u8).collect();
    let path = setup.folder.path().join("model");
    std::fs::write(&path, &bytes).unwrap();
    let reading = spawn_blocking(move || {
        let mut copied = Vec::new();
        while copied.len() < length {
            match read(&mut socket) {
                say::from_agent::Body::Task(task) => {
                    assert_eq!(task.model, Some(say::task::Model::Copied(length as u64)));
                }
                say::from_agent::Body::Chunk(chunk) => copied.extend_from_slice(&chunk.data),
                other => panic!("{other:?}"),
            }
        }
        copied
    });
    let file = std::fs::File::open(&path).unwrap();
    sender
        .send_task(work(ModelSource::File {
            file,
            length: length as u64,
        }))
        .await
        .unwrap();
    assert_eq!(reading.await.unwrap(), bytes);
}

#[tokio::test]
async fn the_end_of_the_job_reaches_a_waiting_and_a_sending_trainer() {
    let setup = Setup::new();
    let (mut receiver, mut sender, client) = setup.pair().await;
    let trainer = spawn_blocking(move || {
        let outcome = client.next(None, &mut || Ok(())).unwrap();
        assert!(matches!(outcome, Outcome::Ended(reason) if reason == "aborted by a person"));
        // And again, without asking.
        assert!(matches!(
            client.next(None, &mut || Ok(())).unwrap(),
            Outcome::Ended(_)
        ));
    });
    hear(&mut receiver).await;
    sender.end("aborted by a person").await.unwrap();
    trainer.await.unwrap();

    let (mut receiver, mut sender, client) = setup.pair().await;
    let trainer = spawn_blocking(move || {
        let job = next_task(&client);
        let sent = client.send_result(&job.key, outgoing(ResultModel::None), &mut || Ok(()));
        assert_eq!(sent.unwrap(), Delivery::Ended("deadline".into()));
    });
    hear(&mut receiver).await;
    sender.send_task(work(ModelSource::None)).await.unwrap();
    hear(&mut receiver).await;
    sender.end("deadline").await.unwrap();
    trainer.await.unwrap();
}

#[tokio::test]
async fn a_wait_can_time_out_go_on_and_be_interrupted() {
    let setup = Setup::new();
    let (mut receiver, mut sender, client) = setup.pair().await;
    let (tell, told) = tokio::sync::oneshot::channel();
    let trainer = spawn_blocking(move || {
        let short = Duration::from_millis(10);
        let late = client.next(Some(short), &mut || Ok(())).unwrap_err();
        assert!(matches!(late, ClientError::TimedOut(given) if given == short));
        let mut checks = 0;
        let stopped = client.next(None, &mut || {
            checks += 1;
            if checks > 3 { Err(Interrupted) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(ClientError::Interrupted)));
        tell.send(()).unwrap();
        next_task(&client);
    });
    within(told).await.unwrap();
    assert_eq!(hear(&mut receiver).await, TrainerMessage::Next);
    sender.send_task(work(ModelSource::None)).await.unwrap();
    trainer.await.unwrap();
    // Asked once, although it waited three times.
    assert_eq!(within(receiver.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_that_vanishes_is_noticed() {
    let setup = Setup::new();
    let (receiver, sender, client) = setup.pair().await;
    let trainer = spawn_blocking(move || {
        let lost = client.next(None, &mut || Ok(())).unwrap_err();
        assert!(matches!(lost, ClientError::Lost), "{lost:?}");
        client.log(20, "x", "into the void");
        client.close(&mut || Ok(()));
    });
    drop((receiver, sender));
    trainer.await.unwrap();
    let nobody = connect(&setup.folder.path().join("nobody"), "1.x")
        .err()
        .unwrap();
    assert!(matches!(nobody, ClientError::Connect { .. }));
    assert!(nobody.to_string().contains("no agent listens on"));
}

#[tokio::test]
async fn a_log_never_waits_for_a_slow_agent_and_what_is_dropped_is_counted() {
    let setup = Setup::new();
    let (mut receiver, _sender, client) = setup.pair().await;
    let line = "x".repeat(10_000);
    let trainer = spawn_blocking(move || {
        let before = Instant::now();
        for _ in 0..2_000 {
            client.log(20, "custom", &line);
        }
        assert!(before.elapsed() < PATIENCE);
        client
    });
    let client = trainer.await.unwrap();
    let closing = spawn_blocking(move || {
        let mut client = Some(client);
        // Whatever has come through by now makes room for one more.
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(client) = &client {
                client.log(30, "custom", "last");
                if matches!(
                    client.next(Some(Duration::from_millis(20)), &mut || Ok(())),
                    Err(ClientError::Lost)
                ) {
                    break;
                }
            }
        }
        drop(client.take());
    });
    let (mut lines, mut dropped) = (0, 0);
    while dropped == 0 {
        if let TrainerMessage::Log(log) = hear(&mut receiver).await {
            lines += 1;
            dropped += log.dropped;
        }
    }
    assert!(
        lines + dropped >= 2_000 && lines < 2_000,
        "{lines} came, {dropped} were dropped"
    );
    drop((receiver, _sender));
    closing.await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_sent() {
    let setup = Setup::new();
    let (_receiver, _sender, client) = setup.pair().await;
    let key = say::TaskKey {
        name: "train".into(),
        round: 0,
        attempt: 0,
    };
    let mut cases = vec![outgoing(ResultModel::Inline(
        vec![0; limits::INLINE_OBJECT + 1].into(),
    ))];
    cases.push(Outgoing {
        meta: "x".repeat(limits::META_BYTES + 1),
        ..outgoing(ResultModel::None)
    });
    let metrics = (0..=limits::METRICS)
        .map(|at| (at.to_string(), 0.0))
        .collect();
    cases.push(Outgoing {
        metrics,
        ..outgoing(ResultModel::None)
    });
    for case in cases {
        let error = client.send_result(&key, case, &mut || Ok(())).unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_failure_arrives_with_a_traceback_of_bearable_size() {
    let setup = Setup::new();
    let (mut receiver, _sender, client) = setup.pair().await;
    let traceback = format!("first line\n{}\nValueError: bad", "x".repeat(1 << 20));
    let failed = say::Failed {
        code: "raised".into(),
        phase: "train".into(),
        message: "ValueError: bad".into(),
        traceback,
    };
    client.failed(failed, &mut || Ok(())).unwrap();
    let TrainerMessage::Failed(failed) = hear(&mut receiver).await else {
        panic!()
    };
    assert!(failed.traceback.len() < limits::TRACEBACK_BYTES + 100);
    assert!(
        failed.traceback.starts_with("first line\n")
            && failed.traceback.ends_with("ValueError: bad")
    );
}

fn hello(token: &str) -> say::Hello {
    say::Hello {
        protocol_min: 1,
        protocol_max: 1,
        token: token.into(),
        pid: 1,
        rank: 0,
        version: "9.9".into(),
        copies: false,
        streams: false,
    }
}

fn write(socket: &mut UnixStream, body: from_trainer::Body) {
    let frame = frame::encode(&FromTrainer { body: Some(body) }).unwrap();
    socket.write_all(&frame).unwrap();
}

fn read(socket: &mut UnixStream) -> say::from_agent::Body {
    let mut head = [0; 4];
    socket.read_exact(&mut head).unwrap();
    let mut buffer = bytes::BytesMut::from(&head[..]);
    buffer.resize(4 + u32::from_le_bytes(head) as usize, 0);
    socket.read_exact(&mut buffer[4..]).unwrap();
    let message: say::FromAgent = frame::decode(&mut buffer, "FromAgent").unwrap().unwrap();
    message.body.unwrap()
}

/// Strangers of every kind, while a trainer works.
#[tokio::test]
async fn strangers_are_turned_away_and_disturb_nobody() {
    let setup = Setup::with(Duration::from_millis(200));
    let (mut receiver, mut sender, client) = setup.pair().await;
    let path = setup.listener.path().to_owned();
    let stranger = || UnixStream::connect(&path).unwrap();

    let mut garbage = stranger();
    garbage
        .write_all(b"\x04\x00\x00\x00\xff\xff\xff\xff")
        .unwrap();
    setup
        .rejected("a frame that is not a `FromTrainer` message")
        .await;

    let mut huge = stranger();
    huge.write_all(&u32::MAX.to_le_bytes()).unwrap();
    setup.rejected("a frame of 4294967295 bytes").await;

    let mut hasty = stranger();
    write(&mut hasty, from_trainer::Body::Next(say::Next {}));
    setup.rejected("its first message is no hello").await;

    let mut cut = stranger();
    cut.write_all(b"\x04\x00\x00\x00\xff").unwrap();
    drop(cut);
    setup.rejected("ended within a message").await;

    drop(stranger());
    setup.rejected("it left").await;

    let silent = stranger();
    setup.rejected("nothing came within 200ms").await;
    drop(silent);

    for token in ["1.0000", "", "99.abc", "no dot"] {
        let mut liar = stranger();
        write(&mut liar, from_trainer::Body::Hello(hello(token)));
        let refused = spawn_blocking(move || read(&mut liar)).await.unwrap();
        let say::from_agent::Body::Refused(refused) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(refused.message, "the trainer's token is not valid here");
    }
    setup.rejected("a token that is not valid here").await;

    let expected = setup.listener.expect().unwrap();
    let mut newer = stranger();
    let future = say::Hello {
        protocol_min: 7,
        protocol_max: 9,
        ..hello(expected.token())
    };
    write(&mut newer, from_trainer::Body::Hello(future));
    let refused = spawn_blocking(move || read(&mut newer)).await.unwrap();
    let say::from_agent::Body::Refused(refused) = refused else {
        panic!("{refused:?}")
    };
    assert!(
        refused
            .message
            .contains("speaks bridge protocol 7 to 9, this agent speaks 1 to 1")
    );
    assert!(refused.hint.contains("install the agent's version"));
    setup.rejected("has firesteel 9.9").await;

    // A token is good for as long as it is expected.
    let token = expected.token().to_owned();
    drop(expected);
    let late = dial(&path, &token).await.unwrap().err().unwrap();
    assert!(matches!(late, ClientError::Refused { .. }), "{late:?}");

    let trainer = spawn_blocking(move || next_task(&client).round());
    assert_eq!(hear(&mut receiver).await, TrainerMessage::Next);
    sender.send_task(work(ModelSource::None)).await.unwrap();
    assert_eq!(trainer.await.unwrap(), Round(2));
}

#[tokio::test]
async fn a_trainer_that_misbehaves_later_is_dropped_with_a_reason() {
    let setup = Setup::new();
    for (bytes, words) in [
        (&b"\x01\x00\x00\x00\xff"[..], "not a `FromTrainer` message"),
        (&b"\xff\xff\xff\xff"[..], "a frame of 4294967295 bytes"),
        (&b"\x09\x00"[..], "ended within a message"),
    ] {
        let mut expected = setup.listener.expect().unwrap();
        let mut socket = UnixStream::connect(setup.listener.path()).unwrap();
        write(
            &mut socket,
            from_trainer::Body::Hello(hello(expected.token())),
        );
        let mut connection: Connection = within(expected.accept()).await;
        socket.write_all(bytes).unwrap();
        drop(socket);
        let error = within(connection.recv()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let mut expected = setup.listener.expect().unwrap();
    let mut socket = UnixStream::connect(setup.listener.path()).unwrap();
    write(
        &mut socket,
        from_trainer::Body::Hello(hello(expected.token())),
    );
    write(
        &mut socket,
        from_trainer::Body::Hello(hello(expected.token())),
    );
    let mut connection = within(expected.accept()).await;
    assert!(matches!(
        within(connection.recv()).await,
        Err(ConnectionError::Unexpected)
    ));
}

#[tokio::test]
async fn every_rank_may_come_and_a_trainer_may_come_back() {
    let setup = Setup::new();
    let mut expected = setup.listener.expect().unwrap();
    for rank in [0, 1, 0] {
        let mut socket = UnixStream::connect(setup.listener.path()).unwrap();
        write(
            &mut socket,
            from_trainer::Body::Hello(say::Hello {
                rank,
                ..hello(expected.token())
            }),
        );
        let connection = within(expected.accept()).await;
        assert_eq!((connection.rank(), connection.version()), (rank, "9.9"));
        assert_eq!(connection.pid(), std::process::id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_trainers_come_and_go() {
    let setup = Setup::new();
    let path = setup.listener.path().to_owned();
    let expected: Vec<_> = (0..2_000)
        .map(|_| setup.listener.expect().unwrap())
        .collect();
    let tokens: Vec<String> = expected
        .iter()
        .map(|expected| expected.token().to_owned())
        .collect();
    let trainers = spawn_blocking(move || {
        let mut open = Vec::new();
        for token in tokens {
            let mut socket = UnixStream::connect(&path).unwrap();
            write(&mut socket, from_trainer::Body::Hello(hello(&token)));
            write(&mut socket, from_trainer::Body::Bye(say::Bye {}));
            open.push(socket);
            // Within the usual limit of 1,024 open files, of which this process
            // holds both ends.
            if open.len() > 200 {
                open.clear();
            }
        }
    });
    for mut expected in expected {
        let mut connection = within(expected.accept()).await;
        assert_eq!(
            within(connection.recv()).await.unwrap(),
            Some(TrainerMessage::Bye)
        );
    }
    trainers.await.unwrap();
    assert_eq!(*setup.rejections.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn the_socket_is_private_short_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let bind = |parent: &Path| BridgeListener::bind(Some(parent), PATIENCE, |_| ()).unwrap();
    let listener = bind(folder.path());
    let path = listener.path().to_owned();
    let private = path.parent().unwrap().to_owned();
    assert_eq!(
        std::fs::metadata(&private).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(path.starts_with(folder.path()) && path.as_os_str().len() < 100);
    let clone = listener.clone();
    drop(listener);
    assert!(path.exists());
    drop(clone);
    assert!(!private.exists());

    // A place that is too deep is passed over for one that is not.
    let deep: PathBuf = folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let listener = bind(&deep);
    assert!(!listener.path().starts_with(&deep));
    assert!(listener.path().as_os_str().len() < 100);
}

#[tokio::test]
async fn what_a_killed_agent_left_behind_is_swept_away() {
    let folder = tempfile::tempdir().unwrap();
    let bind = || BridgeListener::bind(Some(folder.path()), PATIENCE, |_| ()).unwrap();
    let living = bind();
    let dead = folder.path().join("firesteel-0123456789abcdef");
    std::fs::create_dir(&dead).unwrap();
    std::fs::set_permissions(&dead, PermissionsExt::from_mode(0o700)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dead.join("bridge")).unwrap());
    let foreign = folder.path().join("firesteel-notes");
    std::fs::create_dir(&foreign).unwrap();
    let another = bind();
    assert!(!dead.exists());
    assert!(foreign.exists() && living.path().exists() && another.path().exists());
}
