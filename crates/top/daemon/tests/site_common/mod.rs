//! A server that does what a test says, and sites that connect to it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firesteel_base::Durations;
use firesteel_daemon::site::{self, SiteError, SiteRun};
use firesteel_net::{
    BoxStream, Identity, Kind, Listener, Options, Reader, Session, Writer, read_one, split,
    write_one,
};
use firesteel_observe::ConsoleStyle;
use firesteel_pki::bundle::{self, Draft};
use firesteel_pki::{Kit, Project, Signer, provision};
use firesteel_rig::Proxy;
pub use firesteel_rig::wait::{alive, gone, until, within};
use firesteel_wire::control;
use firesteel_wire::node::{
    self, BundleIs, BundleWanted, Deploy, Start, Stop, ToNode, ToServer, to_node, to_server,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

const PROJECT: &str = "
api_version: 3
name: study
participants:
  - {name: server.test, type: server, org: example, fed_learn_port: 8002, host_names: [localhost, 127.0.0.1]}
  - {name: site-1, type: client, org: north}
  - {name: ann@north.org, type: admin, org: north, role: lead}
";

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub server: Server,
    pub proxy: Proxy,
}

impl Bench {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::parse(PROJECT, Path::new("project.yml")).unwrap();
        provision(
            &project,
            &dir.path().join("kits"),
            &dir.path().join("state"),
        )
        .unwrap();
        let server = Server::start(&dir.path().join("kits/server.test"), dir.path()).await;
        let proxy = Proxy::start(server.address).await.unwrap();
        let bench = Self { dir, server, proxy };
        bench.configure("");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn workspace(&self) -> PathBuf {
        self.path("workspace")
    }

    pub fn work(&self, job: &str) -> PathBuf {
        self.workspace().join("jobs").join(job).join("work")
    }

    /// Writes `site.toml` with this below what every test needs.
    pub fn configure(&self, more: &str) {
        let address = self.proxy.address();
        let text = format!(
            "workspace = {:?}\n{more}\n[network]\nhost = \"127.0.0.1\"\nport = {}\n",
            self.workspace(),
            address.port()
        );
        std::fs::write(self.path("kits/site-1/site.toml"), text).unwrap();
    }

    pub fn site(&self) -> Site {
        let (stop, stopped) = watch::channel(None);
        let durations = Durations {
            connect: Duration::from_secs(10),
            stop_grace: Duration::from_millis(500),
            drain: Duration::from_secs(2),
            ..Durations::default()
        };
        let mut net = Options::default();
        net.durations = durations;
        let run = SiteRun {
            kit: Kit::open(self.path("kits/site-1")).unwrap(),
            binary: env!("CARGO_BIN_EXE_firesteel-processes-for-daemon-tests").into(),
            log: Some("debug".into()),
            console: ConsoleStyle::Off,
            durations,
            net,
        };
        Site {
            stop,
            task: tokio::spawn(site::run(run, stopped)),
        }
    }

    /// A bundle of this spec and code, which the server has from now on.
    pub fn bundle(&self, job: &str, spec: &Value, code: &[(&str, &str)]) -> Deploy {
        let folder = self.path(&format!("code-{job}"));
        std::fs::create_dir_all(&folder).unwrap();
        let files: Vec<(String, PathBuf)> = code
            .iter()
            .map(|(name, text)| {
                let path = folder.join(name);
                std::fs::write(&path, text).unwrap();
                ((*name).to_owned(), path)
            })
            .collect();
        let kit = Kit::open(self.path("kits/ann@north.org")).unwrap();
        let signer = Signer::from_kit(&kit).unwrap();
        let text = spec.to_string();
        let draft = Draft {
            project: "study",
            spec: text.as_bytes(),
            code: &files,
            initial: None,
            submit_key: None,
        };
        let mut bytes = Vec::new();
        let written = bundle::write(&draft, &signer, &mut bytes).unwrap();
        let sha256 = from_hex(&written.sha256);
        self.server.shared.lock().unwrap().bundles.push(Held {
            job: job.to_owned(),
            bytes: bytes.into(),
            sha256: sha256.clone(),
        });
        Deploy {
            job: job.to_owned(),
            attempt: 1,
            name: "test".into(),
            bundle_length: written.length,
            bundle_sha256: sha256.into(),
            ..Deploy::default()
        }
    }

    /// A job without trainers.
    pub fn noop(&self, job: &str) -> Deploy {
        self.bundle(job, &noop(), &[])
    }

    /// A job whose trainer does what `script` says (see the agent's tests).
    pub fn scripted(&self, job: &str, script: &str) -> Deploy {
        self.bundle(job, &scripted(), &[("client.txt", script)])
    }
}

