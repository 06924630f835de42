//! Why a model was not encoded, or not decoded.

use std::io;

use firesteel_base::Hint;
use firesteel_tensor::HeaderError;

/// Why no encoded model came out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The model could not be read.
    #[error("the model could not be read")]
    Read(#[source] io::Error),
    /// The encoded model could not be written.
    #[error("the encoded model could not be written")]
    Write(#[source] io::Error),
    /// No file for what lies between two filters.
    #[error("there is no room for what lies between two filters")]
    Scratch(#[source] io::Error),
    /// The encoded model is not one that a model file can hold.
    #[error("the encoded model cannot be laid out")]
    Header(#[from] HeaderError),
    /// The model says of itself that it is encoded, and is not.
    #[error("the model is marked as encoded, and that mark cannot be read")]
    Marked(#[source] DecodeError),
    /// NaN or infinity, which a scheme has no code for.
    #[error(
        "tensor `{tensor}`: {count} of {elements} values are NaN or Inf, which {step} cannot carry"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The filter.
        step: &'static str,
        /// How many values.
        count: u64,
        /// Of how many.
        elements: u64,
    },
    /// More filters than an encoded model can tell of.
    #[error("the model passes {count} filters that encode it, the limit is {limit}")]
    TooManyLayers {
        /// How many there are.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The residual of the last send does not fit the model.
    #[error("the residual of tensor `{tensor}` has another shape than the tensor")]
    Residual {
        /// The tensor.
        tensor: String,
    },
    /// A filter lets nothing of this kind out.
    #[error("a filter lets no params of kind {kind} out")]
    Blocked {
        /// `FULL` or `DIFF`.
        kind: &'static str,
    },
    /// Thinning out what is not a difference would lose the model.
    #[error("top_k keeps a share of a difference, and these params are {kind}")]
    NotDifference {
        /// What they are.
        kind: &'static str,
    },
}

impl Hint for EncodeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFinite { tensor, .. } => Some(format!(
                "training diverged, or `{tensor}` holds infinities on purpose: then give the filter `exclude=[{tensor:?}]`"
            )),
            Self::TooManyLayers { .. } => Some("use fewer filters".into()),
            Self::NotDifference { .. } => {
                Some("let the sites send DIFF: `params_transfer_type=\"DIFF\"`".into())
            }
            Self::Header(error) => error.hint(),
            _ => None,
        }
    }
}

/// Why an encoded model was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It could not be read.
    #[error("the encoded model could not be read")]
    Read(#[source] io::Error),
    /// The decoded model could not be written.
    #[error("the decoded model could not be written")]
    Write(#[source] io::Error),
    /// The length of the file is not what its header says.
    #[error("the encoded model has {length} bytes, but its header describes {expected}")]
    Length {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Written by a newer version.
    #[error("the model is encoded by rules of version {version}, and this build knows version 1")]
    Version {
        /// The version, shortened.
        version: String,
    },
    /// More layers than any model has.
    #[error("the encoded model has {count} layers, the limit is {limit}")]
    TooManyLayers {
        /// How many it says it has.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The description of a layer is not one.
    #[error("layer {layer} of the encoded model cannot be read: {problem}")]
    Layer {
        /// Which layer, counted from the innermost.
        layer: usize,
        /// What is wrong.
        problem: String,
    },
    /// An encoded tensor is not what its description says.
    #[error("the encoded tensor `{tensor}` is damaged: {problem}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// What would come out is not a model.
    #[error("what is encoded is not a model")]
    Header(#[from] HeaderError),
}

impl Hint for DecodeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Version { .. } => Some(
                "run the same version of firesteel on both sides, or upgrade the older one".into(),
            ),
            Self::Header(error) => error.hint(),
            _ => None,
        }
    }
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Read(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
