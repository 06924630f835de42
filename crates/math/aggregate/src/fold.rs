//! Carrying a plan out: block by block over all sources, several threads.
//!
//! The result is cut into pieces, each computed by one thread from beginning to
//! end, so no number depends on how many threads there are.

use std::ops::Range;
use std::sync::Arc;

use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, dtype::Kind};
use rayon::prelude::*;

use crate::error::AggregateError;
use crate::integer;
use crate::kernel::order::{self, Network};
use crate::kernel::{self, BLOCK, GROUP};
use crate::options::UpdateKind;
use crate::plan::{ABSENT, Key, Plan};
use crate::report::{Report, joined};

/// Elements of a piece: small enough to share work among threads, large enough
/// that handing it out costs nothing.
const PIECE: usize = 64 * BLOCK;

/// Bytes of the result below which waking other threads costs more than it gives.
const WORTH_THREADS: u64 = 1 << 20;

impl Plan<'_> {
    /// Writes the result, header and data, into `out`.
    ///
    /// # Errors
    /// [`AggregateError`] when bools differ, a result outgrows its dtype or `out`
    /// has another length than [`Plan::output_len`]; `out` is then worthless.
    pub fn fold(&self, out: &mut [u8]) -> Result<Report, AggregateError> {
        let (length, expected) = (out.len() as u64, self.output_len());
        if length != expected {
            return Err(AggregateError::Output { length, expected });
        }
        let (head, data) = out.split_at_mut(self.header_bytes.len());
        head.copy_from_slice(&self.header_bytes);
        let pieces = self.pieces(data);
        let outcomes = self.run_all(pieces);

        // Per key, in the result's order: so errors do not depend on threads.
        let mut totals = vec![Outcome::default(); self.keys.len()];
        for (key, outcome) in outcomes {
            totals[key].differed |= outcome.differed;
            totals[key].not_finite += outcome.not_finite;
        }
        let mut report = self.report.clone();
        let mut averaged = Vec::new();
        for (key, total) in self.keys.iter().zip(&totals) {
            if total.differed && key.dtype == DType::Bool {
                return Err(self.bools_differ(key));
            }
            if total.not_finite > 0 {
                return Err(AggregateError::NotFinite {
                    key: shown(&key.name),
                    count: total.not_finite,
                    elements: key.shape.iter().product(),
                });
            }
            let exact = !key.dtype.is_float() && key.sites > 0;
            if exact && !total.differed {
                report.passed_through.push(key.name.clone());
            } else if exact && !key.shape.is_empty() {
                averaged.push(key.name.clone());
            }
        }
        if !averaged.is_empty() {
            report.warnings.push(format!(
                "integers that differ between sites were averaged and rounded, in {}",
                joined(&averaged, "`")
            ));
        }
        Ok(report)
    }

    /// Cuts the result's data, in the order in which it lies there.
    fn pieces<'o>(&self, mut data: &'o mut [u8]) -> Vec<Piece<'o>> {
        let tensors = self.header.tensors();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|at| (tensors[*at].start, tensors[*at].end));
        let mut pieces = Vec::new();
        for key in order {
            let tensor = &tensors[key];
            // It is in memory, so it fits a usize.
            let (mut rest, after) = data.split_at_mut(tensor.size() as usize);
            data = after;
            // Bools are compared as wholes, to name the sites that differ.
            let most = match tensor.dtype.kind() {
                Kind::Bool => usize::MAX,
                _ => PIECE * tensor.dtype.size(),
            };
            let mut first = 0;
            while !rest.is_empty() {
                let (out, more) = rest.split_at_mut(rest.len().min(most));
                let elements = out.len() / tensor.dtype.size();
                pieces.push(Piece { key, first, out });
                first += elements;
                rest = more;
            }
        }
        pieces
    }

    fn run_all(&self, pieces: Vec<Piece<'_>>) -> Vec<(usize, Outcome)> {
        let threads = self.options.threads.max(1);
        let one = |scratch: &mut Scratch, piece: Piece<'_>| (piece.key, self.run(piece, scratch));
        if threads > 1 && self.header.data_len() >= WORTH_THREADS {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|at| format!("fold-{at}"))
                .build();
            // Without threads to be had, the caller's does it alone.
            if let Ok(pool) = pool {
                return pool.install(|| {
                    let pieces = pieces.into_par_iter();
                    pieces.map_init(Scratch::new, one).collect()
                });
            }
        }
        let mut scratch = Scratch::new();
        let pieces = pieces.into_iter();
        pieces.map(|piece| one(&mut scratch, piece)).collect()
    }

    fn run(&self, piece: Piece<'_>, scratch: &mut Scratch) -> Outcome {
        let key = &self.keys[piece.key];
        let out_dtype = self.header.tensors()[piece.key].dtype;
        let elements = piece.out.len() / out_dtype.size();
        let mut rows = Vec::with_capacity(key.sites);
        let mut weights = Vec::with_capacity(key.sites);
        let size = key.dtype.size();
        for source in &self.sources {
            let place = source.places.get(piece.key).copied().unwrap_or(ABSENT);
            if place != ABSENT {
                // INVARIANT: the header's tensors lie within the file, whose
                // length was compared with the header's.
                let start = (source.data_start + place) as usize + piece.first * size;
                rows.push(&source.bytes[start..start + elements * size]);
                weights.push(source.weight);
            }
        }
        let model = self.model_bytes(key, piece.first, elements);
        let work = Work {
            plan: self,
            key,
            rows,
            weights,
            model,
            out_dtype,
        };
        if work.rows.is_empty() {
            return work.keep(piece.out, scratch);
        }
        match key.dtype.kind() {
            Kind::Bool => work.bools(piece.out),
            Kind::Int => work.integers(piece.out),
            Kind::Float => match self.networks.get(&key.sites) {
                Some(network) => work.ranks(network, piece.out, scratch),
                None => work.mean(piece.out, scratch),
            },
        }
    }

    fn model_bytes(&self, key: &Key, first: usize, elements: usize) -> Option<(DType, &[u8])> {
        let model = self.model?;
        let tensor = model.header.tensors().get(key.model?)?;
        let bytes = model.header.bytes_of(tensor, model.bytes)?;
        let size = tensor.dtype.size();
        let bytes = &bytes[first * size..][..elements * size];
        Some((tensor.dtype, bytes))
    }

    fn bools_differ(&self, key: &Key) -> AggregateError {
        let at = self
            .keys
            .iter()
            .position(|k| Arc::ptr_eq(&k.name, &key.name));
        let at = at.unwrap_or_default();
        let elements = key.shape.iter().product::<u64>() as usize;
        let mut sent = self.sources.iter().filter_map(|source| {
            let place = source.places.get(at).filter(|place| **place != ABSENT)?;
            let start = (source.data_start + place) as usize;
            Some((source.site, &source.bytes[start..start + elements]))
        });
        let (first, expected) = sent.next().unwrap_or_default();
        let odd: Vec<_> = sent
            .filter(|(_, bytes)| *bytes != expected)
            .map(|(site, _)| site)
            .collect();
        AggregateError::BoolsDiffer {
            tensor: shown(&key.name),
            odd: joined(&odd, ""),
            first: first.to_owned(),
        }
    }
}

