//! Relays that are parties to the job: they hold the updates of the sites below
//! them, and sum them when a round is folded. Quorum and records count sites;
//! relays are only how they are reached.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use firesteel_aggregate::UpdateKind;
use firesteel_base::{Failure, FailureCode, Phase, SiteName, TaskKey, limits};
use firesteel_carry::update::{self, SumsObject};
use firesteel_carry::{Carrier, Connection, Fetched, Offer, Order, Progress, Way};
use firesteel_flow::{Event, FoldKey, FoldRequest, ModelHandle, ParamsType};
use firesteel_net::BoxStream;
use firesteel_store::{ModelObject, PartName};
use firesteel_wire::control::{Collect, Key, Object, Partial, Weighed, to_site};
use tokio::sync::mpsc;

use crate::driver::{Done, Job};
use crate::fold::Held;
use crate::link::{Link, RelayNews, Told};

/// Streams of sites below relays that wait to be greeted.
const WAITING: usize = 64;

/// The relays of a job, and what they are asked for.
pub(crate) struct Relays {
    known: BTreeMap<SiteName, Known>,
    /// The relay of each site that is reached by one, by the site's number.
    via: HashMap<usize, SiteName>,
    /// What is being summed at relays.
    collecting: Option<Collecting>,
    /// Connections of sites below relays.
    connections: mpsc::Sender<Connection>,
}

struct Known {
    carrier: Arc<dyn Carrier>,
    link: Option<Link>,
    /// Since when it is not connected.
    away: Option<Instant>,
}

/// A fold that waits for sums.
struct Collecting {
    request: FoldRequest,
    asked: BTreeMap<SiteName, Asked>,
}

/// What one relay was asked for.
struct Asked {
    collect: Collect,
    sites: Vec<SiteName>,
    sums: Option<Summed>,
    /// It has answered, and its sums are on their way.
    fetching: bool,
}

/// What a relay has summed; nothing, when nothing of it counts.
pub(crate) type Summed = Option<SumsObject>;

/// A relay's part in a fold.
pub(crate) struct Part {
    pub(crate) relay: SiteName,
    pub(crate) sites: Vec<SiteName>,
    pub(crate) sums: SumsObject,
}

impl Relays {
    /// With where connections of sites below relays come out.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Connection>) {
        let (connections, below) = mpsc::channel(WAITING);
        let relays = Self {
            known: BTreeMap::new(),
            via: HashMap::new(),
            collecting: None,
            connections,
        };
        (relays, below)
    }

    /// The way of models to a site that is below a relay.
    pub(crate) fn carrier(&self, site: usize) -> Option<&Arc<dyn Carrier>> {
        let relay = self.via.get(&site)?;
        self.known.get(relay).map(|known| &known.carrier)
    }

    pub(crate) fn is_below(&self, site: usize) -> bool {
        self.via.contains_key(&site)
    }

    /// A site has connected this way; whether it came another way before.
    pub(crate) fn joined(&mut self, site: usize, way: &Way) -> bool {
        let relay = match way {
            Way::Below(relay) => SiteName::new(relay).ok(),
            Way::Here | Way::Session(_) => None,
        };
        let before = match &relay {
            Some(relay) => self.via.insert(site, relay.clone()),
            None => self.via.remove(&site),
        };
        before != relay
    }

    /// How many are connected.
    pub(crate) fn connected(&self) -> usize {
        let known = self.known.values();
        known.filter(|known| known.link.is_some()).count()
    }

    /// Every relay is told.
    pub(crate) fn tell(&self, body: &to_site::Body) {
        for link in self.known.values().filter_map(|known| known.link.as_ref()) {
            // Who does not read is asked anew when it has connected anew.
            let _ = link.tell(body.clone());
        }
    }

    /// Ends the connections, after what was said last.
    pub(crate) fn dismiss(&mut self) {
        for known in self.known.values_mut() {
            known.link = None;
        }
        self.collecting = None;
    }

    pub(crate) fn withdraw(&self, offer: Offer) {
        for known in self.known.values() {
            known.carrier.withdraw(offer);
        }
    }
}

