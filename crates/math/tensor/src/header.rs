//! The header of a model file: which tensors it has and where they lie.
//!
//! A model file is a safetensors file: eight bytes of header length, a JSON
//! header, the tensors' bytes without holes. What we write is stricter than what
//! we read: data starts at a multiple of 64 bytes, and tensors lie in the order
//! of falling element size, so that each is aligned wherever the file is mapped.
//! The JSON lists the tensors in the user's order.
//!
//! What we read must be aligned too, to the element size and counted from the
//! start of the file: NumPy and torch views of unaligned elements are slow at
//! best. Everything the safetensors library has written since its first release
//! with padded headers (0.3) is.

mod encode;
mod error;
mod parse;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use firesteel_base::limits;

use crate::text::shown;
use crate::{DType, Tree};

pub use encode::HeaderBuilder;
pub use error::HeaderError;

/// Where the params tree stands in the metadata.
const TREE_KEY: &str = "firesteel.tree";
/// Where the aliases stand in the metadata.
const ALIASES_KEY: &str = "firesteel.aliases";
/// Where it says that tensors were left out because they did not change.
const PARTIAL_KEY: &str = "firesteel.partial";
/// The only value that there is of it.
const PARTIAL: &str = "1";
/// The name that no tensor can have.
const METADATA_KEY: &str = "__metadata__";
/// Bytes of the length at the start of a file.
const LENGTH_BYTES: u64 = 8;
/// No offset, size or element count may pass this.
const LARGEST: u64 = i64::MAX as u64;

/// One tensor of a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique among names and aliases.
    pub name: Arc<str>,
    /// What its elements are.
    pub dtype: DType,
    /// Elements per dimension; empty for a single value.
    pub shape: Vec<u64>,
    /// Where it starts, counted from the start of the data.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

impl TensorInfo {
    /// How many elements it has: 1 for a single value, 0 for an empty tensor.
    pub fn elements(&self) -> u64 {
        self.size() / self.dtype.size() as u64
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// A model file's header, checked.
///
/// INVARIANT: tensors cover the data without hole or overlap, in bounds and
/// aligned; names and aliases are unique; aliases name tensors that exist, and so
/// do the tree's leaves unless the file is partial; every tensor is in the tree.
#[derive(Debug, Clone)]
pub struct ModelHeader {
    tensors: Vec<TensorInfo>,
    /// From a name or an alias to the tensor's place in `tensors`.
    index: HashMap<Arc<str>, u32>,
    aliases: Vec<(Arc<str>, Arc<str>)>,
    tree: Option<Tree>,
    partial: bool,
    metadata: BTreeMap<String, String>,
    data_start: u64,
    data_len: u64,
}

impl PartialEq for ModelHeader {
    fn eq(&self, other: &Self) -> bool {
        // The index follows from the tensors and aliases.
        self.tensors == other.tensors
            && self.aliases == other.aliases
            && self.tree == other.tree
            && self.partial == other.partial
            && self.metadata == other.metadata
            && self.data_start == other.data_start
            && self.data_len == other.data_len
    }
}

impl ModelHeader {
    /// Where the data of a file starts, from the file's first eight bytes: so
    /// many bytes [`ModelHeader::parse`] needs.
    ///
    /// # Errors
    /// [`HeaderError::TooShort`] or [`HeaderError::HeaderTooLong`].
    pub fn data_start_of(first_bytes: &[u8]) -> Result<u64, HeaderError> {
        let Some(length) = first_bytes.first_chunk() else {
            return Err(HeaderError::TooShort {
                length: first_bytes.len() as u64,
            });
        };
        let length = u64::from_le_bytes(*length);
        let limit = limits::MODEL_HEADER as u64;
        if length > limit {
            return Err(HeaderError::HeaderTooLong { length, limit });
        }
        Ok(LENGTH_BYTES + length)
    }

    /// Reads a header from the start of a file of `total_len` bytes. `prefix` may
    /// be the whole file or less, but holds the whole header.
    ///
    /// # Errors
    /// [`HeaderError`] for everything that is not a model file by
    /// `docs/specs/model.md`.
    pub fn parse(prefix: &[u8], total_len: u64) -> Result<Self, HeaderError> {
        parse::parse(prefix, total_len)
    }

    /// The tensors in the order of the header, which is the user's.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensors in the order of their bytes: write them so.
    pub fn data_order(&self) -> Vec<&TensorInfo> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|t| (t.start, t.end));
        tensors
    }