/// A stretch of one tensor of the result.
struct Piece<'o> {
    key: usize,
    /// Its first element within the tensor.
    first: usize,
    out: &'o mut [u8],
}

/// What came of a piece, beside its bytes.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// Whether integers or bools were not the same everywhere.
    differed: bool,
    /// Values of the result that are NaN or infinite.
    not_finite: u64,
}

/// One thread's room for numbers on their way.
struct Scratch {
    sums: Vec<f64>,
    model: Vec<f64>,
    narrow: Vec<f32>,
    wide: Vec<f64>,
    keys32: Vec<i32>,
    keys64: Vec<i64>,
}

impl Scratch {
    fn new() -> Self {
        Self {
            sums: vec![0.0; BLOCK],
            model: vec![0.0; BLOCK],
            narrow: Vec::new(),
            wide: Vec::new(),
            keys32: Vec::new(),
            keys64: Vec::new(),
        }
    }
}

/// A piece with its sources at hand.
struct Work<'p> {
    plan: &'p Plan<'p>,
    key: &'p Key,
    /// Each source's bytes of this stretch.
    rows: Vec<&'p [u8]>,
    weights: Vec<f64>,
    /// The model's dtype and bytes of this stretch.
    model: Option<(DType, &'p [u8])>,
    out_dtype: DType,
}

