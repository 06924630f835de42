//! A federation of memory, and a way to ask the interface over it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use firesteel_api::job::{JobFilter, JobSite, Submitted};
use firesteel_api::login::{Nonce, Token, signed_text};
use firesteel_api::{
    Ask, Code, EventKind, JobDetail, JobEvent, JobState, JobSummary, Person, Problem, ServerStatus,
    SiteInfo, SiteState, Stamp, Target,
};
use firesteel_base::Durations;
use firesteel_daemon::rest::{Asked, Federation, Rest, RestOptions};
use firesteel_observe::Logs;
use firesteel_policy::{Policy, Role, Subject};
use serde_json::{Value, json};
use tokio::sync::watch;

pub const JOB: &str = "j-1";

/// What is remembered.
#[derive(Default)]
pub struct Memory {
    pub jobs: BTreeMap<String, JobDetail>,
    pub events: Vec<JobEvent>,
    pub bundles: Vec<(Vec<u8>, Subject, Option<String>)>,
    pub asked: Vec<(String, Ask)>,
    pub aborted: Vec<String>,
}

pub struct Fake {
    pub memory: Mutex<Memory>,
    pub changes: watch::Sender<u64>,
    pub dir: tempfile::TempDir,
}

pub fn person(name: &str, org: &str, role: &str) -> Subject {
    Subject {
        name: name.to_owned(),
        org: org.to_owned(),
        role: Role::parse(role).unwrap(),
    }
}

pub fn job(id: &str, state: JobState) -> JobDetail {
    let now = Stamp::of(SystemTime::now());
    JobDetail {
        summary: JobSummary {
            id: id.to_owned(),
            name: "digits".to_owned(),
            state,
            status: state.to_string(),
            submitter: Person {
                name: "ann@north".to_owned(),
                org: "north".to_owned(),
                role: "lead".to_owned(),
            },
            submitted: now.clone(),
            started: Some(now),
            ended: None,
            seconds: 1.5,
            rounds_done: 1,
            rounds: 3,
            sites: 1,
            priority: 0,
            key: None,
        },
        at: vec![JobSite {
            site: "site-1".to_owned(),
            state: "working".to_owned(),
            status: String::new(),
            bytes_down: 0,
            bytes_up: 0,
        }],
        losses: Vec::new(),
        pending: Vec::new(),
        failures: Vec::new(),
        metrics: Vec::new(),
        cloned_from: None,
        bytes_down: 0,
        bytes_up: 0,
        meta: BTreeMap::new(),
        spec: json!({}),
    }
}

fn site(name: &str, org: &str) -> SiteInfo {
    SiteInfo {
        name: name.to_owned(),
        org: org.to_owned(),
        state: SiteState::Connected,
        connected_since: None,
        last_heard: None,
        address: None,
        relay: None,
        version: "0".to_owned(),
        round_trip_ms: None,
        jobs: Vec::new(),
        resources: BTreeMap::new(),
        facts: json!({}),
    }
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let mut memory = Memory::default();
        memory
            .jobs
            .insert(JOB.to_owned(), job(JOB, JobState::Running));
        Arc::new(Self {
            memory: Mutex::new(memory),
            changes: watch::channel(0).0,
            dir: tempfile::tempdir().unwrap(),
        })
    }

    pub fn state(&self, state: JobState) {
        let mut memory = self.memory.lock().unwrap();
        memory.jobs.get_mut(JOB).unwrap().summary.state = state;
        drop(memory);
        self.changes.send_modify(|number| *number += 1);
    }

    pub fn note(&self, message: &str) {
        let mut memory = self.memory.lock().unwrap();
        let seq = memory.events.len() as u64 + 1;
        memory.events.push(JobEvent {
            seq,
            at: Stamp::of(SystemTime::now()),
            what: EventKind::Note {
                message: message.to_owned(),
            },
        });
        drop(memory);
        self.changes.send_modify(|number| *number += 1);
    }
}

