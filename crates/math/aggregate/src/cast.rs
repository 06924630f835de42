//! The server's wide model as the sites know it, in their own dtypes.

use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, HeaderError, ModelHeader};

use crate::SimdLevel;
use crate::kernel::{self, BLOCK};
use crate::options::Model;

/// A model that is to be written again with the float dtypes of another.
#[derive(Debug)]
pub struct Cast<'a> {
    model: Model<'a>,
    header: ModelHeader,
    header_bytes: Vec<u8>,
}

/// Why a model cannot be cast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// The result cannot be laid out as a model file.
    #[error("the model cannot be written")]
    Header(#[from] HeaderError),
    /// Another length than the header describes.
    #[error("there are {length} bytes where {expected} are needed")]
    Length {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Only floats are cast.
    #[error("tensor `{tensor}` is {from} and cannot be cast to {to}")]
    Kind {
        /// The tensor.
        tensor: String,
        /// What it is.
        from: DType,
        /// What it should be.
        to: DType,
    },
    /// Values too large for the narrow dtype.
    #[error("tensor `{tensor}`: {count} of {elements} values are too large for {dtype}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many.
        count: u64,
        /// Of how many.
        elements: u64,
        /// What it should become.
        dtype: DType,
    },
}

impl<'a> Cast<'a> {
    /// Lays out `model` with the dtypes that `like` has for the same names; what
    /// `like` lacks stays as it is.
    ///
    /// # Errors
    /// [`CastError`] when a tensor that is not a float would change its dtype.
    pub fn new(model: Model<'a>, like: &ModelHeader) -> Result<Self, CastError> {
        let (length, expected) = (model.bytes.len() as u64, model.header.total_len());
        if length != expected {
            return Err(CastError::Length { length, expected });
        }
        let mut builder = HeaderBuilder::new();
        for tensor in model.header.tensors() {
            let to = like.get(&tensor.name).map_or(tensor.dtype, |t| t.dtype);
            if to != tensor.dtype && !(to.is_float() && tensor.dtype.is_float()) {
                return Err(CastError::Kind {
                    tensor: shown(&tensor.name),
                    from: tensor.dtype,
                    to,
                });
            }
            builder.tensor(&tensor.name, to, &tensor.shape);
        }
        for (alias, name) in model.header.aliases() {
            builder.alias(alias, name);
        }
        if let Some(tree) = model.header.tree() {
            builder.tree(tree.clone());
        }
        for (key, value) in model.header.metadata() {
            builder.metadata(key, value);
        }
        let (header_bytes, header) = builder.encode()?;
        Ok(Self {
            model,
            header,
            header_bytes,
        })
    }

    /// The result's header.
    pub fn header(&self) -> &ModelHeader {
        &self.header
    }

    /// Writes the result, header and data, into `out`.
    ///
    /// # Errors
    /// [`CastError`] when a value does not fit or `out` has another length than
    /// the header describes; `out` is then worthless.
    pub fn write(&self, out: &mut [u8]) -> Result<(), CastError> {
        let (length, expected) = (out.len() as u64, self.header.total_len());
        if length != expected {
            return Err(CastError::Length { length, expected });
        }
        let (head, data) = out.split_at_mut(self.header_bytes.len());
        head.copy_from_slice(&self.header_bytes);
        let level = SimdLevel::new();
        let mut values = vec![0.0; BLOCK];
        let pairs = self
            .model
            .header
            .tensors()
            .iter()
            .zip(self.header.tensors());
        for (from, to) in pairs {
            let bytes = self.model.header.bytes_of(from, self.model.bytes);
            let bytes = bytes.expect("the file's length was checked, and the header covers it");
            // The output's length was checked, so its tensors are in it.
            let out = &mut data[to.start as usize..to.end as usize];
            if from.dtype == to.dtype {
                out.copy_from_slice(bytes);
                continue;
            }
            let mut count = 0;
            let blocks = bytes.chunks(BLOCK * from.dtype.size());
            for (bytes, out) in blocks.zip(out.chunks_mut(BLOCK * to.dtype.size())) {
                let values = &mut values[..bytes.len() / from.dtype.size()];
                kernel::widen_to_f64(level, from.dtype, bytes, values);
                count += kernel::round_into(level, to.dtype, values, out);
            }
            if count > 0 {
                return Err(CastError::NotFinite {
                    tensor: shown(&to.name),
                    count,
                    elements: to.elements(),
                    dtype: to.dtype,
                });
            }
        }
        Ok(())
    }
}
