//! An agent with a real supervisor and real trainers, and a server that says what
//! it is told to.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use firesteel_rig::models::{model, values_in};
pub use firesteel_rig::wait::{PATIENCE, alive, until, within};

use bytes::Bytes;
use firesteel_agent::{Agent, AgentError, AgentParts, Launch, Slots};
use firesteel_base::{Durations, Failure, SiteName};
use firesteel_bridge::BridgeListener;
use firesteel_carry::{Connection, Local, Once};
use firesteel_launch::{Supervisor, SupervisorConfig};
use firesteel_net::{Reader, Writer, pipe, split};
use firesteel_observe::{Console, LogConfig, Logs};
use firesteel_store::{ModelObject, Objects};
use firesteel_wire::control::{
    Assign, Cancel, EndJob, Key, Object, StartJob, TaskState, ToServer, ToSite, Update, Welcome,
    to_server, to_site,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub const PROCESSES: &str = env!("CARGO_BIN_EXE_firesteel-processes-for-agent-tests");

pub fn inline(bytes: Vec<u8>) -> Object {
    Object {
        length: bytes.len() as u64,
        inline: Some(Bytes::from(bytes)),
        id: 0,
    }
}

pub fn stored(object: &ModelObject) -> Object {
    Object {
        inline: None,
        id: object.id().0,
        length: object.len(),
    }
}

/// Everything around an agent that is not the agent.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub supervisor: Supervisor,
    pub listener: BridgeListener,
    pub objects: Objects,
    pub slots: Slots,
    pub logs: Logs,
    pub durations: Durations,
    pub per_task: bool,
    pub command: Vec<String>,
    pub change: fn(&mut Value),
    pub resume_round: Option<u32>,
    pub attached: Option<PathBuf>,
}

