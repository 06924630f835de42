//! The params tree: what a user's `params` looks like around its tensors.
//!
//! Lists, dicts, numbers and texts lie in the tree itself; a tensor is a leaf
//! that names one of the model file's tensors. The text form is canonical: equal
//! trees give equal text.

mod json;

pub(crate) use json::write_text;

use firesteel_base::{Hint, limits};

use crate::text::shown;

/// One node of a params tree.
#[derive(Debug, Clone)]
pub enum Tree {
    /// Keys and their nodes, in the user's order; keys are unique.
    Dict(Vec<(String, Tree)>),
    /// A list.
    List(Vec<Tree>),
    /// A tuple.
    Tuple(Vec<Tree>),
    /// A text.
    Str(String),
    /// A whole number.
    Int(i64),
    /// A floating-point number, NaN and infinities included.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// Nothing.
    None,
    /// A tensor of the model file, by name or by alias.
    Tensor(String),
}

/// Floats are equal when their canonical texts are: NaN equals itself and the
/// two zeros differ.
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dict(a), Self::Dict(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => a == b,
            (Self::Str(a), Self::Str(b)) | (Self::Tensor(a), Self::Tensor(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => {
                a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
            }
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::None, Self::None) => true,
            _ => false,
        }
    }
}

impl Eq for Tree {}

impl Tree {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`TreeError`], with the path of the node where it stopped.
    pub fn parse(text: &str) -> Result<Self, TreeError> {
        json::parse(text)
    }

    /// The canonical text form.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Whether the tree keeps the limits and has no key twice: what
    /// [`Tree::parse`] grants, for trees that were built in memory.
    ///
    /// # Errors
    /// [`TreeError`], with the path of the node that is too much.
    pub fn check(&self) -> Result<(), TreeError> {
        let mut budget = Budget::default();
        let mut path = Path::default();
        check(self, &mut budget, &mut path)
    }

    /// Calls `visit` with every leaf and its path, first to last.
    pub fn walk<'t>(&'t self, mut visit: impl FnMut(&Path, &'t Tree)) {
        walk(self, &mut Path::default(), &mut visit);
    }

    /// The tensors' names, in the order of the tree; one named twice comes twice.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.walk(|_, leaf| {
            if let Self::Tensor(name) = leaf {
                names.push(name.as_str());
            }
        });
        names
    }

    /// What kind of node it is, as Python calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dict(_) => "dict",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Str(_) => "str",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Bool(_) => "bool",
            Self::Bytes(_) => "bytes",
            Self::None => "None",
            Self::Tensor(_) => "tensor",
        }
    }
}

fn walk<'t>(node: &'t Tree, path: &mut Path, visit: &mut impl FnMut(&Path, &'t Tree)) {
    match node {
        Tree::Dict(entries) => {
            for (key, child) in entries {
                path.push_key(key);
                walk(child, path, visit);
                path.pop();
            }
        }
        Tree::List(items) | Tree::Tuple(items) => {
            for (at, child) in items.iter().enumerate() {
                path.push_index(at);
                walk(child, path, visit);
                path.pop();
            }
        }
        leaf => visit(path, leaf),
    }
}

fn check(node: &Tree, budget: &mut Budget, path: &mut Path) -> Result<(), TreeError> {
    budget.enter(path)?;
    match node {
        Tree::Dict(entries) => {
            let mut seen = std::collections::HashSet::with_capacity(entries.len());
            for (key, child) in entries {
                budget.text(key.len(), path)?;
                if !seen.insert(key) {
                    return Err(TreeError::DuplicateKey {
                        path: path.to_string(),
                        key: shown(key),
                    });
                }
                path.push_key(key);
                check(child, budget, path)?;
                path.pop();
            }
        }
        Tree::List(items) | Tree::Tuple(items) => {
            for (at, child) in items.iter().enumerate() {
                path.push_index(at);
                check(child, budget, path)?;
                path.pop();
            }
        }
        leaf => budget.leaf(leaf, path)?,
    }
    budget.leave();
    Ok(())
}

/// Where a node is: keys and indices joined with `.`, as tensors are named.
#[derive(Debug, Clone, Default)]
pub struct Path {
    text: String,
    starts: Vec<usize>,
}

impl Path {
    /// The path as text; empty at the root.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Goes down to a dict's entry.
    pub fn push_key(&mut self, key: &str) {
        self.push();
        self.text.push_str(key);
    }

