//! Connections that are lost and made anew, agents that are started anew, and jobs
//! that a site cannot take.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, too"
)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{Bench, Server, inline, model, values_in, within};
use firesteel_agent::{Agent, AgentError, AgentParts};
use firesteel_base::FailureCode;
use firesteel_carry::{Connection, Dial, Dialing};
use firesteel_net::{BoxStream, pipe, split};
use firesteel_wire::control::{
    Hello, RoundCommitted, StartJob, TaskState, Welcome, to_server, to_site,
};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// Connections are pipes, whose other ends a test takes.
struct Pipes(mpsc::Sender<BoxStream>);

impl Dial for Pipes {
    fn dial(&mut self) -> Dialing<'_> {
        Box::pin(async {
            let (near, far) = pipe(64 * 1024);
            let sent = self.0.send(far).await;
            sent.map_err(|_| std::io::ErrorKind::ConnectionRefused)?;
            Ok(Connection::local(near))
        })
    }
}

/// An agent that comes back, and what it dials.
struct Returning {
    dialed: Arc<Mutex<mpsc::Receiver<BoxStream>>>,
    agent: Option<JoinHandle<Result<(), AgentError>>>,
}

fn returning(bench: &Bench, instance: u64) -> Returning {
    let (dial, dialed) = mpsc::channel(1);
    let parts = AgentParts {
        instance,
        kept: Some(bench.path("kept")),
        ..bench.parts("site-1")
    };
    Returning {
        dialed: Arc::new(Mutex::new(dialed)),
        agent: Some(tokio::spawn(Agent::run(parts, Box::new(Pipes(dial))))),
    }
}

impl Returning {
    /// Takes its next connection, of a server process with this epoch.
    async fn meet(&mut self, bench: &Bench, epoch: u64, start: StartJob) -> (Server, Hello) {
        let mut dialed = self.dialed.lock().await;
        let stream = within(dialed.recv()).await.unwrap();
        let (reader, writer) = split(stream);
        let agent = self
            .agent
            .take()
            .unwrap_or_else(|| tokio::spawn(async { Ok(()) }));
        let mut server = Server {
            site: "site-1".into(),
            reader,
            writer: Some(writer),
            agent,
        };
        let Some(to_server::Body::Hello(hello)) = server.next().await else {
            panic!("no hello");
        };
        let welcome = Welcome {
            protocol: 1,
            build: "test".into(),
            lease_epoch: epoch,
        };
        server.say(to_site::Body::Welcome(welcome)).await;
        let start = StartJob {
            job: "test".into(),
            spec: Bytes::from(bench.spec().to_string()),
            seed: 7,
            ..start
        };
        server.say(to_site::Body::StartJob(start)).await;
        (server, hello)
    }
}

fn script(bench: &Bench, text: &str) {
    std::fs::write(bench.path("client.txt"), text).unwrap();
}

#[tokio::test]
async fn work_goes_on_without_a_connection_and_its_result_is_offered_over_the_next() {
    let bench = Bench::new().await;
    script(
        &bench,
        "lines pids\nconnect\nnext\ntouch here\nwait go\nsend 1\nserve 1",
    );
    let mut site = returning(&bench, 5);
    let (mut server, hello) = site.meet(&bench, 9, StartJob::default()).await;
    assert_eq!((hello.instance, hello.lease_epoch), (5, 0));
    server.assign(0, 0, Some(inline(model(&[10.0])))).await;
    server.state(TaskState::Training).await;
    bench.exists("here").await;
    // The connection is cut, and the trainer ends its work meanwhile.
    let Server {
        agent,
        reader,
        writer,
        ..
    } = server;
    drop((reader, writer));
    site.agent = Some(agent);
    bench.touch("go");
    let (mut server, hello) = site.meet(&bench, 9, StartJob::default()).await;
    assert_eq!((hello.instance, hello.lease_epoch), (5, 9));
    let update = server.update().await;
    assert_eq!(update.key, Some(server.key(0, 0)));
    let sent = values_in(&update.model.unwrap().inline.unwrap());
    // Told again what it had been asked for, it offers the same.
    server.assign(0, 0, Some(inline(model(&[10.0])))).await;
    let again = server.update().await;
    assert_eq!(values_in(&again.model.unwrap().inline.unwrap()), sent);
    assert_eq!(bench.pids().len(), 1, "it was trained once");
    server
        .say(to_site::Body::RoundCommitted(RoundCommitted { round: 0 }))
        .await;
    server.end(false).await;
}

#[tokio::test]
async fn an_agent_started_anew_offers_what_the_last_one_held() {
    let bench = Bench::new().await;
    script(&bench, "lines pids\nconnect\nserve 1");
    let mut site = returning(&bench, 5);
    let (mut server, _) = site.meet(&bench, 9, StartJob::default()).await;
    server
        .assign(0, 0, Some(inline(model(&[10.0; 50_000]))))
        .await;
    let update = server.update().await;
    server.agent.abort();
    assert!(within(server.agent).await.unwrap_err().is_cancelled());

    let mut site = returning(&bench, 6);
    let (mut server, hello) = site.meet(&bench, 9, StartJob::default()).await;
    assert_eq!((hello.instance, hello.lease_epoch), (6, 9));
    assert_eq!(hello.holds, [server.key(0, 0)]);
    let again = server.update().await;
    assert_eq!(again.key, update.key);
    let (was, is) = (update.model.unwrap(), again.model.unwrap());
    assert_eq!(was.length, is.length);
    server
        .say(to_site::Body::RoundCommitted(RoundCommitted { round: 0 }))
        .await;
    server.agent.abort();
    let _ = within(server.agent).await;

    // Another server process knows nothing of it.
    let mut site = returning(&bench, 7);
    let (mut server, _) = site.meet(&bench, 10, StartJob::default()).await;
    server.assign(0, 0, None).await;
    server.state(TaskState::Starting).await;
    server.end(true).await;
}

#[tokio::test]
async fn state_of_a_try_that_no_round_came_of_is_cleared() {
    let bench = Bench::new().await;
    script(&bench, "connect\nserve 1");
    let kept = bench.path("state-site-1");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(kept.join("r000000.safetensors"), "old").unwrap();
    let mut site = returning(&bench, 5);
    let (server, _) = site.meet(&bench, 9, StartJob::default()).await;
    server.end(false).await;
    assert!(!kept.join("r000000.safetensors").exists());
}

#[tokio::test]
async fn a_site_without_room_declines_the_job_and_says_how_much_is_missing() {
    let bench = Bench::new().await;
    script(&bench, "connect\nserve 1");
    let mut site = returning(&bench, 5);
    let start = StartJob {
        model_length: 1 << 50,
        ..StartJob::default()
    };
    let (mut server, _) = site.meet(&bench, 9, start).await;
    let Some(to_server::Body::Declined(declined)) = server.next().await else {
        panic!("it took the job");
    };
    let failure = firesteel_base::Failure::from(declined.failure.unwrap());
    assert_eq!(failure.code, FailureCode::DiskFull);
    assert!(
        failure.message.contains("the site's directory"),
        "{failure}"
    );
    assert!(failure.message.contains("PiB"), "{failure}");
    let error = within(server.agent).await.unwrap().unwrap_err();
    assert!(matches!(error, AgentError::Declined(_)), "{error}");
}