    /// The tensor of a name or an alias.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(self.position(name)?)
    }

    /// The place in [`ModelHeader::tensors`] of a name or an alias.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).map(|&at| at as usize)
    }

    /// Pairs of alias and tensor name: tensors that share one storage.
    pub fn aliases(&self) -> &[(Arc<str>, Arc<str>)] {
        &self.aliases
    }

    /// What the params look like; `None` is a flat dict of the tensors.
    pub fn tree(&self) -> Option<&Tree> {
        self.tree.as_ref()
    }

    /// The params tree, made from the names when the file has none: a flat dict
    /// of tensors in header order, then of the aliases.
    pub fn tree_or_flat(&self) -> Tree {
        if let Some(tree) = &self.tree {
            return tree.clone();
        }
        let leaf = |name: &Arc<str>| (name.to_string(), Tree::Tensor(name.to_string()));
        let names = self.tensors.iter().map(|t| &t.name);
        let names = names.chain(self.aliases.iter().map(|(alias, _)| alias));
        Tree::Dict(names.map(leaf).collect())
    }

    /// Whether it is an update that holds only what changed: a tensor that is not
    /// in it, though it may be in the tree, is as the model has it.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// The user's own entries of the metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where the data starts in the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of all tensors together.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Bytes of the whole file.
    pub fn total_len(&self) -> u64 {
        self.data_start + self.data_len
    }

    /// A tensor's bytes within the bytes of the whole file; `None` when those
    /// are not the file that this header is of.
    pub fn bytes_of<'f>(&self, tensor: &TensorInfo, file: &'f [u8]) -> Option<&'f [u8]> {
        let start = usize::try_from(self.data_start + tensor.start).ok()?;
        let end = usize::try_from(self.data_start + tensor.end).ok()?;
        file.get(start..end)
    }

    /// A builder that makes an equal header, to be changed and encoded.
    pub fn to_builder(&self) -> HeaderBuilder {
        let mut builder = HeaderBuilder::new();
        for tensor in &self.tensors {
            builder.tensor(tensor.name.as_ref(), tensor.dtype, &tensor.shape);
        }
        for (alias, name) in &self.aliases {
            builder.alias(alias.as_ref(), name.as_ref());
        }
        if let Some(tree) = &self.tree {
            builder.tree(tree.clone());
        }
        if self.partial {
            builder.partial();
        }
        for (key, value) in &self.metadata {
            builder.metadata(key, value);
        }
        builder
    }

    /// Checks what readers and writers promise alike, and builds the index.
    fn checked(mut parts: Parts) -> Result<Self, HeaderError> {
        let mut index = HashMap::with_capacity(parts.tensors.len() + parts.aliases.len());
        for (at, tensor) in parts.tensors.iter().enumerate() {
            let at = u32::try_from(at).expect("a header of 100 MB names fewer tensors");
            if index.insert(tensor.name.clone(), at).is_some() {
                return Err(HeaderError::DuplicateName {
                    name: shown(&tensor.name),
                });
            }
        }
        let mut aliases = Vec::with_capacity(parts.aliases.len());
        for (alias, name) in std::mem::take(&mut parts.aliases) {
            // Looked up among tensors only: an alias of an alias has no meaning.
            let Some(at) = index.get(name.as_str()).copied() else {
                return Err(HeaderError::AliasTarget {
                    alias: shown(&alias),
                    name: shown(&name),
                });
            };
            let tensor = parts.tensors.get(at as usize);
            let target = tensor.filter(|t| *t.name == *name).map(|t| t.name.clone());
            let Some(target) = target else {
                return Err(HeaderError::AliasTarget {
                    alias: shown(&alias),
                    name: shown(&name),
                });
            };
            let alias: Arc<str> = alias.into();
            if index.insert(alias.clone(), at).is_some() {
                return Err(HeaderError::DuplicateName {
                    name: shown(&alias),
                });
            }
            aliases.push((alias, target));
        }
        check_layout(&parts.tensors, parts.data_start, parts.data_len)?;
        if let Some(tree) = &parts.tree {
            check_tree(tree, &index, &parts)?;
        }
        Ok(Self {
            tensors: parts.tensors,
            index,
            aliases,
            tree: parts.tree,
            partial: parts.partial,
            metadata: parts.metadata,
            data_start: parts.data_start,
            data_len: parts.data_len,
        })
    }
}

