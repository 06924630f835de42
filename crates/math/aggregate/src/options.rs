//! What goes into a fold.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use firesteel_tensor::{DType, Facts, ModelHeader};
use regex::RegexSet;

use crate::sums::Sums;

/// A model file: its header and all its bytes, from the header's first on.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The header, parsed from these very bytes.
    pub header: &'a ModelHeader,
    /// The whole file; need not be aligned.
    pub bytes: &'a [u8],
}

/// One site's update.
#[derive(Debug, Clone, Copy)]
pub struct Contribution<'a> {
    /// The site's name, for reports and errors.
    pub site: &'a str,
    /// What it counts in a weighted mean; rounded to f32 before use, so that its
    /// product with any f32 is exact in f64.
    pub weight: f64,
    /// The header of the update's file.
    pub header: &'a ModelHeader,
    /// The file itself.
    pub data: Data<'a>,
}

/// Where an update's bytes are.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    /// The whole file, mapped or in memory; need not be aligned.
    Mapped(&'a [u8]),
    /// Here and verified, but not as bytes in memory: read in windows while it is
    /// folded. An update that is decoded on the way, for one.
    Read(&'a dyn LiveSource),
    /// Still at its site, to be read once, front to back, while it is folded.
    Live {
        /// What reads it.
        source: &'a dyn LiveSource,
        /// What its manifest says of each tensor, in the order of the header's
        /// tensors; the values are held against it as they come.
        facts: &'a [Facts],
    },
    /// No update of a site, but the sums of several; see [`Sums::from`].
    Sums {
        /// What its header tells.
        sums: &'a Sums,
        /// The whole file; need not be aligned.
        bytes: &'a [u8],
    },
}

impl fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(bytes) => f.debug_tuple("Mapped").field(&bytes.len()).finish(),
            Self::Read(_) => f.write_str("Read"),
            Self::Live { .. } => f.write_str("Live"),
            Self::Sums { sums, .. } => f.debug_tuple("Sums").field(&sums.counted()).finish(),
        }
    }
}

/// An update that is read while it is folded.
pub trait LiveSource: Send + Sync {
    /// A reader of these ranges of the file, one after the other, in the order
    /// given. They are all that will be read, to the last byte: so they can be
    /// fetched ahead.
    ///
    /// A file that is laid out like the result, as nearly all are, is one range;
    /// one with another order of its tensors is several that rise and fall, and
    /// a tensor that counts for two tied ones is asked for twice.
    ///
    /// The reader waits for bytes that are late. What it returns as an error ends
    /// the fold.
    ///
    /// # Errors
    /// As its reader's.
    fn open(&self, ranges: &[Range<u64>]) -> io::Result<Box<dyn io::Read + Send + '_>>;
}

/// An update whose bytes can be had from any place on: `read_at(offset, into)`
/// fills `into` with those from `offset` on.
pub struct ReadAt<F>(pub F);

impl<F> LiveSource for ReadAt<F>
where
    F: Fn(u64, &mut [u8]) -> io::Result<()> + Send + Sync,
{
    fn open(&self, ranges: &[Range<u64>]) -> io::Result<Box<dyn io::Read + Send + '_>> {
        Ok(Box::new(Ranges {
            read_at: &self.0,
            left: ranges.to_vec().into(),
        }))
    }
}

struct Ranges<'f, F> {
    read_at: &'f F,
    left: VecDeque<Range<u64>>,
}

impl<F> io::Read for Ranges<'_, F>
where
    F: Fn(u64, &mut [u8]) -> io::Result<()>,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(range) = self.left.front_mut() else {
            return Ok(0);
        };
        let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let count = left.min(into.len());
        (self.read_at)(range.start, &mut into[..count])?;
        range.start += count as u64;
        if range.start == range.end {
            self.left.pop_front();
        }
        Ok(count)
    }
}