impl Job {
    pub(crate) fn on_relay(&mut self, relay: SiteName, news: RelayNews) {
        match news {
            RelayNews::Joined { link, way } => self.relay_joined(relay, link, way),
            RelayNews::Said {
                connection,
                partial,
            } => {
                let known = self.relays.known.get(&relay);
                let current = known.and_then(|known| known.link.as_ref());
                if current.is_some_and(|link| link.connection == connection) {
                    self.summed(relay, *partial);
                }
            }
            RelayNews::Left { connection } => {
                if let Some(known) = self.relays.known.get_mut(&relay)
                    && known
                        .link
                        .take_if(|link| link.connection == connection)
                        .is_some()
                {
                    known.away = Some(Instant::now());
                    self.parts.watch.warn(&format!(
                        "relay {relay} is not connected; the sites below it come back by themselves"
                    ));
                }
            }
        }
    }

    fn relay_joined(&mut self, relay: SiteName, link: Link, way: Way) {
        let carriers = &self.parts.carriers;
        let known = self.relays.known.entry(relay.clone());
        let known = known.or_insert_with(|| Known {
            carrier: carriers(&relay),
            link: None,
            away: None,
        });
        // Before the way is there, so that no stream comes too early.
        let (streams, mut below) = mpsc::channel::<BoxStream>(WAITING);
        known.carrier.below(streams);
        let (connections, name) = (self.relays.connections.clone(), relay.to_string());
        tokio::spawn(async move {
            while let Some(control) = below.recv().await {
                let way = Way::Below(name.clone());
                if connections.send(Connection { control, way }).await.is_err() {
                    return;
                }
            }
        });
        known.carrier.connected(way);
        if let Some(old) = known.link.replace(link) {
            old.cut();
        }
        known.away = None;
        self.parts.watch.relay(&relay);
        self.ask(&relay);
    }

    /// Asks a relay for what it has not answered.
    fn ask(&mut self, relay: &SiteName) {
        let Some(collecting) = &self.relays.collecting else {
            return;
        };
        let Some(asked) = collecting.asked.get(relay).filter(|asked| !asked.fetching) else {
            return;
        };
        let Some(known) = self.relays.known.get_mut(relay) else {
            return;
        };
        let body = to_site::Body::Collect(asked.collect.clone());
        let told = known.link.as_ref().map(|link| link.tell(body));
        if told == Some(Told::Unread)
            && let Some(link) = known.link.take()
        {
            link.cut();
        }
        // It is asked when it is back.
        if known.link.is_none() {
            known.away.get_or_insert_with(Instant::now);
        }
    }

    /// Has relays sum what they hold of a fold's updates; whether they hold any.
    pub(crate) fn collect(&mut self, request: &FoldRequest) -> bool {
        let mut parts: BTreeMap<SiteName, (Vec<Weighed>, Vec<SiteName>)> = BTreeMap::new();
        let mut lost = Vec::new();
        for input in &request.inputs {
            let Some(Held::Below(key)) = self.models.get(&input.model) else {
                continue;
            };
            let site = self.index.get(&input.site);
            let Some(relay) = site.and_then(|site| self.relays.via.get(site)) else {
                lost.push(input.site.clone());
                continue;
            };
            let (weighed, sites) = parts.entry(relay.clone()).or_default();
            weighed.push(Weighed {
                key: Some(Key::from(key)),
                weight: input.weight,
            });
            sites.push(input.site.clone());
        }
        if !lost.is_empty() {
            let why = "the site is not below the relay any more that holds its update";
            let failure = Failure::new(FailureCode::Disconnected, Phase::Aggregate, why);
            self.not_summed(request.key, &failure, &lost);
            return true;
        }
        if parts.is_empty() {
            return false;
        }
        let base = request.base;
        let diff = is_diff(request);
        let asked: Vec<_> = parts.into_iter().collect();
        let mut collecting = Collecting {
            request: request.clone(),
            asked: BTreeMap::new(),
        };
        for (relay, (parts, sites)) in asked {
            let model = base.and_then(|handle| self.base_for(&relay, handle));
            let collect = Collect {
                round: request.key.round.0,
                attempt: request.key.attempt.0,
                diff,
                parts,
                model,
            };
            let asked = Asked {
                collect,
                sites,
                sums: None,
                fetching: false,
            };
            collecting.asked.insert(relay, asked);
        }
        let relays: Vec<_> = collecting.asked.keys().cloned().collect();
        self.relays.collecting = Some(collecting);
        for relay in relays {
            self.ask(&relay);
        }
        true
    }