fn now<'a, T: Send + 'a>(value: Result<T, Problem>) -> Asked<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Federation for Fake {
    fn status(&self) -> ServerStatus {
        ServerStatus {
            name: "server".to_owned(),
            project: "p".to_owned(),
            version: "0".to_owned(),
            started: Stamp::of(SystemTime::now()),
            sites_connected: 2,
            sites_known: 2,
        }
    }

    fn incoming(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn submit(&self, file: PathBuf, by: Subject, key: Option<String>) -> Asked<'_, Submitted> {
        let bytes = std::fs::read(file).unwrap();
        let mut memory = self.memory.lock().unwrap();
        let existed = key.is_some() && memory.bundles.iter().any(|(_, _, had)| *had == key);
        memory.bundles.push((bytes, by, key));
        now(Ok(Submitted {
            id: "j-2".to_owned(),
            existed,
        }))
    }

    fn jobs(&self, filter: JobFilter) -> Asked<'_, Vec<JobSummary>> {
        let memory = self.memory.lock().unwrap();
        let all = memory.jobs.values().map(|job| job.summary.clone());
        now(Ok(all.filter(|job| filter.fits(job)).collect()))
    }

    fn job<'a>(&'a self, id: &'a str) -> Asked<'a, Option<JobDetail>> {
        now(Ok(self.memory.lock().unwrap().jobs.get(id).cloned()))
    }

    fn events<'a>(&'a self, _: &'a str, after: u64, limit: u32) -> Asked<'a, Vec<JobEvent>> {
        let memory = self.memory.lock().unwrap();
        let after = memory.events.iter().filter(|event| event.seq > after);
        now(Ok(after.take(limit as usize).cloned().collect()))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn abort<'a>(&'a self, _: &'a str, reason: String, _: Subject) -> Asked<'a, ()> {
        self.memory.lock().unwrap().aborted.push(reason);
        self.state(JobState::Aborted);
        now(Ok(()))
    }

    fn delete<'a>(&'a self, id: &'a str, _: Subject) -> Asked<'a, ()> {
        let mut memory = self.memory.lock().unwrap();
        if !memory.jobs[id].summary.state.is_terminal() {
            return now(Err(Problem::new(Code::WrongState, "the job runs")));
        }
        memory.jobs.remove(id);
        now(Ok(()))
    }

    fn clone_job<'a>(&'a self, _: &'a str, _: Subject) -> Asked<'a, Submitted> {
        now(Ok(Submitted {
            id: "j-3".to_owned(),
            existed: false,
        }))
    }

    fn sites(&self) -> Vec<SiteInfo> {
        vec![site("site-1", "north"), site("site-2", "south")]
    }

    fn site(&self, name: &str) -> Option<SiteInfo> {
        self.sites().into_iter().find(|site| site.name == name)
    }

    fn ask(&self, target: Target, ask: Ask, _: Subject) -> Asked<'_, Value> {
        let mut memory = self.memory.lock().unwrap();
        memory.asked.push((target.to_string(), ask));
        now(Ok(json!({"level": "info"})))
    }

    fn job_dirs(&self, _: &str) -> Vec<(String, PathBuf)> {
        vec![(String::new(), self.dir.path().join("job"))]
    }

    fn job_log(&self, _: &str, site: &str) -> Option<PathBuf> {
        Some(self.dir.path().join(format!("{site}.log")))
    }

    fn site_log(&self, site: &str) -> Option<PathBuf> {
        Some(self.dir.path().join(format!("{site}-own.log")))
    }
}

pub fn durations() -> Durations {
    Durations {
        connect: Duration::from_millis(100),
        idle: Duration::from_millis(100),
        ..Durations::default()
    }
}

/// In place of certificates: a chain is a subject's three words, and a signature
/// is the chain and the text.
fn verify(chain: &str, text: &[u8], signature: &[u8]) -> Result<Subject, String> {
    let words: Vec<_> = chain.split(' ').collect();
    if signature != signature_of(chain, text) {
        return Err(format!("the signature of `{}` is not good", words[0]));
    }
    Ok(person(words[0], words[1], words[2]))
}

pub fn signature_of(chain: &str, text: &[u8]) -> Vec<u8> {
    [chain.as_bytes(), b"|", text].concat()
}

pub fn interface(fake: &Arc<Fake>) -> Rest {
    let options = RestOptions {
        server: "server.p".to_owned(),
        org: "hq".to_owned(),
        project: "p".to_owned(),
        durations: durations(),
        policy: Policy::standard().clone(),
        verify: Arc::new(verify),
        log: Logs::disabled().logger("firesteel.server.rest"),
    };
    Rest::new(fake.clone(), options).unwrap()
}

pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

pub fn from() -> SocketAddr {
    ([127, 0, 0, 1], 7).into()
}

pub async fn send(rest: &Rest, request: Request<Body>) -> Got {
    let (head, body) = rest.call(request, from()).await.into_parts();
    Got {
        status: head.status,
        headers: head.headers,
        body: axum::body::to_bytes(body, 1 << 24).await.unwrap().to_vec(),
    }
}

pub fn request(method: &str, path: &str, token: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .body(body.into())
        .unwrap()
}

pub async fn nonce(rest: &Rest) -> Nonce {
    let got = send(rest, request("POST", "/v1/login/nonce", "", "")).await;
    assert_eq!(got.status, 200);
    serde_json::from_slice(&got.body).unwrap()
}

/// Logs in with a signature over `text`.
pub async fn try_login(rest: &Rest, chain: &str, nonce: &str, text: &[u8]) -> Got {
    let login = json!({
        "nonce": nonce,
        "certificates": chain,
        "signature": STANDARD.encode(signature_of(chain, text)),
    });
    send(rest, request("POST", "/v1/login", "", login.to_string())).await
}

pub async fn login(rest: &Rest, chain: &str) -> String {
    let nonce = nonce(rest).await.nonce;
    let got = try_login(rest, chain, &nonce, &signed_text("server.p", &nonce)).await;
    assert_eq!(got.status, 200, "{}", String::from_utf8_lossy(&got.body));
    let token: Token = serde_json::from_slice(&got.body).unwrap();
    token.token
}

pub const ADMIN: &str = "root@hq hq project_admin";
pub const ANN: &str = "ann@north north lead";
