//! A server with real kits at a real port, and sites that do what they are told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use firesteel_api::job::Submitted;
use firesteel_api::{EventKind, JobDetail, JobState, Problem};
use firesteel_base::{Durations, JobId};
use firesteel_net::{
    Entrance, Front, FrontOptions, Kind, Options, Session, read_one, split, write_one,
};
use firesteel_observe::{Console, LogConfig};
use firesteel_pki::bundle::{self, Draft};
use firesteel_pki::{Kit, Project, Signer, provision};
use firesteel_policy::{Policy, Subject};
use firesteel_rig::models::model;
use firesteel_rig::wait::{PATIENCE, within};
use firesteel_wire::control::{self, Object, to_site};
use firesteel_wire::node::{
    BundleIs, BundleWanted, Declined, Deploy, Ended, Hello, InHand, Ready, Stage, Started, ToNode,
    ToServer, to_node, to_server,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::super::{Hub, Opened, ServerOptions, open};

/// Sites that have kits.
pub(super) const SITES: usize = 8;

/// The folder of the kits of one federation, made once.
fn kits() -> &'static Path {
    static KITS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, kits) = KITS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut text = "api_version: 3\nname: testing\nparticipants:\n\
             - {name: server.test, type: server, org: lab, fed_learn_port: 8002}\n\
             - {name: lead@lab.test, type: admin, org: lab, role: lead}\n\
             - {name: member@lab.test, type: admin, org: lab, role: member}\n"
            .to_owned();
        for number in 1..=SITES {
            text.push_str(&format!(
                "- {{name: site-{number}, type: client, org: clinic-{number}}}\n"
            ));
        }
        let project = Project::parse(&text, &dir.path().join("project.yml")).unwrap();
        let kits = dir.path().join("kits");
        provision::provision(&project, &kits, &dir.path().join("state")).unwrap();
        (dir, kits)
    });
    kits
}

pub(super) fn kit(name: &str) -> Kit {
    Kit::open(kits().join(name)).unwrap()
}

pub(super) fn lead() -> Subject {
    Signer::from_kit(&kit("lead@lab.test")).unwrap();
    subject("lead@lab.test")
}

pub(super) fn subject(name: &str) -> Subject {
    let kit = kit(name);
    Subject {
        name: kit.name().to_owned(),
        org: kit.org().to_owned(),
        role: kit.role(),
    }
}

/// A server.
pub(super) struct Bed {
    pub(super) hub: Hub,
    pub(super) address: SocketAddr,
    pub(super) dir: Arc<tempfile::TempDir>,
    durations: Durations,
    max_jobs: usize,
    stop: watch::Sender<Option<String>>,
    serving: JoinHandle<()>,
    accepting: AbortHandle,
}

/// Durations under which nothing runs out by itself on a busy machine.
pub(super) fn patient() -> Durations {
    Durations {
        connect: Duration::from_secs(5),
        idle: PATIENCE * 3,
        trainer_start: PATIENCE * 3,
        stop_grace: PATIENCE,
        drain: Duration::from_secs(2),
        ..Durations::default()
    }
}

impl Bed {
    pub(super) async fn new() -> Self {
        Self::with(patient(), 4).await
    }

