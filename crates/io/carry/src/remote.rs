//! The peer is another process: models are pulled over its session.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use firesteel_base::{Durations, limits};
use firesteel_bridge::stream::{Elsewhere, Exchange};
use firesteel_net::pull::{self, Known, Offered, Offers, Pull, Serving, Sink, Source};
use firesteel_net::{BoxStream, Kind, Session};
use firesteel_store::{
    Admitted, Found, Incoming, IncomingError, LiveReason, ModelObject, ObjectId, ObjectReader,
    Objects, Spool,
};
use firesteel_transfer::{Budget, Layout, Manifest, ObjectRef};
use firesteel_wire::control::Object;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::stream::{self, Asked, Desk, Far, Relay};
use crate::{Carrier, CarryError, Fetched, Fetching, LiveModel, Offer, Order, Way};

/// How long a file's name may still be in use by a fetch that was just given up.
const BUSY: Duration = Duration::from_millis(20);

/// Streams that a peer may have open at once, each of which has a task and, once
/// something was asked for, windows of the role's budget.
const STREAMS: usize = 32;

/// What all carriers of one role share.
pub struct Depot {
    pub(crate) objects: Objects,
    spool: Option<Spool>,
    pub(crate) durations: Durations,
    pub(crate) sending: Budget,
    pub(crate) receiving: Budget,
    /// One manifest serves all peers to whom a model is offered.
    offered: Mutex<HashMap<ObjectId, Weak<Offered>>>,
    warn: Warn,
}

/// Takes a sentence that somebody should read.
type Warn = Box<dyn Fn(&str) + Send + Sync>;

impl Depot {
    /// For a role whose models in flight are `objects`. With a spool, what arrives
    /// is within its budget.
    pub fn new(objects: Objects, spool: Option<Spool>, durations: Durations) -> Arc<Self> {
        Self::warning(objects, spool, durations, |_| {})
    }