impl Work<'_> {
    fn is_diff(&self) -> bool {
        self.plan.options.kind == UpdateKind::Diff
    }

    /// No site sent it: the model's own, widened if the result is wide.
    fn keep(&self, out: &mut [u8], scratch: &mut Scratch) -> Outcome {
        let Some((dtype, bytes)) = self.model else {
            // A key is the model's or some site's.
            return Outcome::default();
        };
        if dtype == self.out_dtype {
            out.copy_from_slice(bytes);
            return Outcome::default();
        }
        let level = self.plan.options.simd;
        let blocks = bytes.chunks(BLOCK * dtype.size());
        for (bytes, out) in blocks.zip(out.chunks_mut(BLOCK * self.out_dtype.size())) {
            let sums = &mut scratch.sums[..bytes.len() / dtype.size()];
            kernel::widen_to_f64(level, dtype, bytes, sums);
            kernel::round_into(level, self.out_dtype, sums, out);
        }
        Outcome::default()
    }

    fn bools(&self, out: &mut [u8]) -> Outcome {
        let differed = self.rows.iter().any(|row| *row != self.rows[0]);
        out.copy_from_slice(self.rows[0]);
        Outcome {
            differed,
            not_finite: 0,
        }
    }

    fn integers(&self, out: &mut [u8]) -> Outcome {
        let rule = if self.key.shape.is_empty() {
            integer::Rule::Maximum
        } else {
            match self.plan.rank(self.rows.len()) {
                Some(rank) => integer::Rule::Rank(rank),
                None => integer::Rule::Mean {
                    weights: &self.weights,
                    total: self.weights.iter().sum(),
                },
            }
        };
        let model = self.model.filter(|_| self.is_diff());
        let model = model.map(|(_, bytes)| bytes);
        Outcome {
            differed: integer::fold(self.key.dtype, rule, &self.rows, model, out),
            not_finite: 0,
        }
    }

    fn mean(&self, out: &mut [u8], scratch: &mut Scratch) -> Outcome {
        let total: f64 = self.weights.iter().sum();
        self.each_block(
            BLOCK,
            out,
            |from, count, sums, buffers| {
                for group in 0..self.rows.len().div_ceil(GROUP) {
                    self.add(group, from..from + count, sums, buffers);
                }
                total
            },
            scratch,
        )
    }

    /// Adds one group of sources to the sums of a block.
    fn add(&self, group: usize, range: Range<usize>, sums: &mut [f64], buffers: &mut Buffers<'_>) {
        let level = self.plan.options.simd;
        let fresh = group == 0;
        let from = group * GROUP;
        let to = self.rows.len().min(from + GROUP);
        let (rows, weights) = (&self.rows[from..to], &self.weights[from..to]);
        let size = self.key.dtype.size();
        let bytes = range.start * size..range.end * size;
        if self.key.dtype == DType::F64 {
            let mut views: [&[f64]; GROUP] = [&[]; GROUP];
            buffers.wide.resize(GROUP * BLOCK, 0.0);
            let rooms = buffers.wide.chunks_mut(BLOCK);
            for ((view, row), room) in views.iter_mut().zip(rows).zip(rooms) {
                *view = as_f64(&row[bytes.clone()], room);
            }
            kernel::add(level, sums, &views[..rows.len()], weights, fresh);
        } else {
            let mut views: [&[f32]; GROUP] = [&[]; GROUP];
            buffers.narrow.resize(GROUP * BLOCK, 0.0);
            let rooms = buffers.narrow.chunks_mut(BLOCK);
            for ((view, row), room) in views.iter_mut().zip(rows).zip(rooms) {
                *view = self.as_f32(&row[bytes.clone()], room);
            }
            kernel::add(level, sums, &views[..rows.len()], weights, fresh);
        }
    }

    fn ranks(&self, network: &Network, out: &mut [u8], scratch: &mut Scratch) -> Outcome {
        let level = self.plan.options.simd;
        let size = self.key.dtype.size();
        self.each_block(
            network.block(),
            out,
            |from, count, sums, buffers| {
                let bytes = from * size..(from + count) * size;
                let all = count * self.rows.len();
                if self.key.dtype == DType::F64 {
                    buffers.keys64.resize(all, 0);
                    buffers.wide.resize(GROUP * BLOCK, 0.0);
                    for (row, keys) in self.rows.iter().zip(buffers.keys64.chunks_mut(count)) {
                        let values = as_f64(&row[bytes.clone()], buffers.wide);
                        order::keys64(level, values, keys);
                    }
                    network.run(level, buffers.keys64, sums);
                } else {
                    buffers.keys32.resize(all, 0);
                    buffers.narrow.resize(GROUP * BLOCK, 0.0);
                    for (row, keys) in self.rows.iter().zip(buffers.keys32.chunks_mut(count)) {
                        let values = self.as_f32(&row[bytes.clone()], buffers.narrow);
                        order::keys32(level, values, keys);
                    }
                    network.run(level, buffers.keys32, sums);
                }
                1.0
            },
            scratch,
        )
    }

    /// Fills blocks of sums, divides them by what `fill` returns, adds the model
    /// to differences, and rounds once.
    fn each_block(
        &self,
        block: usize,
        out: &mut [u8],
        fill: impl Fn(usize, usize, &mut [f64], &mut Buffers<'_>) -> f64,
        scratch: &mut Scratch,
    ) -> Outcome {
        let level = self.plan.options.simd;
        let Scratch {
            sums,
            model,
            narrow,
            wide,
            keys32,
            keys64,
        } = scratch;
        let mut buffers = Buffers {
            narrow,
            wide,
            keys32,
            keys64,
        };
        let mut outcome = Outcome::default();
        let mut from = 0;
        for out in out.chunks_mut(block * self.out_dtype.size()) {
            let count = out.len() / self.out_dtype.size();
            let sums = &mut sums[..count];
            let by = fill(from, count, sums, &mut buffers);
            let base = self.model.filter(|_| self.is_diff()).map(|(dtype, bytes)| {
                let size = dtype.size();
                let model = &mut model[..count];
                let bytes = &bytes[from * size..(from + count) * size];
                kernel::widen_to_f64(level, dtype, bytes, model);
                &*model
            });
            kernel::divide(level, sums, by, base);
            outcome.not_finite += kernel::round_into(level, self.out_dtype, sums, out);
            from += count;
        }
        outcome
    }

    /// The values of a float dtype of at most 32 bits: in place where they are
    /// aligned f32, else decoded into `room`.
    fn as_f32<'v>(&self, bytes: &'v [u8], room: &'v mut [f32]) -> &'v [f32] {
        let dtype = self.key.dtype;
        if dtype == DType::F32
            && let Ok(values) = bytemuck::try_cast_slice(bytes)
        {
            return values;
        }
        let room = &mut room[..bytes.len() / dtype.size()];
        kernel::widen(self.plan.options.simd, dtype, bytes, room);
        room
    }
}

/// The parts of a [`Scratch`] that filling a block may use.
struct Buffers<'s> {
    narrow: &'s mut Vec<f32>,
    wide: &'s mut Vec<f64>,
    keys32: &'s mut Vec<i32>,
    keys64: &'s mut Vec<i64>,
}

fn as_f64<'v>(bytes: &'v [u8], room: &'v mut [f64]) -> &'v [f64] {
    if let Ok(values) = bytemuck::try_cast_slice(bytes) {
        return values;
    }
    let elements = bytes.as_chunks().0;
    let room = &mut room[..elements.len()];
    for (value, element) in room.iter_mut().zip(elements) {
        *value = f64::from_le_bytes(*element);
    }
    room
}
