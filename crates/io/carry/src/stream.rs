//! What a site's trainers offer, for trainers of other sites: asked for through
//! the server, and pulled on the stream on which it was asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use firesteel_base::{Durations, limits};
use firesteel_bridge::stream::{
    Answer, Elsewhere, Exchange, Found, StreamError, StreamKind, Wanted,
};
use firesteel_net::pull::{
    self, Offered, Offers, Pull, PullError, PullFailure, Serving, Sink, Source,
};
use firesteel_net::{BoxStream, Kind, read_one, write_one};
use firesteel_store::{Incoming, PartName};
use firesteel_transfer::{Backoff, Layout, ObjectRef, RefusalCode, TransferError};
use firesteel_wire::bridge::Refused;
use firesteel_wire::stream::{self as say, Ask, answer};
use tokio::io::{AsyncReadExt, copy_bidirectional_with_sizes};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::remote::{Room, Shared, lock};

/// No wait is longer; a clock that far ahead still counts.
const LONGEST: Duration = Duration::from_secs(1 << 30);

/// What becomes of what a peer asks for.
#[derive(Clone)]
pub(crate) enum Asked {
    /// It is passed on to the site that offers it.
    Relay(Relay),
    /// It is answered from this site's offers.
    Offers(Arc<Desk>),
}

/// The sites of one job, for what they fetch from each other. Clones are the same.
#[derive(Clone, Default)]
pub struct Relay(Arc<Mutex<HashMap<String, Weak<Shared>>>>);

/// Answers one question of the peer on a stream of its own, to the end of the pull.
pub(crate) async fn serve(shared: Arc<Shared>, asked: Asked, mut stream: BoxStream) {
    let connect = shared.depot.durations.connect;
    let ask = read_one::<Ask>(&mut stream, "Ask", limits::STREAM_MESSAGE);
    // An end without an answer is a lost connection for whoever asks.
    let Ok(Ok(Some(ask))) = timeout(connect, ask).await else {
        return;
    };
    match asked {
        Asked::Relay(relay) => relay.pass(&shared.peer, ask, stream).await,
        Asked::Offers(desk) => desk.answer(&shared, ask, stream).await,
    }
}

impl Relay {
    pub(crate) fn add(&self, site: &str, shared: &Arc<Shared>) {
        lock(&self.0).insert(site.to_owned(), Arc::downgrade(shared));
    }

    /// Connects the two ends until one of them leaves.
    async fn pass(&self, asker: &str, mut ask: Ask, mut near: BoxStream) {
        asker.clone_into(&mut ask.asker);
        let started = Instant::now();
        let reached = tokio::select! {
            reached = self.reach(&ask) => reached,
            () = gone(&mut near) => return,
        };
        let mut far = match reached {
            Ok(far) => far,
            Err(error) => return refuse(&mut near, &error).await,
        };
        ask.wait = ask.wait.saturating_sub(micros(started.elapsed()));
        if write_one(&mut far, &ask).await.is_ok() {
            let size = limits::STREAM_RELAY;
            // Whichever end is lost: both streams end, which both sites see.
            let _ = copy_bidirectional_with_sizes(&mut near, &mut far, size, size).await;
        }
    }

    /// A stream to the site that was named.
    async fn reach(&self, ask: &Ask) -> Result<BoxStream, StreamError> {
        let found = lock(&self.0).get(&ask.site).and_then(Weak::upgrade);
        let Some(site) = found else {
            return Err(StreamError::NotOffered {
                site: quoted(&ask.site),
                what: match ask.id.is_empty() {
                    true => format!("named {:?}", quoted(&ask.name)),
                    false => "under this ref".to_owned(),
                },
                names: Vec::new(),
            });
        };
        let until = Instant::now() + Duration::from_micros(ask.wait).min(LONGEST);
        let mut sessions = site.session.subscribe();
        loop {
            let session = sessions.borrow_and_update().clone();
            if let Some(session) = session
                && let Ok(stream) = session.open(Kind::STREAM).await
            {
                return Ok(stream);
            }
            if timeout_at(until, sessions.changed()).await.is_err() {
                return Err(StreamError::Elsewhere {
                    site: quoted(&ask.site),
                    what: what(&ask.name, &ask.id),
                    why: "the site is not connected".to_owned(),
                });
            }
        }
    }
}

/// This site's offers, for sites elsewhere.
pub(crate) struct Desk {
    exchange: Exchange,
    grants: Mutex<Grants>,
}

