//! What an encoded model says of itself: one layer per filter that encoded it.
//!
//! A layer names its step, the mark that stands in the names of the tensors it
//! added, and the tensors it changed, by place. The text is plain, so that reading
//! it takes no more memory than it names tensors.

use std::fmt::Write as _;

use firesteel_base::limits;
use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, TensorInfo, Tree};

use crate::Scheme;
use crate::error::DecodeError;

/// Version and number of layers; its presence says that a model is encoded.
pub(crate) const KEY: &str = "firesteel.codec";
/// The params tree of the model as it was.
pub(crate) const TREE_KEY: &str = "firesteel.codec.tree";
const VERSION: &str = "1";

/// What a layer did to its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Quantize(Scheme),
    TopK,
    Zstd,
}

/// A tensor that a layer added beside the one that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub name: &'static str,
    pub dtype: DType,
    pub elements: u64,
}

impl Step {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Quantize(scheme) => scheme.as_str(),
            Self::TopK => "top_k",
            Self::Zstd => "zstd",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "top_k" => Some(Self::TopK),
            "zstd" => Some(Self::Zstd),
            scheme => Scheme::parse(scheme).map(Self::Quantize),
        }
    }

    /// The tensors beside one of so many elements and this dtype.
    pub(crate) fn parts(self, dtype: DType, elements: u64, kept: u64) -> Vec<Part> {
        let part = |name, dtype, elements| Part {
            name,
            dtype,
            elements,
        };
        match self {
            Self::Quantize(Scheme::Fp16 | Scheme::Bf16) => Vec::new(),
            Self::Quantize(scheme @ (Scheme::Int8 | Scheme::Fp4 | Scheme::Nf4)) => vec![
                part(
                    "absmax",
                    DType::F32,
                    elements.div_ceil(scheme.block() as u64),
                ),
                part("code", DType::F32, code_length(scheme)),
            ],
            Self::Quantize(Scheme::Adaptive) => vec![part("range", DType::F64, 3)],
            Self::TopK => vec![
                part("index", DType::U16, kept),
                part("ends", DType::U64, elements.div_ceil(STRETCH)),
            ],
            Self::Zstd => {
                let bytes = elements.saturating_mul(dtype.size() as u64);
                let frames = bytes.div_ceil(limits::CODEC_FRAME as u64);
                vec![part("ends", DType::U64, frames)]
            }
        }
    }
}

/// Elements of a tensor whose places 16 bits tell apart.
pub(crate) const STRETCH: u64 = 1 << 16;

/// Values of a scheme's code book.
pub(crate) fn code_length(scheme: Scheme) -> u64 {
    match scheme {
        Scheme::Int8 => 256,
        _ => 16,
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub step: Step,
    pub mark: String,
    pub entries: Vec<Entry>,
}

/// A tensor that a layer changed, as it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its place among the tensors of the layer's own header.
    pub at: usize,
    pub dtype: DType,
    pub shape: Vec<u64>,
}

/// How many layers a model has: 0 for one that is not encoded.
pub(crate) fn count(header: &ModelHeader) -> Result<usize, DecodeError> {
    let Some(text) = header.metadata().get(KEY) else {
        return Ok(0);
    };
    let (version, count) = text.split_once(' ').unwrap_or((text, ""));
    if version != VERSION {
        return Err(DecodeError::Version {
            version: shown(version),
        });
    }
    let count: usize = count.parse().map_err(|_| DecodeError::Layer {
        layer: 0,
        problem: "there is no number of layers".into(),
    })?;
    if count == 0 || count > limits::CODEC_LAYERS {
        return Err(DecodeError::TooManyLayers {
            count,
            limit: limits::CODEC_LAYERS,
        });
    }
    Ok(count)
}

fn key(layer: usize) -> String {
    format!("{KEY}.{layer}")
}

impl Layer {
    /// The outermost layer of an encoded model, and its number.
    pub(crate) fn outermost(header: &ModelHeader) -> Result<Option<(usize, Self)>, DecodeError> {
        let Some(layer) = count(header)?.checked_sub(1) else {
            return Ok(None);
        };
        let problem = |problem: &str| DecodeError::Layer {
            layer,
            problem: problem.into(),
        };
        let Some(text) = header.metadata().get(&key(layer)) else {
            return Err(problem("it is not there"));
        };
        let mut fields = text.split(';');
        let first = fields.next().unwrap_or_default();
        let (step, mark) = first.split_once(' ').unwrap_or((first, ""));
        let Some(step) = Step::parse(step) else {
            return Err(problem(&format!("`{}` is no step", shown(step))));
        };
        if mark.is_empty() || mark.bytes().any(|b| b != b'#') {
            return Err(problem("its mark is none"));
        }
        let mut entries = Vec::new();
        let mut least = 0;
        for field in fields {
            let entry = entry(field).ok_or_else(|| problem("an entry is none"))?;
            if entry.at < least || entry.at >= header.tensors().len() {
                return Err(problem("its entries are not in order"));
            }
            least = entry.at + 1;
            entries.push(entry);
        }
        let mark = mark.to_owned();
        let entries = Self {
            step,
            mark,
            entries,
        };
        Ok(Some((layer, entries)))
    }

