//! A model in the form in which it travels: through a chain of filters into a new
//! file, and back. Both go through windows of the file, never its whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use firesteel_base::{Failure, FailureCode, Hint, Phase};
use firesteel_codec::{
    Chain, Context, DecodeError, EncodeError, Kind, Model, ReadAt, Residual, WriteAt, chain,
};
use firesteel_store::{
    ModelObject, ObjectError, ObjectReader, Objects, Outbox, Output, Spool, StoreError,
};

/// Why a model could not be brought into another form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Into the one in which it travels.
    #[error("the filters cannot be applied")]
    Encode(#[from] EncodeError),
    /// Out of it.
    #[error("what arrived cannot be decoded")]
    Decode(#[from] DecodeError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A model's file.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A file beside it.
    #[error("could not use a file for what the filters do")]
    Io(#[from] io::Error),
}

impl FilterError {
    /// It, as the failure of a site's work.
    pub fn failure(&self, phase: Phase) -> Failure {
        let full = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        let code = match self {
            Self::Encode(EncodeError::NotFinite { .. }) => FailureCode::NotFinite,
            Self::Encode(EncodeError::Write(error) | EncodeError::Scratch(error))
            | Self::Io(error)
                if full(error) =>
            {
                FailureCode::DiskFull
            }
            Self::Store(error) | Self::Object(ObjectError::Store(error)) if error.is_full() => {
                FailureCode::DiskFull
            }
            Self::Io(_) | Self::Store(_) => FailureCode::Internal,
            _ => FailureCode::Malformed,
        };
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        Failure::new(code, phase, text).with_hint(self.hint().unwrap_or_default())
    }
}

impl Hint for FilterError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Encode(error) => error.hint(),
            Self::Decode(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Object(error) => error.hint(),
            Self::Io(_) => None,
        }
    }
}

/// What filters need to know beside the model.
pub struct Encoding<'a> {
    /// The chain, which is not empty.
    pub chain: &'a Chain,
    /// What the params are.
    pub kind: Kind,
    /// The same for the same piece of work; see [`seed`].
    pub seed: u64,
    /// What was lost the last time.
    pub before: Option<ModelObject>,
    /// Where to put what is lost this time; none where it is forgotten.
    pub after: Option<&'a Path>,
}

/// A model in the form in which it travels.
pub struct Encoded {
    /// It.
    pub model: ModelObject,
    /// Whether something was lost and lies where [`Encoding::after`] says.
    pub lost: bool,
}

/// Runs a model through a chain.
///
/// # Errors
/// [`FilterError`]; nothing is left of it then.
pub fn encode(
    objects: &Objects,
    model: &ModelObject,
    encoding: Encoding<'_>,
) -> Result<Encoded, FilterError> {
    let place = Place::open(objects)?;
    let mut out = place.file("encoded")?;
    let mut lost = match encoding.after {
        Some(path) => Some(Scrap::create(path.to_owned())?),
        None => None,
    };
    let reader = Bytes(model.reader()?);
    let before = encoding.before.as_ref();
    let before =
        before.map(|before| Ok::<_, StoreError>((before.header(), Bytes(before.reader()?))));
    let before = before.transpose()?;
    let residual = lost.as_mut().map(|after| Residual {
        before: before
            .as_ref()
            .map(|(header, bytes)| Model { header, bytes }),
        after,
    });
    let mut scratch = || -> io::Result<Box<dyn firesteel_codec::Draft>> {
        Ok(Box::new(place.file("between").map_err(io::Error::other)?))
    };
    let context = Context {
        kind: encoding.kind,
        seed: encoding.seed,
        residual,
        scratch: &mut scratch,
    };
    let source = Model {
        header: model.header(),
        bytes: &reader,
    };
    let encoded = chain::encode(encoding.chain, source, context, &mut out)?;
    out.file.set_len(encoded.header.total_len())?;
    if let (Some(lost), Some(header)) = (&mut lost, &encoded.residual) {
        lost.file.set_len(header.total_len())?;
        lost.stays = true;
    }
    let name = out.name();
    out.stays = true;
    // A file that is refused is removed.
    let model = objects.adopt(&place.0, &name)?;
    Ok(Encoded {
        model,
        lost: encoded.residual.is_some(),
    })
}

/// The model that an encoded one stands for; `None` for one that is not encoded.
/// With a spool, it counts against its budget as far as there is one.
///
/// # Errors
/// [`FilterError`].
pub fn decode(
    objects: &Objects,
    spool: Option<&Spool>,
    model: &ModelObject,
) -> Result<Option<ModelObject>, FilterError> {
    if !chain::is_encoded(model.header())? {
        return Ok(None);
    }
    let reader = Bytes(model.reader()?);
    let Some(view) = chain::decode(model.header(), &reader)? else {
        return Ok(None);
    };
    let len = view.header().total_len();
    let mut output = objects.output(len)?;
    if let Some(Ok(reservation)) = spool.map(|spool| spool.reserve(len)) {
        output = output.hold(reservation);
    }
    let mut room = Room(output);
    view.write(&mut room)?;
    Ok(Some(room.0.finish()?))
}

/// Whether a model is in a form in which it only travels.
pub fn is_encoded(model: &ModelObject) -> bool {
    chain::is_encoded(model.header()).unwrap_or(true)
}

/// A number that is the same for the same piece of work, and for no other.
pub fn seed(job: u64, site: &str, round: u32, attempt: u32) -> u64 {
    let mixed = |state: u64, value: u64| {
        // SplitMix64, which turns any change of its input into one of half the bits.
        let mut z = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mixed(job, site.len() as u64);
    let named = site
        .bytes()
        .fold(start, |state, byte| mixed(state, u64::from(byte)));
    mixed(mixed(named, u64::from(round)), u64::from(attempt))
}

/// Where filters write before it is a model.
struct Place(Outbox);

impl Place {
    fn open(objects: &Objects) -> Result<Self, StoreError> {
        Ok(Self(Outbox::create(&objects.dir().join("filtering"))?))
    }

    fn file(&self, what: &str) -> io::Result<Scrap> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{what}-{}-{number}", std::process::id());
        Scrap::create(self.0.path().join(name))
    }
}

/// A file that goes with its handle, unless it was made into something.
struct Scrap {
    file: File,
    path: PathBuf,
    stays: bool,
}

impl Scrap {
    fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            stays: false,
        })
    }

    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl ReadAt for Scrap {
    fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

impl WriteAt for Scrap {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
}

struct Bytes(ObjectReader);

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }
}

struct Room(Output);

impl WriteAt for Room {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
}