pub fn noop() -> Value {
    json!({
        "version": 1, "name": "test",
        "algorithm": {"kind": "fedavg", "num_rounds": 1},
        "sites": ["site-1"], "min_clients": 1,
        "trainer": {"script": "", "mode": "noop"},
    })
}

pub fn scripted() -> Value {
    let binary = env!("CARGO_BIN_EXE_firesteel-processes-for-daemon-tests");
    json!({
        "version": 1, "name": "test",
        "algorithm": {"kind": "fedavg", "num_rounds": 3},
        "sites": ["site-1"], "min_clients": 1,
        "trainer": {"script": "client.txt", "mode": "external", "command": [binary, "train"]},
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

pub struct Site {
    pub stop: watch::Sender<Option<String>>,
    pub task: JoinHandle<Result<(), SiteError>>,
}

impl Site {
    pub async fn stop(self) -> Result<(), SiteError> {
        self.stop.send_replace(Some("the test is over".into()));
        within(self.task).await.unwrap()
    }

    /// As a kill would, as far as that is possible within a process.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

struct Held {
    job: String,
    bytes: bytes::Bytes,
    sha256: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    bundles: Vec<Held>,
    /// Bundles are asked for and none is given.
    withhold: bool,
    /// Bytes asked for from, in order.
    offsets: Vec<u64>,
    logs: usize,
}

pub struct Server {
    pub address: std::net::SocketAddr,
    listener: Arc<Listener>,
    shared: Arc<Mutex<Shared>>,
    logs: PathBuf,
}

impl Server {
    async fn start(kit: &Path, dir: &Path) -> Self {
        let kit = Kit::open(kit).unwrap();
        let identity = Identity::from_files(&kit.identity_files()).unwrap();
        let address = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let listener = Listener::bind(address, identity, Options::default())
            .await
            .unwrap();
        Self {
            address: listener.local_address(),
            listener: Arc::new(listener),
            shared: Arc::default(),
            logs: dir.join("logs"),
        }
    }

    pub fn withhold(&self, withhold: bool) {
        self.shared.lock().unwrap().withhold = withhold;
    }

    pub fn offsets(&self) -> Vec<u64> {
        self.shared.lock().unwrap().offsets.clone()
    }

    /// Streams of logs that sites have opened.
    pub fn log_streams(&self) -> usize {
        self.shared.lock().unwrap().logs
    }

    /// Spoils a bundle: a byte of it is another.
    pub fn spoil(&self, job: &str) {
        let mut shared = self.shared.lock().unwrap();
        let held = shared
            .bundles
            .iter_mut()
            .find(|held| held.job == job)
            .unwrap();
        let mut bytes = held.bytes.to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        held.bytes = bytes.into();
    }

    /// Has another server's bundle.
    pub fn lend(&self, job: &str, from: &Self) {
        let theirs = from.shared.lock().unwrap();
        let held = theirs.bundles.iter().find(|held| held.job == job).unwrap();
        let lent = Held {
            job: held.job.clone(),
            bytes: held.bytes.clone(),
            sha256: held.sha256.clone(),
        };
        drop(theirs);
        self.shared.lock().unwrap().bundles.push(lent);
    }

    /// Refuses the next site for good.
    pub async fn refuse(&self, reason: &str) {
        let session = within(self.listener.accept()).await.unwrap();
        let (mut reader, mut writer) = split(session.control().unwrap());
        within(reader.next::<ToServer>("ToServer")).await.unwrap();
        let refused = node::Refused {
            reason: reason.into(),
            retry: false,
        };
        let body = Some(to_node::Body::Refused(refused));
        writer.send(&ToNode { body }).await.unwrap();
        within(session.closed()).await;
    }

    /// What has arrived of a log; of the site's own for an empty name.
    pub fn log(&self, job: &str) -> String {
        std::fs::read_to_string(self.logs.join(format!("{job}.log"))).unwrap_or_default()
    }

    pub async fn logged(&self, job: &str, words: &str) {
        until(|| self.log(job).contains(words).then_some(())).await;
    }

    /// The next site, welcomed.
    pub async fn meet(&self) -> Met {
        let session = loop {
            // A connection that was cut during its handshake is none.
            if let Ok(session) = within(self.listener.accept()).await {
                break session;
            }
        };
        let (mut reader, mut writer) = split(session.control().unwrap());
        let hello = match within(reader.next::<ToServer>("ToServer")).await {
            Ok(Some(ToServer {
                body: Some(to_server::Body::Hello(hello)),
            })) => hello,
            other => panic!("{other:?} instead of a hello"),
        };
        let welcome = node::Welcome {
            protocol: 1,
            build: "test".into(),
            instance: 7,
            clock: 0,
        };
        let body = Some(to_node::Body::Welcome(welcome));
        writer.send(&ToNode { body }).await.unwrap();
        let (said, heard) = mpsc::channel(4096);
        let listening = tokio::spawn(async move {
            while let Ok(Some(message)) = reader.next::<ToServer>("ToServer").await {
                let Some(body) = message.body else { continue };
                if said.send(body).await.is_err() {
                    return;
                }
            }
        });
        let (shared, logs) = (Arc::clone(&self.shared), self.logs.clone());
        let accepting = session.clone();
        let streams = tokio::spawn(async move {
            while let Some((kind, stream)) = accepting.accept().await {
                let (shared, logs) = (Arc::clone(&shared), logs.clone());
                if kind == Kind::BUNDLE {
                    tokio::spawn(serve_bundle(stream, shared));
                } else if kind == Kind::LOGS {
                    shared.lock().unwrap().logs += 1;
                    let place = move |job: Option<&str>| {
                        Ok(logs.join(format!("{}.log", job.unwrap_or_default())))
                    };
                    tokio::spawn(firesteel_daemon::logs::receive(stream, place));
                }
            }
        });
        Met {
            hello,
            session,
            writer,
            heard,
            other: VecDeque::new(),
            tasks: vec![listening, streams],
        }
    }
}

async fn serve_bundle(mut stream: BoxStream, shared: Arc<Mutex<Shared>>) {
    let wanted = read_one::<BundleWanted>(&mut stream, "BundleWanted", 4096).await;
    let Ok(Some(wanted)) = wanted else { return };
    let (withhold, is, rest) = {
        let mut shared = shared.lock().unwrap();
        shared.offsets.push(wanted.offset);
        let Some(held) = shared.bundles.iter().find(|held| held.job == wanted.job) else {
            return;
        };
        let is = BundleIs {
            length: held.bytes.len() as u64,
            sha256: held.sha256.clone().into(),
            refused: String::new(),
        };
        let offset = usize::try_from(wanted.offset).unwrap();
        (shared.withhold, is, held.bytes.slice(offset..))
    };
    if withhold {
        return std::future::pending().await;
    }
    if write_one(&mut stream, &is).await.is_ok() {
        let _ = stream.write_all(&rest).await;
        let _ = stream.shutdown().await;
    }
}

/// A site that has connected.
pub struct Met {
    pub hello: node::Hello,
    pub session: Session,
    writer: Writer,
    heard: mpsc::Receiver<to_server::Body>,
    other: VecDeque<to_server::Body>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Met {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Met {
    pub async fn say(&mut self, body: to_node::Body) {
        let message = ToNode { body: Some(body) };
        self.writer.send(&message).await.unwrap();
    }

    /// The next message that `pick` takes; the others wait.
    pub async fn hear<T>(&mut self, pick: impl Fn(&to_server::Body) -> Option<T>) -> T {
        let waiting = self.other.iter().position(|body| pick(body).is_some());
        if let Some(at) = waiting {
            let body = self.other.remove(at).unwrap();
            return pick(&body).unwrap();
        }
        loop {
            let body = within(self.heard.recv()).await.expect("the site has gone");
            match pick(&body) {
                Some(picked) => return picked,
                None => self.other.push_back(body),
            }
        }
    }

    pub async fn deploy(&mut self, deploy: &Deploy) {
        self.say(to_node::Body::Deploy(deploy.clone())).await;
    }

    pub async fn ready(&mut self, job: &str) -> node::Ready {
        self.hear(|body| match body {
            to_server::Body::Ready(ready) if ready.job == job => Some(ready.clone()),
            to_server::Body::Declined(declined) if declined.job == job => panic!("{declined:?}"),
            _ => None,
        })
        .await
    }

    pub async fn declined(&mut self, job: &str) -> node::Declined {
        self.hear(|body| match body {
            to_server::Body::Declined(declined) if declined.job == job => Some(declined.clone()),
            to_server::Body::Ready(ready) if ready.job == job => panic!("{ready:?}"),
            _ => None,
        })
        .await
    }

    pub async fn started(&mut self, job: &str) {
        self.hear(|body| match body {
            to_server::Body::Started(started) if started.job == job => Some(()),
            _ => None,
        })
        .await;
    }

    pub async fn ended(&mut self, job: &str) -> node::Ended {
        self.hear(|body| match body {
            to_server::Body::Ended(ended) if ended.job == job => Some(ended.clone()),
            _ => None,
        })
        .await
    }

    pub async fn start(&mut self, job: &str) {
        self.say(to_node::Body::Start(Start { job: job.into() }))
            .await;
    }

    pub async fn stop(&mut self, job: &str, forget: bool) {
        let stop = Stop {
            job: job.into(),
            reason: "the test says so".into(),
            forget,
        };
        self.say(to_node::Body::Stop(stop)).await;
    }

    /// Asks something as a lead of the site's organization; the answer and whether
    /// it is an error.
    pub async fn ask(&mut self, request: Value) -> (Value, bool) {
        self.ask_as(request, "lead", "north").await
    }

    pub async fn ask_as(&mut self, request: Value, role: &str, org: &str) -> (Value, bool) {
        static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let id = 1 + LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ask = node::Ask {
            id,
            request: request.to_string().into(),
            name: "ann@north.org".into(),
            organization: org.into(),
            role: role.into(),
        };
        self.say(to_node::Body::Ask(ask)).await;
        self.hear(|body| match body {
            to_server::Body::Answer(answer) if answer.id == id => {
                Some((serde_json::from_slice(&answer.body).unwrap(), answer.error))
            }
            _ => None,
        })
        .await
    }

    /// Deploys and starts a job, and meets its agent.
    pub async fn begin(&mut self, deploy: &Deploy, spec: &Value) -> AtSite {
        self.deploy(deploy).await;
        self.ready(&deploy.job).await;
        let scope = self.session.scope(&deploy.job).unwrap();
        self.start(&deploy.job).await;
        self.started(&deploy.job).await;
        AtSite::meet(scope, &deploy.job, spec).await
    }

    pub fn scope(&self, job: &str) -> Session {
        self.session.scope(job).unwrap()
    }
}

/// A job's agent at the site.
pub struct AtSite {
    pub hello: control::Hello,
    pub scope: Session,
    reader: Reader,
    writer: Writer,
}

impl AtSite {
    pub async fn meet(scope: Session, job: &str, spec: &Value) -> Self {
        let control = within(scope.accept_control())
            .await
            .expect("no control stream");
        let (mut reader, mut writer) = split(control);
        let hello = match within(reader.next::<control::ToServer>("ToServer")).await {
            Ok(Some(control::ToServer {
                body: Some(control::to_server::Body::Hello(hello)),
            })) => hello,
            other => panic!("{other:?} instead of a hello"),
        };
        for body in [
            control::to_site::Body::Welcome(control::Welcome {
                protocol: 1,
                build: "test".into(),
                lease_epoch: 5,
            }),
            control::to_site::Body::StartJob(control::StartJob {
                job: job.into(),
                spec: spec.to_string().into(),
                seed: 1,
                ..control::StartJob::default()
            }),
        ] {
            writer
                .send(&control::ToSite { body: Some(body) })
                .await
                .unwrap();
        }
        Self {
            hello,
            scope,
            reader,
            writer,
        }
    }

    pub async fn say(&mut self, body: control::to_site::Body) {
        let message = control::ToSite { body: Some(body) };
        self.writer.send(&message).await.unwrap();
    }

    pub async fn hear<T>(&mut self, pick: impl Fn(&control::to_server::Body) -> Option<T>) -> T {
        loop {
            let message = within(self.reader.next::<control::ToServer>("ToServer")).await;
            let body = message.unwrap().expect("the agent has gone").body;
            if let Some(picked) = body.as_ref().and_then(&pick) {
                return picked;
            }
        }
    }

    pub async fn assign(&mut self, round: u32, model: Option<&[u8]>) {
        let model = model.map(|bytes| control::Object {
            inline: Some(bytes::Bytes::copy_from_slice(bytes)),
            length: bytes.len() as u64,
            ..control::Object::default()
        });
        let key = control::Key {
            site: "site-1".into(),
            round,
            attempt: 0,
        };
        self.say(control::to_site::Body::Assign(control::Assign {
            key: Some(key),
            task: "train".into(),
            model,
            total_rounds: 3,
            ..control::Assign::default()
        }))
        .await;
    }

    pub async fn update(&mut self) -> control::Update {
        self.hear(|body| match body {
            control::to_server::Body::Update(update) => Some(update.clone()),
            control::to_server::Body::TaskFailed(failed) => panic!("{failed:?}"),
            _ => None,
        })
        .await
    }

    pub async fn training(&mut self) {
        self.hear(|body| match body {
            control::to_server::Body::TaskProgress(progress)
                if progress.state() == control::TaskState::Training =>
            {
                Some(())
            }
            control::to_server::Body::TaskFailed(failed) => panic!("{failed:?}"),
            _ => None,
        })
        .await;
    }

    pub async fn commit(&mut self, round: u32) {
        let committed = control::RoundCommitted { round };
        self.say(control::to_site::Body::RoundCommitted(committed))
            .await;
    }

    pub async fn end(&mut self) {
        self.say(control::to_site::Body::EndJob(control::EndJob {
            reason: "the job is done".into(),
            abort: false,
        }))
        .await;
        self.hear(|body| match body {
            control::to_server::Body::Stopped(_) => Some(()),
            _ => None,
        })
        .await;
    }
}
