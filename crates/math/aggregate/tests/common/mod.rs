//! Model files built in memory, and the plain scalar fold that the product's is
//! compared with.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use firesteel_aggregate::{Contribution, Data, LiveSource, Method, Model, SimdLevel, UpdateKind};
use firesteel_tensor::{DType, Facts, FactsBuilder, HeaderBuilder, ModelHeader, Tree, float};

/// A model file at an address of the test's choice.
pub struct File {
    pub header: ModelHeader,
    room: Vec<u64>,
    offset: usize,
    length: usize,
}

impl File {
    pub fn bytes(&self) -> &[u8] {
        let all: &[u8] = bytemuck::cast_slice(&self.room);
        &all[self.offset..self.offset + self.length]
    }

    pub fn model(&self) -> Model<'_> {
        Model {
            header: &self.header,
            bytes: self.bytes(),
        }
    }

    pub fn from<'a>(&'a self, site: &'a str, weight: f64) -> Contribution<'a> {
        Contribution {
            site,
            weight,
            header: &self.header,
            data: Data::Mapped(self.bytes()),
        }
    }

    /// What its manifest would say of its tensors.
    pub fn facts(&self) -> Vec<Facts> {
        let tensors = self.header.tensors().iter();
        tensors
            .map(|tensor| {
                let mut facts = FactsBuilder::new(tensor.dtype);
                facts.push(self.header.bytes_of(tensor, self.bytes()).unwrap());
                facts.finish()
            })
            .collect()
    }

    pub fn tensor(&self, name: &str) -> &[u8] {
        let tensor = self.header.get(name).expect("the tensor is there");
        self.header.bytes_of(tensor, self.bytes()).unwrap()
    }
}

/// Collects tensors for a [`File`].
#[derive(Default)]
pub struct Maker {
    builder: HeaderBuilder,
    data: Vec<(String, Vec<u8>)>,
    offset: usize,
}

impl Maker {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(mut self, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Self {
        self.builder.tensor(name, dtype, shape);
        self.data.push((name.to_owned(), bytes));
        self
    }

    pub fn f32(self, name: &str, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.raw(name, DType::F32, &[values.len() as u64], bytes)
    }

    pub fn i64(self, name: &str, shape: &[u64], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.raw(name, DType::I64, shape, bytes)
    }

    pub fn bools(self, name: &str, values: &[u8]) -> Self {
        self.raw(name, DType::Bool, &[values.len() as u64], values.to_vec())
    }

    pub fn alias(mut self, alias: &str, name: &str) -> Self {
        self.builder.alias(alias, name);
        self
    }

    pub fn partial(mut self) -> Self {
        self.builder.partial();
        self
    }

    pub fn tree(mut self, json: &str) -> Self {
        self.builder
            .tree(Tree::parse(json).expect("the test's tree"));
        self
    }

    /// Puts the file at an address that is `offset` past an aligned one.
    pub fn at(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    pub fn build(self) -> File {
        let (mut bytes, header) = self.builder.encode().expect("the test's header");
        let data: HashMap<_, _> = self.data.into_iter().collect();
        for tensor in header.data_order() {
            let data = &data[&*tensor.name];
            assert_eq!(data.len() as u64, tensor.size(), "{}", tensor.name);
            bytes.extend_from_slice(data);
        }
        let length = bytes.len();
        let mut room = vec![0u64; (length + self.offset).div_ceil(8)];
        bytemuck::cast_slice_mut::<_, u8>(&mut room)[self.offset..self.offset + length]
            .copy_from_slice(&bytes);
        File {
            header,
            room,
            offset: self.offset,
            length,
        }
    }
}

/// Every instruction set of this CPU, and none.
pub fn levels() -> Vec<SimdLevel> {
    let best = SimdLevel::new();
    let mut levels = vec![SimdLevel::fallback(), SimdLevel::baseline(), best];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(best.as_sse4_2().map(SimdLevel::Sse4_2));
        levels.extend(best.as_avx2().map(SimdLevel::Avx2));
        levels.extend(best.as_avx512().map(SimdLevel::Avx512));
    }
    levels
}

/// Numbers that depend on nothing but the seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }
}

