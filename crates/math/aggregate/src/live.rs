//! Updates that are read while they are folded, from their sites most often: a
//! window of each at a time, in the order of the result's bytes.

use std::io::Read;
use std::ops::Range;

use firesteel_base::limits;
use firesteel_tensor::text::shown;
use firesteel_tensor::{DType, Facts, FactsBuilder};

use crate::error::AggregateError;
use crate::fold::Piece;
use crate::options::Data;
use crate::plan::{ABSENT, Plan, Source};
use crate::verify::{Number, VerifyProblem};

/// Marks a piece that a window has no bytes of.
const NONE: usize = usize::MAX;

/// One window of one update: what the pieces of a batch need of it.
#[derive(Debug, Default)]
pub(crate) struct Window {
    bytes: Vec<u8>,
    /// Where each piece of the batch starts in it.
    starts: Vec<usize>,
}

impl Window {
    /// The bytes of a piece of the batch.
    pub(crate) fn row(&self, piece: usize, size: usize) -> &[u8] {
        let start = self.starts[piece];
        &self.bytes[start..start + size]
    }
}

/// Some pieces, and the windows of updates that they need.
pub(crate) struct Batch<'o> {
    pub(crate) pieces: Vec<Piece<'o>>,
    /// In the order of the sources that are read.
    pub(crate) windows: Vec<Window>,
}

/// All updates of a fold that are read, in step.
pub(crate) struct Readers<'p, 'a> {
    plan: &'p Plan<'a>,
    readers: Vec<Reader<'p>>,
    /// Bytes of one update at a time.
    window: usize,
}

struct Reader<'p> {
    source: &'p Source<'p>,
    bytes: Box<dyn Read + Send + 'p>,
    /// What it is held against; `None` for what was verified before.
    facts: Option<&'p [Facts]>,
    /// Where the tensors with elements start, rising, and their places in the
    /// header.
    tensors: Vec<(u64, usize)>,
    /// The tensor that is being read: its key, and what is known of it so far.
    current: Option<(usize, FactsBuilder)>,
}

/// Bytes of one update at a time, where so many are read. Two windows of each are
/// held: one is folded while the next one is read.
fn window(sources: usize) -> usize {
    let share = limits::LIVE_FOLD / (2 * sources.max(1));
    share.clamp(limits::LIVE_WINDOW_LEAST, limits::LIVE_WINDOW)
}

/// How many elements a piece may have, so that one of any dtype fits a window.
pub(crate) fn piece_elements(plan: &Plan<'_>) -> usize {
    let live = plan
        .sources
        .iter()
        .filter(|source| source.is_read())
        .count();
    match live {
        0 => limits::FOLD_PIECE,
        live => (window(live) / size_of::<f64>()).min(limits::FOLD_PIECE),
    }
}

impl Source<'_> {
    /// Whether it is read in windows.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.data, Data::Live { .. } | Data::Read(_))
    }

    /// Where a key's tensor starts in the file.
    pub(crate) fn start(&self, key: usize) -> Option<u64> {
        let place = self.places.get(key).copied().unwrap_or(ABSENT);
        (place != ABSENT).then(|| self.header.data_start() + place)
    }
}

impl<'p, 'a> Readers<'p, 'a> {
    /// Opens every live update for what the fold needs of it. `order` is the
    /// result's keys by their place in its data.
    pub(crate) fn open(plan: &'p Plan<'a>, order: &[usize]) -> Result<Self, AggregateError> {
        let mut readers = Vec::new();
        for source in &plan.sources {
            let (live, facts) = match source.data {
                Data::Mapped(_) | Data::Sums { .. } => continue,
                Data::Read(read) => (read, None),
                Data::Live { source, facts } => (source, Some(facts)),
            };
            let bytes = live
                .open(&ranges(plan, source, order))
                .map_err(|error| failed(source, &error))?;
            let tensors = source.header.tensors().iter().enumerate();
            let mut tensors: Vec<_> = tensors
                .filter(|(_, tensor)| tensor.size() > 0)
                .map(|(at, tensor)| (source.header.data_start() + tensor.start, at))
                .collect();
            tensors.sort_unstable();
            readers.push(Reader {
                source,
                bytes,
                facts,
                tensors,
                current: None,
            });
        }
        let window = window(readers.len());
        Ok(Self {
            plan,
            readers,
            window,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    /// The next pieces with their windows; `None` when there are no more. `used`
    /// are windows that are read into again.
    pub(crate) fn next<'o>(
        &mut self,
        pieces: &mut impl Iterator<Item = Piece<'o>>,
        held: &mut Option<Piece<'o>>,
        mut used: Vec<Window>,
    ) -> Result<Option<Batch<'o>>, AggregateError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(piece) = held.take().or_else(|| pieces.next()) {
            let size = self.plan.row_size(&piece);
            if bytes + size > self.window && !batch.is_empty() {
                *held = Some(piece);
                break;
            }
            bytes += size;
            batch.push(piece);
        }
        if batch.is_empty() {
            return Ok(None);
        }
        used.resize_with(self.readers.len(), Window::default);
        for (reader, window) in self.readers.iter_mut().zip(&mut used) {
            reader.fill(self.plan, &batch, window)?;
        }
        Ok(Some(Batch {
            pieces: batch,
            windows: used,
        }))
    }
}

