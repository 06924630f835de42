//! Reaching the server: dialing, again and again if need be, and the handshake.

use std::time::{Duration, Instant};

use firesteel_carry::{Connection, Dial, Way};
use firesteel_net::{Reader, Writer, split};
use firesteel_observe::Logger;
use firesteel_wire::control::{Hello, StartJob, ToServer, ToSite, to_server, to_site};
use tokio::task::JoinHandle;

use crate::AgentError;

/// The first pause between two tries; each is twice the one before, up to
/// [`PAUSE_CAP`], and a random part of that is waited for, so that a thousand
/// sites do not all dial at once when their server is there again.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const PAUSE_CAP: Duration = Duration::from_secs(5);

/// The server, and what it said first.
pub(crate) struct Reached {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) way: Way,
    pub(crate) start: StartJob,
    pub(crate) epoch: u64,
}

/// Who dials, and for how long.
pub(crate) struct Reach {
    pub(crate) dial: Box<dyn Dial>,
    pub(crate) connect: Duration,
    /// After so long without the server the site gives up.
    pub(crate) lease: Duration,
    pub(crate) logger: Logger,
}

/// Dialing in a task of its own, which ends when this is dropped.
pub(crate) struct Reaching(JoinHandle<(Reach, Result<Reached, AgentError>)>);

impl Reaching {
    pub(crate) fn start(reach: Reach, hello: Hello) -> Self {
        Self(tokio::spawn(async move {
            let mut reach = reach;
            let reached = reach.reach(&hello).await;
            (reach, reached)
        }))
    }

    /// Waits for its end. May be cancelled and asked again, until it has answered.
    pub(crate) async fn ended(&mut self) -> Result<(Reach, Reached), AgentError> {
        match (&mut self.0).await {
            Ok((reach, reached)) => reached.map(|reached| (reach, reached)),
            Err(_) => Err(AgentError::Closed),
        }
    }
}

impl Drop for Reaching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reach {
    /// Dials until the server answers, refuses, or the lease is over.
    pub(crate) async fn reach(&mut self, hello: &Hello) -> Result<Reached, AgentError> {
        let until = Instant::now() + self.lease;
        let mut pause = PAUSE;
        let mut told = false;
        loop {
            let problem = match self.try_once(hello).await {
                Ok(reached) => return Ok(reached),
                // Another try would hear the same.
                Err(error @ (AgentError::Refused(_) | AgentError::Protocol(_))) => {
                    return Err(error);
                }
                Err(error) => error,
            };
            if !self.dial.again() {
                return Err(problem);
            }
            let now = Instant::now();
            if now >= until {
                return Err(AgentError::Lease {
                    lease: self.lease,
                    source: Box::new(problem),
                });
            }
            let text = crate::agent::sentence(&problem);
            if told {
                self.logger
                    .debug(&format!("the server was not reached: {text}"));
            } else {
                told = true;
                self.logger.warning(&format!(
                    "the server was not reached: {text}; it is tried again for {:?}",
                    self.lease
                ));
            }
            let wait = jitter(pause).min(until - now);
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_CAP);
        }
    }

    async fn try_once(&mut self, hello: &Hello) -> Result<Reached, AgentError> {
        let again = self.dial.again();
        let greeting = async {
            let Connection { control, way } = self.dial.dial().await.map_err(AgentError::Dial)?;
            let (reader, writer) = split(control);
            greet(reader, writer, way, hello).await
        };
        // In a simulation of a thousand sites the server takes its time with the last.
        if !again {
            return greeting.await;
        }
        match tokio::time::timeout(self.connect * 2, greeting).await {
            Ok(greeted) => greeted,
            Err(_) => Err(AgentError::Dial(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

/// A random part of `pause`.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hash maps from the system's generator.
    let drawn = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    pause.mul_f64((drawn >> 11) as f64 / (1u64 << 53) as f64)
}

/// The handshake.
async fn greet(
    mut reader: Reader,
    mut writer: Writer,
    way: Way,
    hello: &Hello,
) -> Result<Reached, AgentError> {
    let body = Some(to_server::Body::Hello(hello.clone()));
    writer.send(&ToServer { body }).await?;
    let mut epoch = 0;
    loop {
        let message = reader.next::<ToSite>("ToSite").await?;
        match message.and_then(|message| message.body) {
            Some(to_site::Body::Welcome(welcome)) => epoch = welcome.lease_epoch,
            Some(to_site::Body::StartJob(start)) => {
                return Ok(Reached {
                    reader,
                    writer,
                    way,
                    start,
                    epoch,
                });
            }
            Some(to_site::Body::Refused(refused)) => {
                return Err(AgentError::Refused(refused.reason));
            }
            Some(_) => return Err(AgentError::Protocol("work before the job")),
            None => return Err(AgentError::Closed),
        }
    }
}
