//! Model files built in memory, and readers and writers that misbehave.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io;

use firesteel_codec::{
    Chain, Context, Draft, EncodeError, Encoded, Filter, Kind, Loss, Model, Pick, ReadAt, Rounding,
    Scheme, WriteAt, chain,
};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, Tree, float};

pub struct File {
    pub header: ModelHeader,
    bytes: Vec<u8>,
}

impl File {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn model(&self) -> Model<'_> {
        Model {
            header: &self.header,
            bytes: &self.bytes,
        }
    }

    pub fn tensor(&self, name: &str) -> &[u8] {
        let tensor = self.header.get(name).unwrap();
        self.header.bytes_of(tensor, &self.bytes).unwrap()
    }
}

#[derive(Default)]
pub struct Maker {
    builder: HeaderBuilder,
    names: Vec<String>,
    data: Vec<(String, Vec<u8>)>,
}

impl Maker {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(mut self, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Self {
        self.builder.tensor(name, dtype, shape);
        self.names.push(name.into());
        self.data.push((name.into(), bytes));
        self
    }

    pub fn values(self, name: &str, dtype: DType, shape: &[u64], values: &[f64]) -> Self {
        let mut bytes = vec![0; values.len() * dtype.size()];
        float::encode(dtype, values, &mut bytes);
        self.raw(name, dtype, shape, bytes)
    }

    pub fn alias(mut self, alias: &str, name: &str) -> Self {
        self.builder.alias(alias, name);
        self.names.push(alias.into());
        self
    }

    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.builder.metadata(key, value);
        self
    }

    /// A tree with all tensors so far and one more entry.
    pub fn tree_of_all(mut self, more: &str) -> Self {
        let leaf = |name: &String| (name.clone(), Tree::Tensor(name.clone()));
        let mut entries: Vec<_> = self.names.iter().map(leaf).collect();
        let more = Tree::parse(&format!(r#"{{"d":[{more}]}}"#)).unwrap();
        entries.push(("more".into(), more));
        self.builder.tree(Tree::Dict(entries));
        self
    }

    pub fn build(self) -> File {
        let (mut bytes, header) = self.builder.encode().unwrap();
        bytes.resize(header.total_len() as usize, 0);
        for (name, data) in self.data {
            let tensor = header.get(&name).unwrap();
            let start = (header.data_start() + tensor.start) as usize;
            assert_eq!(data.len() as u64, tensor.size(), "{name}");
            bytes[start..start + data.len()].copy_from_slice(&data);
        }
        File { header, bytes }
    }
}

/// Numbers that depend on nothing but the seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Nearly normal, of deviation one half.
    pub fn normal(&mut self) -> f64 {
        self.unit() + self.unit() + self.unit() - 1.5
    }

    /// Elements of any dtype; floats are finite, bools 0 or 1.
    pub fn elements(&mut self, dtype: DType, count: usize) -> Vec<u8> {
        if dtype.is_float() {
            let values: Vec<f64> = (0..count).map(|_| self.normal()).collect();
            let mut bytes = vec![0; count * dtype.size()];
            float::encode(dtype, &values, &mut bytes);
            return bytes;
        }
        let mask = if dtype == DType::Bool { 1 } else { 255 };
        (0..count * dtype.size())
            .map(|_| self.next() as u8 & mask)
            .collect()
    }
}

pub fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    if dtype == DType::F64 {
        return bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect();
    }
    let mut values = vec![0f32; bytes.len() / dtype.size()];
    float::decode(dtype, bytes, &mut values);
    values.into_iter().map(f64::from).collect()
}

pub fn quantize(scheme: Scheme) -> Filter {
    Filter::Quantize {
        scheme,
        pick: Pick::all(),
        rounding: Rounding::Nearest,
        loss: Loss::Forgotten,
    }
}

pub fn try_encode(
    chain: &Chain,
    model: Model<'_>,
    out: &mut dyn Draft,
) -> Result<Encoded, EncodeError> {
    let context = Context {
        kind: Kind::Diff,
        seed: 0,
        residual: None,
        scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
    };
    chain::encode(chain, model, context, out)
}

pub fn encode_with(
    filters: &[Filter],
    file: &File,
    kind: Kind,
    seed: u64,
) -> Result<(Vec<u8>, ModelHeader), EncodeError> {
    let chain = Chain::new(filters.to_vec());
    let mut out = Vec::new();
    let context = Context {
        kind,
        seed,
        residual: None,
        scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
    };
    let source = Pieces(file.bytes());
    let model = Model {
        header: &file.header,
        bytes: &source,
    };
    let encoded = chain::encode(&chain, model, context, &mut out)?;
    assert_eq!(out.len() as u64, encoded.header.total_len());
    Ok((out, encoded.header))
}

pub fn encode(filters: &[Filter], file: &File) -> (Vec<u8>, ModelHeader) {
    encode_with(filters, file, Kind::Diff, 7).unwrap()
}

/// The model that encoded bytes stand for.
pub fn restored(encoded: &[u8]) -> (Vec<u8>, ModelHeader) {
    let header = ModelHeader::parse(encoded, encoded.len() as u64).unwrap();
    let Some(view) = chain::decode(&header, &encoded).unwrap() else {
        return (encoded.to_vec(), header);
    };
    let mut bytes = Vec::new();
    view.write(&mut bytes).unwrap();
    let header = ModelHeader::parse(&bytes, bytes.len() as u64).unwrap();
    assert_eq!(&header, view.header());
    (bytes, header)
}

/// Bytes of which nobody may read more than windows at a time.
pub struct Pieces<'b>(pub &'b [u8]);

impl ReadAt for Pieces<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(into.len() <= 1 << 20, "{} bytes at once", into.len());
        self.0.read_at(offset, into)
    }
}

/// A source that ends before it said it would.
pub struct Short<'b> {
    pub bytes: &'b [u8],
    pub size: u64,
}

impl ReadAt for Short<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, into)
    }
}

/// A disk that fills up.
pub struct Full {
    pub bytes: Vec<u8>,
    pub room: u64,
}

impl ReadAt for Full {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, into)
    }
}

impl WriteAt for Full {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.write_at(offset, bytes)
    }
}
