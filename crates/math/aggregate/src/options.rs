//! What goes into a fold.

use firesteel_tensor::{DType, ModelHeader};
use regex::RegexSet;

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
    /// The header, parsed from `bytes`.
    pub header: &'a ModelHeader,
    /// The whole file; need not be aligned.
    pub bytes: &'a [u8],
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
}

/// Patterns for the keys that are left out of the fold. A pattern may match
/// anywhere in a key, as in FLARE's `exclude_vars`.
#[derive(Debug, Clone)]
pub struct Exclude(RegexSet);

impl Exclude {
    /// Leaves nothing out.
    pub fn none() -> Self {
        Self(RegexSet::empty())
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
        Ok(Self(set))
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
