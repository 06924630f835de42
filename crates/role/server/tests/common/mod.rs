//! A server with a run directory of its own, and sites that say what they are told to.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use firesteel_rig::models::{model, model_of, values_in};
pub use firesteel_rig::wait::{PATIENCE, until, within};

use bytes::Bytes;
use firesteel_base::{Durations, Failure, JobId, Round, limits};
use firesteel_carry::{Connection, Local};
use firesteel_flow::Status;
use firesteel_net::{BoxStream, Reader, Writer, pipe, split};
use firesteel_observe::{Console, LogConfig, Logs, Progress};
use firesteel_server::{Job, JobError, JobParts, JobReport, Watch};
use firesteel_store::{ModelObject, Objects, RunDir};
use firesteel_wire::control::{
    Assign, FailureMessage, Hello, Key, Metric, Object, StartJob, Stopped, TaskFailed, ToServer,
    ToSite, Update, to_server, to_site,
};
use firesteel_wire::spec::JobSpec;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A job of `sites` sites named `site-1` and so on, each of which is needed, to
/// start at least.
pub fn job(sites: usize, rounds: u32) -> Value {
    let names: Vec<String> = (1..=sites).map(|n| format!("site-{n}")).collect();
    json!({
        "version": 1, "name": "test",
        "algorithm": {"kind": "fedavg", "num_rounds": rounds},
        "sites": names, "min_clients": sites, "seed": 7,
        "policy": {"quorum_start": sites},
        "trainer": {"script": "/none/client.py"},
    })
}

/// Where runs are kept, and how long things may take.
pub struct Place {
    pub root: tempfile::TempDir,
    pub durations: Durations,
}

impl Place {
    pub fn new() -> Self {
        let durations = Durations {
            connect: Duration::from_secs(5),
            stop_grace: Duration::from_secs(8),
            drain: Duration::from_secs(2),
            ..Durations::default()
        };
        Self {
            root: tempfile::tempdir().unwrap(),
            durations,
        }
    }

    /// The path of an initial model with these bytes.
    pub fn initial(&self, bytes: &[u8]) -> String {
        let path = self.root.path().join("initial.safetensors");
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn start(&self, spec: &Value) -> Server {
        self.run(spec, false)
    }

    pub fn resume(&self, spec: &Value) -> Server {
        self.run(spec, true)
    }

    fn run(&self, spec: &Value, resume: bool) -> Server {
        let spec = JobSpec::parse(spec.to_string().as_bytes()).unwrap();
        let text = String::from_utf8(spec.to_json()).unwrap();
        let root = self.root.path();
        let run = if resume {
            RunDir::open_latest(root, &spec.name, &text)
        } else {
            RunDir::create(root, &spec.name, &text)
        };
        let run = Arc::new(run.unwrap());
        let config = LogConfig::resolve(None, Some("full"), |_| None).unwrap();
        let logger = Logs::open(run.path(), config, Console::off()).logger("firesteel.test");
        let from = if resume {
            let latest = run.snapshots().unwrap().load_latest().unwrap();
            latest.map_or(Round(0), |latest| Round(latest.round.0 + 1))
        } else {
            Round(0)
        };
        let watch_parts = Watch::new(
            &logger,
            Progress::disabled(),
            Arc::clone(&run),
            &spec,
            self.durations,
            from,
        );
        let objects = run.objects().unwrap();
        let parts = JobParts {
            id: JobId::new(&spec.name).unwrap(),
            epoch: 1,
            seed: spec.seed.unwrap_or(1),
            spec,
            run: Arc::clone(&run),
            objects: objects.clone(),
            spool: None,
            carriers: {
                let objects = objects.clone();
                Box::new(move |_| Arc::new(Local::new(objects.clone())))
            },
            watch: watch_parts,
            durations: self.durations,
            threads: 2,
        };
        let (streams, incoming) = mpsc::channel(64);
        let (abort, abort_seen) = watch::channel(None);
        let (status_told, status) = watch::channel(None);
        let job = tokio::spawn(Job::run(parts, resume, incoming, abort_seen, status_told));
        Server {
            streams: Some(streams),
            abort,
            status,
            job,
            run,
            objects,
        }
    }
}

/// A job that is being driven.
pub struct Server {
    pub streams: Option<mpsc::Sender<Connection>>,
    pub abort: watch::Sender<Option<String>>,
    pub status: watch::Receiver<Option<Status>>,
    pub job: JoinHandle<Result<JobReport, JobError>>,
    pub run: Arc<RunDir>,
    pub objects: Objects,
}

impl Server {
    /// A new connection, over which nothing was said.
    pub async fn dial(&self, capacity: usize) -> (Reader, Writer) {
        split(self.stream(capacity).await)
    }

    pub async fn stream(&self, capacity: usize) -> BoxStream {
        let (near, far) = pipe(capacity);
        self.streams
            .as_ref()
            .unwrap()
            .send(Connection::local(far))
            .await
            .ok();
        near
    }

    /// A site that has joined.
    pub async fn site(&self, name: &str) -> Site {
        let (reader, writer) = self.dial(64 * 1024).await;
        let mut site = Site {
            name: name.to_owned(),
            reader,
            writer,
            start: None,
        };
        site.say(to_server::Body::Hello(hello(name))).await;
        loop {
            match site.next().await {
                Some(to_site::Body::StartJob(start)) => {
                    site.start = Some(start);
                    return site;
                }
                Some(to_site::Body::Welcome(_)) => {}
                other => panic!("{other:?} instead of a job"),
            }
        }
    }

    /// A site that answers every task with what `answer` makes of it.
    pub async fn worker(
        &self,
        name: &str,
        answer: impl FnMut(&Assign) -> Answer + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.site(name).await.work(answer))
    }

