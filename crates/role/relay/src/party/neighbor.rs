//! Who connects here: sites, and relays with sites of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use firesteel_base::{Failure, FailureCode, Phase, SiteName};
use firesteel_carry::update::{self, sentence};
use firesteel_carry::{Carrier, Connection, Fetched, Offer, Order, Progress, Remote, Way};
use firesteel_net::{BoxStream, Reader, Writer, split};
use firesteel_store::{ModelObject, PartName};
use firesteel_wire::PROTOCOL;
use firesteel_wire::control::{
    Hello, Object, Partial, Refused, ToServer, ToSite, Welcome, to_server, to_site,
};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Shared, site};

/// Messages on their way to a relay below, of which each round has a few.
const OUTGOING: usize = 64;

/// Streams of sites below a relay that wait to be greeted.
const WAITING: usize = 64;

/// Models of earlier rounds that a slow site may still come for.
const KEPT: usize = 2;

/// The role in a relay's certificate.
const RELAY: &str = "relay";

/// A relay below, while it is connected.
pub(super) struct Below {
    connection: u64,
    /// What is said to it.
    pub(super) say: mpsc::Sender<to_site::Body>,
    /// Who waits for its sums of a round and a try.
    pub(super) waiting: HashMap<(u32, u32), oneshot::Sender<Partial>>,
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let Connection { control, way } = connection;
    let (mut reader, mut writer) = split(control);
    let connect = shared.durations.connect;
    let hello = match timeout(connect, greet(&mut reader, &way)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(why)) => return turn_away(&shared, writer, why).await,
        Err(_) => {
            let why = format!("a connection did not end its handshake within {connect:?}");
            return turn_away(&shared, writer, why).await;
        }
    };
    let (hello, name) = hello;
    let carrier = shared.carrier(name.as_str());
    if !hello.relay {
        carrier.connected(way);
        let whose = site::Whose {
            name,
            via: None,
            carrier,
        };
        return site::serve(shared, (reader, writer), whose, hello).await;
    }
    if !is_relay(&way) {
        let why = format!("`{name}` says that it is a relay, and its certificate does not");
        return turn_away(&shared, writer, why).await;
    }
    let welcome = to_site::Body::Welcome(Welcome {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        lease_epoch: shared.epoch,
    });
    let start = to_site::Body::StartJob(shared.start.clone());
    for body in [welcome, start] {
        if writer.send(&ToSite { body: Some(body) }).await.is_err() {
            return;
        }
    }
    let (streams, below) = mpsc::channel(WAITING);
    carrier.below(streams);
    carrier.connected(way);
    relay(shared, (reader, writer), name, (carrier, below)).await;
}

/// The first message, and the name in it, which the connection vouches for.
async fn greet(reader: &mut Reader, way: &Way) -> Result<(Hello, SiteName), String> {
    let (hello, name) = hello(reader).await?;
    match way.peer() {
        Some(proved) if proved != name.as_str() => {
            let proved: String = proved.chars().take(64).collect();
            Err(format!(
                "a connection with the certificate of {proved:?} claims to be `{name}`"
            ))
        }
        _ => Ok((hello, name)),
    }
}

pub(super) async fn hello(reader: &mut Reader) -> Result<(Hello, SiteName), String> {
    let message = reader.next::<ToServer>("ToServer").await;
    let message =
        message.map_err(|error| format!("a connection failed before its hello: {error}"))?;
    let Some(ToServer {
        body: Some(to_server::Body::Hello(hello)),
    }) = message
    else {
        return Err("the first message of a connection was no hello".to_owned());
    };
    let name = SiteName::new(&hello.site).map_err(|error| error.to_string())?;
    Ok((hello, name))
}

fn is_relay(way: &Way) -> bool {
    match way {
        Way::Session(session) => session.peer().role.as_deref() == Some(RELAY),
        Way::Here => true,
        Way::Below(_) => false,
    }
}

async fn turn_away(shared: &Shared, mut writer: Writer, why: String) {
    shared.logger.warning(&format!("turned away: {why}"));
    let refused = to_site::Body::Refused(Refused { reason: why });
    let message = ToSite {
        body: Some(refused),
    };
    // It may be gone already, or not listen.
    let _ = timeout(shared.durations.connect, writer.send(&message)).await;
}

