//! What can be pulled from here.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firesteel_base::limits;
use firesteel_transfer::{Layout, Manifest, ManifestBuilder, ManifestError};
use tokio::sync::OnceCell;

/// A file that is read where somebody asks for it.
pub trait Source: Send + Sync {
    /// Bytes of it.
    fn len(&self) -> u64;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, or the file is not the one that was offered.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Fills the start of `into` with what can be had without waiting for a disk,
    /// and says how much that is. `into` beyond that may have any bytes.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    fn read_cached_at(&self, _offset: u64, _into: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    /// What a person calls it.
    fn name(&self) -> String;

    /// Whether an error of [`Source::read_at`] means that the file was changed.
    fn is_changed(&self, _error: &io::Error) -> bool {
        false
    }
}

/// A file of the disk, which nobody may change while it is offered.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    length: u64,
    modified: (i64, i64),
}

impl FileSource {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is not there, is no regular file, or may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            length: facts.len(),
            modified: (facts.mtime(), facts.mtime_nsec()),
        })
    }
}

/// The file is not what it was when it was opened.
#[derive(Debug, thiserror::Error)]
#[error("`{}` was changed while it was sent", path.display())]
struct Changed {
    path: PathBuf,
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_exact_at(into, offset);
        // After the bytes: what was changed before they were read shows now.
        let facts = self.file.metadata()?;
        let unchanged =
            facts.len() == self.length && (facts.mtime(), facts.mtime_nsec()) == self.modified;
        if !unchanged {
            let path = self.path.clone();
            return Err(io::Error::other(Changed { path }));
        }
        read
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn is_changed(&self, error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Changed>())
    }
}

/// Says what may be pulled by whom.
pub trait Offers: Send + Sync {
    /// The object that is offered to `peer` under this number; `None` when there
    /// is none, or it is not for this peer.
    fn find(&self, peer: &str, object: u64) -> Option<Arc<Offered>>;
}

/// A file that can be pulled, by any number of peers at once.
pub struct Offered {
    source: Arc<dyn Source>,
    layout: Option<Layout>,
    manifest: OnceCell<Arc<Manifest>>,
    /// Bytes read so far to make the manifest.
    read: AtomicU64,
}

/// Why a file cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// It cannot be read.
    #[error("`{name}` cannot be read")]
    Read {
        /// What a person calls it.
        name: String,
        /// Whether it was changed since it was offered.
        changed: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not as long as its layout.
    #[error("`{name}` is not the file that it was")]
    Manifest {
        /// What a person calls it.
        name: String,
        /// How they differ.
        #[source]
        source: ManifestError,
    },
}

impl Offered {
    /// Offers a file. Its manifest is made when somebody asks for it first.
    pub fn new(source: Arc<dyn Source>, layout: Layout) -> Arc<Self> {
        Arc::new(Self {
            source,
            layout: Some(layout),
            manifest: OnceCell::new(),
            read: AtomicU64::new(0),
        })
    }

    /// Offers a file whose manifest is known.
    pub fn with_manifest(source: Arc<dyn Source>, manifest: Arc<Manifest>) -> Arc<Self> {
        Arc::new(Self {
            source,
            layout: None,
            manifest: OnceCell::new_with(Some(manifest)),
            read: AtomicU64::new(0),
        })
    }

    /// The file.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// The manifest if it is made already.
    pub fn known_manifest(&self) -> Option<&Arc<Manifest>> {
        self.manifest.get()
    }

    /// The manifest; the first who asks has the file read, the others wait.
    ///
    /// # Errors
    /// [`OfferError`]; whoever asks next tries again.
    pub async fn manifest(&self) -> Result<Arc<Manifest>, OfferError> {
        self.manifest
            .get_or_try_init(|| self.read_all())
            .await
            .cloned()
    }

    /// Bytes read so far to make the manifest.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    async fn read_all(&self) -> Result<Arc<Manifest>, OfferError> {
        let layout = self.layout.clone();
        let layout = layout.expect("an offer without a layout has its manifest");
        let total = layout.total();
        self.read.store(0, Ordering::Relaxed);
        let mut builder = ManifestBuilder::new(layout);
        // Small enough that what was read is still in the nearest cache when it is
        // hashed and summed.
        let mut window = vec![0; window_of(total)];
        while builder.fed() < total {
            let source = self.source.clone();
            // A step at a time, so that it ends soon after nobody waits for it.
            let step = move || {
                for _ in 0..32 {
                    let left = total - builder.fed();
                    let here = window_of(left).min(window.len());
                    let Some(into) = window.get_mut(..here).filter(|w| !w.is_empty()) else {
                        break;
                    };
                    source.read_at(builder.fed(), into)?;
                    builder.feed(into);
                }
                Ok((builder, window))
            };
            let done: io::Result<_> = blocking(step).await;
            (builder, window) = done.map_err(|error| self.unreadable(error))?;
            self.read.store(builder.fed(), Ordering::Relaxed);
        }
        let manifest = builder.finish().map_err(|source| OfferError::Manifest {
            name: self.source.name(),
            source,
        })?;
        Ok(Arc::new(manifest))
    }

    pub(super) fn unreadable(&self, source: io::Error) -> OfferError {
        OfferError::Read {
            name: self.source.name(),
            changed: self.source.is_changed(&source),
            source,
        }
    }
}

/// Bytes to take at a time of so many.
fn window_of(length: u64) -> usize {
    let most = limits::TRANSFER_PAYLOAD;
    usize::try_from(length).map_or(most, |length| length.min(most))
}

/// Runs what may wait for a disk, or hashes, outside of the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(error) => Err(io::Error::other(error)),
        },
    }
}
