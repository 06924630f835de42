//! A session with a relay, and what is to be had through it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use firesteel_net::{
    DialError, Identity, Kind, LinkError, Opener, Options, ScopeError, Session, SessionError,
    Target, dial_through, dial_with, read_one, write_one,
};
use firesteel_wire::relay::{JobIs, JobWanted, TunnelTo};
use tokio::time::{Instant, sleep, timeout};

use crate::tunnel;

/// The role in a server's certificate.
const SERVER: &str = "server";

/// Bytes of a first message: an id, or a sentence.
const MESSAGE: usize = 4096;

/// Between looks at whether a scope that is on its way out has gone.
const LOOK: Duration = Duration::from_millis(10);

/// A session with a relay, through which the server is reached. Clones are the
/// same.
#[derive(Debug, Clone)]
pub struct Uplink {
    session: Session,
    connect: Duration,
}

/// Why something was not to be had through a relay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// A stream.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A message on it.
    #[error("the stream to the relay failed")]
    Link(#[from] LinkError),
    /// It said nothing, or for too long.
    #[error("the relay did not answer within {} s", connect.as_secs_f32())]
    Silent {
        /// The duration `connect`.
        connect: Duration,
    },
    /// The relay, or who is above it, said no.
    #[error("no part in the job through the relay: {why}")]
    Refused {
        /// Its own words.
        why: String,
    },
    /// The job's scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

impl From<UplinkError> for io::Error {
    fn from(error: UplinkError) -> Self {
        Self::other(error)
    }
}

impl Uplink {
    /// Connects to a relay.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(mut target: Target, options: Options) -> Result<Self, DialError> {
        target.roles = vec!["relay".to_owned()];
        let connect = options.durations.connect;
        let session = dial_with(&target, options).await?;
        Ok(Self::over(session, connect))
    }

    /// By a session that is there.
    pub fn over(session: Session, connect: Duration) -> Self {
        Self { session, connect }
    }

    /// The session with the relay.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Makes a session with the server itself, with mutual TLS from end to end:
    /// it shows the certificate of `server_name`, and no relay on the way can read
    /// what is said.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn server(
        &self,
        server_name: &str,
        identity: &Identity,
        options: Options,
    ) -> Result<Session, DialError> {
        let (session, connect) = (self.session.clone(), self.connect);
        let name: Arc<str> = server_name.into();
        let opener: Opener = Arc::new(move || {
            let (session, name) = (session.clone(), Arc::clone(&name));
            Box::pin(async move {
                let stream = session.open(Kind::TUNNEL).await.map_err(io::Error::other)?;
                let to = TunnelTo {
                    server: name.to_string(),
                    hops: 0,
                };
                let made = tunnel::ask(stream, to, connect).await;
                made.map_err(tunnel::TunnelError::io)
            })
        });
        let session = dial_through(opener, server_name, identity, options).await?;
        let peer = session.peer();
        // A relay that holds a certificate for the server's name is still a relay.
        if peer.role.as_deref() != Some(SERVER) {
            return Err(DialError::Role {
                server: peer.name.clone(),
                address: session.address().to_string(),
                role: peer.role.clone().unwrap_or_default(),
                roles: vec![SERVER.to_owned()],
            });
        }
        Ok(session)
    }

    /// Takes part in a job through the relay: the scope in which the job's agent,
    /// or another relay below, speaks with it. `hops` are the relays below.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn job(&self, job: &str, hops: u32) -> Result<Session, UplinkError> {
        let asked = async {
            let mut stream = self.session.open(Kind::BELOW).await?;
            let wanted = JobWanted {
                job: job.to_owned(),
                hops,
            };
            write_one(&mut stream, &wanted).await?;
            let answer = read_one::<JobIs>(&mut stream, "JobIs", MESSAGE).await?;
            let connect = self.connect;
            let answer = answer.ok_or(UplinkError::Silent { connect })?;
            if !answer.refused.is_empty() {
                return Err(UplinkError::Refused {
                    why: answer.refused,
                });
            }
            Ok(scope(&self.session, job, connect).await?)
        };
        // It may have to ask further up.
        match timeout(self.connect * 2, asked).await {
            Ok(asked) => asked,
            Err(_) => Err(UplinkError::Silent {
                connect: self.connect,
            }),
        }
    }
}

/// Makes a scope, as soon as one before it that is on its way out is gone.
///
/// # Errors
/// [`ScopeError`].
pub async fn scope(
    session: &Session,
    job: &str,
    patience: Duration,
) -> Result<Session, ScopeError> {
    let until = Instant::now() + patience;
    loop {
        match session.scope(job) {
            Err(ScopeError::Taken { .. }) if Instant::now() < until => sleep(LOOK).await,
            made => return made,
        }
    }
}