    /// The mark of a model's innermost layer, which every tensor that some layer
    /// added has in its name.
    pub(crate) fn innermost_mark(header: &ModelHeader) -> Option<&str> {
        let text = header.metadata().get(&key(0))?;
        text.split(';')
            .next()?
            .split_once(' ')
            .map(|(_, mark)| mark)
    }

    fn text(&self) -> String {
        let mut text = format!("{} {}", self.step.as_str(), self.mark);
        for entry in &self.entries {
            // Writing into a String has no way to fail.
            let _ = write!(text, ";{} {} ", entry.at, entry.dtype);
            for (at, dimension) in entry.shape.iter().enumerate() {
                let comma = if at > 0 { "," } else { "" };
                let _ = write!(text, "{comma}{dimension}");
            }
        }
        text
    }

    /// Adds the layer to what a builder says, over those of `header`.
    pub(crate) fn describe(
        &self,
        header: &ModelHeader,
        builder: &mut HeaderBuilder,
    ) -> Result<(), DecodeError> {
        let below = count(header)?;
        if below == 0
            && let Some(tree) = header.tree()
        {
            builder.metadata(TREE_KEY, &tree.to_json());
        }
        builder.metadata(&key(below), &self.text());
        builder.metadata(KEY, &format!("{VERSION} {}", below + 1));
        Ok(())
    }

    /// Gives a builder what is not a tensor of the model below this layer.
    pub(crate) fn restore(
        &self,
        layer: usize,
        header: &ModelHeader,
        builder: &mut HeaderBuilder,
    ) -> Result<(), DecodeError> {
        for (alias, name) in header.aliases() {
            builder.alias(alias, name);
        }
        if header.is_partial() {
            builder.partial();
        }
        let innermost = layer == 0;
        for (name, value) in header.metadata() {
            let tree = innermost && name == TREE_KEY;
            let ours = tree || *name == key(layer) || name == KEY;
            if !ours {
                builder.metadata(name, value);
            }
        }
        if innermost {
            if let Some(tree) = header.metadata().get(TREE_KEY) {
                let tree = Tree::parse(tree).map_err(|error| {
                    DecodeError::Header(firesteel_tensor::HeaderError::Tree(error))
                })?;
                builder.tree(tree);
            }
        } else {
            builder.metadata(KEY, &format!("{VERSION} {layer}"));
        }
        Ok(())
    }
}

fn entry(field: &str) -> Option<Entry> {
    let mut words = field.split(' ');
    let (at, dtype, shape) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let mut dimensions = Vec::new();
    for dimension in shape.split(',').filter(|d| !d.is_empty()) {
        if dimensions.len() == limits::TENSOR_RANK {
            return None;
        }
        dimensions.push(dimension.parse().ok()?);
    }
    Some(Entry {
        at: at.parse().ok()?,
        dtype: DType::parse(dtype)?,
        shape: dimensions,
    })
}

/// A mark that stands in no name of the model.
pub(crate) fn unused_mark(header: &ModelHeader) -> String {
    let longest = |name: &str| {
        let runs = name.split(|c| c != '#');
        runs.map(str::len).max().unwrap_or(0)
    };
    let names = header.tensors().iter().map(|t| &*t.name);
    let names = names.chain(header.aliases().iter().map(|(alias, _)| &**alias));
    "#".repeat(names.map(longest).max().unwrap_or(0) + 1)
}

/// Elements of a shape; `None` beyond 63 bits.
pub(crate) fn elements(shape: &[u64]) -> Option<u64> {
    let mut product = 1u64;
    for &dimension in shape {
        product = product.checked_mul(dimension)?;
    }
    i64::try_from(product).ok().map(|_| product)
}

/// A tensor's bytes when it is so many elements of a dtype in one dimension.
pub(crate) fn is_flat(tensor: &TensorInfo, dtype: DType, length: u64) -> bool {
    tensor.dtype == dtype && tensor.shape == [length]
}
