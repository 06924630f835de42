//! Reading a header, entry by entry, without trusting any of it.
//!
//! The safetensors crate's own reader is the reference in the tests, not the
//! reader here: it collects entries in a hash map, where a name that stands twice
//! is silently one, the order is lost, and errors do not name the tensor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use firesteel_base::limits;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{
    ALIASES_KEY, HeaderError, LARGEST, METADATA_KEY, ModelHeader, PARTIAL, PARTIAL_KEY, Parts,
    TREE_KEY, TensorInfo, bytes_of_shape,
};
use crate::text::shown;
use crate::{DType, Tree};

pub(super) fn parse(prefix: &[u8], total_len: u64) -> Result<ModelHeader, HeaderError> {
    let data_start = ModelHeader::data_start_of(prefix)?;
    let truncated = |length| HeaderError::Truncated {
        needed: data_start,
        length,
    };
    if total_len < data_start {
        return Err(truncated(total_len));
    }
    let json = usize::try_from(data_start).ok();
    let json = json.and_then(|end| prefix.get(8..end));
    let json = json.ok_or_else(|| truncated(prefix.len() as u64))?;
    let data_len = total_len - data_start;
    if total_len > LARGEST {
        return Err(HeaderError::FileTooLong { length: total_len });
    }
    let (tensors, mut metadata) = read_json(json, data_len)?;
    let tree = match metadata.remove(TREE_KEY) {
        Some(text) => Some(Tree::parse(&text).map_err(HeaderError::Tree)?),
        None => None,
    };
    let aliases = match metadata.remove(ALIASES_KEY) {
        Some(text) => read_aliases(&text)?,
        None => Vec::new(),
    };
    let partial = match metadata.remove(PARTIAL_KEY) {
        None => false,
        Some(value) if value == PARTIAL => true,
        // What it would mean is not known, so nothing may be made of the file.
        Some(value) => {
            return Err(HeaderError::Partial {
                value: shown(&value),
            });
        }
    };
    ModelHeader::checked(Parts {
        tensors,
        aliases,
        tree,
        partial,
        metadata,
        data_start,
        data_len,
    })
}

type Entries = (Vec<TensorInfo>, BTreeMap<String, String>);

fn read_json(json: &[u8], data_len: u64) -> Result<Entries, HeaderError> {
    // The format asks for it, so that a reader can tell the file from others.
    if json.first() != Some(&b'{') {
        return Err(HeaderError::Json {
            message: "it does not start with `{`".into(),
        });
    }
    let reading = Reading {
        data_len,
        ..Reading::default()
    };
    let mut json = serde_json::Deserializer::from_slice(json);
    let entries = json
        .deserialize_map(Header(&reading))
        .and_then(|entries| json.end().map(|()| entries));
    entries.map_err(|error| {
        let message = error.to_string();
        if let Some(failure) = reading.failure.take() {
            return failure;
        }
        match reading.tensor.take() {
            Some(tensor) => HeaderError::Entry { tensor, message },
            None => HeaderError::Json { message },
        }
    })
}

/// What all entries share while a header is read.
#[derive(Default)]
struct Reading {
    data_len: u64,
    /// The tensor whose entry is being read, as it may be shown.
    tensor: RefCell<Option<String>>,
    /// The exact error, which the JSON reader's own type cannot carry.
    failure: Cell<Option<HeaderError>>,
}

impl Reading {
    fn fail<E: serde::de::Error>(&self, failure: HeaderError) -> E {
        let error = E::custom(&failure);
        self.failure.set(Some(failure));
        error
    }
}

struct Header<'r>(&'r Reading);

impl<'de> Visitor<'de> for Header<'_> {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let reading = self.0;
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                let entries = map.next_value_seed(Texts(reading))?;
                if metadata.replace(entries).is_some() {
                    return Err(reading.fail(HeaderError::DuplicateName { name }));
                }
            } else {
                tensors.push(map.next_value_seed(Entry { reading, name })?);
            }
        }
        Ok((tensors, metadata.unwrap_or_default()))
    }
}

struct Entry<'r> {
    reading: &'r Reading,
    name: String,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = TensorInfo;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorInfo, D::Error> {
        let Self { reading, name } = self;
        let fields = deserializer.deserialize_map(Fields).inspect_err(|_| {
            *reading.tensor.borrow_mut() = Some(shown(&name));
        });
        let fields = fields?;
        fields
            .into_tensor(&name, reading.data_len)
            .map_err(|failure| reading.fail(failure))
    }
}

/// The fields of one entry, each as it stands there.
struct RawTensor {
    dtype: String,
    /// `None` stands for more dimensions than the limit.
    shape: Option<Vec<u64>>,
    offsets: (u64, u64),
}

impl RawTensor {
    fn into_tensor(self, name: &str, data_len: u64) -> Result<TensorInfo, HeaderError> {
        let tensor = || shown(name);
        let dtype = DType::parse(&self.dtype).ok_or_else(|| HeaderError::UnknownDType {
            tensor: tensor(),
            dtype: shown(&self.dtype),
        })?;
        let shape = self.shape.ok_or_else(|| HeaderError::Rank {
            tensor: tensor(),
            limit: limits::TENSOR_RANK,
        })?;
        let needed = bytes_of_shape(dtype, &shape);
        let needed = needed.ok_or_else(|| HeaderError::Overflow { tensor: tensor() })?;
        let (start, end) = self.offsets;
        if start > end || end > data_len {
            return Err(HeaderError::OutOfRange {
                tensor: tensor(),
                start,
                end,
                length: data_len,
            });
        }
        if end - start != needed {
            return Err(HeaderError::Size {
                tensor: tensor(),
                found: end - start,
                needed,
            });
        }
        Ok(TensorInfo {
            name: name.into(),
            dtype,
            shape,
            start,
            end,
        })
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let twice = match field.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Shape)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                // A later version of the format may add fields.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom(format_args!("`{field}` stands twice")));
            }
        }
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

struct Shape;

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Option<Vec<u64>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = Option<Vec<u64>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut shape = Vec::new();
        let mut kept = true;
        while let Some(dimension) = seq.next_element::<u64>()? {
            if shape.len() < limits::TENSOR_RANK {
                shape.push(dimension);
            } else {
                kept = false;
            }
        }
        Ok(kept.then_some(shape))
    }
}

/// An object of texts in which no key stands twice.
struct Texts<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if texts.contains_key(&key) {
                let key = shown(&key);
                return Err(self.0.fail(HeaderError::DuplicateMetadata { key }));
            }
            texts.insert(key, value);
        }
        Ok(texts)
    }
}

fn read_aliases(text: &str) -> Result<Vec<(String, String)>, HeaderError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let aliases = json
        .deserialize_map(Aliases)
        .and_then(|aliases| json.end().map(|()| aliases));
    aliases.map_err(|error| HeaderError::Aliases {
        message: error.to_string(),
    })
}

/// Pairs in the order of the text; a name that stands twice is found later, with
/// all other names.
struct Aliases;

impl<'de> Visitor<'de> for Aliases {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut aliases = Vec::new();
        while let Some(pair) = map.next_entry()? {
            aliases.push(pair);
        }
        Ok(aliases)
    }
}
