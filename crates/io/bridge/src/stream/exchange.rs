//! The standing offers of a job on this machine.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firesteel_base::limits;
use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Answer, Found, Offer, StreamError, StreamKind, Streams, Wanted, beneath};
use crate::token::random;

/// Bytes of randomness in an offer's id.
const ID_BYTES: usize = 16;
/// Names in an error's hint.
const NAMES_TOLD: usize = 8;

/// The offers of one job that are on this machine: those of one site, or in a
/// simulation of all of them. Clones are the same exchange; the offers end with
/// the last of them.
#[derive(Clone, Default)]
pub struct Exchange(Arc<Inner>);

#[derive(Default)]
struct Inner {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    /// The sites whose trainers offer here.
    sites: HashSet<String>,
    offers: HashMap<String, Entry>,
    /// Site and name to id.
    names: HashMap<(String, String), String>,
}

struct Entry {
    site: String,
    offer: Offer,
    file: File,
    stamp: Stamp,
    /// How many have fetched it.
    fetched: u32,
}

/// What shows that a file was changed.
#[derive(PartialEq, Eq)]
struct Stamp {
    size: i128,
    modified: (i128, i128),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: i128::from(stat.st_size),
            modified: (i128::from(stat.st_mtime), i128::from(stat.st_mtime_nsec)),
        }
    }
}

/// Brings what other machines' sites offer to this one.
pub trait Elsewhere: Send + Sync + 'static {
    /// The offer as a file on this machine. Dropping the future gives it up.
    fn fetch(&self, wanted: Wanted) -> Answer<'_, Found>;
}

impl Exchange {
    /// One without offers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A site's side: what its trainers offer and fetch goes through it. It finds
    /// what sites of this exchange offer.
    pub fn desk(&self, site: &str) -> Arc<dyn Streams> {
        self.desk_of(site, None)
    }

    /// The same; what other sites offer is brought by `elsewhere`.
    pub fn desk_with(&self, site: &str, elsewhere: Arc<dyn Elsewhere>) -> Arc<dyn Streams> {
        self.desk_of(site, Some(elsewhere))
    }

    fn desk_of(&self, site: &str, elsewhere: Option<Arc<dyn Elsewhere>>) -> Arc<dyn Streams> {
        self.book().sites.insert(site.to_owned());
        Arc::new(Desk {
            site: site.to_owned(),
            exchange: self.clone(),
            elsewhere,
        })
    }

    /// Takes an offer of a site; answers its id. An offer of the same name is
    /// withdrawn.
    ///
    /// # Errors
    /// [`StreamError::Name`], [`StreamError::Offer`] or [`StreamError::TooMany`].
    pub fn offer(&self, site: &str, offer: Offer, file: OwnedFd) -> Result<String, StreamError> {
        if let Some(why) = beneath::offer_name(&offer.name) {
            return Err(bad_name(&offer.name, why));
        }
        let stamp = checked(&offer, &file).map_err(|why| StreamError::Offer { why })?;
        let id = new_id().map_err(|error| StreamError::Offer {
            why: format!("there is no randomness: {error}"),
        })?;
        let entry = Entry {
            site: site.to_owned(),
            stamp,
            file: file.into(),
            fetched: 0,
            offer,
        };
        let mut book = self.book();
        if !entry.offer.name.is_empty() {
            let key = (site.to_owned(), entry.offer.name.clone());
            if let Some(former) = book.names.remove(&key) {
                book.offers.remove(&former);
            }
        }
        let of_site = book.offers.values().filter(|entry| entry.site == site);
        for (count, limit) in [
            (of_site.count(), limits::SITE_OFFERS),
            (book.offers.len(), limits::OFFERS),
        ] {
            if count >= limit {
                return Err(StreamError::TooMany { limit });
            }
        }
        if !entry.offer.name.is_empty() {
            let key = (site.to_owned(), entry.offer.name.clone());
            book.names.insert(key, id.clone());
        }
        book.offers.insert(id.clone(), entry);
        drop(book);
        self.0.changed.notify_waiters();
        Ok(id)
    }

