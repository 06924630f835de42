//! The site's session with its server: made, kept, and made again.

use std::time::Duration;

use firesteel_net::{LinkError, Reader, Session, Writer, split};
use firesteel_node::parts::sentence;
use firesteel_wire::PROTOCOL;
use firesteel_wire::node::{Facts, Hello, ToNode, ToServer, Welcome, to_node, to_server};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::desk::Desk;
use super::{SiteError, dial, facts};

/// The first pause between two tries; each is twice the one before, up to
/// [`PAUSE_CAP`], and a random part of that is waited for, so that a thousand sites
/// do not all dial at once when their server is there again.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const PAUSE_CAP: Duration = Duration::from_secs(5);

/// How a session ended.
enum Over {
    /// The site's process is to end.
    Stopped,
    /// The connection did.
    Lost(String),
}

/// Keeps a session with the server until the site is stopped.
///
/// # Errors
/// [`SiteError::Refused`] when the server says that another try is of no use.
pub(super) async fn keep(
    desk: &Desk,
    mut outgoing: mpsc::Receiver<to_server::Body>,
) -> Result<(), SiteError> {
    let mut stop = desk.stop.clone();
    let mut pause = PAUSE;
    let mut told = false;
    loop {
        let met = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Ok(()),
            met = meet(desk) => met,
        };
        let problem = match met {
            Ok(met) => {
                (pause, told) = (PAUSE, false);
                let session = met.session.clone();
                desk.session.send_replace(Some(session.clone()));
                let over = serve(desk, met, &mut outgoing, &mut stop).await;
                if matches!(over, Over::Stopped) {
                    // What is still to be said is said before the session ends.
                    return Ok(());
                }
                desk.session.send_replace(None);
                let Over::Lost(why) = over else { return Ok(()) };
                session.close(&why).await;
                format!("the session with the server ended: {why}")
            }
            Err(Unmet::Refused {
                reason,
                retry: false,
            }) => return Err(SiteError::Refused { reason }),
            Err(Unmet::Refused { reason, .. }) => {
                format!("the server does not take the site yet: {reason}")
            }
            Err(Unmet::Failed(why)) => format!("the server was not reached: {why}"),
        };
        if told {
            desk.logger.debug(&problem);
        } else {
            told = true;
            desk.logger
                .warning(&format!("{problem}; it is tried again until it works"));
        }
        tokio::select! {
            () = sleep(jitter(pause)) => {}
            () = stopped(&mut stop) => return Ok(()),
        }
        pause = (pause * 2).min(PAUSE_CAP);
    }
}

/// Waits until the site's process is to end.
pub(super) async fn stopped(stop: &mut watch::Receiver<Option<String>>) {
    if stop.wait_for(Option::is_some).await.is_err() {
        // Nobody will say so.
        std::future::pending::<()>().await;
    }
}

/// Says what is left to be said, and goodbye.
pub(super) async fn part(session: &Session, why: &str) {
    session.close(why).await;
}

/// A random part of `pause`.
fn jitter(pause: Duration) -> Duration {
    let drawn = firesteel_node::parts::random();
    pause.mul_f64((drawn >> 11) as f64 / (1u64 << 53) as f64)
}

/// A server that has welcomed the site.
struct Met {
    session: Session,
    reader: Reader,
    writer: Writer,
    welcome: Welcome,
}

/// Why there is none.
enum Unmet {
    Refused { reason: String, retry: bool },
    Failed(String),
}

impl From<LinkError> for Unmet {
    fn from(error: LinkError) -> Self {
        Self::Failed(sentence(&error))
    }
}

/// Dials and greets.
async fn meet(desk: &Desk) -> Result<Met, Unmet> {
    let session = dial::server(desk).await.map_err(Unmet::Failed)?;
    let greeting = greet(desk, session);
    match tokio::time::timeout(desk.durations.connect, greeting).await {
        Ok(met) => met,
        Err(_) => Err(Unmet::Failed("it did not answer the hello".to_owned())),
    }
}