#[derive(Default)]
struct Grants {
    /// What was granted, by asker and its number: a pull that was cut goes on with
    /// the same file, whatever has become of the offer.
    open: HashMap<(String, u64), Grant>,
    /// By offer: one manifest serves all who fetch it.
    offered: HashMap<String, Weak<Offered>>,
}

#[derive(Clone)]
struct Grant {
    about: say::Found,
    offered: Arc<Offered>,
    used: Instant,
}

impl Desk {
    pub(crate) fn new(exchange: Exchange) -> Arc<Self> {
        Arc::new(Self {
            exchange,
            grants: Mutex::default(),
        })
    }

    async fn answer(&self, shared: &Shared, ask: Ask, mut stream: BoxStream) {
        let granted = tokio::select! {
            granted = self.grant(&ask, shared.depot.durations) => granted,
            () = gone(&mut stream) => return,
        };
        let grant = match granted {
            Ok(grant) => grant,
            Err(error) => return refuse(&mut stream, &error).await,
        };
        let body = answer::Body::Found(grant.about);
        let answer = say::Answer { body: Some(body) };
        if write_one(&mut stream, &answer).await.is_err() {
            return;
        }
        let serving = Serving {
            peer: ask.asker.clone(),
            budget: shared.depot.sending.clone(),
            durations: shared.depot.durations,
        };
        let only = Only {
            ticket: ask.ticket,
            offered: grant.offered,
        };
        let served = pull::serve(stream, &only, &serving).await;
        let key = (ask.asker, ask.ticket);
        let mut grants = lock(&self.grants);
        if served.is_ok_and(|served| served.complete > 0) {
            grants.open.remove(&key);
        } else if let Some(grant) = grants.open.get_mut(&key) {
            grant.used = Instant::now();
        }
    }

    /// What was granted under this number before, or what there is now.
    async fn grant(&self, ask: &Ask, durations: Durations) -> Result<Grant, StreamError> {
        let key = (ask.asker.clone(), ask.ticket);
        if let Some(grant) = lock(&self.grants).open.get_mut(&key) {
            grant.used = Instant::now();
            return Ok(grant.clone());
        }
        let wanted = Wanted {
            site: ask.site.clone(),
            id: ask.id.clone(),
            name: ask.name.clone(),
            wait: Duration::from_micros(ask.wait),
        };
        let found = self.exchange.wait_for(&ask.asker, &wanted).await?;
        if found.kind == StreamKind::Folder {
            return Err(StreamError::Name {
                name: quoted(&found.name),
                why: "it is a folder: name a file in it, <folder>/<path>",
            });
        }
        let about = say::Found {
            id: found.id.clone(),
            name: found.name.clone(),
            kind: found.kind.into(),
            length: found.length,
        };
        let mut grants = lock(&self.grants);
        let known = grants.offered.get(&found.id).and_then(Weak::upgrade);
        let offered = match known {
            Some(offered) => offered,
            None => {
                let id = found.id.clone();
                let lent = Lent::new(found)?;
                let layout = Layout::of_file(lent.length).map_err(|error| StreamError::File {
                    site: quoted(&ask.site),
                    name: lent.name.clone(),
                    why: error.to_string(),
                })?;
                let offered = Offered::new(Arc::new(lent), layout);
                grants.offered.retain(|_, known| known.strong_count() > 0);
                if !id.is_empty() {
                    grants.offered.insert(id, Arc::downgrade(&offered));
                }
                offered
            }
        };
        let grant = Grant {
            about,
            offered,
            used: Instant::now(),
        };
        grants.keep(key, grant.clone(), durations.lease);
        Ok(grant)
    }
}