    /// What the sites were given, offered to a relay that may not have it.
    fn base_for(&mut self, relay: &SiteName, handle: ModelHandle) -> Option<Object> {
        let object = self.handed_out(handle).ok().flatten()?;
        if object.len() <= limits::INLINE_OBJECT as u64 {
            return Some(Object {
                inline: Some(bytes::Bytes::copy_from_slice(object.bytes())),
                id: object.id().0,
                length: object.len(),
            });
        }
        let known = self.relays.known.get(relay)?;
        Some(known.carrier.offer(plain_offer(handle), &object))
    }

    fn not_summed(&mut self, key: FoldKey, failure: &Failure, sites: &[SiteName]) {
        self.relays.collecting = None;
        let blame = sites.iter().map(|site| (site.clone(), failure.clone()));
        self.feed(Event::FoldFailed {
            key,
            failure: failure.clone(),
            blame: blame.collect(),
        });
    }

    /// A relay has answered.
    fn summed(&mut self, relay: SiteName, partial: Partial) {
        let Some(collecting) = &mut self.relays.collecting else {
            return;
        };
        let key = collecting.request.key;
        let base = collecting.request.base;
        let diff = is_diff(&collecting.request);
        let Some(asked) = collecting.asked.get_mut(&relay) else {
            return;
        };
        if (partial.round, partial.attempt) != (key.round.0, key.attempt.0) || asked.fetching {
            return;
        }
        if let Some(failure) = partial.failure {
            let mut failure = Failure::from(failure);
            failure.message = format!("relay {relay}: {}", failure.message);
            // It can blame only those that it was asked for; none, and the fold is
            // not worth another try with them.
            let mut blame = Vec::new();
            for blamed in partial.blame {
                if let Ok(site) = SiteName::new(&blamed.site)
                    && asked.sites.contains(&site)
                {
                    let own = blamed
                        .failure
                        .map_or_else(|| failure.clone(), Failure::from);
                    blame.push((site, own));
                }
            }
            if blame.is_empty() {
                let sites = asked.sites.iter();
                blame.extend(sites.map(|site| (site.clone(), failure.clone())));
            }
            self.relays.collecting = None;
            return self.feed(Event::FoldFailed {
                key,
                failure,
                blame,
            });
        }
        asked.fetching = true;
        let parts = &asked.collect.parts;
        let contributors: Vec<_> = parts.iter().filter_map(|part| part.key.clone()).collect();
        if partial.contributors != contributors {
            let why = format!("relay {relay} has summed other updates than it was asked for");
            let failure = Failure::new(FailureCode::Malformed, Phase::Aggregate, why);
            let sites = asked.sites.clone();
            return self.not_summed(key, &failure, &sites);
        }
        let Some(object) = partial.sums else {
            return self.took(key, relay, Ok(None));
        };
        let weights: Vec<f64> = parts.iter().map(|part| part.weight).collect();
        let base = base.map_or(Ok(None), |handle| self.handed_out(handle));
        let base = match base {
            Ok(base) => base,
            Err(failure) => return self.break_down(failure),
        };
        let kind = if diff {
            UpdateKind::Diff
        } else {
            UpdateKind::Full
        };
        let options = self.options.for_kind(kind);
        let Some(known) = self.relays.known.get(&relay) else {
            return;
        };
        let fetching: Fetch = match &object.inline {
            Some(bytes) if bytes.len() <= limits::INLINE_OBJECT => {
                let made = self.parts.objects.from_bytes(&bytes[..]);
                Box::pin(std::future::ready(made.map_err(|error| {
                    let why = format!(
                        "what the relay sent is no model: {}",
                        update::sentence(&error)
                    );
                    Failure::new(FailureCode::Malformed, Phase::Verify, why)
                })))
            }
            _ => {
                let fetching = known.carrier.fetch(Order {
                    name: format!("the sums of round {}", key.round),
                    part: PartName::of_update(&TaskKey {
                        round: key.round,
                        site: relay.clone(),
                        attempt: key.attempt,
                    }),
                    whole: true,
                    progress: Arc::new(Progress::new(object.length)),
                    object,
                });
                Box::pin(async move {
                    match fetching.await {
                        Ok(Fetched::Here(object)) => Ok(object),
                        Ok(Fetched::Live(_)) => Err(Failure::new(
                            FailureCode::DiskFull,
                            Phase::Verify,
                            "there is no room for what the relay has summed",
                        )),
                        Err(error) => Err(update::not_fetched(&error)),
                    }
                })
            }
        };
        let done = self.done.clone();
        tokio::spawn(async move {
            let checked = match fetching.await {
                Err(failure) => Err(failure),
                Ok(object) => {
                    let check = move || {
                        SumsObject::check(object, base.as_ref(), &options, &weights).map(Some)
                    };
                    let checked = tokio::task::spawn_blocking(check).await;
                    checked.unwrap_or_else(|_| {
                        Err(Failure::new(
                            FailureCode::Internal,
                            Phase::Verify,
                            "the server panicked while sums were checked",
                        ))
                    })
                }
            };
            let result = Box::new(checked);
            // The receiver is gone only when the job has ended.
            let _ = done.send(Done::Summed { key, relay, result }).await;
        });
    }

