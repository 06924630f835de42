//! An update that has no room here: its header is, its numbers stay at their site
//! until they are folded, and pass by in windows.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use firesteel_aggregate::LiveSource;
use firesteel_base::limits;
use firesteel_net::pull::Sink;
use firesteel_tensor::{Facts, ModelHeader};
use firesteel_transfer::{Manifest, ObjectRef};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::remote::Shared;
use crate::{CarryError, Order};

/// A model that lies at its peer and is read from there, once, front to back.
pub struct LiveModel {
    shared: Arc<Shared>,
    runtime: Handle,
    name: String,
    object: ObjectRef,
    manifest: Arc<Manifest>,
    header: ModelHeader,
    facts: Vec<Facts>,
}

impl LiveModel {
    /// Fetches what is to be known of it: its manifest and its header.
    pub(crate) async fn fetch(
        shared: Arc<Shared>,
        object: ObjectRef,
        order: &Order,
    ) -> Result<Self, CarryError> {
        let nothing = Arc::new(Head::default());
        let manifest = shared
            .pull(&order.name, object, nothing)
            .only(Vec::new())
            .retrying(|| shared.stream())
            .await?
            .manifest;
        let head = Arc::new(Head::default());
        let wanted: Range<u64> = 0..manifest.head();
        let sink: Arc<dyn Sink> = Arc::clone(&head) as _;
        shared
            .pull(&order.name, object, sink)
            .manifest(Arc::clone(&manifest))
            .only(vec![wanted])
            .retrying(|| shared.stream())
            .await?;
        let header = {
            let bytes = lock(&head.0);
            ModelHeader::parse(&bytes, order.object.length)
                .map_err(|source| firesteel_store::ObjectError::Malformed { source })?
        };
        manifest.fits(&header)?;
        let facts = manifest.facts(&header);
        Ok(Self {
            shared,
            runtime: Handle::current(),
            name: order.name.clone(),
            object,
            manifest,
            header,
            facts,
        })
    }

    /// What its file says of its tensors.
    pub fn header(&self) -> &ModelHeader {
        &self.header
    }

    /// Whether it is in a form in which models only travel.
    pub fn is_encoded(&self) -> bool {
        firesteel_codec::chain::is_encoded(&self.header).unwrap_or(true)
    }

    /// What its manifest says of them, in the order of the header's.
    pub fn facts(&self) -> &[Facts] {
        &self.facts
    }
}

impl fmt::Debug for LiveModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveModel")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl LiveSource for LiveModel {
    fn open(&self, ranges: &[Range<u64>]) -> io::Result<Box<dyn io::Read + Send + '_>> {
        let passing = Arc::new(Passing::default());
        let sink: Arc<dyn Sink> = Arc::clone(&passing) as _;
        let mut pull = self
            .shared
            .pull(&self.name, self.object, sink)
            .manifest(Arc::clone(&self.manifest))
            .only(ranges.to_vec());
        lock(&passing.state).wanted = first_of(ranges);
        let (shared, told) = (Arc::clone(&self.shared), Ending(Arc::clone(&passing)));
        let pulling = self.runtime.spawn(async move {
            let pulled = pull.retrying(|| shared.stream()).await;
            told.0.ended(pulled.err().map(io::Error::other));
        });
        Ok(Box::new(Reading {
            passing,
            ranges: ranges.to_vec(),
            at: 0,
            pulling: pulling.abort_handle(),
        }))
    }
}

/// The bytes before the tensors.
#[derive(Default)]
struct Head(Mutex<Vec<u8>>);

impl Sink for Head {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = slot(offset, bytes.len())?;
        let mut head = lock(&self.0);
        if head.len() < range.end {
            head.resize(range.end, 0);
        }
        let into = head.get_mut(range).ok_or(io::ErrorKind::InvalidInput)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let range = slot(offset, into.len())?;
        let head = lock(&self.0);
        into.copy_from_slice(head.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn slot(offset: u64, len: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let end = start
        .checked_add(len)
        .filter(|&end| end <= limits::MODEL_HEADER + 8)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(start..end)
}

/// Bytes between the pull and the fold.
#[derive(Default)]
struct Passing {
    state: Mutex<Passed>,
    changed: Condvar,
}

#[derive(Default)]
struct Passed {
    /// Bytes that came, by where they belong; not checked yet or not read yet.
    chunks: BTreeMap<u64, Vec<u8>>,
    held: usize,
    /// Those of them that are right.
    verified: BTreeMap<u64, u64>,
    /// The byte that is read next.
    wanted: u64,
    ended: bool,
    error: Option<io::Error>,
    /// Nobody reads any more.
    closed: bool,
}

impl Passing {
    /// Nothing follows; only the first time counts.
    fn ended(&self, error: Option<io::Error>) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.ended = true;
            state.error = error;
            self.changed.notify_all();
        }
    }
}