    pub(super) async fn with(durations: Durations, max_jobs: usize) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::at(dir, durations, max_jobs).await
    }

    async fn at(dir: Arc<tempfile::TempDir>, durations: Durations, max_jobs: usize) -> Self {
        let kit = kit("server.test");
        let options = ServerOptions {
            name: kit.name().to_owned(),
            project: kit.project().to_owned(),
            authority: kit.authority().clone(),
            policy: Policy::standard(),
            workspace: dir.path().join("workspace"),
            max_jobs,
            max_sites: 100,
            accept_logs: true,
            threads: Some(1),
            log: LogConfig::resolve(None, Some("full"), |_| None).unwrap(),
            console: Console::off(),
            durations,
        };
        let (stop, stopped) = watch::channel(None);
        let Opened { hub, serving } = open(options, stopped).await.unwrap();
        let mut net = Options::default();
        net.durations = durations;
        let entrance = Entrance::new("127.0.0.1:0".parse().unwrap());
        let front = FrontOptions::new(vec![entrance], kit.identity().clone(), net);
        let front = Front::bind(front).await.unwrap();
        let address = front.local_addresses()[0];
        let taking = hub.clone();
        let accepting = tokio::spawn(async move {
            loop {
                if let Ok(session) = front.accept().await {
                    let hub = taking.clone();
                    tokio::spawn(async move { hub.serve(session).await });
                }
            }
        });
        Self {
            hub,
            address,
            dir,
            durations,
            max_jobs,
            stop,
            serving,
            accepting: accepting.abort_handle(),
        }
    }

    /// Ends the server and starts another one in its place.
    pub(super) async fn again(self) -> Self {
        let Self {
            hub,
            dir,
            durations,
            max_jobs,
            stop,
            serving,
            accepting,
            ..
        } = self;
        accepting.abort();
        stop.send_replace(Some("tested".to_owned()));
        within(serving).await.unwrap();
        drop(hub);
        let workspace = dir.path().join("workspace");
        // Tasks that hold the store are on their way out.
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match firesteel_jobs::Jobs::open(&workspace).await {
                Ok(_) => break,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self::at(dir, durations, max_jobs).await
    }

    /// The bundle of a job.
    pub(super) fn bundle(&self, spec: &Value, by: &str) -> PathBuf {
        let code = self.dir.path().join("client.py");
        std::fs::write(&code, "print('hello')\n").unwrap();
        let members = [("client.py".to_owned(), code)];
        let text = spec.to_string();
        let draft = Draft {
            project: "testing",
            spec: text.as_bytes(),
            code: &members,
            initial: None,
            submit_key: None,
        };
        let signer = Signer::from_kit(&kit(by)).unwrap();
        let mut bytes = Vec::new();
        bundle::write(&draft, &signer, &mut bytes).unwrap();
        let file = tempfile::NamedTempFile::new_in(self.hub.uploads()).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file.keep().unwrap().1
    }

    pub(super) async fn try_submit(
        &self,
        spec: &Value,
        key: Option<&str>,
    ) -> Result<Submitted, Problem> {
        let file = self.bundle(spec, "lead@lab.test");
        let by = lead();
        self.hub.submit(file, &by, key.map(str::to_owned)).await
    }

    pub(super) async fn submit(&self, spec: &Value) -> JobId {
        let submitted = self.try_submit(spec, None).await.unwrap();
        JobId::new(&submitted.id).unwrap()
    }

    pub(super) async fn job(&self, job: &JobId) -> JobDetail {
        self.hub.job(job).await.unwrap().expect("the job is there")
    }

    /// Waits until the job is as wanted.
    pub(super) async fn until(&self, job: &JobId, is: impl Fn(&JobDetail) -> bool) -> JobDetail {
        let deadline = tokio::time::Instant::now() + PATIENCE * 2;
        let mut changes = self.hub.watch();
        loop {
            changes.mark_unchanged();
            let detail = self.job(job).await;
            if is(&detail) {
                return detail;
            }
            let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
            if changed.is_err() {
                let log = self.dir.path().join("workspace/log.txt");
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("it stays at {detail:#?}\n{log}");
            }
        }
    }

    pub(super) async fn ended(&self, job: &JobId) -> JobDetail {
        self.until(job, |detail| detail.summary.state.is_terminal())
            .await
    }

    pub(super) async fn in_state(&self, job: &JobId, state: JobState) -> JobDetail {
        self.until(job, |detail| detail.summary.state == state)
            .await
    }

    /// The states that a job went through.
    pub(super) async fn states(&self, job: &JobId) -> Vec<String> {
        let events = self.hub.events(job, 0, 10_000).await.unwrap();
        for (at, event) in events.iter().enumerate() {
            assert_eq!(event.seq, at as u64 + 1, "numbers are without gaps");
        }
        let states = events.into_iter().filter_map(|event| match event.what {
            EventKind::State { state, .. } => Some(state.to_string()),
            _ => None,
        });
        states.collect()
    }

    pub(super) async fn site(&self, number: usize, manner: Manner) -> Stub {
        Stub::connect(self.address, number, manner, json!({"max_jobs": 100})).await
    }

    pub(super) async fn sites(&self, count: usize) -> Vec<Stub> {
        let mut sites = Vec::new();
        for number in 1..=count {
            sites.push(self.site(number, Manner::Good).await);
        }
        sites
    }
}

/// A job at these sites.
pub(super) fn spec(sites: &[usize], least: usize, rounds: u32) -> Value {
    let names: Vec<String> = sites
        .iter()
        .map(|number| format!("site-{number}"))
        .collect();
    json!({
        "version": 1, "name": "tested",
        "algorithm": {"kind": "fedavg", "num_rounds": rounds},
        "sites": names, "min_clients": least, "seed": 7,
        "trainer": {"script": "client.py"},
    })
}

/// How a site behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    /// Never answers a deploy.
    Deaf,
    /// Never starts.
    Lame,
    Declines,
    /// Takes tasks and never answers them.
    Slow,
    /// Says nothing when it is told to stop.
    Stubborn,
}