impl Grants {
    /// Nobody who lost its connection comes back after its lease.
    fn keep(&mut self, key: (String, u64), grant: Grant, lease: Duration) {
        self.open.retain(|_, grant| grant.used.elapsed() < lease);
        if self.open.len() >= limits::STREAM_GRANTS {
            let oldest = self.open.iter().min_by_key(|(_, grant)| grant.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(key, grant);
    }
}

/// The one object of a stream.
struct Only {
    ticket: u64,
    offered: Arc<Offered>,
}

impl Offers for Only {
    fn find(&self, _peer: &str, object: u64) -> Option<Arc<Offered>> {
        (object == self.ticket).then(|| Arc::clone(&self.offered))
    }
}

/// A file that somebody offers and must not change.
struct Lent {
    file: File,
    length: u64,
    modified: (i64, i64),
    name: String,
}

/// The file is not what it was when it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("it has changed since it was offered")]
struct Changed;

impl Lent {
    fn new(found: Found) -> Result<Self, StreamError> {
        let changed = || StreamError::Changed {
            site: found.site.clone(),
            name: what(&found.name, &found.id),
        };
        let facts = found.file.metadata().map_err(|_| changed())?;
        if facts.len() != found.length {
            return Err(changed());
        }
        Ok(Self {
            length: found.length,
            modified: (facts.mtime(), facts.mtime_nsec()),
            name: what(&found.name, &found.id),
            file: found.file,
        })
    }
}

impl Source for Lent {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_exact_at(into, offset);
        // After the bytes: what was changed before they were read shows now.
        let facts = self.file.metadata()?;
        let same =
            facts.len() == self.length && (facts.mtime(), facts.mtime_nsec()) == self.modified;
        if same {
            read
        } else {
            Err(io::Error::other(Changed))
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn is_changed(&self, error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Changed>())
    }
}

/// Fetches what other sites offer, through the server.
pub(crate) struct Far(pub(crate) Arc<Shared>);

impl Elsewhere for Far {
    fn fetch(&self, wanted: Wanted) -> Answer<'_, Found> {
        Box::pin(async move {
            wanted.check()?;
            Fetch::new(&self.0, &wanted).run().await
        })
    }
}

/// One fetch, over as many streams as it takes.
struct Fetch<'a> {
    shared: &'a Shared,
    wanted: &'a Wanted,
    ticket: u64,
}

/// What an ask came to.
enum Asking {
    /// It can be pulled on this stream.
    Found(BoxStream, say::Found),
    /// It cannot be had.
    Refused(StreamError),
}

impl<'a> Fetch<'a> {
    fn new(shared: &'a Shared, wanted: &'a Wanted) -> Self {
        Self {
            shared,
            wanted,
            ticket: random(),
        }
    }

    async fn run(&self) -> Result<Found, StreamError> {
        let (stream, about) = self.first().await?;
        let object = ObjectRef::new(self.ticket, about.length)
            .map_err(|error| self.lost(error.to_string()))?;
        let room = Arc::new(Room(self.room(about.length).await?));
        let pulled = self.pull(stream, object, Arc::clone(&room) as _).await;
        let whole = pulled.is_ok();
        let finish = tokio::task::spawn_blocking(move || {
            // Nobody else writes to it any more; where somebody does, it is removed
            // when the round is over.
            let room = Arc::into_inner(room).ok_or("its file is still in use")?.0;
            if !whole {
                room.discard();
                return Err("it is not whole".to_owned());
            }
            let received = room.finish_file().map_err(|error| sentence(&error))?;
            let opened = received.open_shared().map_err(|error| sentence(&error))?;
            // Its name goes; who holds it open keeps it.
            Ok(File::from(opened))
        });
        let finished = finish.await;
        pulled?;
        let file = match finished {
            Ok(finished) => finished.map_err(|why| self.lost(why))?,
            Err(error) => return Err(self.lost(error.to_string())),
        };
        Ok(Found {
            id: about.id,
            site: self.wanted.site.clone(),
            name: about.name,
            kind: StreamKind::try_from(about.kind).unwrap_or(StreamKind::File),
            length: about.length,
            owned: true,
            file,
        })
    }