/// Serves a relay below, and the sites below it.
async fn relay(
    shared: Arc<Shared>,
    (mut reader, mut writer): (Reader, Writer),
    name: SiteName,
    (carrier, mut below): (Arc<Remote>, mpsc::Receiver<BoxStream>),
) {
    let connection = shared.number();
    let (say, mut said) = mpsc::channel::<to_site::Body>(OUTGOING);
    shared.state().relays.insert(
        name.clone(),
        Below {
            connection,
            say,
            waiting: HashMap::new(),
        },
    );
    shared.touch();
    shared
        .logger
        .info(&format!("relay {name} is connected below"));
    let mut sites = JoinSet::new();
    loop {
        tokio::select! {
            message = reader.next::<ToServer>("ToServer") => match message {
                Ok(Some(ToServer { body: Some(to_server::Body::Partial(partial)) })) => {
                    let mut state = shared.state();
                    let asked = state.relays.get_mut(&name);
                    let asked = asked.filter(|below| below.connection == connection);
                    let of = (partial.round, partial.attempt);
                    if let Some(waiting) = asked.and_then(|below| below.waiting.remove(&of)) {
                        // Who asked may have given it up.
                        let _ = waiting.send(partial);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            },
            Some(stream) = below.recv() => {
                let (shared, via, carrier) = (Arc::clone(&shared), name.clone(), Arc::clone(&carrier));
                sites.spawn(async move {
                    let (mut reader, writer) = split(stream);
                    let hello = timeout(shared.durations.connect, hello(&mut reader)).await;
                    // The relay has made sure who it is.
                    if let Ok(Ok((hello, name))) = hello {
                        let whose = site::Whose { name, via: Some(via), carrier };
                        site::serve(shared, (reader, writer), whose, hello).await;
                    }
                });
            }
            Some(_) = sites.join_next() => {}
            body = said.recv() => match body {
                Some(body) => {
                    if writer.send(&ToSite { body: Some(body) }).await.is_err() {
                        break;
                    }
                }
                // Another connection of it has taken its place.
                None => break,
            },
        }
    }
    let mut state = shared.state();
    if state
        .relays
        .get(&name)
        .is_some_and(|below| below.connection == connection)
    {
        state.relays.remove(&name);
    }
    drop(state);
    shared.touch();
}

/// The models of tasks, each of which is fetched once for all sites below.
#[derive(Default)]
pub(super) struct Models(Mutex<Vec<(u64, Arc<Fetching>)>>);

#[derive(Default)]
struct Fetching {
    whole: OnceCell<ModelObject>,
    /// As it was before it was brought into the form in which it travels.
    plain: OnceCell<ModelObject>,
}

impl Models {
    fn of(&self, id: u64, shared: &Shared) -> Arc<Fetching> {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = models.iter().find(|(known, _)| *known == id) {
            return Arc::clone(known);
        }
        // One each for what sites of one round may have: as it is, and by filters.
        while models.len() > 2 * KEPT {
            let (old, _) = models.remove(0);
            let name = Offer::Model { handle: old };
            for carrier in shared.state().carriers.values() {
                carrier.withdraw(name);
            }
        }
        let fetching = Arc::new(Fetching::default());
        models.push((id, Arc::clone(&fetching)));
        fetching
    }
}

/// What a task's model came to: what a site below is to fetch, and the model
/// itself.
pub(super) struct Given {
    pub(super) object: Object,
    pub(super) plain: ModelObject,
    /// The number under which it is known.
    pub(super) id: u64,
}

impl Shared {
    /// Fetches a model from above, unless it is here, and offers it to a neighbor
    /// below.
    pub(super) async fn give(&self, object: &Object, to: &Remote) -> Result<Given, String> {
        let (whole, plain) = self.have(object).await?;
        let offered = match object.inline {
            Some(_) => object.clone(),
            None => to.offer(Offer::Model { handle: object.id }, &whole),
        };
        Ok(Given {
            object: offered,
            plain,
            id: object.id,
        })
    }

    /// Fetches a model from above, unless it is here: in the form in which it
    /// travels, and as it was before.
    pub(super) async fn have(&self, object: &Object) -> Result<(ModelObject, ModelObject), String> {
        if let Some(bytes) = &object.inline {
            let model = self.objects.from_bytes(&bytes[..]);
            let model = model.map_err(|error| sentence(&error))?;
            let plain = self.plain(model.clone(), &OnceCell::new()).await?;
            return Ok((model, plain));
        }
        let fetching = self.models.of(object.id, self);
        let whole = fetching
            .whole
            .get_or_try_init(|| self.fetch(object))
            .await?;
        let plain = self.plain(whole.clone(), &fetching.plain).await?;
        Ok((whole.clone(), plain))
    }

    async fn fetch(&self, object: &Object) -> Result<ModelObject, String> {
        if let Some(model) = self.up.here(object) {
            return Ok(model);
        }
        let mut name = [0; 32];
        for (to, from) in name.iter_mut().zip(object.id.to_be_bytes()) {
            *to = from;
        }
        let fetched = self.up.fetch(Order {
            object: object.clone(),
            name: "the round's model".to_owned(),
            part: PartName::of_digest(&name),
            whole: true,
            progress: Arc::new(Progress::new(object.length)),
        });
        match fetched.await {
            Ok(Fetched::Here(model)) => Ok(model),
            Ok(Fetched::Live(_)) => Err("there is no room for it here".to_owned()),
            Err(error) => Err(sentence(&error)),
        }
    }

    async fn plain(
        &self,
        model: ModelObject,
        known: &OnceCell<ModelObject>,
    ) -> Result<ModelObject, String> {
        let plain = known.get_or_try_init(|| async move {
            let objects = self.objects.clone();
            let decoding =
                tokio::task::spawn_blocking(move || update::decoded(model, &objects, None));
            match decoding.await {
                Ok(decoded) => decoded.map_err(|failure| failure.message),
                Err(_) => Err("the relay panicked while a model was decoded".to_owned()),
            }
        });
        plain.await.cloned()
    }
}

/// A task that cannot be given to a site, as its failure.
pub(super) fn not_given(relay: &SiteName, why: &str) -> Failure {
    let message = format!("relay {relay} could not fetch the round's model: {why}");
    Failure::new(FailureCode::Internal, Phase::Train, message)
}