impl Reader<'_> {
    fn fill(
        &mut self,
        plan: &Plan<'_>,
        batch: &[Piece<'_>],
        window: &mut Window,
    ) -> Result<(), AggregateError> {
        window.starts.clear();
        let mut end = 0;
        for piece in batch {
            let there = self.source.start(piece.key).is_some();
            window.starts.push(if there { end } else { NONE });
            end += if there { plan.row_size(piece) } else { 0 };
        }
        window.bytes.resize(end, 0);
        self.bytes
            .read_exact(&mut window.bytes)
            .map_err(|error| failed(self.source, &error))?;
        for (at, piece) in batch.iter().enumerate() {
            if window.starts[at] != NONE && self.facts.is_some() {
                let row = window.row(at, plan.row_size(piece));
                self.check(plan, piece, row)?;
            }
        }
        Ok(())
    }

    /// Holds what came against what the manifest says of its tensor.
    fn check(
        &mut self,
        plan: &Plan<'_>,
        piece: &Piece<'_>,
        row: &[u8],
    ) -> Result<(), AggregateError> {
        let key = &plan.keys[piece.key];
        let refused = |problem| AggregateError::Update {
            site: self.source.site.to_owned(),
            problem,
        };
        if key.dtype == DType::Bool {
            let count = row.iter().filter(|byte| **byte > 1).count() as u64;
            if count > 0 {
                return Err(refused(VerifyProblem::NotBool {
                    tensor: shown(&key.name),
                    count,
                    elements: key.shape.iter().product(),
                }));
            }
        }
        if piece.first == 0 {
            self.current = Some((piece.key, FactsBuilder::new(key.dtype)));
        }
        let Some((of, facts)) = self.current.as_mut().filter(|(of, _)| *of == piece.key) else {
            // The pieces of a tensor come one after the other, from the first on.
            return Ok(());
        };
        debug_assert_eq!(*of, piece.key);
        facts.push(row);
        let last = piece.first + row.len() / key.dtype.size();
        if (last as u64) < key.shape.iter().product::<u64>() {
            return Ok(());
        }
        let Some((_, facts)) = self.current.take() else {
            return Ok(());
        };
        let found = facts.finish();
        if !found.finite {
            return Err(refused(VerifyProblem::NotAllFinite {
                tensor: shown(&key.name),
            }));
        }
        let expected = self.expected(piece.key);
        if expected.is_some_and(|facts| Number(facts.norm) != Number(found.norm)) {
            return Err(refused(VerifyProblem::Norm {
                tensor: shown(&key.name),
                found: Number(found.norm),
                expected: Number(expected.map_or(0.0, |facts| facts.norm)),
            }));
        }
        Ok(())
    }

    fn expected(&self, key: usize) -> Option<Facts> {
        let start = self.source.start(key)?;
        let at = self
            .tensors
            .binary_search_by_key(&start, |(start, _)| *start);
        let (_, tensor) = self.tensors.get(at.ok()?)?;
        self.facts?.get(*tensor).copied()
    }
}

/// What the fold reads of an update, in order; what lies side by side is one.
fn ranges(plan: &Plan<'_>, source: &Source<'_>, order: &[usize]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for &at in order {
        let key = &plan.keys[at];
        let size = key.shape.iter().product::<u64>() * key.dtype.size() as u64;
        let Some(start) = source.start(at).filter(|_| size > 0) else {
            continue;
        };
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += size,
            _ => ranges.push(start..start + size),
        }
    }
    ranges
}

fn failed(source: &Source<'_>, error: &std::io::Error) -> AggregateError {
    let mut problem = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        problem.push_str(&format!(": {error}"));
        cause = error.source();
    }
    AggregateError::Live {
        site: source.site.to_owned(),
        problem,
    }
}