    /// The same, with somebody who is told what went wrong and was got over.
    pub fn warning(
        objects: Objects,
        spool: Option<Spool>,
        durations: Durations,
        warn: impl Fn(&str) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            objects,
            spool,
            durations,
            sending: Budget::default(),
            receiving: Budget::default(),
            offered: Mutex::default(),
            warn: Box::new(warn),
        })
    }

    fn offered(&self, model: &ModelObject) -> io::Result<Arc<Offered>> {
        let mut offered = lock(&self.offered);
        if let Some(known) = offered.get(&model.id()).and_then(Weak::upgrade) {
            return Ok(known);
        }
        offered.retain(|_, known| known.strong_count() > 0);
        let source: Arc<dyn Source> = Arc::new(Reader(model.reader().map_err(io::Error::other)?));
        let made = Offered::new(source, Layout::of_model(model.header()));
        offered.insert(model.id(), Arc::downgrade(&made));
        Ok(made)
    }

    /// Room for what is to be received.
    async fn room(&self, order: &Order) -> Result<Result<Incoming, LiveReason>, CarryError> {
        let (name, len) = (order.part.clone(), order.object.length);
        loop {
            let (objects, spool, name) = (self.objects.clone(), self.spool.clone(), name.clone());
            let opened = tokio::task::spawn_blocking(move || match spool {
                None => objects.incoming(&name, len).map(Ok),
                Some(spool) => spool.admit(&name, len).map(|admitted| match admitted {
                    Admitted::Spooled(incoming) => Ok(incoming),
                    Admitted::Live(reason) => Err(reason),
                }),
            });
            match opened.await.map_err(|_| CarryError::Broken)? {
                Ok(opened) => {
                    if let Ok(incoming) = &opened
                        && let Found::Refused(problem) = incoming.found()
                    {
                        (self.warn)(&format!(
                            "{} is fetched from its start: {problem}",
                            order.name
                        ));
                    }
                    return Ok(opened);
                }
                // The fetch that was given up for this one is on its way out.
                Err(IncomingError::Busy { .. }) => tokio::time::sleep(BUSY).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The ways of models to and from a peer in another process.
pub struct Remote(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) depot: Arc<Depot>,
    pub(crate) peer: String,
    pub(crate) session: watch::Sender<Option<Session>>,
    offers: Mutex<HashMap<u64, Arc<Offered>>>,
    known: Arc<Known>,
    /// What was fetched last: the next model has many of its tensors.
    last: Mutex<Option<(u64, ModelObject, Arc<Manifest>)>>,
    /// Answers the peer's pulls as long as the session lasts.
    serving: Mutex<Option<AbortHandle>>,
    /// Who answers what the peer asks for of other sites' offers, if anybody does.
    asked: OnceLock<Asked>,
    /// Who takes the streams of those below the peer, if anybody does.
    below: Mutex<Option<mpsc::Sender<BoxStream>>>,
}

impl Remote {
    /// For the peer of this name, with what its role shares.
    pub fn new(depot: &Arc<Depot>, peer: &str) -> Self {
        Self(Arc::new(Shared {
            depot: Arc::clone(depot),
            peer: peer.to_owned(),
            session: watch::Sender::new(None),
            offers: Mutex::default(),
            known: Arc::default(),
            last: Mutex::default(),
            serving: Mutex::default(),
            asked: OnceLock::new(),
            below: Mutex::default(),
        }))
    }

    /// At a server: the peer fetches what other sites of the relay offer, and they
    /// what it offers.
    #[must_use]
    pub fn relayed(self, relay: &Relay) -> Self {
        relay.add(&self.0.peer, &self.0);
        self.0.asked.get_or_init(|| Asked::Relay(relay.clone()));
        self
    }

    /// At a site, whose peer is the server: other sites fetch what is in the
    /// exchange.
    #[must_use]
    pub fn offering(self, exchange: &Exchange) -> Self {
        let desk = || Asked::Offers(Desk::new(exchange.clone()));
        self.0.asked.get_or_init(desk);
        self
    }

    /// At a site: brings what other sites offer.
    pub fn elsewhere(&self) -> Arc<dyn Elsewhere> {
        Arc::new(Far(Arc::clone(&self.0)))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(serving) = lock(&self.0.serving).take() {
            serving.abort();
        }
    }
}

impl Carrier for Remote {
    fn connected(&self, way: Way) {
        let Way::Session(session) = way else { return };
        let shared = Arc::clone(&self.0);
        let serving = tokio::spawn(serve(shared, session.clone())).abort_handle();
        if let Some(old) = lock(&self.0.serving).replace(serving) {
            old.abort();
        }
        if let Some(old) = self.0.session.send_replace(Some(session)) {
            tokio::spawn(async move { old.close("the peer has connected anew").await });
        }
    }

    fn offer(&self, name: Offer, model: &ModelObject) -> Object {
        let id = name.id();
        // What cannot be opened is gone for the peer, which says so.
        if let Ok(offered) = self.0.depot.offered(model) {
            lock(&self.0.offers).insert(id, offered);
        }
        Object {
            inline: None,
            id,
            length: model.len(),
        }
    }

    fn below(&self, streams: mpsc::Sender<BoxStream>) {
        *lock(&self.0.below) = Some(streams);
    }

    fn withdraw(&self, name: Offer) {
        let offered = lock(&self.0.offers).remove(&name.id());
        if let Some(manifest) = offered
            .as_ref()
            .and_then(|offered| offered.known_manifest())
        {
            self.0.known.remove(&manifest.root());
        }
    }

    fn tidy(&self) {
        let objects = self.0.depot.objects.clone();
        // What is being fetched is claimed, and stays. What cannot be removed is in
        // nobody's way but the disk's, and is tried again.
        tokio::task::spawn_blocking(move || drop(objects.discard_parts(|_| false)));
    }

    fn here(&self, object: &Object) -> Option<ModelObject> {
        let last = lock(&self.0.last);
        let (_, model, _) = last
            .as_ref()
            .filter(|(id, model, _)| *id == object.id && model.len() == object.length)?;
        Some(model.clone())
    }

    fn fetch(&self, order: Order) -> Fetching {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.fetch(order).await })
    }
}