async fn greet(desk: &Desk, session: Session) -> Result<Met, Unmet> {
    let control = session
        .control()
        .ok_or_else(|| Unmet::Failed("the session has no control stream".to_owned()))?;
    let (mut reader, mut writer) = split(control);
    let hello = Hello {
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        features: Vec::new(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        name: desk.site.as_str().to_owned(),
        instance: desk.instance,
        facts: desk.facts(),
        jobs: desk.in_hand(),
    };
    say(&mut writer, to_server::Body::Hello(hello)).await?;
    match reader.next::<ToNode>("ToNode").await? {
        Some(ToNode {
            body: Some(to_node::Body::Welcome(welcome)),
        }) => Ok(Met {
            session,
            reader,
            writer,
            welcome,
        }),
        Some(ToNode {
            body: Some(to_node::Body::Refused(refused)),
        }) => {
            session.close("refused").await;
            Err(Unmet::Refused {
                reason: refused.reason,
                retry: refused.retry,
            })
        }
        Some(_) => Err(Unmet::Failed(
            "it spoke of jobs before it welcomed the site".to_owned(),
        )),
        None => Err(Unmet::Failed("it closed the connection".to_owned())),
    }
}

/// Speaks with the server for as long as the connection holds.
async fn serve(
    desk: &Desk,
    met: Met,
    outgoing: &mut mpsc::Receiver<to_server::Body>,
    stop: &mut watch::Receiver<Option<String>>,
) -> Over {
    let Met {
        session,
        mut reader,
        mut writer,
        welcome,
    } = met;
    desk.logger.info(&format!(
        "connected to the server (version {}) at {}",
        welcome.build,
        session.address()
    ));
    judge_clock(desk, welcome.clock);
    for body in desk.again() {
        if let Err(error) = say(&mut writer, body).await {
            return Over::Lost(sentence(&error));
        }
    }
    let mut probing = Some(probing(desk));
    let unasked = unasked(&session);
    tokio::pin!(unasked);
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            body = outgoing.recv() => {
                let Some(body) = body else { return Over::Stopped };
                if let Err(error) = say(&mut writer, body).await {
                    return Over::Lost(sentence(&error));
                }
                if outgoing.is_empty() && desk.missed() {
                    for body in desk.again() {
                        if let Err(error) = say(&mut writer, body).await {
                            return Over::Lost(sentence(&error));
                        }
                    }
                }
            }
            message = reader.next::<ToNode>("ToNode") => match message {
                Ok(Some(message)) => desk.handle(message),
                Ok(None) => return Over::Lost("the server closed it".to_owned()),
                Err(error) => return Over::Lost(sentence(&error)),
            },
            facts = probed(&mut probing), if probing.is_some() => {
                probing = None;
                if let Some(facts) = facts {
                    desk.say(to_server::Body::Facts(Facts { facts }));
                }
            }
            () = &mut unasked => return Over::Lost("the session is over".to_owned()),
            () = stopped(stop), if !stopping => stopping = true,
            // What jobs say at their end still goes out.
            () = desk.emptied(desk.durations.stop_grace), if stopping => {
                while let Ok(body) = outgoing.try_recv() {
                    if say(&mut writer, body).await.is_err() {
                        break;
                    }
                }
                return Over::Stopped;
            }
        }
    }
}

/// Asks the interpreters in the background; what they say are facts.
fn probing(desk: &Desk) -> tokio::task::JoinHandle<bytes::Bytes> {
    let desk = desk.clone();
    tokio::task::spawn_blocking(move || facts::probed(&desk).to_string().into())
}

async fn probed(
    probing: &mut Option<tokio::task::JoinHandle<bytes::Bytes>>,
) -> Option<bytes::Bytes> {
    match probing {
        Some(probing) => probing.await.ok(),
        None => std::future::pending().await,
    }
}

/// The server opens no streams to a site outside of jobs: those of a later version
/// are closed. Ends with the session.
async fn unasked(session: &Session) {
    while let Some((_kind, stream)) = session.accept().await {
        drop(stream);
    }
}

async fn say(writer: &mut Writer, body: to_server::Body) -> Result<(), LinkError> {
    writer.send(&ToServer { body: Some(body) }).await
}

/// How far the clocks may be apart before somebody should know: log lines of server
/// and site are read side by side.
const APART: u64 = 5 * 60 * 1_000_000;

fn judge_clock(desk: &Desk, theirs: u64) {
    let ours = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0));
    let apart = ours.abs_diff(theirs);
    if theirs != 0 && apart > APART {
        desk.logger.warning(&format!(
            "the clocks of server and site are {} s apart; times in logs differ by that",
            apart / 1_000_000
        ));
    }
}
