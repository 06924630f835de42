//! Carrying a plan out: block by block over all sources, several threads.
//!
//! The result is cut into pieces, each computed by one thread from beginning to
//! end, so no number depends on how many threads there are.

use std::collections::BTreeSet;
use std::ops::Range;

use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, dtype::Kind};
use rayon::prelude::*;

use crate::error::AggregateError;
use crate::integer;
use crate::kernel::order::{self, Network};
use crate::kernel::{self, BLOCK, GROUP};
use crate::live::{self, Batch, Readers, Window};
use crate::options::{Data, UpdateKind};
use crate::plan::{ABSENT, Form, Key, Plan};
use crate::report::{Report, joined};
use crate::sums::Part;

/// Bytes of the result below which waking other threads costs more than it gives.
const WORTH_THREADS: u64 = 1 << 20;

impl Plan<'_> {
    /// Writes the result, header and data, into `out`.
    ///
    /// # Errors
    /// [`AggregateError`] when bools differ, a result outgrows its dtype, a live
    /// update cannot be read or is not what its manifest says, or `out` has
    /// another length than [`Plan::output_len`]; `out` is then worthless.
    pub fn fold(&self, out: &mut [u8]) -> Result<Report, AggregateError> {
        let (length, expected) = (out.len() as u64, self.output_len());
        if length != expected {
            return Err(AggregateError::Output { length, expected });
        }
        let (head, data) = out.split_at_mut(self.header_bytes.len());
        head.copy_from_slice(&self.header_bytes);
        let outcomes = self.run_all(data)?;

        // Per key, in the result's order: so errors do not depend on threads.
        let mut totals = vec![Outcome::default(); self.keys.len()];
        for (key, outcome) in outcomes {
            let total = &mut totals[key];
            total.differed |= outcome.differed;
            total.not_finite += outcome.not_finite;
            total.odd.extend(outcome.odd);
        }
        let mut report = self.report.clone();
        let mut averaged = Vec::new();
        for (key, total) in self.keys.iter().zip(&totals) {
            if total.differed && key.dtype == DType::Bool {
                return Err(self.bools_differ(key, &total.odd));
            }
            if total.not_finite > 0 {
                return Err(AggregateError::NotFinite {
                    key: shown(&key.name),
                    count: total.not_finite,
                    elements: key.shape.iter().product(),
                });
            }
            let exact = !key.dtype.is_float() && key.sites > 0 && self.form == Form::Model;
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

    /// The keys by their place in the result's data.
    fn order(&self) -> Vec<usize> {
        let tensors = self.header.tensors();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|at| (tensors[*at].start, tensors[*at].end));
        order
    }

    /// Cuts the result's data, in the order in which it lies there.
    fn pieces<'o>(&self, mut data: &'o mut [u8], order: &[usize]) -> Vec<Piece<'o>> {
        let tensors = self.header.tensors();
        let elements = live::piece_elements(self);
        let mut pieces = Vec::new();
        for &tensor_at in order {
            let tensor = &tensors[tensor_at];
            let (key, part) = self.parts[tensor_at];
            // It is in memory, so it fits a usize.
            let (mut rest, after) = data.split_at_mut(tensor.size() as usize);
            data = after;
            let most = elements * tensor.dtype.size();
            let mut first = 0;
            while !rest.is_empty() {
                let (out, more) = rest.split_at_mut(rest.len().min(most));
                let elements = out.len() / tensor.dtype.size();
                pieces.push(Piece {
                    key,
                    part,
                    dtype: tensor.dtype,
                    first,
                    out,
                });
                first += elements;
                rest = more;
            }
        }
        pieces
    }

    fn run_all(&self, data: &mut [u8]) -> Result<Vec<(usize, Outcome)>, AggregateError> {
        let order = self.order();
        let pieces = self.pieces(data, &order);
        let mut readers = Readers::open(self, &order)?;
        let threads = self.options.threads.max(1);
        let worth = threads > 1 && self.header.data_len() >= WORTH_THREADS;
        // One more waits for what is read.
        let wanted = if worth { threads } else { 1 } + usize::from(!readers.is_empty());
        // Without threads to be had, the caller's does it alone.
        let pool = (wanted > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(wanted)
                .thread_name(|at| format!("fold-{at}"))
                .build()
        });
        let pool = pool.and_then(Result::ok);
        if readers.is_empty() {
            let windows = Vec::new();
            let batch = Batch { pieces, windows };
            let (outcomes, _) = match &pool {
                Some(pool) => pool.install(|| self.run_batch(batch, true)),
                None => self.run_batch(batch, false),
            };
            return Ok(outcomes);
        }
        let (mut pieces, mut held) = (pieces.into_iter(), None);
        let mut outcomes = Vec::new();
        let mut used = Vec::new();
        let mut batch = readers.next(&mut pieces, &mut held, Vec::new())?;
        while let Some(current) = batch {
            let run = || self.run_batch(current, worth);
            let windows = std::mem::take(&mut used);
            let read = || readers.next(&mut pieces, &mut held, windows);
            let (done, next) = match &pool {
                Some(pool) => pool.install(|| rayon::join(run, read)),
                None => (run(), read()),
            };
            outcomes.extend(done.0);
            used = done.1;
            batch = next?;
        }
        Ok(outcomes)
    }

    /// Computes the pieces, and gives the windows back to be read into again.
    fn run_batch(&self, batch: Batch<'_>, threads: bool) -> (Vec<(usize, Outcome)>, Vec<Window>) {
        let Batch { pieces, windows } = batch;
        let one = |scratch: &mut Scratch, (at, piece): (usize, Piece<'_>)| {
            (piece.key, self.run(at, piece, &windows, scratch))
        };
        let outcomes = if threads {
            let pieces = pieces.into_par_iter().enumerate();
            pieces.map_init(Scratch::new, one).collect()
        } else {
            let mut scratch = Scratch::new();
            let pieces = pieces.into_iter().enumerate();
            pieces.map(|piece| one(&mut scratch, piece)).collect()
        };
        (outcomes, windows)
    }

    /// Bytes that each update has of a piece.
    pub(crate) fn row_size(&self, piece: &Piece<'_>) -> usize {
        piece.out.len() / piece.dtype.size() * self.keys[piece.key].dtype.size()
    }

    fn run(
        &self,
        at: usize,
        piece: Piece<'_>,
        windows: &[Window],
        scratch: &mut Scratch,
    ) -> Outcome {
        let key = &self.keys[piece.key];
        let out_dtype = piece.dtype;
        let elements = piece.out.len() / out_dtype.size();
        let model = self.model_bytes(key, piece.first, elements);
        let size = self.row_size(&piece);
        let mut fill = std::mem::take(&mut scratch.fill);
        // Sums leave what did not change to whoever makes a model of them.
        let unchanged = match self.form {
            Form::Model => self.unchanged(key, model, size, &mut fill),
            Form::Sums => None,
        };
        let mut rows = Vec::with_capacity(key.rows);
        let mut weights = Vec::with_capacity(key.rows);
        let mut sources = Vec::with_capacity(if key.dtype == DType::Bool {
            key.rows
        } else {
            0
        });
        let (mut summed, mut later) = (Vec::new(), Vec::new());
        let mut live = windows.iter();
        for (source_at, source) in self.sources.iter().enumerate() {
            if let Some((sums, bytes)) = source.sums {
                let entry = sums.entry(source.places[piece.key]);
                if let Some(entry) = entry {
                    let stretch = |tensor| {
                        let found = sums.stretch(bytes, tensor, piece.first, elements);
                        found.expect("the file's length was checked, and the header covers it")
                    };
                    summed.push(Row {
                        source: source_at,
                        weight: entry.counted.weight,
                        sum: stretch(entry.sum),
                        least: entry.least.map(stretch),
                        most: entry.most.map(stretch),
                    });
                }
                let left_out = entry.map_or(sums.partial(), |entry| entry.unchanged);
                if let Some(row) = unchanged.filter(|_| left_out.sites > 0) {
                    later.push((source_at, left_out.weight, row));
                }
                continue;
            }
            let window = if source.is_read() { live.next() } else { None };
            let row = match (source.start(piece.key), source.data) {
                (Some(start), Data::Mapped(bytes)) => {
                    // INVARIANT: the header's tensors lie within the file, whose
                    // length was compared with the header's.
                    let start = start as usize + piece.first * key.dtype.size();
                    Some(&bytes[start..start + size])
                }
                (Some(_), _) => window.map(|window| window.row(at, size)),
                (None, _) => unchanged.filter(|_| source.partial),
            };
            if let Some(row) = row {
                rows.push(row);
                weights.push(source.weight);
                if key.dtype == DType::Bool {
                    sources.push(source_at);
                }
            }
        }
        for (source_at, weight, row) in later {
            rows.push(row);
            weights.push(weight);
            sources.push(source_at);
        }
        if key.dtype == DType::Bool {
            rows.extend(summed.iter().map(|row| row.sum));
            sources.extend(summed.iter().map(|row| row.source));
        }
        let work = Work {
            plan: self,
            key,
            rows,
            weights,
            summed,
            // Sums of differences stay differences.
            model: model.filter(|_| self.form == Form::Model),
            out_dtype,
        };
        let outcome = if work.rows.is_empty() && work.summed.is_empty() {
            work.keep(piece.out, scratch)
        } else {
            match key.dtype.kind() {
                Kind::Bool => work.bools(piece.out, &sources),
                Kind::Int => work.integers(piece.part, piece.out),
                Kind::Float => match self.networks.get(&key.rows) {
                    Some(network) => work.ranks(network, piece.out, scratch),
                    None => work.mean(piece.out, scratch),
                },
            }
        };
        scratch.fill = fill;
        outcome
    }

    /// What a site says that leaves the key out because it did not change: the
    /// model's values, in the dtype in which the sites have them, or differences
    /// of zero. `None` when nobody says so, or nobody sends the key.
    fn unchanged<'f>(
        &'f self,
        key: &Key,
        model: Option<(DType, &'f [u8])>,
        size: usize,
        fill: &'f mut Vec<u8>,
    ) -> Option<&'f [u8]> {
        if key.rows == key.sites {
            return None;
        }
        // A bool's difference is its new value.
        if self.options.kind == UpdateKind::Diff && key.dtype != DType::Bool {
            fill.clear();
            fill.resize(size, 0);
            return Some(fill);
        }
        let (dtype, bytes) = model?;
        if dtype == key.dtype {
            return Some(bytes);
        }
        let level = self.options.simd;
        fill.resize(size, 0);
        let mut values = [0f64; 256];
        let blocks = bytes.chunks(values.len() * dtype.size());
        for (bytes, fill) in blocks.zip(fill.chunks_mut(values.len() * key.dtype.size())) {
            let values = &mut values[..bytes.len() / dtype.size()];
            kernel::widen_to_f64(level, dtype, bytes, values);
            kernel::round_into(level, key.dtype, values, fill);
        }
        Some(fill)
    }

    fn model_bytes(&self, key: &Key, first: usize, elements: usize) -> Option<(DType, &[u8])> {
        let model = self.model?;
        let tensor = model.header.tensors().get(key.model?)?;
        let bytes = model.header.bytes_of(tensor, model.bytes)?;
        let size = tensor.dtype.size();
        let bytes = &bytes[first * size..][..elements * size];
        Some((tensor.dtype, bytes))
    }

    /// `odd` are the places of the sites that differ from the first one.
    fn bools_differ(&self, key: &Key, odd: &BTreeSet<usize>) -> AggregateError {
        let at = self.keys.iter().position(|k| std::ptr::eq(k, key));
        let at = at.unwrap_or_default();
        let first = self
            .sources
            .iter()
            .find(|source| source.places[at] != ABSENT || source.partial_counted().sites > 0);
        let odd: Vec<_> = odd.iter().map(|at| self.sources[*at].site).collect();
        AggregateError::BoolsDiffer {
            tensor: shown(&key.name),
            odd: joined(&odd, ""),
            first: first.map_or("", |source| source.site).to_owned(),
        }
    }
}

