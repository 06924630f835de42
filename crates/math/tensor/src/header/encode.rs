//! Writing a header.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use firesteel_base::limits;

use super::{
    ALIASES_KEY, HeaderError, LARGEST, LENGTH_BYTES, METADATA_KEY, ModelHeader, PARTIAL,
    PARTIAL_KEY, Parts, TREE_KEY, TensorInfo, bytes_of_shape,
};
use crate::text::shown;
use crate::tree::write_text;
use crate::{DType, Tree};

/// Data starts at a multiple of this, so that a mapped file's tensors are aligned
/// for the widest vector loads.
const DATA_ALIGN: usize = 64;

/// Collects what a model file holds, then lays it out.
#[derive(Debug, Clone, Default)]
pub struct HeaderBuilder {
    tensors: Vec<(Arc<str>, DType, Vec<u64>)>,
    aliases: Vec<(String, String)>,
    tree: Option<Tree>,
    partial: bool,
    metadata: BTreeMap<String, String>,
}

impl HeaderBuilder {
    /// A model without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor after those that were added before.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[u64]) -> &mut Self {
        self.tensors.push((name.into(), dtype, shape.to_vec()));
        self
    }

    /// Adds a second name of a tensor.
    pub fn alias(&mut self, alias: &str, name: &str) -> &mut Self {
        self.aliases.push((alias.to_owned(), name.to_owned()));
        self
    }

    /// Says what the params look like; without it they are a flat dict.
    pub fn tree(&mut self, tree: Tree) -> &mut Self {
        self.tree = Some(tree);
        self
    }

    /// Says that the file is an update that holds only what changed. Its tree may
    /// name tensors that it lacks.
    pub fn partial(&mut self) -> &mut Self {
        self.partial = true;
        self
    }

    /// Adds an entry of the user's own; the same key again replaces it.
    pub fn metadata(&mut self, key: &str, value: &str) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Lays the tensors out: the file's first bytes, up to the data, and the
    /// header that reading them would give.
    ///
    /// # Errors
    /// [`HeaderError`] when the parts do not make a model file.
    pub fn encode(self) -> Result<(Vec<u8>, ModelHeader), HeaderError> {
        self.encode_at(0)
    }

    /// The same with the data at `data_start` at the earliest: for a writer that
    /// knows the lengths of its tensors only when it has written them, and has
    /// kept room for the longest header that they may need.
    ///
    /// # Errors
    /// As [`HeaderBuilder::encode`].
    pub fn encode_at(self, data_start: u64) -> Result<(Vec<u8>, ModelHeader), HeaderError> {
        for key in [TREE_KEY, ALIASES_KEY, PARTIAL_KEY] {
            if self.metadata.contains_key(key) {
                return Err(HeaderError::ReservedMetadata { key: key.into() });
            }
        }
        let (tensors, data_len) = lay_out(self.tensors)?;
        let mut parts = Parts {
            tensors,
            aliases: self.aliases,
            tree: self.tree,
            partial: self.partial,
            metadata: self.metadata,
            data_start: 0,
            data_len,
        };
        let bytes = write(&parts, data_start)?;
        parts.data_start = bytes.len() as u64;
        let header = ModelHeader::checked(parts)?;
        Ok((bytes, header))
    }
}

fn lay_out(
    tensors: Vec<(Arc<str>, DType, Vec<u64>)>,
) -> Result<(Vec<TensorInfo>, u64), HeaderError> {
    let mut placed = Vec::with_capacity(tensors.len());
    for (name, dtype, shape) in tensors {
        if &*name == METADATA_KEY {
            return Err(HeaderError::ReservedName);
        }
        if shape.len() > limits::TENSOR_RANK {
            return Err(HeaderError::Rank {
                tensor: shown(&name),
                limit: limits::TENSOR_RANK,
            });
        }
        let Some(size) = bytes_of_shape(dtype, &shape) else {
            return Err(HeaderError::Overflow {
                tensor: shown(&name),
            });
        };
        placed.push(TensorInfo {
            name,
            dtype,
            shape,
            start: 0,
            end: size,
        });
    }
    let mut order: Vec<_> = placed.iter_mut().collect();
    // Stable: tensors of one element size stay in the user's order.
    order.sort_by_key(|t| Reverse(t.dtype.size()));
    let mut reached = 0u64;
    for tensor in order {
        let end = reached.checked_add(tensor.end);
        // Room for the header: the file's length must keep 63 bits too.
        let Some(end) = end.filter(|end| *end <= LARGEST - 2 * limits::MODEL_HEADER as u64) else {
            return Err(HeaderError::Overflow {
                tensor: shown(&tensor.name),
            });
        };
        (tensor.start, tensor.end) = (reached, end);
        reached = end;
    }
    Ok((placed, reached))
}

fn write(parts: &Parts, least: u64) -> Result<Vec<u8>, HeaderError> {
    let mut json = String::with_capacity(64 + parts.tensors.len() * 96);
    json.push('{');
    write_metadata(parts, &mut json);
    for tensor in &parts.tensors {
        if json.len() > 1 {
            json.push(',');
        }
        write_text(&tensor.name, &mut json);
        // Writing into a String has no way to fail.
        let _ = write!(json, ":{{\"dtype\":\"{}\",\"shape\":[", tensor.dtype);
        for (at, dimension) in tensor.shape.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(json, "{comma}{dimension}");
        }
        let (start, end) = (tensor.start, tensor.end);
        let _ = write!(json, "],\"data_offsets\":[{start},{end}]}}");
    }
    json.push('}');
    let length_bytes = LENGTH_BYTES as usize;
    let least = usize::try_from(least).unwrap_or(limits::MODEL_HEADER);
    let total = (length_bytes + json.len()).max(least);
    let total = total.next_multiple_of(DATA_ALIGN);
    let length = (total - length_bytes) as u64;
    let limit = limits::MODEL_HEADER as u64;
    if length > limit {
        return Err(HeaderError::HeaderTooLong { length, limit });
    }
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(total, b' ');
    Ok(bytes)
}

fn write_metadata(parts: &Parts, json: &mut String) {
    let mut entries = parts.metadata.clone();
    if let Some(tree) = &parts.tree {
        entries.insert(TREE_KEY.into(), tree.to_json());
    }
    if parts.partial {
        entries.insert(PARTIAL_KEY.into(), PARTIAL.into());
    }
    if !parts.aliases.is_empty() {
        let mut text = String::from("{");
        for (at, (alias, name)) in parts.aliases.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            write_text(alias, &mut text);
            text.push(':');
            write_text(name, &mut text);
        }
        text.push('}');
        entries.insert(ALIASES_KEY.into(), text);
    }
    if entries.is_empty() {
        return;
    }
    write_text(METADATA_KEY, json);
    json.push_str(":{");
    for (at, (key, value)) in entries.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        write_text(key, json);
        json.push(':');
        write_text(value, json);
    }
    json.push('}');
}