    /// Goes down to a list's item.
    pub fn push_index(&mut self, at: usize) {
        use std::fmt::Write as _;
        self.push();
        // Writing into a String has no way to fail.
        let _ = write!(self.text, "{at}");
    }

    /// Goes up again.
    pub fn pop(&mut self) {
        if let Some(start) = self.starts.pop() {
            self.text.truncate(start);
        }
    }

    fn push(&mut self) {
        self.starts.push(self.text.len());
        if self.starts.len() > 1 {
            self.text.push('.');
        }
    }
}

impl std::fmt::Display for Path {
    /// As it may stand in a message.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.starts.is_empty() {
            f.write_str("params")
        } else {
            f.write_str(&shown(&self.text))
        }
    }
}

/// What a tree has used of its limits.
#[derive(Default)]
struct Budget {
    depth: usize,
    nodes: usize,
    bytes: usize,
}

impl Budget {
    fn enter(&mut self, path: &Path) -> Result<(), TreeError> {
        if self.depth == limits::TREE_DEPTH {
            return Err(TreeError::TooDeep {
                path: path.to_string(),
                limit: limits::TREE_DEPTH,
            });
        }
        self.depth += 1;
        // Empty containers count too: they cost memory as leaves do.
        self.nodes += 1;
        if self.nodes > limits::TREE_LEAVES {
            return Err(TreeError::TooManyLeaves {
                limit: limits::TREE_LEAVES,
            });
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn leaf(&mut self, leaf: &Tree, path: &Path) -> Result<(), TreeError> {
        match leaf {
            Tree::Str(text) => self.text(text.len(), path),
            Tree::Bytes(bytes) => self.text(bytes.len(), path),
            _ => Ok(()),
        }
    }

    fn text(&mut self, length: usize, path: &Path) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > limits::TREE_BYTES {
            return Err(TreeError::TooManyBytes {
                path: path.to_string(),
                limit: limits::TREE_BYTES,
            });
        }
        Ok(())
    }
}

/// Why a text is not a params tree. Paths are keys and indices joined with `.`;
/// `params` is the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// Not the JSON that is expected at this place.
    #[error("the params tree cannot be read at `{path}`: {message}")]
    Json {
        /// The node.
        path: String,
        /// What the JSON reader says.
        message: String,
    },
    /// A node's one key is not one of the kinds.
    #[error("the params tree has a node of unknown kind `{kind}` at `{path}`")]
    UnknownKind {
        /// The node.
        path: String,
        /// The key that was found.
        kind: String,
    },
    /// An integer that is not canonical decimal text or leaves 64 bits.
    #[error("the params tree has `{text}` where a 64-bit integer belongs, at `{path}`")]
    Int {
        /// The node.
        path: String,
        /// What was found.
        text: String,
    },
    /// A text that is none of `nan`, `inf` and `-inf`.
    #[error("the params tree has `{text}` where a float belongs, at `{path}`")]
    Float {
        /// The node.
        path: String,
        /// What was found.
        text: String,
    },
    /// Bytes that are not canonical base64.
    #[error("the params tree has bytes that are not base64, at `{path}`")]
    Base64 {
        /// The node.
        path: String,
    },
    /// A dict has one key twice.
    #[error("the params tree has the key `{key}` twice in the dict at `{path}`")]
    DuplicateKey {
        /// The dict.
        path: String,
        /// The key.
        key: String,
    },
    /// Nested deeper than the limit.
    #[error("the params tree is nested deeper than {limit} levels, at `{path}`")]
    TooDeep {
        /// The first node that is too deep.
        path: String,
        /// The deepest allowed.
        limit: usize,
    },
    /// More nodes than the limit.
    #[error("the params tree has more than {limit} nodes")]
    TooManyLeaves {
        /// The most allowed.
        limit: usize,
    },
    /// More text and bytes than the limit.
    #[error("texts, bytes and keys of the params tree pass {limit} bytes at `{path}`")]
    TooManyBytes {
        /// The node at which the limit was passed.
        path: String,
        /// The most allowed.
        limit: usize,
    },
}

impl Hint for TreeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::TooManyBytes { .. } | Self::TooManyLeaves { .. } => {
                Some("put large data into arrays; only tensors have no size limit".into())
            }
            Self::TooDeep { .. } => Some("flatten the params before sending them".into()),
            _ => None,
        }
    }
}