impl Bench {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let durations = Durations {
            connect: Duration::from_secs(5),
            drain: Duration::from_millis(500),
            trainer_start: Duration::from_secs(15),
            stop_grace: Duration::from_millis(300),
            ..Durations::default()
        };
        let config = SupervisorConfig {
            binary: PROCESSES.into(),
            python: None,
            preload: Vec::new(),
            env: Default::default(),
            reuse: false,
            die_with_agent: true,
            stop_grace: durations.stop_grace,
        };
        let supervisor = Supervisor::start(config, |_| {}).await.unwrap();
        let listener =
            BridgeListener::bind(Some(folder.path()), durations.connect, |_| {}).unwrap();
        let objects = Objects::open(&folder.path().join("objects")).unwrap();
        let config = LogConfig::resolve(None, Some("verbose"), |_| None).unwrap();
        Self {
            supervisor,
            listener,
            objects,
            slots: Slots::new(1, &[]),
            logs: Logs::open(folder.path(), config, Console::off()),
            durations,
            per_task: false,
            command: [PROCESSES, "train"].map(str::to_owned).to_vec(),
            change: |_| {},
            resume_round: None,
            attached: None,
            folder,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn outbox(&self) -> PathBuf {
        self.path("outbox-site-1")
    }

    pub fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    pub async fn exists(&self, name: &str) {
        until(|| self.path(name).exists().then_some(())).await;
    }

    /// The process ids that trainers wrote with `lines pids`.
    pub fn pids(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.path("pids")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Waits until no trainer that wrote its id is left.
    pub async fn all_gone(&self) {
        until(|| self.pids().iter().all(|&pid| !alive(pid)).then_some(())).await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log.txt")).unwrap_or_default()
    }

    pub async fn logged(&self, words: &str) {
        until(|| self.log().contains(words).then_some(())).await;
    }

    pub fn parts(&self, site: &str) -> AgentParts {
        AgentParts {
            site: SiteName::new(site).unwrap(),
            launch: match &self.attached {
                Some(path) => Launch::Attached(path.clone()),
                None => Launch::Supervised(self.supervisor.clone()),
            },
            listener: self.listener.clone(),
            slots: self.slots.clone(),
            per_task: self.per_task,
            objects: self.objects.clone(),
            streams: None,
            filters: Default::default(),
            carrier: Arc::new(Local::new(self.objects.clone())),
            instance: 0,
            kept: None,
            stop: None,
            outbox: self.path(&format!("outbox-{site}")),
            state_dir: self.path(&format!("state-{site}")),
            local: Default::default(),
            cwd: self.folder.path().to_owned(),
            logger: self.logs.logger("firesteel.agent"),
            durations: self.durations,
        }
    }

    pub fn spec(&self) -> Value {
        let mut spec = json!({
            "version": 1, "name": "test",
            "algorithm": {"kind": "fedavg", "num_rounds": 3},
            "sites": ["site-1", "site-2"], "min_clients": 1,
            "trainer": {
                "script": self.path("client.txt"), "mode": "external", "command": self.command,
            },
        });
        (self.change)(&mut spec);
        spec
    }

    /// An agent whose trainers do what `script` says, and its server.
    pub async fn agent(&self, script: &str) -> Server {
        std::fs::write(self.path("client.txt"), script).unwrap();
        self.agent_of("site-1").await
    }

    pub async fn agent_of(&self, site: &str) -> Server {
        let (near, far) = pipe(64 * 1024);
        let agent = tokio::spawn(Agent::run(
            self.parts(site),
            Box::new(Once::new(Connection::local(near))),
        ));
        let (reader, writer) = split(far);
        let mut server = Server {
            site: site.to_owned(),
            reader,
            writer: Some(writer),
            agent,
        };
        match server.next().await {
            Some(to_server::Body::Hello(hello)) => assert_eq!(hello.site, site),
            other => panic!("{other:?} instead of a hello"),
        }
        let welcome = Welcome {
            protocol: 1,
            build: "test".into(),
            lease_epoch: 1,
        };
        server.say(to_site::Body::Welcome(welcome)).await;
        let start = StartJob {
            job: "test".into(),
            spec: Bytes::from(self.spec().to_string()),
            seed: 7,
            resume_round: self.resume_round,
            ..StartJob::default()
        };
        server.say(to_site::Body::StartJob(start)).await;
        server
    }

    /// Whether a worker is free, now or soon.
    pub async fn slot_comes_back(&self) {
        drop(within(self.slots.acquire()).await);
    }
}

pub fn kill(pid: u32) {
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(killed.unwrap().success());
}

/// The server of one site, as far as its agent can tell.
pub struct Server {
    pub site: String,
    pub reader: Reader,
    pub writer: Option<Writer>,
    pub agent: JoinHandle<Result<(), AgentError>>,
}

impl Server {
    pub async fn say(&mut self, body: to_site::Body) {
        let message = ToSite { body: Some(body) };
        within(self.writer.as_mut().unwrap().send(&message))
            .await
            .unwrap();
    }

    pub async fn next(&mut self) -> Option<to_server::Body> {
        let message: Option<ToServer> = within(self.reader.next("ToServer")).await.unwrap();
        message.map(|message| message.body.expect("a message of this version"))
    }

    pub fn key(&self, round: u32, attempt: u32) -> Key {
        Key {
            round,
            site: self.site.clone(),
            attempt,
        }
    }

    pub async fn assign(&mut self, round: u32, attempt: u32, model: Option<Object>) {
        let assign = Assign {
            key: Some(self.key(round, attempt)),
            task: "train".into(),
            model,
            total_rounds: 3,
            ..Assign::default()
        };
        self.say(to_site::Body::Assign(assign)).await;
    }

    pub async fn cancel(&mut self, round: u32, attempt: u32) {
        let cancel = Cancel {
            key: Some(self.key(round, attempt)),
            reason: "not wanted".into(),
        };
        self.say(to_site::Body::Cancel(cancel)).await;
    }

    /// Waits until the task has come into this state.
    pub async fn state(&mut self, state: TaskState) {
        loop {
            match self.next().await {
                Some(to_server::Body::TaskProgress(progress)) if progress.state() == state => {
                    return;
                }
                Some(to_server::Body::TaskProgress(_) | to_server::Body::TaskAccepted(_)) => {}
                other => panic!("{other:?} before {state:?}"),
            }
        }
    }

    pub async fn update(&mut self) -> Update {
        loop {
            match self.next().await {
                Some(to_server::Body::Update(update)) => return update,
                Some(to_server::Body::TaskProgress(_) | to_server::Body::TaskAccepted(_)) => {}
                other => panic!("{other:?} instead of an update"),
            }
        }
    }

    /// How the task in hand ends.
    pub async fn next_of_task(&mut self) -> Result<Update, Failure> {
        loop {
            match self.next().await {
                Some(to_server::Body::Update(update)) => return Ok(update),
                Some(to_server::Body::TaskFailed(failed)) => {
                    return Err(failed.failure.unwrap().into());
                }
                Some(to_server::Body::TaskProgress(_) | to_server::Body::TaskAccepted(_)) => {}
                other => panic!("{other:?} instead of an end"),
            }
        }
    }

    pub async fn failure(&mut self) -> Failure {
        self.failed().await.1
    }

    pub async fn failed(&mut self) -> (Key, Failure) {
        loop {
            match self.next().await {
                Some(to_server::Body::TaskFailed(failed)) => {
                    return (failed.key.unwrap(), failed.failure.unwrap().into());
                }
                Some(to_server::Body::TaskProgress(_) | to_server::Body::TaskAccepted(_)) => {}
                other => panic!("{other:?} instead of a failure"),
            }
        }
    }

    /// Ends the job; how many trainers had to be forced.
    pub async fn end(mut self, abort: bool) -> u32 {
        self.say(to_site::Body::EndJob(EndJob {
            reason: "it is over".into(),
            abort,
        }))
        .await;
        self.ended().await
    }

    pub async fn ended(mut self) -> u32 {
        let forced = loop {
            match self.next().await {
                Some(to_server::Body::Stopped(stopped)) => break stopped.forced,
                Some(_) => {}
                None => panic!("the agent left without a word"),
            }
        };
        assert!(self.next().await.is_none(), "nothing follows");
        within(self.agent).await.unwrap().unwrap();
        forced
    }
}

pub fn files_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}
