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
        let (shared, told) = (Arc::clone(&self.shared), Arc::clone(&passing));
        let pulling = self.runtime.spawn(async move {
            let pulled = pull.retrying(|| shared.stream()).await;
            told.ended(pulled.err().map(io::Error::other));
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
    ended: bool,
    error: Option<io::Error>,
    /// Nobody reads any more.
    closed: bool,
}

impl Passing {
    fn ended(&self, error: Option<io::Error>) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.error = error;
        self.changed.notify_all();
    }
}

impl Sink for Passing {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        // What is not checked yet is never waited for: it could not be.
        while state.held > limits::LIVE_WINDOW && !state.verified.is_empty() && !state.closed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
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
        let gone: Vec<u64> = state.chunks.range(range).map(|(&at, _)| at).collect();
        for at in gone {
            if let Some(chunk) = state.chunks.remove(&at) {
                state.held -= chunk.len();
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
            if let Some(count) = state.take(range.clone(), into) {
                range.start += count as u64;
                self.passing.changed.notify_all();
                return Ok(count);
            }
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
