//! Everything that can be wrong with a model file's header.

use firesteel_base::Hint;

use crate::{DType, TreeError};

/// Why bytes are not a model file, or why a header cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than the header's length field.
    #[error("a model file starts with 8 bytes of header length, this one has {length} bytes")]
    TooShort {
        /// Bytes there are.
        length: u64,
    },
    /// The header is longer than any may be.
    #[error("the model file's header has {length} bytes, the limit is {limit}")]
    HeaderTooLong {
        /// Its length.
        length: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// Longer than a file can be.
    #[error("a model file cannot have {length} bytes")]
    FileTooLong {
        /// Its length.
        length: u64,
    },
    /// The file ends within the header, or the reader passed too little of it.
    #[error("the model file's header ends at byte {needed}, but only {length} are there")]
    Truncated {
        /// Where the header ends.
        needed: u64,
        /// Bytes there are.
        length: u64,
    },
    /// Not the JSON that a header is.
    #[error("the model file's header cannot be read: {message}")]
    Json {
        /// What the JSON reader says.
        message: String,
    },
    /// A tensor's entry is not what it should be.
    #[error("the model file's entry for tensor `{tensor}` cannot be read: {message}")]
    Entry {
        /// The tensor.
        tensor: String,
        /// What the JSON reader says.
        message: String,
    },
    /// An element type that does not travel.
    #[error("tensor `{tensor}` has the dtype `{dtype}`, which is not supported")]
    UnknownDType {
        /// The tensor.
        tensor: String,
        /// The dtype's name.
        dtype: String,
    },
    /// More dimensions than any tensor may have.
    #[error("tensor `{tensor}` has more than {limit} dimensions")]
    Rank {
        /// The tensor.
        tensor: String,
        /// The most allowed.
        limit: usize,
    },
    /// A size, offset or count that leaves 63 bits.
    #[error("tensor `{tensor}` is larger than any tensor can be")]
    Overflow {
        /// The tensor.
        tensor: String,
    },
    /// Offsets that end before they start or leave the file.
    #[error("tensor `{tensor}` lies at {start}..{end} of {length} bytes of data")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Where it should start.
        start: u64,
        /// Where it should end.
        end: u64,
        /// Bytes of data there are.
        length: u64,
    },
    /// Offsets and shape disagree.
    #[error("tensor `{tensor}` has {found} bytes, but its shape and dtype need {needed}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes by its offsets.
        found: u64,
        /// Bytes by shape and dtype.
        needed: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor `{tensor}` overlaps tensor `{other}`")]
    Overlap {
        /// The later one.
        tensor: String,
        /// The earlier one.
        other: String,
    },
    /// Bytes that belong to no tensor.
    #[error("bytes {from}..{to} before tensor `{tensor}` belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where the hole starts.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// The data does not end with the last tensor.
    #[error("the last tensor ends at byte {end} of the data, which has {length} bytes")]
    TrailingBytes {
        /// Where the last tensor ends.
        end: u64,
        /// Bytes of data there are.
        length: u64,
    },
    /// Elements that no machine word starts at.
    #[error("tensor `{tensor}` of {dtype} lies at byte {place}, where none can be aligned")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: DType,
        /// Where it starts in the file.
        place: u64,
    },
    /// A name that stands twice among tensors and aliases.
    #[error("the name `{name}` stands twice in the model file's header")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// `__metadata__` as a tensor's name.
    #[error("no tensor can be named `__metadata__`")]
    ReservedName,
    /// A metadata key that stands twice.
    #[error("the metadata has the key `{key}` twice")]
    DuplicateMetadata {
        /// The key.
        key: String,
    },
    /// A metadata key that the product uses itself.
    #[error("the metadata key `{key}` is set by the product alone")]
    ReservedMetadata {
        /// The key.
        key: String,
    },
    /// A mark for what is left out that says something new.
    #[error("the metadata says `{value}` of what is left out, and only `1` is known")]
    Partial {
        /// What it says.
        value: String,
    },
    /// The alias map is not an object of texts.
    #[error("the alias map cannot be read: {message}")]
    Aliases {
        /// What the JSON reader says.
        message: String,
    },
    /// An alias of a tensor that is not there.
    #[error("`{alias}` is an alias of `{name}`, which is no tensor of the model")]
    AliasTarget {
        /// The alias.
        alias: String,
        /// What it should be an alias of.
        name: String,
    },
    /// The params tree is wrong in itself.
    #[error(transparent)]
    Tree(TreeError),
    /// The params tree names a tensor that is not there.
    #[error("the params tree names the tensor `{name}` at `{path}`, which the model lacks")]
    TreeTensor {
        /// Where in the tree.
        path: String,
        /// The tensor.
        name: String,
    },
    /// A tensor that the params tree does not name.
    #[error("tensor `{tensor}` is not in the params tree")]
    NotInTree {
        /// The tensor.
        tensor: String,
    },
}

impl Hint for HeaderError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::TooShort { .. } | Self::HeaderTooLong { .. } | Self::Json { .. } => {
                Some("is this a safetensors file?".into())
            }
            Self::Truncated { .. } | Self::TrailingBytes { .. } | Self::OutOfRange { .. } => {
                Some("the file was cut or damaged on its way; copy it again".into())
            }
            Self::Misaligned { .. } => {
                Some("load the file and save it again with a current safetensors library".into())
            }
            Self::UnknownDType { .. } => {
                Some("convert the tensor to one of the dtypes in `docs/specs/model.md`".into())
            }
            Self::Tree(error) => error.hint(),
            _ => None,
        }
    }
}
