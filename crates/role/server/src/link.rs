//! One site's connection: the handshake, then messages both ways.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::SiteName;
use firesteel_carry::{Connection, Way};
use firesteel_net::{LinkError, Reader, Writer, split};
use firesteel_wire::PROTOCOL;
use firesteel_wire::control::{
    Hello, Partial, Refused, StartJob, ToServer, ToSite, Welcome, to_server, to_site,
};
use tokio::sync::{mpsc, oneshot};

/// Messages on their way to one site. A site that leaves this many unread has
/// stopped reading, for each of its rounds has fewer than ten.
const OUTGOING: usize = 64;

/// Tasks that a site may say to have in hand: one it is at, and results of rounds
/// that are not committed, of which there are two at most.
const HOLDS: usize = 64;

/// Bytes of a stranger's words that are repeated in a sentence.
const QUOTED: usize = 64;

/// What a connection tells the driver. A site may have dialed twice: its number
/// tells what comes from the connection in use.
pub(crate) enum Inbound {
    /// A site is there; this is how to reach it.
    Joined {
        site: usize,
        link: Link,
        /// What it said of itself.
        hello: Hello,
        /// How its models travel.
        way: Way,
    },
    /// It said something.
    Said {
        site: usize,
        connection: u64,
        body: to_server::Body,
    },
    /// Its connection is over.
    Left {
        site: usize,
        connection: u64,
        why: Option<LinkError>,
    },
    /// A relay is there, said something, or is gone.
    Relay { relay: SiteName, news: RelayNews },
    /// Somebody called who may not; the driver only logs it.
    Turned { why: String },
}

/// What is heard of a relay.
pub(crate) enum RelayNews {
    /// It is there.
    Joined { link: Link, way: Way },
    /// It has summed.
    Said {
        connection: u64,
        partial: Box<Partial>,
    },
    /// Its connection is over.
    Left { connection: u64 },
}

/// Who a connection is of.
enum Caller {
    /// A site, by its number, and its hello.
    Site(usize, Hello),
    /// A relay.
    Relay(SiteName),
}

/// A site's connection, as the driver holds it. When it is dropped, what was
/// said still goes out, and what the site still says is heard.
pub(crate) struct Link {
    /// Which of all connections.
    pub(crate) connection: u64,
    outgoing: mpsc::Sender<ToSite>,
    cut: oneshot::Sender<()>,
}

/// What became of a message to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is on its way.
    Yes,
    /// The connection is over: [`Inbound::Left`] is on its way.
    Gone,
    /// The site has stopped reading.
    Unread,
}

impl Link {
    /// Says something without waiting.
    pub(crate) fn tell(&self, body: to_site::Body) -> Told {
        match self.outgoing.try_send(ToSite { body: Some(body) }) {
            Ok(()) => Told::Yes,
            Err(mpsc::error::TrySendError::Closed(_)) => Told::Gone,
            Err(mpsc::error::TrySendError::Full(_)) => Told::Unread,
        }
    }

    /// Ends the connection at once, whatever was not said or heard.
    pub(crate) fn cut(self) {
        // An error means that it is over already.
        let _ = self.cut.send(());
    }
}

/// What every connection needs to know.
pub(crate) struct Reception {
    /// The sites of the job, by name.
    pub(crate) sites: HashMap<SiteName, usize>,
    /// Whether relays may sum updates of this job.
    pub(crate) relays: bool,
    /// What a site is told first.
    pub(crate) start: StartJob,
    /// For the handshake.
    pub(crate) connect: Duration,
    /// The epoch of the lease.
    pub(crate) lease_epoch: u64,
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    number: u64,
    connection: Connection,
    reception: Arc<Reception>,
    inbox: mpsc::Sender<Inbound>,
) {
    let Connection { control, way } = connection;
    let (mut reader, mut writer) = split(control);
    let greeted = tokio::time::timeout(
        reception.connect,
        greet(&mut reader, &mut writer, &way, &reception),
    );
    let caller = match greeted.await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(why)) => {
            let refused = to_site::Body::Refused(Refused {
                reason: why.clone(),
            });
            let _ = inbox.send(Inbound::Turned { why }).await;
            // It may be gone already, or not listen.
            let refused = ToSite {
                body: Some(refused),
            };
            let _ = tokio::time::timeout(reception.connect, writer.send(&refused)).await;
            return;
        }
        Err(_) => {
            let why = format!(
                "a connection did not end its handshake within {:?}",
                reception.connect
            );
            let _ = inbox.send(Inbound::Turned { why }).await;
            return;
        }
    };
    let (outgoing, mut queue) = mpsc::channel::<ToSite>(OUTGOING);
    let (cut, is_cut) = oneshot::channel();
    let link = Link {
        connection: number,
        outgoing,
        cut,
    };
    let (joined, caller) = caller.joins(link, way);
    if inbox.send(joined).await.is_err() {
        return;
    }
    let writing = async {
        while let Some(message) = queue.recv().await {
            writer.send(&message).await?;
        }
        writer.close().await
    };
    let leaving = caller.clone();
    let reading = async {
        while let Some(message) = reader.next::<ToServer>("ToServer").await? {
            // An empty body is something a newer agent says.
            if let Some(body) = message.body
                && let Some(said) = caller.says(number, body)
                && inbox.send(said).await.is_err()
            {
                break;
            }
        }
        Ok::<(), LinkError>(())
    };
    let cutting = async {
        // Dropped, not sent: the driver only has no more to say.
        if is_cut.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(writing);
    tokio::pin!(reading);
    // The driver drops its sender when the job is over; what the site still has
    // to say is read to the end.
    let why = tokio::select! {
        read = &mut reading => read.err(),
        written = &mut writing => match written {
            Err(error) => Some(error),
            Ok(()) => reading.await.err(),
        },
        () = cutting => None,
    };
    let _ = inbox.send(leaving.leaves(number, why)).await;
}