/// Whoever reads is told of the end, also when the pull is dropped or panics.
struct Ending(Arc<Passing>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended(Some(io::ErrorKind::BrokenPipe.into()));
    }
}

/// The first byte of the ranges that is in one.
fn first_of(ranges: &[Range<u64>]) -> u64 {
    let first = ranges.iter().find(|range| !range.is_empty());
    first.map_or(u64::MAX, |range| range.start)
}

/// Bytes that may wait when those that are wanted are not among them: what may be
/// on its way at once, and blocks that came damaged.
const ASTRAY: u64 =
    limits::LIVE_AHEAD as u64 + limits::TRANSFER_WINDOW + 2 * limits::TRANSFER_BLOCK;

impl Sink for Passing {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        // Only while the reader can go on: it may need just these bytes.
        while state.held > limits::LIVE_AHEAD && state.is_readable() && !state.closed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if (state.held + bytes.len()) as u64 > ASTRAY {
            return Err(io::Error::other(
                "the peer sends other bytes than those that are waited for",
            ));
        }
        state.held += bytes.len();
        if let Some(old) = state.chunks.insert(offset, bytes.to_vec()) {
            state.held -= old.len();
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let (&start, chunk) = state
                .chunks
                .range(..=at)
                .next_back()
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
            let there = chunk.get(skip..).filter(|there| !there.is_empty());
            let there = there.ok_or(io::ErrorKind::UnexpectedEof)?;
            let count = there.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(there.get(..count).unwrap_or_default());
            rest = later;
            at += count as u64;
        }
        Ok(())
    }

    fn forget(&self, range: Range<u64>) {
        let mut state = lock(&self.state);
        let before = state.chunks.range(..range.start).next_back();
        let before = before.map(|(&at, _)| at);
        let within = state.chunks.range(range.clone()).map(|(&at, _)| at);
        let touched: Vec<u64> = before.into_iter().chain(within).collect();
        for at in touched {
            let Some(chunk) = state.chunks.remove(&at) else {
                continue;
            };
            state.held -= chunk.len();
            // What lies before and behind is as right as it was.
            let place = |at_byte: u64| {
                usize::try_from(at_byte.saturating_sub(at))
                    .map_or(chunk.len(), |n| n.min(chunk.len()))
            };
            let (head, tail) = (
                chunk.get(..place(range.start)),
                chunk.get(place(range.end)..),
            );
            for (at, kept) in [(at, head), (range.end, tail)] {
                if let Some(kept) = kept.filter(|kept| !kept.is_empty()) {
                    state.held += kept.len();
                    state.chunks.insert(at, kept.to_vec());
                }
            }
        }
    }

    fn verified(&self, range: Range<u64>) {
        let mut state = lock(&self.state);
        state.verified.insert(range.start, range.end);
        self.changed.notify_all();
    }
}

/// Reads what passes by, in the order of the ranges.
struct Reading {
    passing: Arc<Passing>,
    ranges: Vec<Range<u64>>,
    /// Which of them it is at; its start moves on.
    at: usize,
    pulling: AbortHandle,
}