    /// Ends an offer of a site; one that has ended already is fine. Who has
    /// fetched it keeps what it has.
    pub fn withdraw(&self, site: &str, id: &str) {
        let mut book = self.book();
        if book.offers.get(id).is_some_and(|entry| entry.site == site) {
            book.remove(id);
        }
    }

    /// Opens what a site of this exchange offers to another site of the job.
    /// Does not wait.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn open(&self, asker: &str, wanted: &Wanted) -> Result<Found, StreamError> {
        wanted.check()?;
        let (name, within) = match wanted.name.split_once('/') {
            Some((name, within)) => (name, Some(within)),
            None => (&*wanted.name, None),
        };
        let mut book = self.book();
        let id = if wanted.id.is_empty() {
            let key = (wanted.site.clone(), name.to_owned());
            book.names.get(&key).cloned()
        } else {
            Some(wanted.id.clone())
        };
        let entry = id
            .as_ref()
            .and_then(|id| book.offers.get_mut(id))
            .filter(|entry| entry.site == wanted.site && entry.is_for(asker));
        let (Some(entry), Some(id)) = (entry, id) else {
            return Err(book.not_offered(asker, wanted));
        };
        if entry.offer.kind == StreamKind::Folder && wanted.id.is_empty() {
            let Some(within) = within else {
                return Err(bad_name(
                    &wanted.name,
                    "it is a folder: name a file in it, <folder>/<path>",
                ));
            };
            let folder = entry
                .file
                .try_clone()
                .map_err(|error| no_file(wanted, error.to_string()))?;
            // The lookup may touch a slow disk: others need not wait for it.
            drop(book);
            let file = beneath::open(&folder, within).map_err(|why| no_file(wanted, why))?;
            let length = file
                .metadata()
                .map_err(|error| no_file(wanted, error.to_string()))?
                .len();
            return Ok(Found {
                id: String::new(),
                site: wanted.site.clone(),
                name: wanted.name.clone(),
                kind: StreamKind::File,
                length,
                owned: false,
                file,
            });
        }
        if within.is_some() && wanted.id.is_empty() {
            return Err(book.not_offered(asker, wanted));
        }
        let found = entry.found(&id)?;
        entry.fetched += 1;
        if entry.offer.times > 0 && entry.fetched >= entry.offer.times {
            book.remove(&id);
        }
        Ok(found)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is an insertion or a removal: the book is whole even if a
        // holder of the lock panicked.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Exchange::open`], after the offer has been made.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn wait_for(&self, asker: &str, wanted: &Wanted) -> Result<Found, StreamError> {
        let until = Instant::now() + wanted.wait.min(Duration::from_secs(1 << 30));
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change falls in between.
            changed.as_mut().enable();
            let (exchange, who, what) = (self.clone(), asker.to_owned(), wanted.clone());
            // A folder may lie on a slow disk.
            let looked = tokio::task::spawn_blocking(move || exchange.open(&who, &what)).await;
            match looked {
                Ok(Err(StreamError::NotOffered { .. })) if Instant::now() < until => {
                    let _ = tokio::time::timeout_at(until, changed).await;
                }
                Ok(found) => return found,
                Err(error) => return Err(no_file(wanted, error.to_string())),
            }
        }
    }
}

impl Wanted {
    /// Whether it can be asked for at all.
    ///
    /// # Errors
    /// [`StreamError::Name`] for what is no name, or leads out of a folder.
    pub fn check(&self) -> Result<(), StreamError> {
        match beneath::wanted_name(&self.name) {
            Some(why) if self.id.is_empty() => Err(bad_name(&self.name, why)),
            _ => Ok(()),
        }
    }
}

impl Book {
    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.offers.remove(id) {
            let key = (entry.site, entry.offer.name);
            if self.names.get(&key).is_some_and(|named| named == id) {
                self.names.remove(&key);
            }
        }
    }

    fn not_offered(&self, asker: &str, wanted: &Wanted) -> StreamError {
        let offered = self.offers.values().filter(|entry| {
            entry.site == wanted.site && entry.is_for(asker) && !entry.offer.name.is_empty()
        });
        let mut names: Vec<String> = offered.map(|e| format!("{:?}", e.offer.name)).collect();
        names.sort();
        names.truncate(NAMES_TOLD);
        let what = if wanted.id.is_empty() {
            format!("named {:?}", shortened(&wanted.name))
        } else {
            "under this ref".to_owned()
        };
        StreamError::NotOffered {
            site: shortened(&wanted.site),
            what,
            names,
        }
    }
}