impl Shared {
    async fn fetch(self: Arc<Self>, order: Order) -> Result<Fetched, CarryError> {
        let object = ObjectRef::new(order.object.id, order.object.length)?;
        let room = match self.depot.room(&order).await? {
            Ok(room) => Arc::new(Room(room)),
            Err(reason) if order.whole => return Err(CarryError::NoRoom { reason }),
            Err(_) => {
                let live = LiveModel::fetch(self, object, &order).await?;
                return Ok(Fetched::Live(Arc::new(live)));
            }
        };
        self.know_offers();
        let (tell, mut told) = watch::channel(pull::Progress::default());
        let sink: Arc<dyn Sink> = Arc::clone(&room) as _;
        let mut pull = self
            .pull(&order.name, object, sink)
            .known(Arc::clone(&self.known))
            .progress(tell);
        let pulled = {
            let pulling = pull.retrying(|| self.stream());
            tokio::pin!(pulling);
            loop {
                tokio::select! {
                    pulled = &mut pulling => break pulled?,
                    Ok(()) = told.changed() => {
                        let told = *told.borrow_and_update();
                        order.progress.set(told.done, told.pulled);
                    }
                }
            }
        };
        drop(pull);
        let told = *told.borrow();
        order.progress.set(told.done, told.pulled);
        // Nobody else writes to it any more.
        let finishing = tokio::task::spawn_blocking(move || {
            let room = Arc::into_inner(room).ok_or(CarryError::Broken)?;
            Ok::<_, CarryError>(room.0.finish()?)
        });
        let model = finishing.await.map_err(|_| CarryError::Broken)??;
        pulled.manifest.fits(model.header())?;
        if self.depot.spool.is_none() {
            self.remember(order.object.id, &model, pulled.manifest);
        }
        Ok(Fetched::Here(model))
    }

    /// A pull from this peer.
    pub(crate) fn pull(&self, name: &str, object: ObjectRef, sink: Arc<dyn Sink>) -> Pull {
        Pull::new(&self.peer, name, object, sink, &self.depot.receiving)
            .durations(self.depot.durations)
    }

    /// A site keeps the last model, whose tensors the next one may share.
    fn remember(&self, id: u64, model: &ModelObject, manifest: Arc<Manifest>) {
        let Ok(reader) = model.reader() else { return };
        self.known
            .add(Arc::new(Reader(reader)), Arc::clone(&manifest));
        let root = manifest.root();
        let before = lock(&self.last).replace((id, model.clone(), manifest));
        if let Some((_, _, manifest)) = before.filter(|(_, _, before)| before.root() != root) {
            self.known.remove(&manifest.root());
        }
    }

    /// A tensor of an update that is the model's need not travel.
    fn know_offers(&self) {
        for offered in lock(&self.offers).values() {
            // One that is not made was not asked for: the peer does not have it.
            if let Some(manifest) = offered.known_manifest() {
                let source = Arc::clone(offered.source());
                self.known.add(source, Arc::clone(manifest));
            }
        }
    }

    /// A stream of the session in use, or of the next one.
    pub(crate) async fn stream(&self) -> Result<BoxStream, io::Error> {
        self.open(Kind::TRANSFER).await
    }

    /// The same, of any kind.
    pub(crate) async fn open(&self, kind: Kind) -> Result<BoxStream, io::Error> {
        let mut sessions = self.session.subscribe();
        let session = sessions
            .wait_for(Option::is_some)
            .await
            .map_err(|_| io::ErrorKind::NotConnected)?
            .clone()
            .ok_or(io::ErrorKind::NotConnected)?;
        session.open(kind).await.map_err(io::Error::other)
    }
}