/// A stretch of one tensor of the result.
pub(crate) struct Piece<'o> {
    pub(crate) key: usize,
    /// What it is of its key.
    pub(crate) part: Part,
    /// Its own, in the result.
    pub(crate) dtype: DType,
    /// Its first element within the tensor.
    pub(crate) first: usize,
    pub(crate) out: &'o mut [u8],
}

/// What came of a piece, beside its bytes.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// Whether integers or bools were not the same everywhere.
    differed: bool,
    /// The places of the sites whose bools are not the first one's.
    odd: BTreeSet<usize>,
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
    /// What stands for a tensor that did not change.
    fill: Vec<u8>,
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
            fill: Vec::new(),
        }
    }
}

/// A stretch of what a relay has summed.
struct Row<'p> {
    source: usize,
    weight: f64,
    sum: &'p [u8],
    least: Option<&'p [u8]>,
    most: Option<&'p [u8]>,
}

/// A piece with its sources at hand.
struct Work<'p> {
    plan: &'p Plan<'p>,
    key: &'p Key,
    /// Each source's bytes of this stretch.
    rows: Vec<&'p [u8]>,
    weights: Vec<f64>,
    /// What relays have summed; counts after the rows.
    summed: Vec<Row<'p>>,
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

    /// `sources` are the places of the rows' sites.
    fn bools(&self, out: &mut [u8], sources: &[usize]) -> Outcome {
        let rows = self.rows.iter().zip(sources);
        let odd = rows.filter(|(row, _)| **row != self.rows[0]);
        let odd: BTreeSet<_> = odd.map(|(_, at)| *at).collect();
        out.copy_from_slice(self.rows[0]);
        Outcome {
            differed: !odd.is_empty(),
            odd,
            not_finite: 0,
        }
    }

    /// The sum of all weights, in the order in which values are added.
    fn total(&self) -> f64 {
        let total: f64 = self.weights.iter().sum();
        self.summed.iter().fold(total, |sum, row| sum + row.weight)
    }

    fn integers(&self, part: Part, out: &mut [u8]) -> Outcome {
        let is_sums = self.plan.form == Form::Sums;
        if is_sums || !self.summed.is_empty() {
            let summed = self.summed.iter().map(|row| integer::Summed {
                sum: row.sum,
                least: row.least.unwrap_or_default(),
                most: row.most.unwrap_or_default(),
            });
            let summed: Vec<_> = summed.collect();
            let (dtype, diff) = (self.key.dtype, self.is_diff());
            let rows = (&self.rows[..], &self.weights[..]);
            match (is_sums, part) {
                (true, Part::Value) => integer::sum(dtype, diff, rows, &summed, out),
                (true, part) => {
                    let which = match part {
                        Part::Most => integer::Extreme::Most,
                        Part::Value | Part::Least => integer::Extreme::Least,
                    };
                    integer::extreme(dtype, which, diff, rows.0, &summed, out);
                }
                (false, _) => {
                    let how = (self.key.shape.is_empty(), self.total());
                    let model = self.model.filter(|_| diff).map(|(_, bytes)| bytes);
                    let differed = integer::fold_summed(dtype, how, rows, &summed, model, out);
                    return Outcome {
                        differed,
                        ..Outcome::default()
                    };
                }
            }
            return Outcome::default();
        }
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
            ..Outcome::default()
        }
    }

    fn mean(&self, out: &mut [u8], scratch: &mut Scratch) -> Outcome {
        let total = match self.plan.form {
            Form::Model => self.total(),
            // To divide by one changes no bit.
            Form::Sums => 1.0,
        };
        self.each_block(
            BLOCK,
            out,
            |from, count, sums, buffers| {
                for group in 0..self.rows.len().div_ceil(GROUP) {
                    self.add(group, from..from + count, sums, buffers);
                }
                let mut fresh = self.rows.is_empty();
                for row in &self.summed {
                    buffers.wide.resize(GROUP * BLOCK, 0.0);
                    let bytes = &row.sum[from * size_of::<f64>()..][..count * size_of::<f64>()];
                    let values = as_f64(bytes, buffers.wide);
                    kernel::add(self.plan.options.simd, sums, &[values], &[1.0], fresh);
                    fresh = false;
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
            fill: _,
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
