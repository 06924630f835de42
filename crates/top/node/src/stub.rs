//! Sites without trainers, for measurements: each fetches every model, checks it
//! and throws it away, and answers with one and the same file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesteel_base::{Durations, SiteName, TaskKey, limits};
use firesteel_carry::{Carrier, Connection, Depot, Dial, Offer, Remote, Way};
use firesteel_net::pull::{Pull, Sink};
use firesteel_net::{Identity, IdentityFiles, Kind, LinkError, Options, Session, Writer, split};
use firesteel_store::{ModelObject, Objects};
use firesteel_transfer::{Budget, ObjectRef};
use firesteel_wire::PROTOCOL;
use firesteel_wire::control::{
    Assign, Hello, Key, Object, Stopped, TaskProgress, TaskState, ToServer, ToSite, Update,
    to_server, to_site,
};

use crate::NodeError;
use crate::connect::NetDial;
use crate::parts::sentence;

/// How stub sites are run.
#[derive(Debug, Clone)]
pub struct StubOptions {
    /// The sites, each with its own identity.
    pub sites: Vec<(SiteName, IdentityFiles)>,
    /// The server: `host:port`.
    pub connect: String,
    /// The name that the server's certificate must have.
    pub server_name: String,
    /// The model file that each answers with.
    pub file: PathBuf,
    /// A directory of theirs, on the disk of the file.
    pub root: PathBuf,
    /// How connections are used.
    pub net: Options,
    /// How long things may take.
    pub durations: Durations,
}

/// Answers tasks until the job has ended for every one of them.
///
/// # Errors
/// [`NodeError`] of the first site that could not do it.
pub async fn act(options: StubOptions) -> Result<(), NodeError> {
    let _lock = crate::site::lock(&options.root)?;
    let objects = Objects::open(&options.root.join("objects"))?;
    let answer = shared(&objects, &options.file)?;
    let depot = Depot::new(objects, None, options.durations);
    let mut sites = tokio::task::JoinSet::new();
    for (site, identity) in options.sites {
        let stub = Stub {
            carrier: Remote::new(&depot, "the server"),
            answer: answer.clone(),
            receiving: Budget::default(),
            durations: options.durations,
            site,
        };
        let dial = NetDial {
            address: options.connect.clone(),
            server_name: options.server_name.clone(),
            identity: Identity::from_files(&identity)?,
            options: options.net.clone(),
        };
        sites.spawn(stub.run(dial));
    }
    while let Some(ended) = sites.join_next().await {
        ended
            .map_err(|error| NodeError::io("run a site")(io::Error::other(error)))?
            .map_err(NodeError::io("act for a site"))?;
    }
    Ok(())
}

/// The file, without a copy where it is on the same disk.
fn shared(objects: &Objects, file: &Path) -> Result<ModelObject, NodeError> {
    objects
        .import_kept(file)
        .or_else(|_| objects.import_copy(file))
        .map_err(|error| NodeError::io("read the answer")(io::Error::other(sentence(&error))))
}

struct Stub {
    site: SiteName,
    carrier: Remote,
    answer: ModelObject,
    receiving: Budget,
    durations: Durations,
}

impl Stub {
    async fn run(self, mut dial: NetDial) -> io::Result<()> {
        let Connection { control, way } = dial.dial().await?;
        let Way::Session(session) = &way else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let session = session.clone();
        self.carrier.connected(way);
        let (mut reader, mut writer) = split(control);
        let hello = Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            site: self.site.as_str().to_owned(),
            ..Hello::default()
        };
        say(&mut writer, to_server::Body::Hello(hello)).await?;
        while let Some(message) = reader.next::<ToSite>("ToSite").await.map_err(link)? {
            match message.body {
                Some(to_site::Body::Assign(assign)) => {
                    self.answer(&session, &mut writer, assign).await?;
                }
                Some(to_site::Body::EndJob(_)) => {
                    let stopped = to_server::Body::Stopped(Stopped { forced: 0 });
                    say(&mut writer, stopped).await?;
                    return writer.close().await.map_err(link);
                }
                Some(to_site::Body::Refused(refused)) => {
                    return Err(io::Error::other(refused.reason));
                }
                _ => {}
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn answer(
        &self,
        session: &Session,
        writer: &mut Writer,
        assign: Assign,
    ) -> io::Result<()> {
        let Some(key) = assign.key else { return Ok(()) };
        say(writer, to_server::Body::TaskAccepted(key.clone())).await?;
        if let Some(model) = assign.model.filter(|model| model.inline.is_none()) {
            self.look_at(session, &model).await?;
        }
        for state in [TaskState::Training, TaskState::Sending] {
            let progress = TaskProgress {
                key: Some(key.clone()),
                state: state.into(),
                ..TaskProgress::default()
            };
            say(writer, to_server::Body::TaskProgress(progress)).await?;
        }
        let update = Update {
            model: Some(self.offer(&key)),
            key: Some(key),
            steps: Some(1.0),
            ..Update::default()
        };
        say(writer, to_server::Body::Update(update)).await
    }

    /// Fetches a model and checks every byte of it.
    async fn look_at(&self, session: &Session, model: &Object) -> io::Result<()> {
        let object = ObjectRef::new(model.id, model.length).map_err(io::Error::other)?;
        let sink = Arc::new(Nowhere);
        let mut pull = Pull::new("the server", "the model", object, sink, &self.receiving)
            .durations(self.durations);
        let pulled = pull.retrying(|| session.open(Kind::TRANSFER)).await;
        pulled.map(drop).map_err(io::Error::other)
    }

    fn offer(&self, key: &Key) -> Object {
        if self.answer.len() <= limits::INLINE_OBJECT as u64 {
            return Object {
                inline: Some(bytes::Bytes::copy_from_slice(self.answer.bytes())),
                id: 0,
                length: self.answer.len(),
            };
        }
        let name = |key: &TaskKey| Offer::Update {
            round: key.round.0,
            attempt: key.attempt.0,
        };
        match TaskKey::try_from(key) {
            Ok(key) => {
                // The one of the round before is not asked for any more.
                if let Some(round) = key.round.0.checked_sub(1) {
                    let attempt = key.attempt.0;
                    self.carrier.withdraw(Offer::Update { round, attempt });
                }
                self.carrier.offer(name(&key), &self.answer)
            }
            Err(_) => Object::default(),
        }
    }
}

async fn say(writer: &mut Writer, body: to_server::Body) -> io::Result<()> {
    let message = ToServer { body: Some(body) };
    writer.send(&message).await.map_err(link)
}

fn link(error: LinkError) -> io::Error {
    io::Error::other(error)
}

/// Takes bytes and forgets them.
struct Nowhere;

impl Sink for Nowhere {
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn save(&self, _note: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _range: std::ops::Range<u64>) {}
}