/// Who a connection turned out to be of.
#[derive(Clone)]
enum Who {
    Site(usize),
    Relay(SiteName),
}

impl Caller {
    fn joins(self, link: Link, way: Way) -> (Inbound, Who) {
        match self {
            Self::Site(site, hello) => {
                let joined = Inbound::Joined {
                    site,
                    link,
                    hello,
                    way,
                };
                (joined, Who::Site(site))
            }
            Self::Relay(relay) => {
                let joined = Inbound::Relay {
                    relay: relay.clone(),
                    news: RelayNews::Joined { link, way },
                };
                (joined, Who::Relay(relay))
            }
        }
    }
}

impl Who {
    fn says(&self, connection: u64, body: to_server::Body) -> Option<Inbound> {
        match (self, body) {
            (Self::Site(site), body) => Some(Inbound::Said {
                site: *site,
                connection,
                body,
            }),
            (Self::Relay(relay), to_server::Body::Partial(partial)) => Some(Inbound::Relay {
                relay: relay.clone(),
                news: RelayNews::Said {
                    connection,
                    partial: Box::new(partial),
                },
            }),
            // What a newer relay says.
            (Self::Relay(_), _) => None,
        }
    }

    fn leaves(self, connection: u64, why: Option<LinkError>) -> Inbound {
        match self {
            Self::Site(site) => Inbound::Left {
                site,
                connection,
                why,
            },
            Self::Relay(relay) => Inbound::Relay {
                relay,
                news: RelayNews::Left { connection },
            },
        }
    }
}

/// The handshake; who it is, or why it is turned away.
async fn greet(
    reader: &mut Reader,
    writer: &mut Writer,
    way: &Way,
    reception: &Reception,
) -> Result<Caller, String> {
    let message = reader
        .next::<ToServer>("ToServer")
        .await
        .map_err(|error| format!("a connection failed before its hello: {error}"))?;
    let Some(ToServer {
        body: Some(to_server::Body::Hello(hello)),
    }) = message
    else {
        return Err("the first message of a connection was no hello".to_owned());
    };
    let name = SiteName::new(&hello.site).map_err(|error| error.to_string())?;
    // The name that the connection itself vouches for.
    if let Some(proved) = way.peer().filter(|proved| *proved != name.as_str()) {
        let proved: String = proved.chars().take(QUOTED).collect();
        return Err(format!(
            "a connection with the certificate of {proved:?} claims to be `{name}`"
        ));
    }
    if hello.holds.len() > HOLDS {
        return Err(format!(
            "`{name}` claims to have {} tasks in hand",
            hello.holds.len()
        ));
    }
    if PROTOCOL < hello.protocol_min || PROTOCOL > hello.protocol_max {
        let build: String = hello.build.chars().take(QUOTED).collect();
        return Err(format!(
            "site `{name}` (build {build:?}) speaks protocols {} to {}, this server speaks {PROTOCOL}: \
             upgrade the older of the two",
            hello.protocol_min, hello.protocol_max,
        ));
    }
    let caller = if hello.relay {
        admit_relay(&name, way, reception)?;
        Caller::Relay(name.clone())
    } else if let Some(&site) = reception.sites.get(&name) {
        Caller::Site(site, hello)
    } else {
        return Err(format!("`{name}` is not a site of this job"));
    };
    let welcome = to_site::Body::Welcome(Welcome {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        lease_epoch: reception.lease_epoch,
    });
    let start = to_site::Body::StartJob(reception.start.clone());
    for body in [welcome, start] {
        writer
            .send(&ToSite { body: Some(body) })
            .await
            .map_err(|error| format!("`{name}` was lost in the handshake: {error}"))?;
    }
    Ok(caller)
}

/// Whether this may be a relay of this job.
fn admit_relay(name: &SiteName, way: &Way, reception: &Reception) -> Result<(), String> {
    if !reception.relays {
        return Err(format!(
            "relay `{name}` wants to sum updates, which the job's hierarchy does not allow"
        ));
    }
    let role = match way {
        Way::Session(session) => session.peer().role.as_deref(),
        Way::Here => Some(RELAY),
        Way::Below(_) => None,
    };
    if role != Some(RELAY) {
        return Err(format!(
            "`{name}` says that it is a relay, and its certificate does not"
        ));
    }
    Ok(())
}

/// The role in a relay's certificate.
const RELAY: &str = "relay";