/// A site, as far as the server can tell.
pub(super) struct Stub {
    pub(super) name: String,
    address: SocketAddr,
    manner: Manner,
    facts: Value,
    /// The jobs that it has in hand.
    pub(super) hand: Arc<Mutex<BTreeMap<String, Stage>>>,
    task: AbortHandle,
    session: Session,
}

type Hand = Arc<Mutex<BTreeMap<String, Stage>>>;

impl Stub {
    pub(super) async fn connect(
        address: SocketAddr,
        number: usize,
        manner: Manner,
        facts: Value,
    ) -> Self {
        let hand = Hand::default();
        Self::join(address, format!("site-{number}"), manner, facts, hand).await
    }

    async fn join(
        address: SocketAddr,
        name: String,
        manner: Manner,
        facts: Value,
        hand: Hand,
    ) -> Self {
        let kit = kit(&name);
        let mut options = Options::default();
        options.durations = patient();
        let server = kit.config().server.clone();
        let address_text = address.to_string();
        let dialed = firesteel_net::dial(&address_text, &server, kit.identity(), options);
        let session = within(dialed).await.unwrap();
        let (welcomed, mut welcome) = watch::channel(false);
        let site = Site {
            name: name.clone(),
            session: session.clone(),
            manner,
            hand: Arc::clone(&hand),
            agents: BTreeMap::new(),
        };
        let task = tokio::spawn(site.run(facts.clone(), welcomed)).abort_handle();
        within(welcome.wait_for(|welcome| *welcome)).await.unwrap();
        Self {
            name,
            address,
            manner,
            facts,
            hand,
            task,
            session,
        }
    }

    /// Its connection is cut, as by a network.
    pub(super) async fn cut(&self) {
        self.task.abort();
        self.session.close("cut").await;
    }

    /// It connects again, with all that it had in hand, to this address.
    pub(super) async fn back(self, address: Option<SocketAddr>) -> Self {
        self.task.abort();
        let address = address.unwrap_or(self.address);
        let (name, facts) = (self.name.clone(), self.facts.clone());
        Self::join(address, name, self.manner, facts, Arc::clone(&self.hand)).await
    }

    /// A new process of it, which knows nothing.
    pub(super) async fn afresh(self, manner: Manner) -> Self {
        self.cut().await;
        let (name, facts) = (self.name.clone(), self.facts.clone());
        Self::join(self.address, name, manner, facts, Hand::default()).await
    }

