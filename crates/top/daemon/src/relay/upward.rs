//! The relay's own session with whoever is above: made, kept, and made again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firesteel_base::Durations;
use firesteel_net::{BoxStream, Kind, Options, Session, split};
use firesteel_node::parts::{random, sentence};
use firesteel_observe::Logger;
use firesteel_pki::{Connect, Kit};
use firesteel_transfer::Backoff;
use firesteel_wire::PROTOCOL;
use firesteel_wire::node::{Hello, ToNode, ToServer, to_node, to_server};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{RelayError, Uplink};
use crate::dialing;

/// The way up, for everything that goes there. Clones are the same.
#[derive(Clone)]
pub(super) struct Upward(Arc<Inside>);

struct Inside {
    kit: Kit,
    net: Options,
    durations: Durations,
    logger: Logger,
    instance: u64,
    link: watch::Sender<Option<Uplink>>,
}

/// Why there is no session.
enum Unmet {
    /// Another try may end otherwise.
    Failed(String),
    /// It will not.
    Refused(String),
}

impl Upward {
    pub(super) fn new(kit: Kit, net: Options, durations: Durations, logger: Logger) -> Self {
        Self(Arc::new(Inside {
            kit,
            net,
            durations,
            logger,
            instance: random(),
            link: watch::Sender::new(None),
        }))
    }

    /// Keeps a session until whoever is above says that another try is of no use.
    pub(super) async fn keep(&self) -> RelayError {
        let inside = &self.0;
        let mut backoff = Backoff::default();
        let mut told = false;
        loop {
            let problem = match self.meet().await {
                Ok(link) => {
                    (backoff, told) = (Backoff::default(), false);
                    let session = link.session().clone();
                    inside.link.send_replace(Some(link));
                    inside.logger.info(&format!(
                        "connected to `{}` at {}",
                        session.peer().name,
                        session.address()
                    ));
                    let why = watch_over(&session).await;
                    inside.link.send_replace(None);
                    format!("the session with `{}` ended: {why}", session.peer().name)
                }
                Err(Unmet::Refused(reason)) => return RelayError::Refused { reason },
                Err(Unmet::Failed(why)) => format!("whoever is above was not reached: {why}"),
            };
            if told {
                inside.logger.debug(&problem);
            } else {
                told = true;
                inside
                    .logger
                    .warning(&format!("{problem}; it is tried again until it works"));
            }
            sleep(backoff.next(random())).await;
        }
    }

    async fn meet(&self) -> Result<Uplink, Unmet> {
        let mut last = "its kit names nobody to connect to".to_owned();
        for way in self.0.kit.connect() {
            match self.by(&way).await {
                Err(Unmet::Failed(why)) => last = why,
                met => return met,
            }
        }
        Err(Unmet::Failed(last))
    }

    async fn by(&self, way: &Connect) -> Result<Uplink, Unmet> {
        let inside = &self.0;
        let target = dialing::target(&inside.kit, way).map_err(Unmet::Failed)?;
        let failed = |error: firesteel_net::DialError| Unmet::Failed(sentence(&error));
        let connect = inside.durations.connect;
        if way.through_relay.is_some() {
            let link = Uplink::dial(target, inside.net.clone()).await;
            return link.map_err(failed);
        }
        let session = firesteel_net::dial_with(&target, inside.net.clone()).await;
        let session = session.map_err(failed)?;
        match timeout(connect, self.greet(&session)).await {
            Ok(greeted) => greeted?,
            Err(_) => {
                let why = "the server did not answer the hello".to_owned();
                return Err(Unmet::Failed(why));
            }
        }
        Ok(Uplink::over(session, connect))
    }

    /// Tells the server who it is.
    async fn greet(&self, session: &Session) -> Result<(), Unmet> {
        let failed = |why: &str| Unmet::Failed(why.to_owned());
        let control = session
            .control()
            .ok_or_else(|| failed("there is no control stream"))?;
        let (mut reader, mut writer) = split(control);
        let hello = Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            features: Vec::new(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.0.kit.name().to_owned(),
            instance: self.0.instance,
            facts: Bytes::from_static(b"{}"),
            jobs: Vec::new(),
        };
        let message = ToServer {
            body: Some(to_server::Body::Hello(hello)),
        };
        let lost = |error: firesteel_net::LinkError| Unmet::Failed(sentence(&error));
        writer.send(&message).await.map_err(lost)?;
        match reader.next::<ToNode>("ToNode").await.map_err(lost)? {
            Some(ToNode {
                body: Some(to_node::Body::Welcome(_)),
            }) => {}
            Some(ToNode {
                body: Some(to_node::Body::Refused(refused)),
            }) if refused.retry => return Err(Unmet::Failed(refused.reason)),
            Some(ToNode {
                body: Some(to_node::Body::Refused(refused)),
            }) => return Err(Unmet::Refused(refused.reason)),
            _ => return Err(failed("the server did not welcome the relay")),
        }
        // It has nothing more to say for now; when it ends, so does the session.
        let (session, keep) = (session.clone(), writer);
        tokio::spawn(async move {
            let over = async { while let Ok(Some(_)) = reader.next::<ToNode>("ToNode").await {} };
            tokio::select! {
                () = over => session.close("the server has closed the conversation").await,
                _ = session.closed() => {}
            }
            drop(keep);
        });
        Ok(())
    }

    /// The session, as soon as there is one.
    pub(super) async fn link(&self, patience: Duration) -> Result<Uplink, String> {
        let mut links = self.0.link.subscribe();
        let there = timeout(patience, links.wait_for(Option::is_some)).await;
        match there {
            Ok(Ok(link)) => link.clone().ok_or_else(|| "the relay ends".to_owned()),
            Ok(Err(_)) => Err("the relay ends".to_owned()),
            Err(_) => Err(format!(
                "relay `{}` is not connected to whoever is above it",
                self.0.kit.name()
            )),
        }
    }

    /// A stream for what is only carried.
    pub(super) async fn tunnel(&self) -> Result<BoxStream, String> {
        let link = self.link(self.0.durations.connect).await?;
        let opened = link.session().open(Kind::TUNNEL).await;
        opened.map_err(|error| sentence(&error))
    }

    pub(super) fn connect(&self) -> Duration {
        self.0.durations.connect
    }

    /// Says goodbye.
    pub(super) async fn part(&self, why: &str) {
        if let Some(link) = self.0.link.send_replace(None) {
            link.session().close(why).await;
        }
    }
}

/// Waits for the end of a session on which nothing is opened from above.
async fn watch_over(session: &Session) -> String {
    let streams = async {
        // Of a later version: dropped, which the other end sees.
        while session.accept().await.is_some() {}
    };
    tokio::select! {
        reason = session.closed() => reason.to_string(),
        () = streams => session.closed().await.to_string(),
    }
}