    /// Asks until somebody answers: a connection may be lost just now.
    async fn first(&self) -> Result<(BoxStream, say::Found), StreamError> {
        let wait = self.wanted.wait.min(LONGEST);
        let lease = self.shared.depot.durations.lease;
        let started = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let left = wait.saturating_sub(started.elapsed());
            match self.ask(left).await {
                Ok(Asking::Found(stream, about)) => return Ok((stream, about)),
                Ok(Asking::Refused(error)) => return Err(error),
                Err(why) if started.elapsed() >= wait + lease => return Err(self.lost(why)),
                Err(_) => tokio::time::sleep(backoff.next(random())).await,
            }
        }
    }

    /// Asks once. An `Err` may pass.
    async fn ask(&self, wait: Duration) -> Result<Asking, String> {
        let durations = self.shared.depot.durations;
        let stream = self.shared.open(Kind::STREAM);
        let opened = timeout(durations.lease, stream).await;
        let mut stream = match opened {
            Ok(opened) => opened.map_err(|error| sentence(&error))?,
            Err(_) => return Err("there is no connection to the server".to_owned()),
        };
        let ask = Ask {
            asker: String::new(),
            site: self.wanted.site.clone(),
            id: self.wanted.id.clone(),
            name: self.wanted.name.clone(),
            wait: micros(wait),
            ticket: self.ticket,
        };
        write_one(&mut stream, &ask)
            .await
            .map_err(|error| sentence(&error))?;
        let answer = read_one::<say::Answer>(&mut stream, "Answer", limits::STREAM_MESSAGE);
        let answer = match timeout(wait + durations.idle, answer).await {
            Ok(answer) => answer.map_err(|error| sentence(&error))?,
            Err(_) => return Err("no answer came".to_owned()),
        };
        match answer.and_then(|answer| answer.body) {
            Some(answer::Body::Found(about)) => Ok(Asking::Found(stream, about)),
            Some(answer::Body::Refused(refused)) => Ok(Asking::Refused(StreamError::told(
                &refused.code,
                &refused.message,
                &refused.hint,
            ))),
            None => Err("the connection was lost".to_owned()),
        }
    }

    async fn room(&self, length: u64) -> Result<Incoming, StreamError> {
        let objects = self.shared.depot.objects.clone();
        let mut name = [0; 32];
        for (into, byte) in name
            .iter_mut()
            .zip((0..4).flat_map(|_| random().to_le_bytes()))
        {
            *into = byte;
        }
        let room = tokio::task::spawn_blocking(move || {
            objects.incoming(&PartName::of_digest(&name), length)
        });
        match room.await {
            Ok(room) => room.map_err(|error| self.lost(sentence(&error))),
            Err(error) => Err(self.lost(error.to_string())),
        }
    }

    /// Pulls on the first stream, and after a cut on others that go on with it.
    async fn pull(
        &self,
        stream: BoxStream,
        object: ObjectRef,
        sink: Arc<dyn Sink>,
    ) -> Result<(), StreamError> {
        let depot = &self.shared.depot;
        let name = what(&self.wanted.name, &self.wanted.id);
        let mut pull = Pull::new(&self.wanted.site, &name, object, sink, &depot.receiving)
            .durations(depot.durations);
        let (first, refused) = (Mutex::new(Some(stream)), Mutex::new(None));
        let ended = Notify::new();
        let (first, refused, ended) = (&first, &refused, &ended);
        let pulling = pull.retrying(|| async move {
            let stream = lock(first).take();
            if let Some(stream) = stream {
                return Ok(stream);
            }
            let error = match self.ask(Duration::ZERO).await? {
                Asking::Found(stream, about) if about.length == object.length => return Ok(stream),
                Asking::Found(..) => self.changed(),
                // The site may be on its way back.
                Asking::Refused(error) if error.code() == "unreachable" => {
                    return Err(error.to_string());
                }
                Asking::Refused(error) => error,
            };
            *lock(refused) = Some(error);
            ended.notify_one();
            std::future::pending().await
        });
        tokio::select! {
            pulled = pulling => match pulled {
                Ok(_) => Ok(()),
                Err(error) => Err(self.failed(&error)),
            },
            () = ended.notified() => {
                let refused = lock(refused).take();
                Err(refused.unwrap_or_else(|| self.changed()))
            }
        }
    }

    fn failed(&self, error: &PullError) -> StreamError {
        match &error.reason {
            PullFailure::Transfer(TransferError::Refused {
                code: RefusalCode::Changed,
                ..
            }) => self.changed(),
            reason => self.lost(sentence(reason)),
        }
    }

    fn changed(&self) -> StreamError {
        StreamError::Changed {
            site: self.wanted.site.clone(),
            name: what(&self.wanted.name, &self.wanted.id),
        }
    }

    fn lost(&self, why: String) -> StreamError {
        StreamError::Elsewhere {
            site: self.wanted.site.clone(),
            what: what(&self.wanted.name, &self.wanted.id),
            why,
        }
    }
}

/// Comes when the other end leaves, which says nothing before it is answered.
async fn gone(stream: &mut BoxStream) {
    // An error is an end, too.
    let _ = stream.read(&mut [0]).await;
}

async fn refuse(stream: &mut BoxStream, error: &StreamError) {
    let failure = error.failure();
    let body = answer::Body::Refused(Refused {
        code: error.code().to_owned(),
        message: failure.message,
        hint: failure.hint,
    });
    let answer = say::Answer { body: Some(body) };
    // Who is gone needs no answer.
    let _ = write_one(stream, &answer).await;
}

/// What a person calls it: its name, or the start of its id, which is a key.
fn what(name: &str, id: &str) -> String {
    if name.is_empty() {
        format!("ref {}…", id.chars().take(8).collect::<String>())
    } else {
        quoted(name)
    }
}