impl Entry {
    fn is_for(&self, asker: &str) -> bool {
        self.offer.to.is_empty()
            || self.site == asker
            || self.offer.to.iter().any(|site| site == asker)
    }

    fn found(&self, id: &str) -> Result<Found, StreamError> {
        let name = if self.offer.name.is_empty() {
            id
        } else {
            &self.offer.name
        };
        let changed = || StreamError::Changed {
            site: self.site.clone(),
            name: name.to_owned(),
        };
        let stat = fstat(&self.file).map_err(|_| changed())?;
        if self.offer.kind != StreamKind::Folder && Stamp::of(&stat) != self.stamp {
            return Err(changed());
        }
        let file = self.file.try_clone().map_err(|error| StreamError::File {
            site: self.site.clone(),
            name: name.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Found {
            id: id.to_owned(),
            site: self.site.clone(),
            name: self.offer.name.clone(),
            kind: self.offer.kind,
            length: self.offer.length,
            owned: self.offer.owned,
            file,
        })
    }
}

/// That the descriptor is what the offer says.
fn checked(offer: &Offer, file: &OwnedFd) -> Result<Stamp, String> {
    let failed = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    let stat = fstat(file).map_err(failed)?;
    let flags = fcntl_getfl(file).map_err(failed)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let fits = match offer.kind {
        StreamKind::Folder => kind.is_dir(),
        StreamKind::File | StreamKind::Model | StreamKind::Items => kind.is_file(),
    };
    if !fits {
        return Err("what came with it is neither a regular file nor the folder it says".into());
    }
    if flags.contains(OFlags::WRONLY) || flags.contains(OFlags::PATH) {
        return Err("what came with it is not open for reading".into());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if kind.is_file() && size != offer.length {
        return Err(format!(
            "the file has {size} bytes, {} were announced",
            offer.length
        ));
    }
    if offer.to.len() > limits::OFFER_SITES {
        return Err(format!(
            "it names {} sites, the limit is {}",
            offer.to.len(),
            limits::OFFER_SITES
        ));
    }
    Ok(Stamp::of(&stat))
}

fn new_id() -> io::Result<String> {
    let mut id = String::with_capacity(2 * ID_BYTES);
    for byte in random::<ID_BYTES>()? {
        write!(id, "{byte:02x}").expect("writing to a string cannot fail");
    }
    Ok(id)
}

fn bad_name(name: &str, why: &'static str) -> StreamError {
    StreamError::Name {
        name: shortened(name),
        why,
    }
}

fn no_file(wanted: &Wanted, why: String) -> StreamError {
    StreamError::File {
        site: wanted.site.clone(),
        name: shortened(&wanted.name),
        why,
    }
}

/// A stranger's text for an error message.
fn shortened(text: &str) -> String {
    text.chars().take(128).collect()
}

/// One site's side of an exchange.
struct Desk {
    site: String,
    exchange: Exchange,
    elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl Streams for Desk {
    fn offer(&self, offer: Offer, file: OwnedFd) -> Answer<'_, String> {
        Box::pin(async move { self.exchange.offer(&self.site, offer, file) })
    }

    fn withdraw(&self, id: String) -> Answer<'_, ()> {
        Box::pin(async move {
            self.exchange.withdraw(&self.site, &id);
            Ok(())
        })
    }

    fn fetch(&self, wanted: Wanted) -> Answer<'_, Found> {
        let here = self.exchange.book().sites.contains(&wanted.site);
        match &self.elsewhere {
            Some(elsewhere) if !here => elsewhere.fetch(wanted),
            _ => Box::pin(async move { self.exchange.wait_for(&self.site, &wanted).await }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn an_offer(name: &str, length: u64) -> Offer {
        Offer {
            name: name.to_owned(),
            kind: StreamKind::File,
            length,
            to: Vec::new(),
            times: 0,
            owned: false,
        }
    }

    fn by_name(site: &str, name: &str) -> Wanted {
        Wanted {
            site: site.to_owned(),
            id: String::new(),
            name: name.to_owned(),
            wait: Duration::ZERO,
        }
    }

    fn by_id(site: &str, id: &str) -> Wanted {
        Wanted {
            id: id.to_owned(),
            name: String::new(),
            ..by_name(site, "")
        }
    }

    #[test]
    fn an_offer_is_found_by_name_and_by_id() {
        let exchange = Exchange::new();
        let id = exchange
            .offer("a", an_offer("weights", 5), file(b"12345").into())
            .unwrap();
        for wanted in [by_name("a", "weights"), by_id("a", &id)] {
            let found = exchange.open("b", &wanted).unwrap();
            let mut bytes = [0; 5];
            found.file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(
                (&bytes, found.length, &*found.name),
                (b"12345", 5, "weights")
            );
        }
        let error = exchange.open("b", &by_name("a", "weight")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "site a offers nothing named \"weight\" to this site"
        );
        assert_eq!(error.failure().hint, "a offers \"weights\"");
        assert!(exchange.open("b", &by_name("c", "weights")).is_err());
        assert!(exchange.open("b", &by_id("c", &id)).is_err());
        exchange.withdraw("b", &id);
        assert!(
            exchange.open("b", &by_id("a", &id)).is_ok(),
            "not b's to withdraw"
        );
        exchange.withdraw("a", &id);
        assert!(exchange.open("b", &by_id("a", &id)).is_err());
        assert!(exchange.open("b", &by_name("a", "weights")).is_err());
    }

    #[test]
    fn an_offer_to_some_sites_does_not_exist_for_others() {
        let exchange = Exchange::new();
        let offer = Offer {
            to: vec!["b".into()],
            ..an_offer("x", 1)
        };
        let id = exchange.offer("a", offer, file(b"1").into()).unwrap();
        assert!(exchange.open("b", &by_name("a", "x")).is_ok());
        assert!(exchange.open("a", &by_name("a", "x")).is_ok());
        for wanted in [by_name("a", "x"), by_id("a", &id)] {
            let error = exchange.open("c", &wanted).unwrap_err();
            assert_eq!(error.code(), "not-offered");
            assert!(!error.failure().hint.contains("\"x\""));
        }
    }

    #[test]
    fn an_offer_ends_after_its_times_and_when_its_name_is_given_anew() {
        let exchange = Exchange::new();
        let offer = Offer {
            times: 2,
            ..an_offer("x", 1)
        };
        exchange.offer("a", offer, file(b"1").into()).unwrap();
        assert!(exchange.open("b", &by_name("a", "x")).is_ok());
        assert!(exchange.open("c", &by_name("a", "x")).is_ok());
        assert!(exchange.open("d", &by_name("a", "x")).is_err());
        let old = exchange
            .offer("a", an_offer("y", 1), file(b"1").into())
            .unwrap();
        exchange
            .offer("a", an_offer("y", 2), file(b"22").into())
            .unwrap();
        assert!(exchange.open("b", &by_id("a", &old)).is_err());
        assert_eq!(exchange.open("b", &by_name("a", "y")).unwrap().length, 2);
        // Another site's name is another name.
        exchange
            .offer("b", an_offer("y", 3), file(b"333").into())
            .unwrap();
        assert_eq!(exchange.open("b", &by_name("a", "y")).unwrap().length, 2);
    }

    #[test]
    fn a_file_that_changes_after_it_was_offered_is_refused() {
        let exchange = Exchange::new();
        let mut changing = file(b"12345");
        let id = exchange
            .offer("a", an_offer("x", 5), changing.try_clone().unwrap().into())
            .unwrap();
        changing.write_all(b"6").unwrap();
        for wanted in [by_name("a", "x"), by_id("a", &id)] {
            let error = exchange.open("b", &wanted).unwrap_err();
            assert_eq!(
                error.to_string(),
                "\"x\" of site a has changed since it was offered"
            );
        }
    }

    #[test]
    fn only_what_an_offer_says_is_taken() {
        let exchange = Exchange::new();
        let refused = |offer: Offer, fd: OwnedFd| {
            let error = exchange.offer("a", offer, fd).unwrap_err();
            assert_eq!(error.code(), "bad-offer", "{error}");
            error.to_string()
        };
        assert!(refused(an_offer("x", 4), file(b"12345").into()).contains("5 bytes, 4 were"));
        let folder = tempfile::tempdir().unwrap();
        let opened = || OwnedFd::from(File::open(folder.path()).unwrap());
        refused(an_offer("x", 0), opened());
        let as_folder = |length| Offer {
            kind: StreamKind::Folder,
            ..an_offer("x", length)
        };
        refused(as_folder(5), file(b"12345").into());
        let (read, write) = io::pipe().unwrap();
        refused(an_offer("x", 0), read.into());
        refused(an_offer("x", 0), write.into());
        let path = folder.path().join("w");
        let writing = File::create(&path).unwrap();
        refused(an_offer("x", 0), writing.into());
        assert!(exchange.offer("a", as_folder(0), opened()).is_ok());
        for name in ["..", "a/b", "a\0", "a\n"] {
            let error = exchange.offer("a", an_offer(name, 1), file(b"1").into());
            assert_eq!(error.unwrap_err().code(), "bad-name", "{name:?}");
        }
    }

    #[test]
    fn a_folder_gives_out_its_files_and_nothing_else() {
        let exchange = Exchange::new();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/file"), "hello").unwrap();
        let offer = Offer {
            kind: StreamKind::Folder,
            ..an_offer("results", 0)
        };
        let opened = File::open(folder.path()).unwrap();
        exchange.offer("a", offer, opened.into()).unwrap();
        let found = exchange
            .open("b", &by_name("a", "results/sub/file"))
            .unwrap();
        assert_eq!((found.length, found.kind), (5, StreamKind::File));
        for (name, code) in [
            ("results", "bad-name"),
            ("results/", "bad-name"),
            ("results/../x", "bad-name"),
            ("/results/sub/file", "bad-name"),
            ("results/sub", "no-file"),
            ("results/none", "no-file"),
            ("other/file", "not-offered"),
        ] {
            let error = exchange.open("b", &by_name("a", name)).unwrap_err();
            assert_eq!(error.code(), code, "{name}");
        }
    }

    #[test]
    fn standing_offers_are_limited() {
        let exchange = Exchange::new();
        let one = file(b"1");
        let offer = |site: &str, name: &str| {
            exchange.offer(site, an_offer(name, 1), one.try_clone().unwrap().into())
        };
        for at in 0..limits::SITE_OFFERS {
            offer("a", &at.to_string()).unwrap();
        }
        let error = offer("a", "more").unwrap_err();
        assert_eq!(error.code(), "too-many");
        // In place of one there is, it fits.
        offer("a", "0").unwrap();
        offer("b", "more").unwrap();
    }

    #[tokio::test]
    async fn a_fetch_waits_for_the_offer() {
        let exchange = Exchange::new();
        let desk = exchange.desk("a");
        let asker = exchange.desk("b");
        let waiting = tokio::spawn(async move {
            let wanted = Wanted {
                wait: Duration::from_secs(60),
                ..by_name("a", "x")
            };
            asker.fetch(wanted).await
        });
        tokio::task::yield_now().await;
        desk.offer(an_offer("x", 1), file(b"1").into())
            .await
            .unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().length, 1);
        let asker = exchange.desk("b");
        let error = asker.fetch(by_name("a", "y")).await.unwrap_err();
        assert_eq!(error.code(), "not-offered");
    }

    #[tokio::test]
    async fn what_is_not_here_is_brought_from_elsewhere() {
        struct Away;
        impl Elsewhere for Away {
            fn fetch(&self, wanted: Wanted) -> Answer<'_, Found> {
                Box::pin(async move {
                    Err(StreamError::Elsewhere {
                        site: wanted.site,
                        what: wanted.name,
                        why: "the line is down".into(),
                    })
                })
            }
        }
        let exchange = Exchange::new();
        let desk = exchange.desk_with("a", Arc::new(Away));
        let error = desk.fetch(by_name("far", "x")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"x\" could not be fetched from site far: the line is down"
        );
        let own = desk.fetch(by_name("a", "x")).await.unwrap_err();
        assert_eq!(own.code(), "not-offered");
    }
}