    pub(super) fn holds(&self, job: &JobId) -> bool {
        self.hand.lock().unwrap().contains_key(job.as_str())
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A site's process.
struct Site {
    name: String,
    session: Session,
    manner: Manner,
    hand: Hand,
    agents: BTreeMap<String, JoinHandle<()>>,
}

impl Site {
    async fn run(mut self, facts: Value, welcomed: watch::Sender<bool>) {
        let (mut reader, mut writer) = split(self.session.control().unwrap());
        let (say, mut said) = mpsc::channel::<to_server::Body>(1024);
        let hand = self.hand.lock().unwrap().clone();
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            build: "test".to_owned(),
            name: self.name.clone(),
            instance: 3,
            facts: Bytes::from(facts.to_string()),
            jobs: hand
                .iter()
                .map(|(job, stage)| InHand {
                    job: job.clone(),
                    stage: *stage as i32,
                })
                .collect(),
            ..Hello::default()
        };
        say.send(to_server::Body::Hello(hello)).await.unwrap();
        let writing = async {
            while let Some(body) = said.recv().await {
                if writer.send(&ToServer { body: Some(body) }).await.is_err() {
                    break;
                }
            }
        };
        let reading = async {
            while let Ok(Some(message)) = reader.next::<ToNode>("ToNode").await {
                match message.body.unwrap() {
                    to_node::Body::Welcome(_) => {
                        welcomed.send_replace(true);
                        for (job, stage) in &hand {
                            if *stage == Stage::Running {
                                self.start(job, &say);
                            }
                        }
                    }
                    to_node::Body::Deploy(deploy) => self.deploy(deploy, &say),
                    to_node::Body::Start(start) if self.manner != Manner::Lame => {
                        self.start(&start.job, &say);
                    }
                    to_node::Body::Stop(stop) if self.manner != Manner::Stubborn => {
                        if let Some(agent) = self.agents.remove(&stop.job) {
                            agent.abort();
                            // It may be at its last step, and put the job back.
                            let _ = agent.await;
                        }
                        self.hand.lock().unwrap().remove(&stop.job);
                        let job = stop.job;
                        let error = String::new();
                        say.send(to_server::Body::Ended(Ended { job, error }))
                            .await
                            .unwrap();
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = writing => {}
            () = reading => {}
        }
    }

    fn deploy(&mut self, deploy: Deploy, say: &mpsc::Sender<to_server::Body>) {
        if self.manner == Manner::Deaf {
            return;
        }
        let (session, say, hand) = (self.session.clone(), say.clone(), Arc::clone(&self.hand));
        let declines = self.manner == Manner::Declines;
        let of = deploy.job.clone();
        let making = tokio::spawn(async move {
            let (job, attempt) = (deploy.job.clone(), deploy.attempt);
            let answer = if declines {
                to_server::Body::Declined(Declined {
                    job,
                    attempt,
                    code: "data_missing".to_owned(),
                    reason: "it has no data `digits`".to_owned(),
                    hint: "name it in site.toml".to_owned(),
                })
            } else {
                fetch(&session, &deploy).await;
                hand.lock().unwrap().insert(job.clone(), Stage::Ready);
                to_server::Body::Ready(Ready { job, attempt })
            };
            let _ = say.send(answer).await;
        });
        self.agents.insert(of, making);
    }

    fn start(&mut self, job: &str, say: &mpsc::Sender<to_server::Body>) {
        self.hand
            .lock()
            .unwrap()
            .insert(job.to_owned(), Stage::Running);
        let started = Started {
            job: job.to_owned(),
        };
        let _ = say.try_send(to_server::Body::Started(started));
        let (session, say, hand) = (self.session.clone(), say.clone(), Arc::clone(&self.hand));
        let (name, slow) = (self.name.clone(), self.manner == Manner::Slow);
        let of = job.to_owned();
        let agent = tokio::spawn(async move {
            let scope = session.scope(&of).unwrap();
            if act(&scope, &name, slow).await.is_some() {
                hand.lock().unwrap().remove(&of);
                let error = String::new();
                let _ = say
                    .send(to_server::Body::Ended(Ended { job: of, error }))
                    .await;
            }
        });
        self.agents.insert(job.to_owned(), agent);
    }
}

/// Fetches the bundle of a job and checks that it is what was announced.
async fn fetch(session: &Session, deploy: &Deploy) {
    let mut bytes = Vec::new();
    // In two pieces, as after a cut.
    for offset in [0, deploy.bundle_length / 2] {
        let mut stream = session.open(Kind::BUNDLE).await.unwrap();
        let job = deploy.job.clone();
        write_one(&mut stream, &BundleWanted { job, offset })
            .await
            .unwrap();
        let is = read_one::<BundleIs>(&mut stream, "BundleIs", 4096).await;
        let is = is.unwrap().unwrap();
        assert_eq!(
            (is.length, &is.sha256),
            (deploy.bundle_length, &deploy.bundle_sha256)
        );
        assert_eq!(is.refused, "");
        bytes.truncate(usize::try_from(offset).unwrap());
        stream.read_to_end(&mut bytes).await.unwrap();
    }
    assert_eq!(bytes.len() as u64, deploy.bundle_length);
    let dir = tempfile::tempdir().unwrap();
    let unpacked = bundle::unpack(
        bytes.as_slice(),
        &dir.path().join("job"),
        &bundle::Limits::site(),
        kit("site-1").authority(),
    );
    assert!(unpacked.unwrap().code.join("client.py").exists());
}

/// An agent, until its job has ended; nothing where its connection did before.
async fn act(scope: &Session, name: &str, slow: bool) -> Option<()> {
    let (mut reader, mut writer) = split(scope.open_control().await.ok()?);
    let mut say = async |body| {
        let message = control::ToServer { body: Some(body) };
        writer.send(&message).await.ok()
    };
    let hello = control::Hello {
        protocol_min: 1,
        protocol_max: 1,
        build: "test".to_owned(),
        site: name.to_owned(),
        instance: 5,
        ..control::Hello::default()
    };
    say(control::to_server::Body::Hello(hello)).await?;
    loop {
        let message = reader.next::<control::ToSite>("ToSite").await.ok()??;
        match message.body? {
            to_site::Body::Assign(task) => {
                let key = task.key.clone().unwrap();
                say(control::to_server::Body::TaskAccepted(key)).await?;
                if slow {
                    continue;
                }
                let bytes = model(&[1.0, 2.0]);
                let object = Object {
                    length: bytes.len() as u64,
                    inline: Some(Bytes::from(bytes)),
                    ..Object::default()
                };
                let update = control::Update {
                    key: task.key,
                    model: Some(object),
                    ..control::Update::default()
                };
                say(control::to_server::Body::Update(update)).await?;
            }
            to_site::Body::EndJob(_) => {
                let stopped = control::Stopped { forced: 0 };
                say(control::to_server::Body::Stopped(stopped)).await?;
                return Some(());
            }
            _ => {}
        }
    }
}
