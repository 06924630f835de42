//! The text form of a params tree: one JSON object with one key per node.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Budget, Path, Tree, TreeError};
use crate::text::shown;

// Writing -------------------------------------------------------------------

pub(super) fn write(tree: &Tree) -> String {
    let mut out = String::new();
    write_node(tree, &mut out);
    out
}

fn write_node(node: &Tree, out: &mut String) {
    // Writing into a String has no way to fail, hence `let _` below.
    match node {
        Tree::Dict(entries) => {
            out.push_str("{\"d\":[");
            for (at, (key, child)) in entries.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push('[');
                write_text(key, out);
                out.push(',');
                write_node(child, out);
                out.push(']');
            }
            out.push_str("]}");
        }
        Tree::List(items) => write_items("{\"l\":[", items, out),
        Tree::Tuple(items) => write_items("{\"u\":[", items, out),
        Tree::Str(text) => {
            out.push_str("{\"s\":");
            write_text(text, out);
            out.push('}');
        }
        Tree::Int(number) => {
            let _ = write!(out, "{{\"i\":\"{number}\"}}");
        }
        Tree::Float(number) => {
            out.push_str("{\"f\":");
            match number {
                n if n.is_nan() => out.push_str("\"nan\""),
                n if n.is_infinite() && *n > 0.0 => out.push_str("\"inf\""),
                n if n.is_infinite() => out.push_str("\"-inf\""),
                n => out.push_str(&serde_json::Value::from(*n).to_string()),
            }
            out.push('}');
        }
        Tree::Bool(value) => {
            let _ = write!(out, "{{\"b\":{value}}}");
        }
        Tree::Bytes(bytes) => {
            out.push_str("{\"x\":\"");
            BASE64.encode_string(bytes, out);
            out.push_str("\"}");
        }
        Tree::None => out.push_str("{\"n\":0}"),
        Tree::Tensor(name) => {
            out.push_str("{\"t\":");
            write_text(name, out);
            out.push('}');
        }
    }
}

fn write_items(open: &str, items: &[Tree], out: &mut String) {
    out.push_str(open);
    for (at, child) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_node(child, out);
    }
    out.push_str("]}");
}

pub(crate) fn write_text(text: &str, out: &mut String) {
    let quoted = serde_json::to_string(text).expect("a text is always JSON");
    out.push_str(&quoted);
}

// Reading -------------------------------------------------------------------

pub(super) fn parse(text: &str) -> Result<Tree, TreeError> {
    let reading = Reading::default();
    let mut json = serde_json::Deserializer::from_str(text);
    // The tree's own depth is limited by `Budget`, long before the stack.
    json.disable_recursion_limit();
    let tree = Node(&reading)
        .deserialize(&mut json)
        .and_then(|tree| json.end().map(|()| tree));
    tree.map_err(|error| {
        let found = reading.failure.take();
        found.unwrap_or_else(|| TreeError::Json {
            path: reading.path.borrow().to_string(),
            message: error.to_string(),
        })
    })
}

/// What all nodes share while a tree is read.
#[derive(Default)]
struct Reading {
    path: RefCell<Path>,
    budget: RefCell<Budget>,
    /// The exact error, which the JSON reader's own type cannot carry.
    failure: Cell<Option<TreeError>>,
}

impl Reading {
    fn fail<E: serde::de::Error>(&self, failure: TreeError) -> E {
        let error = E::custom(&failure);
        self.failure.set(Some(failure));
        error
    }

    fn path(&self) -> String {
        self.path.borrow().to_string()
    }

    fn leaf<E: serde::de::Error>(&self, leaf: Tree) -> Result<Tree, E> {
        let counted = self.budget.borrow_mut().leaf(&leaf, &self.path.borrow());
        counted.map_err(|e| self.fail(e))?;
        Ok(leaf)
    }
}