/// One element of a float dtype.
pub fn read(dtype: DType, bytes: &[u8]) -> f64 {
    if dtype == DType::F64 {
        return f64::from_le_bytes(bytes.try_into().unwrap());
    }
    let mut value = [0f32];
    float::decode(dtype, bytes, &mut value);
    f64::from(value[0])
}

/// What the fold of a float tensor must be, one element after the other.
pub fn expected(
    dtype: DType,
    sources: &[(&[u8], f64)],
    model: Option<(DType, &[u8])>,
    (method, kind, to): (Method, UpdateKind, DType),
) -> Vec<u8> {
    let size = dtype.size();
    let mut out = Vec::new();
    for at in 0..sources[0].0.len() / size {
        let values: Vec<f64> = sources
            .iter()
            .map(|(bytes, _)| read(dtype, &bytes[at * size..][..size]))
            .collect();
        let mut value = one(&values, sources, method);
        if kind == UpdateKind::Diff {
            let (dtype, bytes) = model.expect("a difference has a model");
            value += read(dtype, &bytes[at * dtype.size()..][..dtype.size()]);
        }
        let mut bytes = vec![0; to.size()];
        float::encode(to, &[value], &mut bytes);
        out.extend(bytes);
    }
    out
}

fn one(values: &[f64], sources: &[(&[u8], f64)], method: Method) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = values.len();
    let kept = match method {
        Method::Mean => {
            let weights: Vec<f64> = sources.iter().map(|(_, w)| f64::from(*w as f32)).collect();
            let mut sum = values[0] * weights[0];
            let mut total = weights[0];
            for at in 1..count {
                sum += values[at] * weights[at];
                total += weights[at];
            }
            return sum / total;
        }
        Method::Median if count % 2 == 1 => return sorted[count / 2],
        Method::Median => &sorted[count / 2 - 1..=count / 2],
        Method::TrimmedMean(fraction) => {
            let cut = (fraction * count as f64).floor() as usize;
            &sorted[cut..count - cut]
        }
    };
    let mut sum = kept[0];
    for value in &kept[1..] {
        sum += value;
    }
    sum / kept.len() as f64
}

/// An update that is read as from afar: in short reads, of just the ranges that
/// were asked for.
pub struct Afar<'f> {
    pub file: &'f File,
    pub facts: Vec<Facts>,
    /// What was asked for.
    pub asked: Mutex<Vec<Range<u64>>>,
    /// After so many bytes the connection is gone.
    pub cut: Option<u64>,
    /// The most bytes that were asked for at once.
    pub largest: AtomicUsize,
}

impl<'f> Afar<'f> {
    pub fn new(file: &'f File) -> Self {
        Self {
            file,
            facts: file.facts(),
            asked: Mutex::default(),
            cut: None,
            largest: AtomicUsize::new(0),
        }
    }

    pub fn from<'a>(&'a self, site: &'a str, weight: f64) -> Contribution<'a> {
        Contribution {
            site,
            weight,
            header: &self.file.header,
            data: Data::Live {
                source: self,
                facts: &self.facts,
            },
        }
    }
}

impl LiveSource for Afar<'_> {
    fn open(&self, ranges: &[Range<u64>]) -> io::Result<Box<dyn io::Read + Send + '_>> {
        *self.asked.lock().unwrap() = ranges.to_vec();
        Ok(Box::new(Reading {
            file: self.file,
            ranges: ranges.to_vec().into(),
            cut: self.cut,
            largest: &self.largest,
        }))
    }
}

struct Reading<'f> {
    file: &'f File,
    ranges: VecDeque<Range<u64>>,
    cut: Option<u64>,
    largest: &'f AtomicUsize,
}

impl io::Read for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.largest.fetch_max(into.len(), Ordering::Relaxed);
        let Some(range) = self.ranges.front_mut() else {
            return Ok(0);
        };
        // Never as much as asked for, and odd.
        let count = into.len().min((range.end - range.start) as usize).min(997);
        if let Some(left) = &mut self.cut {
            if *left < count as u64 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "its lease ended at round 3",
                ));
            }
            *left -= count as u64;
        }
        into[..count].copy_from_slice(&self.file.bytes()[range.start as usize..][..count]);
        range.start += count as u64;
        if range.start == range.end {
            self.ranges.pop_front();
        }
        Ok(count)
    }
}
