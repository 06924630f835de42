//! Sessions with sites and relays: the greeting, then messages both ways, and
//! bundles and logs on streams of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firesteel_api::{Problem, problem::Code};
use firesteel_base::{JobId, SiteName, limits};
use firesteel_flow::schedule::{InHand, JobPhase, Refusal, ScheduleEvent, SitePart};
use firesteel_net::{
    BoxStream, Kind, LinkError, Reader, Session, Writer, read_one, split, write_one,
};
use firesteel_wire::PROTOCOL;
use firesteel_wire::node::{
    BundleIs, BundleWanted, Hello, Refused, Stage, ToNode, ToServer, to_node, to_server,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

use super::core::{Here, Input};
use super::intake;
use super::shared::{Shared, lock_read};

/// Messages on their way to one site: a few for each job that it may have.
const OUTGOING: usize = 1024;

/// Bytes of a stranger's words that are repeated in a sentence.
const QUOTED: usize = 64;

/// Between two notes that a bundle is moving.
const PROGRESS: Duration = Duration::from_secs(1);

/// Bytes of a bundle that are read at once.
const PIECE: usize = 256 * 1024;

/// Serves a session to its end.
pub(crate) async fn serve(shared: Arc<Shared>, session: Session) {
    let peer = session.peer().clone();
    let role = peer.role.as_deref().unwrap_or_default();
    let Some(control) = session.control() else {
        return;
    };
    let (mut reader, mut writer) = split(control);
    let greeting = greet(&shared, &session, role, &mut reader);
    let greeted = match tokio::time::timeout(shared.durations.connect, greeting).await {
        Ok(greeted) => greeted,
        Err(_) => Err((
            format!("no greeting came within {:?}", shared.durations.connect),
            true,
        )),
    };
    let (hello, facts, jobs) = match greeted {
        Ok(greeted) => greeted,
        Err((reason, retry)) => {
            let shown: String = peer.name.as_str().chars().take(QUOTED).collect();
            shared
                .logger
                .warning(&format!("{shown:?} was turned away: {reason}"));
            let refused = to_node::Body::Refused(Refused { reason, retry });
            let refused = ToNode {
                body: Some(refused),
            };
            let telling = writer.send(&refused);
            // It may be gone already, or not listen.
            let _ = tokio::time::timeout(shared.durations.connect, telling).await;
            session.close("turned away").await;
            return;
        }
    };
    if role == "relay" {
        return relay(&shared, &session, &hello, writer, reader).await;
    }
    // Checked by the greeting.
    let Ok(site) = SiteName::new(&hello.name) else {
        return;
    };
    let logger = shared.logger.for_site(&site);
    logger.info(&format!(
        "{site} is connected from {} with {} jobs in hand",
        session.address(),
        jobs.len()
    ));
    let number = shared.next_session();
    let (outgoing, mut queue) = mpsc::channel::<ToNode>(OUTGOING);
    let here = Here {
        site: site.clone(),
        number,
        session: session.clone(),
        outgoing,
        facts,
        jobs,
    };
    if shared
        .inbox
        .send(Input::Here(Box::new(here)))
        .await
        .is_err()
    {
        return;
    }
    let writing = async {
        while let Some(message) = queue.recv().await {
            if let Err(error) = writer.send(&message).await {
                return Some(error);
            }
        }
        None
    };
    let reading = async {
        loop {
            match reader.next::<ToServer>("ToServer").await {
                // An empty body is something that a newer site says.
                Ok(Some(ToServer { body: None })) => {}
                Ok(Some(ToServer { body: Some(body) })) => {
                    if !heard(&shared, &site, body).await {
                        return None;
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    };
    let streams = streams(&shared, &session, &site);
    let why = tokio::select! {
        error = writing => error.map(|error| error.to_string()),
        error = reading => error.map(|error| error.to_string()),
        () = streams => None,
        reason = session.closed() => Some(reason.to_string()),
    };
    let why = why.unwrap_or_else(|| "it closed its connection".to_owned());
    logger.info(&format!("{site} is gone: {why}"));
    // The loop has ended: so has the server.
    let _ = shared.inbox.send(Input::Gone { site, number }).await;
    session.close("the conversation is over").await;
}

type Greeted = (Hello, Value, Vec<(JobId, InHand)>);

/// Reads the greeting; why it is not taken, and whether another try may be.
async fn greet(
    shared: &Shared,
    session: &Session,
    role: &str,
    reader: &mut Reader,
) -> Result<Greeted, (String, bool)> {
    let no = |reason: String| (reason, false);
    let message = reader
        .next::<ToServer>("ToServer")
        .await
        .map_err(|error| (error.to_string(), true))?;
    let Some(ToServer {
        body: Some(to_server::Body::Hello(hello)),
    }) = message
    else {
        return Err(no("its first message was no greeting".to_owned()));
    };
    if !matches!(role, "site" | "relay") {
        let role: String = role.chars().take(QUOTED).collect();
        return Err(no(format!(
            "its certificate is that of a {role:?}; sites and relays make sessions"
        )));
    }
    let name = SiteName::new(&hello.name).map_err(|error| no(error.to_string()))?;
    if name.as_str() != session.peer().name.as_str() {
        return Err(no(format!("it claims to be `{name}`")));
    }
    if PROTOCOL < hello.protocol_min || PROTOCOL > hello.protocol_max {
        let build: String = hello.build.chars().take(QUOTED).collect();
        return Err(no(format!(
            "`{name}` (build {build:?}) speaks protocols {} to {}, this server speaks {PROTOCOL}: \
             upgrade the older of the two",
            hello.protocol_min, hello.protocol_max
        )));
    }
    if hello.jobs.len() > limits::SITE_JOBS {
        return Err(no(format!(
            "it claims to have {} jobs in hand, the limit is {}",
            hello.jobs.len(),
            limits::SITE_JOBS
        )));
    }
    if role == "site" && shared.connected() >= shared.max_sites {
        return Err((
            format!(
                "{} sites are connected, the server's `max_sites`",
                shared.max_sites
            ),
            true,
        ));
    }
    let facts = read_facts(&hello.facts).map_err(no)?;
    let mut jobs = Vec::with_capacity(hello.jobs.len());
    for one in &hello.jobs {
        let job = JobId::new(&one.job).map_err(|error| no(error.to_string()))?;
        let stage = match Stage::try_from(one.stage).unwrap_or(Stage::Unknown) {
            // Whatever a newer site means: it is looked at anew.
            Stage::Unknown | Stage::Deploying => InHand::Deploying,
            Stage::Ready => InHand::Ready,
            Stage::Running => InHand::Running,
            Stage::Stopping => InHand::Stopping,
        };
        jobs.push((job, stage));
    }
    Ok((hello, facts, jobs))
}

fn read_facts(bytes: &Bytes) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if bytes.len() > limits::SITE_FACTS {
        return Err(format!(
            "its facts have {} bytes, the limit is {}",
            bytes.len(),
            limits::SITE_FACTS
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| format!("its facts are no JSON: {error}"))
}

/// Something that a site says; whether the server still listens.
async fn heard(shared: &Shared, site: &SiteName, body: to_server::Body) -> bool {
    let job = |job: &str| JobId::new(job).ok();
    let site = site.clone();
    let event = match body {
        to_server::Body::Hello(_) => None,
        to_server::Body::Ready(ready) => job(&ready.job).map(|job| ScheduleEvent::Ready {
            job,
            site,
            attempt: ready.attempt,
        }),
        to_server::Body::Declined(declined) => {
            job(&declined.job).map(|job| ScheduleEvent::Declined {
                job,
                site,
                attempt: declined.attempt,
                refusal: Refusal {
                    phase: JobPhase::Deploy,
                    code: cut(declined.code, limits::NAME_LENGTH),
                    reason: cut(declined.reason, limits::NODE_SENTENCE),
                    hint: cut(declined.hint, limits::NODE_SENTENCE),
                },
            })
        }
        to_server::Body::Started(started) => {
            job(&started.job).map(|job| ScheduleEvent::Started { job, site })
        }
        to_server::Body::Ended(ended) => job(&ended.job).map(|job| ScheduleEvent::Ended {
            job,
            site,
            error: cut(ended.error, limits::NODE_SENTENCE),
        }),
        to_server::Body::Answer(answer) => {
            let answer = Input::Answer {
                site,
                id: answer.id,
                answer: read_answer(&answer.body, answer.error),
            };
            return shared.inbox.send(answer).await.is_ok();
        }
        to_server::Body::Facts(facts) => {
            let Ok(facts) = read_facts(&facts.facts) else {
                return true;
            };
            return shared
                .inbox
                .send(Input::Facts { site, facts })
                .await
                .is_ok();
        }
    };
    match event {
        Some(event) => shared.inbox.send(Input::Event(event)).await.is_ok(),
        None => true,
    }
}

fn read_answer(body: &[u8], error: bool) -> Result<Value, Problem> {
    let broken = |problem: serde_json::Error| {
        let text = format!("the site's answer cannot be read: {problem}");
        Problem::new(Code::Internal, text)
    };
    if error {
        return Err(serde_json::from_slice(body).unwrap_or_else(broken));
    }
    serde_json::from_slice(body).map_err(broken)
}

/// At most so many bytes of it.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// Takes the streams that a site opens.
async fn streams(shared: &Arc<Shared>, session: &Session, site: &SiteName) {
    while let Some((kind, stream)) = session.accept().await {
        match kind {
            Kind::BUNDLE => {
                let (shared, site) = (Arc::clone(shared), site.clone());
                tokio::spawn(async move {
                    let told = bundle(&shared, &site, stream).await;
                    if let Err(error) = told {
                        // It asks again, from where it got to.
                        shared
                            .logger
                            .for_site(&site)
                            .debug(&format!("a bundle on its way broke off: {error}"));
                    }
                });
            }
            Kind::LOGS => {
                let (shared, site) = (Arc::clone(shared), site.clone());
                let place = move |job: Option<&str>| log_place(&shared, &site, job);
                tokio::spawn(crate::logs::receive(stream, place));
            }
            // Of a later version: the stream's end says that nobody is here for it.
            _ => drop(stream),
        }
    }
}

/// Where a site's log is written.
fn log_place(shared: &Shared, site: &SiteName, job: Option<&str>) -> Result<PathBuf, String> {
    if !shared.accept_logs {
        return Err("the server's `accept_logs` is false".to_owned());
    }
    let Some(job) = job else {
        return Ok(site_log(shared, site.as_str()));
    };
    let job = JobId::new(job).map_err(|error| error.to_string())?;
    let records = lock_read(&shared.records);
    let part = records
        .get(&job)
        .is_some_and(|record| record.parts.contains_key(site));
    if !part
        && !shared
            .jobs
            .job_dir(&job)
            .join("logs")
            .join(log_name(site))
            .exists()
    {
        return Err(format!("job {job} is over, or has no part at this site"));
    }
    Ok(shared.jobs.job_dir(&job).join("logs").join(log_name(site)))
}

fn log_name(site: &SiteName) -> String {
    format!("{site}.log")
}

/// Where a site's own log is.
pub(crate) fn site_log(shared: &Shared, site: &str) -> PathBuf {
    shared.workspace.join("sites").join(format!("{site}.log"))
}

/// Sends a site the bundle of a job that it is to make ready for.
async fn bundle(
    shared: &Shared,
    site: &SiteName,
    mut stream: BoxStream,
) -> Result<(), std::io::Error> {
    let failed = |error: LinkError| std::io::Error::other(error);
    let reading = read_one::<BundleWanted>(&mut stream, "BundleWanted", limits::SESSION_MESSAGE);
    let wanted = tokio::time::timeout(shared.durations.connect, reading).await;
    let Some(wanted) = wanted.map_err(std::io::Error::other)?.map_err(failed)? else {
        return Ok(());
    };
    let found = bundle_of(shared, site, &wanted);
    let (job, is) = match found {
        Ok(found) => found,
        Err(refused) => {
            let is = BundleIs {
                refused,
                ..BundleIs::default()
            };
            write_one(&mut stream, &is).await.map_err(failed)?;
            return stream.shutdown().await;
        }
    };
    let path = shared.jobs.job_dir(&job).join(intake::FOR_SITES);
    let mut file = tokio::fs::File::open(&path).await?;
    file.seek(std::io::SeekFrom::Start(wanted.offset)).await?;
    write_one(&mut stream, &is).await.map_err(failed)?;
    let mut piece = vec![0; PIECE];
    let mut noted = Instant::now();
    loop {
        let length = file.read(&mut piece).await?;
        if length == 0 {
            break;
        }
        let bytes = piece.get(..length).unwrap_or_default();
        stream.write_all(bytes).await?;
        if noted.elapsed() >= PROGRESS {
            noted = Instant::now();
            let moving = ScheduleEvent::Progress {
                job: job.clone(),
                site: site.clone(),
            };
            let sent = shared.inbox.send(Input::Event(moving)).await;
            sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        }
    }
    stream.shutdown().await
}

fn bundle_of(
    shared: &Shared,
    site: &SiteName,
    wanted: &BundleWanted,
) -> Result<(JobId, BundleIs), String> {
    let job = JobId::new(&wanted.job).map_err(|error| error.to_string())?;
    let records = lock_read(&shared.records);
    let no = || format!("job {job} is not deployed to `{site}`");
    let record = records.get(&job).ok_or_else(no)?;
    // Nobody gets the code of a job that is not theirs to run.
    match record.parts.get(site) {
        None | Some(SitePart::Waiting | SitePart::Out(_) | SitePart::Ended) => return Err(no()),
        Some(_) => {}
    }
    let length = record.row.job.bundle_length;
    if wanted.offset > length {
        return Err(format!(
            "byte {} is wanted of a bundle of {length} bytes",
            wanted.offset
        ));
    }
    let is = BundleIs {
        length,
        sha256: Bytes::copy_from_slice(&record.row.job.bundle_sha256),
        refused: String::new(),
    };
    Ok((job, is))
}

/// Serves a relay: it has no jobs of its own.
async fn relay(
    shared: &Arc<Shared>,
    session: &Session,
    hello: &Hello,
    mut writer: Writer,
    mut reader: Reader,
) {
    let welcome = to_node::Body::Welcome(firesteel_wire::node::Welcome {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        instance: shared.instance,
        clock: super::record::micros(std::time::SystemTime::now()),
    });
    let welcome = ToNode {
        body: Some(welcome),
    };
    if writer.send(&welcome).await.is_err() {
        return;
    }
    shared.logger.info(&format!(
        "relay {} is connected from {}",
        hello.name,
        session.address()
    ));
    let reading = async {
        // What it says of itself is of no consequence yet; its end is.
        while let Ok(Some(_)) = reader.next::<ToServer>("ToServer").await {}
    };
    let streams = async {
        while let Some((kind, stream)) = session.accept().await {
            super::relays::stream(shared, session, kind, stream);
        }
    };
    tokio::select! {
        () = reading => {}
        () = streams => {}
        _ = session.closed() => {}
    }
    shared.logger.info(&format!("relay {} is gone", hello.name));
    session.close("the conversation is over").await;
}

/// Asks the loop for the connections of a job's run.
pub(crate) async fn connections(
    shared: &Shared,
    job: JobId,
) -> Result<mpsc::Sender<firesteel_carry::Connection>, String> {
    let (done, told) = oneshot::channel();
    let asked = shared.inbox.send(Input::Connections { job, done }).await;
    asked.map_err(|_| "the server is being stopped".to_owned())?;
    told.await
        .unwrap_or_else(|_| Err("the server is being stopped".to_owned()))
}