/// A header before it is checked.
struct Parts {
    tensors: Vec<TensorInfo>,
    aliases: Vec<(String, String)>,
    tree: Option<Tree>,
    partial: bool,
    metadata: BTreeMap<String, String>,
    data_start: u64,
    data_len: u64,
}

/// Bytes that `shape` takes; `None` past 2⁶³ − 1. Zeros do not excuse the other
/// dimensions, as they do not in NumPy.
fn bytes_of_shape(dtype: DType, shape: &[u64]) -> Option<u64> {
    let mut product = dtype.size() as u64;
    for &dimension in shape {
        if dimension != 0 {
            product = product.checked_mul(dimension).filter(|p| *p <= LARGEST)?;
        }
    }
    Some(if shape.contains(&0) { 0 } else { product })
}

fn check_layout(tensors: &[TensorInfo], data_start: u64, data_len: u64) -> Result<(), HeaderError> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|t| (t.start, t.end));
    let mut reached = 0;
    let mut before: &str = "";
    for tensor in order {
        let name = || shown(&tensor.name);
        if tensor.start < reached {
            return Err(HeaderError::Overlap {
                tensor: name(),
                other: shown(before),
            });
        }
        if tensor.start > reached {
            return Err(HeaderError::Hole {
                tensor: name(),
                from: reached,
                to: tensor.start,
            });
        }
        let place = data_start + tensor.start;
        let align = tensor.dtype.size() as u64;
        if tensor.start < tensor.end && !place.is_multiple_of(align) {
            return Err(HeaderError::Misaligned {
                tensor: name(),
                dtype: tensor.dtype,
                place,
            });
        }
        reached = tensor.end;
        before = &tensor.name;
    }
    if reached != data_len {
        return Err(HeaderError::TrailingBytes {
            end: reached,
            length: data_len,
        });
    }
    Ok(())
}

fn check_tree(
    tree: &Tree,
    index: &HashMap<Arc<str>, u32>,
    parts: &Parts,
) -> Result<(), HeaderError> {
    tree.check().map_err(HeaderError::Tree)?;
    let tensors = &parts.tensors;
    let mut used = vec![false; tensors.len()];
    let mut missing = None;
    tree.walk(|path, leaf| {
        let Tree::Tensor(name) = leaf else { return };
        let at = index.get(name.as_str()).map(|&at| at as usize);
        match at.and_then(|at| used.get_mut(at)) {
            Some(used) => *used = true,
            None if missing.is_none() && !parts.partial => {
                missing = Some(HeaderError::TreeTensor {
                    path: path.to_string(),
                    name: shown(name),
                });
            }
            None => {}
        }
    });
    if let Some(error) = missing {
        return Err(error);
    }
    match used.iter().zip(tensors).find(|(used, _)| !**used) {
        Some((_, tensor)) => Err(HeaderError::NotInTree {
            tensor: shown(&tensor.name),
        }),
        None => Ok(()),
    }
}