struct Node<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        let entered = self.0.budget.borrow_mut().enter(&self.0.path.borrow());
        entered.map_err(|e| self.0.fail(e))?;
        let tree = deserializer.deserialize_map(Node(self.0))?;
        self.0.budget.borrow_mut().leave();
        Ok(tree)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node with one key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let reading = self.0;
        let Some(kind) = map.next_key::<String>()? else {
            return Err(A::Error::custom("a node has no key"));
        };
        let tree = match kind.as_str() {
            "d" => map.next_value_seed(Dict(reading))?,
            "l" => Tree::List(map.next_value_seed(Items(reading))?),
            "u" => Tree::Tuple(map.next_value_seed(Items(reading))?),
            "s" => reading.leaf(Tree::Str(map.next_value()?))?,
            "i" => {
                let text: String = map.next_value()?;
                match text.parse::<i64>() {
                    Ok(number) if number.to_string() == text => reading.leaf(Tree::Int(number))?,
                    _ => {
                        return Err(reading.fail(TreeError::Int {
                            path: reading.path(),
                            text: shown(&text),
                        }));
                    }
                }
            }
            "f" => reading.leaf(Tree::Float(map.next_value_seed(Number(reading))?))?,
            "b" => reading.leaf(Tree::Bool(map.next_value()?))?,
            "x" => {
                let text: String = map.next_value()?;
                let Ok(bytes) = BASE64.decode(text) else {
                    let path = reading.path();
                    return Err(reading.fail(TreeError::Base64 { path }));
                };
                reading.leaf(Tree::Bytes(bytes))?
            }
            "n" => match map.next_value::<u64>()? {
                0 => reading.leaf(Tree::None)?,
                _ => return Err(A::Error::custom("none is written as 0")),
            },
            "t" => reading.leaf(Tree::Tensor(map.next_value()?))?,
            unknown => {
                return Err(reading.fail(TreeError::UnknownKind {
                    path: reading.path(),
                    kind: shown(unknown),
                }));
            }
        };
        // A second key is an error that the JSON reader raises on its own.
        Ok(tree)
    }
}

struct Items<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Tree>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Tree>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Tree>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Tree>, A::Error> {
        let mut items = Vec::new();
        loop {
            self.0.path.borrow_mut().push_index(items.len());
            let item = seq.next_element_seed(Node(self.0))?;
            self.0.path.borrow_mut().pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(items),
            }
        }
    }
}

struct Dict<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Dict<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Dict<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of key and node pairs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        while let Some(entry) = seq.next_element_seed(Pair(self.0))? {
            entries.push(entry);
        }
        let mut seen = HashSet::with_capacity(entries.len());
        if let Some((key, _)) = entries.iter().find(|(key, _)| !seen.insert(key)) {
            return Err(self.0.fail(TreeError::DuplicateKey {
                path: self.0.path(),
                key: shown(key),
            }));
        }
        drop(seen);
        Ok(Tree::Dict(entries))
    }
}

struct Pair<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Pair<'_> {
    type Value = (String, Tree);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Pair<'_> {
    type Value = (String, Tree);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pair of key and node")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let reading = self.0;
        let Some(key) = seq.next_element::<String>()? else {
            return Err(A::Error::invalid_length(0, &self));
        };
        let counted = reading
            .budget
            .borrow_mut()
            .text(key.len(), &reading.path.borrow());
        counted.map_err(|e| reading.fail(e))?;
        reading.path.borrow_mut().push_key(&key);
        let Some(node) = seq.next_element_seed(Node(reading))? else {
            return Err(A::Error::invalid_length(1, &self));
        };
        reading.path.borrow_mut().pop();
        // A third element is an error that the JSON reader raises on its own.
        Ok((key, node))
    }
}

struct Number<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Number<'_> {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Number<'_> {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, \"nan\", \"inf\" or \"-inf\"")
    }

    fn visit_f64<E>(self, number: f64) -> Result<f64, E> {
        Ok(number)
    }

    // Python writes `1.0`, other writers may write `1`; both are the same float.
    fn visit_i64<E>(self, number: i64) -> Result<f64, E> {
        Ok(number as f64)
    }

    fn visit_u64<E>(self, number: u64) -> Result<f64, E> {
        Ok(number as f64)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<f64, E> {
        match text {
            "nan" => Ok(f64::NAN),
            "inf" => Ok(f64::INFINITY),
            "-inf" => Ok(f64::NEG_INFINITY),
            _ => Err(self.0.fail(TreeError::Float {
                path: self.0.path(),
                text: shown(text),
            })),
        }
    }
}
