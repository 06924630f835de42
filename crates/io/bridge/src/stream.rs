//! What trainers offer one another: files, models, items and folders that are
//! fetched at each receiver's own pace.
//!
//! An offer is an open descriptor and what is known of it; who fetches it gets a
//! duplicate and reads by position, so that no receiver waits for another. Nothing
//! is held in memory.

mod beneath;
mod error;
mod exchange;
mod serve;

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

pub use error::StreamError;
pub use exchange::{Elsewhere, Exchange};
pub use firesteel_wire::bridge::StreamKind;
pub(crate) use serve::serve;

/// What a stream call will come to.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StreamError>> + Send + 'a>>;

/// What is offered, beside its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The name it may be asked for by; empty: by its id alone.
    pub name: String,
    /// What it is.
    pub kind: StreamKind,
    /// Its bytes; zero for a folder.
    pub length: u64,
    /// The sites that may fetch it; none named: all of the job.
    pub to: Vec<String>,
    /// How many may fetch it before it is withdrawn; zero: any number.
    pub times: u32,
    /// Whether nobody changes it any more.
    pub owned: bool,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The site that offers it.
    pub site: String,
    /// Its id; empty when it is asked for by name.
    pub id: String,
    /// Its name; `<folder>/<path>` for a file in an offered folder.
    pub name: String,
    /// How long to wait for the offer to be made.
    pub wait: Duration,
}

/// What was found, open for reading. Several readers may share the description:
/// read by position.
#[derive(Debug)]
pub struct Found {
    /// Its id; empty for a file in a folder.
    pub id: String,
    /// The site that offers it.
    pub site: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: StreamKind,
    /// Its bytes.
    pub length: u64,
    /// Whether nobody changes the file any more.
    pub owned: bool,
    /// The file.
    pub file: File,
}

/// What one site's trainers may ask of their agent.
pub trait Streams: Send + Sync + 'static {
    /// Takes an offer; answers the id by which it is found.
    fn offer(&self, offer: Offer, file: OwnedFd) -> Answer<'_, String>;
    /// Ends an offer of this site.
    fn withdraw(&self, id: String) -> Answer<'_, ()>;
    /// Finds what is asked for, and brings it to this machine. Dropping the future
    /// gives it up.
    fn fetch(&self, wanted: Wanted) -> Answer<'_, Found>;
}
