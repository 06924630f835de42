//! A server, relays and sites over TLS on this machine, in one process. Sites
//! train nothing: each answers with numbers of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use firesteel_base::{Durations, SiteName, limits};
use firesteel_carry::{
    Carrier, Connection, Depot, Dial, Dialing, Fetched, Offer, Order, Progress, Remote, Way,
};
use firesteel_net::dev::{Authority, Issued, Subject};
use firesteel_net::{Identity, Listener, Options, Session, split};
use firesteel_node::server::{ServerOptions, serve};
use firesteel_observe::{Console, ConsoleStyle, LogConfig, Logger, Logs};
use firesteel_relay::{Party, PartyParts};
use firesteel_server::JobReport;
use firesteel_store::{InMemory, ModelObject, Objects, PartName, Spool, SpoolBudget};
use firesteel_tensor::{DType, HeaderBuilder};
use firesteel_wire::PROTOCOL;
use firesteel_wire::control::{
    Hello, Key, Object, Stopped, ToServer, ToSite, Update, to_server, to_site,
};
use firesteel_wire::spec::JobSpec;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Beyond which a test has failed.
pub const LIMIT: Duration = Duration::from_secs(120);

const HOST: &str = "server.test";
const HOUR: time::Duration = time::Duration::HOUR;

/// The authority, and what every run of a job has.
pub struct Federation {
    authority: Authority,
    folder: tempfile::TempDir,
    names: Vec<String>,
    elements: usize,
    more: Value,
    runs: AtomicU64,
}

/// What a site does that others do not.
#[derive(Clone, Default)]
pub struct SiteBehavior {
    /// It does not answer before this.
    pub hold: Option<Arc<Notify>>,
    /// Its numbers are none.
    pub poisoned: bool,
}

impl SiteBehavior {
    pub fn held_back() -> (Self, Arc<Notify>) {
        let hold = Arc::new(Notify::new());
        let behavior = Self {
            hold: Some(Arc::clone(&hold)),
            poisoned: false,
        };
        (behavior, hold)
    }
}

/// A job that runs.
pub struct Run<'f> {
    federation: &'f Federation,
    place: PathBuf,
    address: SocketAddr,
    server: JoinHandle<Result<JobReport, firesteel_node::NodeError>>,
    sites: JoinSet<()>,
    /// Updates that sites have made.
    done: Arc<AtomicU64>,
    _stop: watch::Sender<Option<String>>,
}

/// A relay in a runtime of its own, so that it can be killed.
pub struct RunningRelay {
    start: Start,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Clone)]
struct Start {
    name: String,
    above: SocketAddr,
    listen: SocketAddr,
    place: PathBuf,
    up: Identity,
    down: Identity,
}