/// How the updates' values at one place become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The weighted mean.
    Mean,
    /// The median at every coordinate, without weights; of an even number, the
    /// mean of the two in the middle.
    Median,
    /// The mean, without weights, of what is left when this fraction (below one
    /// half, the number rounded down) is taken off either end at every coordinate.
    TrimmedMean(f64),
}

impl Method {
    /// Whether it may read an update more than once, or holds all of them side by
    /// side: then each must be there as a file, and none may be read from its
    /// site while it is folded. A mean takes each value once.
    pub fn needs_spooled(self) -> bool {
        self != Self::Mean
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Median => "median",
            Self::TrimmedMean(_) => "trimmed mean",
        }
    }
}

/// What the sites' values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateKind {
    /// The model after training.
    Full,
    /// What training added to the model; unsigned integers hold the difference
    /// as two's complement, bools are the new values themselves.
    Diff,
}

/// The dtype in which the server keeps floats that are narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wide {
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Wide {
    /// The dtype itself.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }

    /// What `dtype` becomes on the server.
    pub(crate) fn widened(wide: Option<Self>, dtype: DType) -> DType {
        match wide {
            Some(wide) if dtype.is_float() && dtype.size() < wide.dtype().size() => wide.dtype(),
            _ => dtype,
        }
    }
}

/// Everything about a fold that is not the updates.
#[derive(Debug, Clone)]
pub struct Options {
    /// How values become one.
    pub method: Method,
    /// What the values are.
    pub kind: UpdateKind,
    /// Keys that are not folded: the model keeps its own.
    pub exclude: Exclude,
    /// `None` keeps every dtype as it is.
    pub master_dtype: Option<Wide>,
    /// How many threads may work; 0 is taken as 1.
    pub threads: usize,
    /// Which instructions may be used. The result is the same with any.
    pub simd: crate::SimdLevel,
}

impl Options {
    /// The weighted mean of whole models on one thread, with the best
    /// instructions of this CPU.
    pub fn mean() -> Self {
        Self {
            method: Method::Mean,
            kind: UpdateKind::Full,
            exclude: Exclude::none(),
            master_dtype: None,
            threads: 1,
            simd: crate::SimdLevel::new(),
        }
    }

    /// The same for updates of another kind. Cheap: the patterns are shared, so
    /// a job's options are made once.
    #[must_use]
    pub fn for_kind(&self, kind: UpdateKind) -> Self {
        Self {
            kind,
            ..self.clone()
        }
    }
}

/// Patterns for the keys that are left out of the fold. A pattern may match
/// anywhere in a key, as in FLARE's `exclude_vars`. Compiled once: a clone is
/// another handle to the same.
#[derive(Debug, Clone)]
pub struct Exclude(Arc<RegexSet>);

impl Exclude {
    /// Leaves nothing out.
    pub fn none() -> Self {
        Self(Arc::new(RegexSet::empty()))
    }

    /// Compiles patterns.
    ///
    /// # Errors
    /// [`ExcludeError`] names the first that is not a regular expression.
    pub fn new<P: AsRef<str>>(patterns: &[P]) -> Result<Self, ExcludeError> {
        for pattern in patterns {
            let pattern = pattern.as_ref();
            regex::Regex::new(pattern).map_err(|source| ExcludeError {
                pattern: pattern.to_owned(),
                source: Box::new(source),
            })?;
        }
        let set = RegexSet::new(patterns).map_err(|source| ExcludeError {
            pattern: patterns
                .iter()
                .map(AsRef::as_ref)
                .collect::<Vec<_>>()
                .join("|"),
            source: Box::new(source),
        })?;
        Ok(Self(Arc::new(set)))
    }

    /// Whether `key` is left out.
    pub fn contains(&self, key: &str) -> bool {
        !self.0.is_empty() && self.0.is_match(key)
    }
}

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{pattern}` is not a regular expression")]
pub struct ExcludeError {
    /// The pattern as given.
    pub pattern: String,
    /// What is wrong with it.
    #[source]
    pub source: Box<regex::Error>,
}