/// A stranger's text for an error message.
fn quoted(text: &str) -> String {
    text.chars().take(128).collect()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// The error and its sources as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use firesteel_bridge::stream::Offer;
    use firesteel_net::pipe;
    use firesteel_store::Objects;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{Depot, Remote};

    fn depot(place: &tempfile::TempDir) -> Arc<Depot> {
        let objects = Objects::open(place.path()).unwrap();
        Depot::new(objects, None, Durations::default())
    }

    fn exchange(name: &str, content: &[u8], times: u32) -> (Exchange, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let offer = Offer {
            name: name.to_owned(),
            kind: StreamKind::File,
            length: content.len() as u64,
            to: vec!["site-2".to_owned()],
            times,
            owned: false,
        };
        let exchange = Exchange::new();
        let offered = file.try_clone().unwrap().into();
        exchange.offer("site-1", offer, offered).unwrap();
        (exchange, file)
    }

    fn ask(asker: &str, ticket: u64) -> Ask {
        Ask {
            asker: asker.to_owned(),
            site: "site-1".to_owned(),
            id: String::new(),
            name: "x".to_owned(),
            wait: 0,
            ticket,
        }
    }

    #[tokio::test]
    async fn a_fetch_that_is_asked_for_again_is_the_same_fetch() {
        let (exchange, _file) = exchange("x", b"12345", 1);
        let desk = Desk::new(exchange.clone());
        let durations = Durations::default();
        let first = desk.grant(&ask("site-2", 7), durations).await.unwrap();
        // It was for one fetch, and this is that one.
        let again = desk.grant(&ask("site-2", 7), durations).await.unwrap();
        assert!(Arc::ptr_eq(&first.offered, &again.offered));
        for other in [ask("site-2", 8), ask("site-3", 7)] {
            let error = desk.grant(&other, durations).await.err().unwrap();
            assert_eq!(error.code(), "not-offered");
        }
        // The lease over, it is another fetch.
        let mut grants = lock(&desk.grants);
        grants.keep(("site-4".to_owned(), 1), again, Duration::ZERO);
        assert!(!grants.open.contains_key(&("site-2".to_owned(), 7)));
    }

    #[tokio::test]
    async fn files_kept_open_are_limited_and_share_a_manifest() {
        let (exchange, _file) = exchange("x", b"12345", 0);
        let desk = Desk::new(exchange);
        let durations = Durations::default();
        let first = desk.grant(&ask("site-2", 0), durations).await.unwrap();
        for ticket in 1..=limits::STREAM_GRANTS as u64 {
            let next = desk.grant(&ask("site-2", ticket), durations).await.unwrap();
            assert!(Arc::ptr_eq(&first.offered, &next.offered));
        }
        let grants = lock(&desk.grants);
        assert_eq!(grants.open.len(), limits::STREAM_GRANTS);
        assert!(!grants.open.contains_key(&("site-2".to_owned(), 0)));
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_told_in_the_exchanges_words() {
        let place = tempfile::tempdir().unwrap();
        let (exchange, mut file) = exchange("x", b"12345", 0);
        let remote = Remote::new(&depot(&place), "the server");
        let desk = Desk::new(exchange);
        file.write_all(b"more").unwrap();
        for (ask, code, words) in [
            (ask("site-2", 1), "changed", "has changed since"),
            (ask("site-3", 1), "not-offered", "offers nothing named"),
        ] {
            let (mut near, far) = pipe(64);
            let answering = desk.answer(&remote.0, ask, far);
            let reading = read_one::<say::Answer>(&mut near, "Answer", 4096);
            let ((), answer) = tokio::join!(answering, reading);
            match answer.unwrap().unwrap().body {
                Some(answer::Body::Refused(refused)) => {
                    assert_eq!(refused.code, code);
                    assert!(refused.message.contains(words), "{}", refused.message);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn who_leaves_is_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let remote = Remote::new(&depot(&place), "the server");
        let desk = Desk::new(Exchange::new());
        let (mut near, far) = pipe(64);
        let mut ask = ask("site-2", 1);
        ask.wait = u64::MAX;
        let answering = desk.answer(&remote.0, ask, far);
        let leaving = async {
            near.shutdown().await.unwrap();
        };
        tokio::join!(answering, leaving);
    }

    #[tokio::test]
    async fn a_site_that_is_not_there_is_told_from_one_that_is_not_of_the_job() {
        let place = tempfile::tempdir().unwrap();
        let relay = Relay::default();
        let site = Remote::new(&depot(&place), "site-1").relayed(&relay);
        let error = relay.reach(&ask("", 1)).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "\"x\" could not be fetched from site site-1: the site is not connected"
        );
        let mut other = ask("", 1);
        other.site = "site-9".to_owned();
        let error = relay.reach(&other).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "site site-9 offers nothing named \"x\" to this site"
        );
        drop(site);
        let error = relay.reach(&ask("", 1)).await.err().unwrap();
        assert_eq!(error.code(), "not-offered");
    }
}