impl Federation {
    pub async fn new(names: &[&str], elements: usize, more: Value) -> Self {
        Self {
            authority: Authority::new("test").unwrap(),
            folder: tempfile::tempdir().unwrap(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            elements,
            more,
            runs: AtomicU64::new(0),
        }
    }

    fn issue(&self, name: &str, role: &str, hosts: &[&str]) -> Issued {
        let subject = Subject {
            name,
            role,
            hosts,
            starts: -HOUR,
            ends: HOUR,
        };
        self.authority.issue(&subject).unwrap()
    }

    /// Starts a job at a fresh server.
    pub async fn start(&self, hierarchy: &str, rounds: u32) -> Run<'_> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let place = self.folder.path().join(format!("run-{number}"));
        std::fs::create_dir_all(&place).unwrap();
        let initial = place.join("initial.safetensors");
        std::fs::write(&initial, model(self.elements, 0, false)).unwrap();
        let mut spec = json!({
            "version": 1,
            "name": format!("job-{number}"),
            "algorithm": {"kind": "fedavg", "num_rounds": rounds},
            "sites": self.names,
            "min_clients": self.names.len(),
            "trainer": {"script": "/nothing.py"},
            "initial_model": initial,
            "hierarchy": hierarchy,
            "seed": 7,
        });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, self.more.clone()) {
            spec.extend(more);
        }
        let spec = JobSpec::parse(spec.to_string().as_bytes()).unwrap();
        let identity = self.issue("server", "server", &[HOST]);
        let options = ServerOptions {
            spec,
            root: place.join("runs"),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: identity.save(&place.join("identity")).unwrap(),
            resume: false,
            spool: SpoolBudget::Bytes(1 << 30),
            in_memory: InMemory::Allow,
            net: Options::default(),
            log: Some("full".to_owned()),
            console: ConsoleStyle::Off,
            durations: durations(),
            threads: Some(2),
        };
        let (stop, stopped) = watch::channel(None);
        let (tell, mut told) = mpsc::channel(1);
        let server = tokio::spawn(serve(
            options,
            move |address| tell.try_send(address).unwrap(),
            stopped,
        ));
        let address = told.recv().await.expect("the server listens");
        Run {
            federation: self,
            place,
            address,
            server,
            sites: JoinSet::new(),
            done: Arc::default(),
            _stop: stop,
        }
    }

    /// The model that comes out without relays.
    pub async fn run_flat(&self, rounds: u32) -> Vec<u8> {
        let mut run = self.start("splice", rounds).await;
        for name in &self.names {
            run.site_at_server(name);
        }
        let report = run.ended().await;
        assert_eq!(report.status(), "completed");
        self.last_model(&report)
    }

    pub fn last_model(&self, report: &JobReport) -> Vec<u8> {
        std::fs::read(report.run_dir.join("models/last.safetensors")).unwrap()
    }

    /// The server's log of the job.
    pub fn log(&self, report: &JobReport) -> String {
        std::fs::read_to_string(report.run_dir.join("log.txt")).unwrap()
    }

    /// The lines of the job's records.
    pub fn rounds(&self, report: &JobReport) -> Vec<String> {
        let text = std::fs::read_to_string(report.run_dir.join("metrics/rounds.jsonl")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn durations() -> Durations {
    Durations {
        lease: Duration::from_secs(60),
        connect: Duration::from_secs(30),
        ..Durations::default()
    }
}

/// Numbers that any order of adding sums to the same.
fn model(elements: usize, of: u64, poisoned: bool) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::F32, &[elements as u64]);
    let (mut bytes, _) = builder.encode().unwrap();
    for at in 0..elements as u64 {
        let value = ((at * 31 + of * 977) % 1024) as f32 / 64.0 - 8.0;
        let value = if poisoned && at == 3 { f32::NAN } else { value };
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

impl Run<'_> {
    pub fn server_address(&self) -> SocketAddr {
        self.address
    }

    /// Updates that sites have made; they may still be on their way.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Starts a relay below `above`.
    pub async fn relay(&self, name: &str, above: SocketAddr) -> RunningRelay {
        let start = Start {
            name: name.to_owned(),
            above,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            place: self.place.join(name),
            up: self
                .federation
                .issue(name, "relay", &[])
                .identity()
                .unwrap(),
            down: self
                .federation
                .issue(name, "relay", &[HOST])
                .identity()
                .unwrap(),
        };
        RunningRelay::start(start).await
    }

    /// Why a relay with a certificate of this role is turned away.
    pub async fn relay_refused(&self, name: &str, role: &str) -> String {
        let identity = self.federation.issue(name, role, &[]).identity().unwrap();
        let mut dial = Dialer {
            address: self.address,
            identity,
        };
        let Connection { control, way } = dial.dial().await.unwrap();
        let (mut reader, mut writer) = split(control);
        let hello = Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            site: name.to_owned(),
            relay: true,
            ..Hello::default()
        };
        let body = Some(to_server::Body::Hello(hello));
        writer.send(&ToServer { body }).await.unwrap();
        let answer = reader.next::<ToSite>("ToSite").await.unwrap().unwrap();
        drop(way);
        match answer.body {
            Some(to_site::Body::Refused(refused)) => refused.reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn site_at_server(&mut self, name: &str) {
        self.site_at(name, self.address, SiteBehavior::default());
    }

    pub fn site(&mut self, name: &str, relay: &RunningRelay, behavior: SiteBehavior) {
        self.site_at(name, relay.address(), behavior);
    }

    fn site_at(&mut self, name: &str, address: SocketAddr, behavior: SiteBehavior) {
        let federation = self.federation;
        let at = federation.names.iter().position(|known| known == name);
        let number = at.expect("a site of the job") as u64 + 1;
        let place = self.place.join("sites").join(name);
        std::fs::create_dir_all(&place).unwrap();
        let objects = Objects::open(&place).unwrap();
        let answer = model(federation.elements, number, behavior.poisoned);
        let site = Site {
            answer: objects.from_bytes(answer).unwrap(),
            depot: Depot::new(objects, None, durations()),
            name: name.to_owned(),
            steps: (number % 7 + 1) as f64,
            behavior,
            done: Arc::clone(&self.done),
        };
        let dial = Dialer {
            address,
            identity: federation.issue(name, "site", &[]).identity().unwrap(),
        };
        self.sites.spawn(site.run(dial));
    }

    /// Waits for the job's end.
    pub async fn ended(mut self) -> JobReport {
        let report = tokio::time::timeout(LIMIT, &mut self.server).await;
        let report = report.expect("the job ends in time").unwrap().unwrap();
        while let Some(site) = self.sites.join_next().await {
            site.unwrap();
        }
        report
    }
}

/// Waits until something is so.
pub async fn eventually(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl RunningRelay {
    pub fn address(&self) -> SocketAddr {
        self.start.listen
    }

    async fn start(mut start: Start) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (tell, mut told) = mpsc::channel(1);
        runtime.spawn(relay(start.clone(), tell));
        start.listen = told.recv().await.expect("the relay listens");
        Self {
            start,
            runtime: Some(runtime),
        }
    }

    /// Kills it and starts another process of it, so to say.
    pub async fn killed_and_started_again(mut self) -> Self {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        Self::start(self.start.clone()).await
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A relay's part in the one job of these tests.
async fn relay(start: Start, tell: mpsc::Sender<SocketAddr>) {
    let until = Instant::now() + LIMIT;
    // One that was killed may hold the port a moment longer.
    let listener = loop {
        match Listener::bind(start.listen, start.down.clone(), Options::default()).await {
            Ok(listener) => break listener,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    tell.send(listener.local_address()).await.unwrap();
    let (connections, incoming) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            if let Ok(session) = listener.accept().await
                && let Some(connection) = connection(session)
                && connections.send(connection).await.is_err()
            {
                return;
            }
        }
    });
    std::fs::create_dir_all(&start.place).unwrap();
    let objects = Objects::open(&start.place.join("objects")).unwrap();
    let spool = Spool::open(&objects, SpoolBudget::Bytes(1 << 30), InMemory::Allow).unwrap();
    let (_stop, stop) = watch::channel(None);
    let parts = PartyParts {
        relay: SiteName::new(&start.name).unwrap(),
        objects,
        spool,
        threads: 2,
        logger: logger(&start.place),
        durations: durations(),
        instance: 1 + std::process::id() as u64,
        stop,
    };
    let dial = Dialer {
        address: start.above,
        identity: start.up.clone(),
    };
    // The last run of it may end with the server, which is fine.
    let _ = Party::run(parts, Box::new(dial), incoming).await;
}

fn logger(place: &std::path::Path) -> Logger {
    let config = LogConfig::resolve(None, Some("full"), |_| None).unwrap();
    Logs::open(place, config, Console::off()).logger("firesteel.relay")
}

struct Dialer {
    address: SocketAddr,
    identity: Identity,
}

impl Dial for Dialer {
    fn dial(&mut self) -> Dialing<'_> {
        Box::pin(async {
            let address = self.address.to_string();
            let dialed = firesteel_net::dial(&address, HOST, &self.identity, Options::default());
            let session = dialed.await.map_err(std::io::Error::other)?;
            connection(session).ok_or_else(|| std::io::ErrorKind::NotConnected.into())
        })
    }
}

fn connection(session: Session) -> Option<Connection> {
    Some(Connection {
        control: session.control()?,
        way: Way::Session(session),
    })
}

/// A site that comes back when its connection is cut, with what it has in hand.
struct Site {
    name: String,
    depot: Arc<Depot>,
    answer: ModelObject,
    steps: f64,
    behavior: SiteBehavior,
    done: Arc<AtomicU64>,
}

impl Site {
    async fn run(self, mut dial: Dialer) {
        let until = Instant::now() + LIMIT;
        let carrier = Arc::new(Remote::new(&self.depot, "whoever is above"));
        let mut epoch = 0;
        // Updates that were made, until their round is committed.
        let mut held: HashMap<u32, Update> = HashMap::new();
        while Instant::now() < until {
            let Ok(connection) = dial.dial().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            if self
                .serve(connection, &carrier, &mut epoch, &mut held)
                .await
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} was not done in time", self.name);
    }

    /// Serves until the connection or the job ends; whether it was the job.
    async fn serve(
        &self,
        Connection { control, way }: Connection,
        carrier: &Arc<Remote>,
        epoch: &mut u64,
        held: &mut HashMap<u32, Update>,
    ) -> bool {
        carrier.connected(way);
        let (mut reader, mut writer) = split(control);
        let hello = Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            site: self.name.clone(),
            instance: self.steps as u64 + 100,
            lease_epoch: *epoch,
            holds: held
                .values()
                .filter_map(|update| update.key.clone())
                .collect(),
            ..Hello::default()
        };
        let mut say = vec![to_server::Body::Hello(hello)];
        loop {
            for body in say.drain(..) {
                if writer.send(&ToServer { body: Some(body) }).await.is_err() {
                    return false;
                }
            }
            let Ok(Some(message)) = reader.next::<ToSite>("ToSite").await else {
                return false;
            };
            match message.body {
                Some(to_site::Body::Welcome(welcome)) => *epoch = welcome.lease_epoch,
                Some(to_site::Body::StartJob(_)) => {
                    say.extend(held.values().cloned().map(to_server::Body::Update));
                }
                Some(to_site::Body::Assign(assign)) => {
                    let key = assign.key.unwrap();
                    say.push(to_server::Body::TaskAccepted(key.clone()));
                    let Some(()) = self.look_at(carrier, assign.model).await else {
                        return false;
                    };
                    if let Some(hold) = &self.behavior.hold
                        && key.round == 0
                    {
                        hold.notified().await;
                        // Its connection may be gone by now; its work is not.
                        hold.notify_one();
                    }
                    let update = Update {
                        model: Some(self.offer(carrier, &key)),
                        key: Some(key.clone()),
                        steps: Some(self.steps),
                        ..Update::default()
                    };
                    held.insert(key.round, update.clone());
                    say.push(to_server::Body::Update(update));
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Some(to_site::Body::RoundCommitted(committed)) => {
                    held.retain(|round, _| *round > committed.round);
                }
                Some(to_site::Body::EndJob(_)) => {
                    let body = Some(to_server::Body::Stopped(Stopped::default()));
                    let _ = writer.send(&ToServer { body }).await;
                    let _ = writer.close().await;
                    return true;
                }
                Some(to_site::Body::Refused(refused)) => panic!("{}", refused.reason),
                _ => {}
            }
        }
    }

    /// Fetches a task's model; nothing when the connection is lost meanwhile.
    async fn look_at(&self, carrier: &Remote, object: Option<Object>) -> Option<()> {
        let object = object.expect("there is a model");
        if object.inline.is_some() || carrier.here(&object).is_some() {
            return Some(());
        }
        let mut name = [0; 32];
        name[..8].copy_from_slice(&object.id.to_be_bytes());
        let fetched = carrier.fetch(Order {
            name: "the round's model".to_owned(),
            part: PartName::of_digest(&name),
            whole: true,
            progress: Arc::new(Progress::new(object.length)),
            object,
        });
        match fetched.await {
            Ok(Fetched::Here(_)) => Some(()),
            _ => None,
        }
    }

    fn offer(&self, carrier: &Remote, key: &Key) -> Object {
        if self.answer.len() <= limits::INLINE_OBJECT as u64 {
            return Object {
                inline: Some(self.answer.bytes().to_vec().into()),
                id: 0,
                length: self.answer.len(),
            };
        }
        let name = Offer::Update {
            round: key.round,
            attempt: key.attempt,
        };
        carrier.offer(name, &self.answer)
    }
}