    /// How it ended.
    pub async fn report(self) -> JobReport {
        let Self {
            streams,
            abort,
            status,
            job,
            run,
            objects,
        } = self;
        let report = within(job).await.unwrap().unwrap();
        drop((streams, abort, status, run, objects));
        report
    }

    pub fn log(&self) -> String {
        log(&self.run)
    }

    pub async fn logged(&self, words: &str) {
        until(|| self.log().contains(words).then_some(())).await;
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.run.path().join(name)).unwrap()
    }
}

pub fn log(run: &RunDir) -> String {
    std::fs::read_to_string(run.path().join("log.txt")).unwrap_or_default()
}

pub fn summary(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("metrics/summary.json")).unwrap()).unwrap()
}

pub fn last_model(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("models/last.safetensors")).unwrap()
}

/// What a site says to a task.
pub enum Answer {
    Params(Vec<f32>),
    /// With a metric `accuracy`.
    Rated(Vec<f32>, f64),
    Bytes(Vec<u8>),
    Diff(Vec<u8>),
    Stored(ModelObject),
    Fail(Failure),
    Silence,
    Whole(Box<Update>),
}

/// A site, as far as the server can tell.
pub struct Site {
    pub name: String,
    pub reader: Reader,
    pub writer: Writer,
    pub start: Option<StartJob>,
}

pub fn hello(site: &str) -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        features: Vec::new(),
        build: "test".to_owned(),
        site: site.to_owned(),
        ..Hello::default()
    }
}

pub fn inline(bytes: Vec<u8>) -> Object {
    Object {
        length: bytes.len() as u64,
        inline: Some(Bytes::from(bytes)),
        id: 0,
    }
}

impl Site {
    pub async fn say(&mut self, body: to_server::Body) {
        within(self.writer.send(&ToServer { body: Some(body) }))
            .await
            .unwrap();
    }

    /// The next message; none at the end of the connection.
    pub async fn next(&mut self) -> Option<to_site::Body> {
        let message: Option<ToSite> = within(self.reader.next("ToSite")).await.unwrap();
        message.map(|message| message.body.expect("a message of this version"))
    }

    /// The next task; what comes before is passed over.
    pub async fn task(&mut self) -> Assign {
        loop {
            match self.next().await {
                Some(to_site::Body::Assign(assign)) => return assign,
                Some(_) => {}
                None => panic!("{}: the connection ended before a task came", self.name),
            }
        }
    }

    /// Waits for the job's end; whether it is to stop in the middle of its work.
    pub async fn end(&mut self) -> (String, bool) {
        loop {
            match self.next().await {
                Some(to_site::Body::EndJob(end)) => return (end.reason, end.abort),
                Some(_) => {}
                None => panic!("{}: the connection ended before the job did", self.name),
            }
        }
    }

    pub async fn update(&mut self, task: &Assign, bytes: Vec<u8>) {
        let update = Update {
            key: task.key.clone(),
            model: Some(inline(bytes)),
            ..Update::default()
        };
        self.say(to_server::Body::Update(update)).await;
    }

    pub async fn answer(&mut self, task: &Assign, answer: Answer) {
        let mut update = Update {
            key: task.key.clone(),
            ..Update::default()
        };
        match answer {
            Answer::Silence => return,
            Answer::Fail(failure) => {
                let failed = TaskFailed {
                    key: task.key.clone(),
                    failure: Some(FailureMessage::from(&failure)),
                };
                return self.say(to_server::Body::TaskFailed(failed)).await;
            }
            Answer::Whole(whole) => {
                update = Update {
                    key: task.key.clone(),
                    ..*whole
                }
            }
            Answer::Params(values) => update.model = Some(inline(model(&values))),
            Answer::Rated(values, accuracy) => {
                update.model = Some(inline(model(&values)));
                update.metrics.insert("accuracy".to_owned(), accuracy);
            }
            Answer::Bytes(bytes) => update.model = Some(inline(bytes)),
            Answer::Diff(bytes) => {
                update.model = Some(inline(bytes));
                update.diff = true;
            }
            Answer::Stored(object) => {
                assert!(object.len() > limits::INLINE_OBJECT as u64);
                let (id, length) = (object.id().0, object.len());
                update.model = Some(Object {
                    inline: None,
                    id,
                    length,
                });
                // Held as an agent holds it, until the round is committed.
                self.say(to_server::Body::Update(update)).await;
                loop {
                    match self.next().await {
                        Some(to_site::Body::RoundCommitted(_)) | None => return,
                        Some(_) => {}
                    }
                }
            }
        }
        self.say(to_server::Body::Update(update)).await;
    }

    /// Answers every task until the job ends, and says goodbye.
    pub async fn work(mut self, mut answer: impl FnMut(&Assign) -> Answer) {
        loop {
            match self.next().await {
                Some(to_site::Body::Assign(task)) => {
                    self.say(to_server::Body::TaskAccepted(task.key.clone().unwrap()))
                        .await;
                    let answer = answer(&task);
                    self.answer(&task, answer).await;
                }
                Some(to_site::Body::EndJob(_)) => return self.stop().await,
                Some(_) => {}
                None => return,
            }
        }
    }

    pub async fn stop(mut self) {
        self.say(to_server::Body::Stopped(Stopped { forced: 0 }))
            .await;
        self.writer.close().await.unwrap();
    }

    pub async fn metric(&mut self, event: &str) {
        self.say(to_server::Body::Metric(Metric {
            event: event.to_owned(),
        }))
        .await;
    }
}

/// The same work of another site.
pub fn key_of(task: &Assign, site: &str) -> Key {
    Key {
        site: site.to_owned(),
        ..task.key.clone().unwrap()
    }
}