impl io::Read for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let range = loop {
            match self.ranges.get_mut(self.at) {
                None => return Ok(0),
                Some(range) if range.is_empty() => self.at += 1,
                Some(range) => break range,
            }
        };
        if into.is_empty() {
            return Ok(0);
        }
        let mut state = lock(&self.passing.state);
        loop {
            state.wanted = range.start;
            if let Some(count) = state.take(range.clone(), into) {
                range.start += count as u64;
                state.wanted = first_of(self.ranges.get(self.at..).unwrap_or_default());
                self.passing.changed.notify_all();
                return Ok(count);
            }
            // Whoever waits for room is to bring what is wanted.
            self.passing.changed.notify_all();
            if state.ended {
                let ended = || io::ErrorKind::UnexpectedEof.into();
                return Err(state.error.take().unwrap_or_else(ended));
            }
            state = self
                .passing
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Passed {
    /// Whether the byte that is read next is there and right.
    fn is_readable(&self) -> bool {
        let right = self.verified.range(..=self.wanted).next_back();
        let there = self.chunks.range(..=self.wanted).next_back();
        right.is_some_and(|(_, &end)| end > self.wanted)
            && there.is_some_and(|(&at, chunk)| self.wanted - at < chunk.len() as u64)
    }

    /// Bytes from the start of `range` on, as far as they are there and right.
    fn take(&mut self, range: Range<u64>, into: &mut [u8]) -> Option<usize> {
        let (&block, &right) = self.verified.range(..=range.start).next_back()?;
        let right = right.min(range.end);
        if right <= range.start {
            return None;
        }
        let (&at, chunk) = self.chunks.range(..=range.start).next_back()?;
        let skip = usize::try_from(range.start - at).ok()?;
        let room = usize::try_from(right - range.start).unwrap_or(usize::MAX);
        let there = chunk.get(skip..)?;
        let count = there.len().min(room).min(into.len());
        if count == 0 {
            return None;
        }
        into.get_mut(..count)?.copy_from_slice(there.get(..count)?);
        if skip + count == chunk.len() {
            self.held -= chunk.len();
            self.chunks.remove(&at);
        }
        if range.start + count as u64 >= self.verified.get(&block).copied()? {
            self.verified.remove(&block);
        }
        Some(count)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.pulling.abort();
        lock(&self.passing.state).closed = true;
        self.passing.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use super::*;
    use std::io::Read;

    fn reading(passing: &Arc<Passing>, ranges: &[Range<u64>]) -> Reading {
        lock(&passing.state).wanted = first_of(ranges);
        let idle = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        Reading {
            passing: Arc::clone(passing),
            ranges: ranges.to_vec(),
            at: 0,
            pulling: idle.spawn(async {}).abort_handle(),
        }
    }

    #[test]
    fn bytes_that_came_before_those_that_are_wanted_do_not_block() {
        let passing = Arc::new(Passing::default());
        let piece = vec![7; limits::LIVE_AHEAD];
        let len = piece.len() as u64;
        // The second and third piece are there and right before the first.
        for at in [1, 2] {
            passing.write_at(at * len, &piece).unwrap();
            passing.verified(at * len..(at + 1) * len);
        }
        let mut reading = reading(&passing, &[0..3 * len]);
        let writer = Arc::clone(&passing);
        let writing = std::thread::spawn(move || {
            writer.write_at(0, &vec![7; limits::LIVE_AHEAD]).unwrap();
            writer.verified(0..limits::LIVE_AHEAD as u64);
            writer.ended(None);
        });
        let mut all = Vec::new();
        reading.read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 3 * limits::LIVE_AHEAD]);
        writing.join().unwrap();
    }

    #[test]
    fn a_peer_that_never_sends_what_is_wanted_is_refused() {
        let passing = Passing::default();
        let piece = vec![0; limits::LIVE_AHEAD];
        let refused = (1..=200_u64)
            .map(|at| passing.write_at(at * limits::LIVE_AHEAD as u64, &piece))
            .find_map(Result::err)
            .unwrap();
        assert!(refused.to_string().contains("other bytes"), "{refused}");
        assert!(lock(&passing.state).held as u64 <= ASTRAY);
    }

    #[test]
    fn a_damaged_block_takes_nothing_of_its_neighbors_along() {
        let passing = Arc::new(Passing::default());
        passing.write_at(0, &[1; 10]).unwrap();
        passing.write_at(10, &[2; 20]).unwrap();
        // 5..15 was damaged: the end of one piece and the start of the other.
        passing.forget(5..15);
        assert_eq!(lock(&passing.state).held, 20);
        passing.write_at(5, &[3; 10]).unwrap();
        passing.verified(0..30);
        passing.ended(None);
        let mut all = Vec::new();
        reading(&passing, &[0..30]).read_to_end(&mut all).unwrap();
        assert_eq!(all, [[1; 5].as_slice(), &[3; 10], &[2; 15]].concat());
    }

    #[test]
    fn the_end_is_told_when_the_pull_is_dropped() {
        let passing = Arc::new(Passing::default());
        drop(Ending(Arc::clone(&passing)));
        let error = reading(&passing, &[0..1]).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