/// Answers what the peer asks for, until its session ends.
async fn serve(shared: Arc<Shared>, session: Session) {
    let serving = Serving {
        peer: shared.peer.clone(),
        budget: shared.depot.sending.clone(),
        durations: shared.depot.durations,
    };
    let serving = Arc::new(serving);
    let mut open = JoinSet::new();
    let mut asked = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = session.accept(), if open.len() < STREAMS => accepted,
            Some(_) = open.join_next() => continue,
            Some(_) = asked.join_next() => continue,
        };
        let Some((kind, stream)) = accepted else {
            break;
        };
        if kind == Kind::STREAM
            && asked.len() < limits::STREAM_FETCHES
            && let Some(by) = shared.asked.get()
        {
            asked.spawn(stream::serve(Arc::clone(&shared), by.clone(), stream));
            continue;
        }
        if kind == Kind::BELOW {
            let below = lock(&shared.below).clone();
            // Who takes them is gone, or has too many: dropped, which the peer sees.
            if let Some(below) = below {
                let _ = below.try_send(stream);
            }
            continue;
        }
        // A kind of a later version, or one too many: dropped, which the peer sees.
        if kind != Kind::TRANSFER {
            continue;
        }
        let (shared, serving) = (Arc::clone(&shared), Arc::clone(&serving));
        open.spawn(async move {
            // Its end, good or bad, is known to the peer, which asks again.
            let _ = pull::serve(stream, &*shared, &serving).await;
        });
    }
}

impl Offers for Shared {
    fn find(&self, _peer: &str, object: u64) -> Option<Arc<Offered>> {
        // The map is this peer's own.
        lock(&self.offers).get(&object).cloned()
    }
}

/// A model's file, read in windows.
struct Reader(ObjectReader);

impl Source for Reader {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn read_cached_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.0.read_cached_at(offset, into)
    }

    fn name(&self) -> String {
        "the model".to_owned()
    }

    fn is_changed(&self, error: &io::Error) -> bool {
        error
            .get_ref()
            .is_some_and(|inner| inner.is::<firesteel_store::ChangedError>())
    }
}

/// A file being received.
pub(crate) struct Room(pub(crate) Incoming);

impl Sink for Room {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn received(&self) -> Vec<Range<u64>> {
        self.0.received()
    }

    fn note(&self) -> Vec<u8> {
        self.0.note()
    }

    fn save(&self, note: &[u8]) -> io::Result<()> {
        self.0.save(note)
    }

    fn forget(&self, range: Range<u64>) {
        self.0.forget(range);
    }
}

/// A thread that panicked while holding one of our locks left nothing
/// inconsistent: each is held for one insertion or removal.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use firesteel_store::PartName;

    use super::*;
    use crate::Progress;

    #[tokio::test]
    async fn a_damaged_beginning_is_warned_of_and_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let part = PartName::of_digest(&[7; 32]);
        let length = 1024 * 1024;
        let begun = objects.incoming(&part, length).unwrap();
        begun.write_at(0, &[1; 1000]).unwrap();
        begun.save(&[]).unwrap();
        drop(begun);
        let all = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut begun = all.filter(|path| path.is_dir()).flat_map(|dir| {
            let inside = std::fs::read_dir(dir).unwrap();
            inside.map(|entry| entry.unwrap().path())
        });
        let path = begun.next().expect("the file that was begun");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(length / 2).unwrap();

        let told = Arc::new(Mutex::new(Vec::new()));
        let warned = Arc::clone(&told);
        let warn = move |text: &str| lock(&warned).push(text.to_owned());
        let depot = Depot::warning(objects, None, Durations::default(), warn);
        let order = Order {
            object: Object {
                inline: None,
                id: 1,
                length,
            },
            name: "the round's model".to_owned(),
            part,
            whole: true,
            progress: Arc::new(Progress::new(length)),
        };
        let room = depot.room(&order).await.unwrap().unwrap();
        assert!(room.received().is_empty());
        drop(room);
        // What is whole is not spoken of.
        drop(depot.room(&order).await.unwrap().unwrap());
        let [warning] = &lock(&told)[..] else {
            panic!("{told:?}")
        };
        assert!(warning.starts_with("the round's model is fetched from its start"));
        assert!(warning.contains("was cut to"), "{warning}");
    }
}