    /// A relay's sums are here, or will not come.
    pub(crate) fn took(&mut self, key: FoldKey, relay: SiteName, result: Result<Summed, Failure>) {
        let Some(collecting) = &mut self.relays.collecting else {
            return;
        };
        if collecting.request.key != key {
            return;
        }
        let Some(asked) = collecting.asked.get_mut(&relay) else {
            return;
        };
        match result {
            Err(mut failure) => {
                failure.message = format!("relay {relay}: {}", failure.message);
                let sites = asked.sites.clone();
                return self.not_summed(key, &failure, &sites);
            }
            Ok(summed) => asked.sums = Some(summed),
        }
        if collecting.asked.values().any(|asked| asked.sums.is_none()) {
            return;
        }
        let Some(collecting) = self.relays.collecting.take() else {
            return;
        };
        let parts = collecting.asked.into_iter().filter_map(|(relay, asked)| {
            Some(Part {
                relay,
                sites: asked.sites,
                sums: asked.sums??,
            })
        });
        let parts = parts.collect();
        self.fold(collecting.request, parts);
    }

    /// Relays that are away for a lease are not waited for.
    pub(crate) fn end_relay_leases(&mut self, now: Instant, lease: Duration) {
        let Some(collecting) = &self.relays.collecting else {
            return;
        };
        let key = collecting.request.key;
        let gone = collecting.asked.iter().find(|(relay, asked)| {
            let away = self.relays.known.get(relay).and_then(|known| known.away);
            asked.sums.is_none() && away.is_some_and(|since| now >= since + lease)
        });
        if let Some((relay, asked)) = gone {
            let why = format!(
                "relay {relay}, which holds the update, did not come back within its lease"
            );
            let failure = Failure::new(FailureCode::Disconnected, Phase::Aggregate, why);
            let sites = asked.sites.clone();
            self.not_summed(key, &failure, &sites);
        }
    }

    /// What a site that has come another way was offered before.
    pub(crate) fn offer_again(&mut self, site: usize) {
        let handles = self.offered.iter();
        let handles = handles.filter(|(_, sites)| sites.contains(&site));
        let handles: Vec<ModelHandle> = handles.map(|(handle, _)| *handle).collect();
        for handle in handles {
            if let Ok(Some(object)) = self.handed_out(handle) {
                self.offer_to(site, handle, &object);
            }
        }
    }
}

/// A model on its way here.
type Fetch = std::pin::Pin<Box<dyn Future<Output = Result<ModelObject, Failure>> + Send>>;

fn is_diff(request: &FoldRequest) -> bool {
    let first = request.inputs.first();
    first.is_some_and(|input| input.params_type == ParamsType::Diff)
}

/// The name of a model as it is. One that went through filters, which may differ
/// between the sites below a relay, has another; see [`filtered_offer`].
pub(crate) fn plain_offer(handle: ModelHandle) -> Offer {
    Offer::Model { handle: handle.0 }
}

/// The name of the form in which a model goes to some sites.
pub(crate) fn filtered_offer(form: &ModelObject) -> Offer {
    // Handles are counted from zero, with room of a million between processes.
    Offer::Model {
        handle: form.id().0 | 1 << 62,
    }
}
