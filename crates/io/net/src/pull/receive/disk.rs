//! What runs on blocking threads: writes, digests, copies.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use firesteel_base::limits;
use firesteel_transfer::{BlockCheck, Checked, Checker, Copy, Digest, Manifest, Ranges};

use super::Sink;
use crate::pull::Source;

/// Bytes of a file that came, as the connection has them.
#[derive(Default)]
pub(super) struct Batch {
    /// Where each piece belongs.
    pieces: Vec<(u64, Bytes)>,
    used: usize,
    /// Of the frame that is being read.
    begun: Vec<Bytes>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes in it.
    pub(super) fn bytes(&self) -> u64 {
        self.used as u64
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
    }

    /// Whether it is not worth waiting for more.
    pub(super) fn is_full(&self, size: usize) -> bool {
        // A frame that has no room left waits for the next batch.
        self.used + limits::TRANSFER_PAYLOAD > size || self.pieces.len() >= limits::TRANSFER_RANGES
    }

    /// Whether `needed` bytes more have a place.
    pub(super) fn has_room(&self, needed: usize, size: usize) -> bool {
        self.used == 0 || (self.used + needed <= size && !self.is_full(size))
    }

    /// Some of a frame came.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.begun.push(bytes);
    }

    /// The frame that is being read will not end.
    pub(super) fn break_off(&mut self) {
        self.begun.clear();
    }

    /// What came of the frame belongs to `offset`.
    pub(super) fn commit(&mut self, offset: u64) {
        let mut at = offset;
        for bytes in self.begun.drain(..) {
            self.used += bytes.len();
            let length = bytes.len() as u64;
            self.pieces.push((at, bytes));
            at += length;
        }
    }
}

/// Bytes that are written and hashed at a time: a frame's, which lie in the
/// nearer caches together with what the kernel makes of them.
const WINDOW: usize = limits::TRANSFER_PAYLOAD;

/// What need not be pulled.
pub(super) enum Local {
    /// An earlier try wrote the block.
    Claim(usize),
    /// An earlier try wrote the block's first bytes.
    Start { index: usize, bytes: u64 },
    /// Another file of the job has it.
    Known {
        index: usize,
        source: Arc<dyn Source>,
        offset: u64,
    },
    /// Another block of the file is equal.
    Twin(Copy),
}

impl Local {
    pub(super) fn index(&self) -> usize {
        match self {
            Self::Claim(index) | Self::Start { index, .. } | Self::Known { index, .. } => *index,
            Self::Twin(copy) => copy.to,
        }
    }
}

/// As much as the disk should do before it looks at what has come: a few blocks.
pub(super) fn some_local(local: &mut VecDeque<Local>) -> Vec<Local> {
    // Blocks are 4 MiB at most, and mostly less.
    let mut some = Vec::new();
    while some.len() < 64 {
        let Some(next) = local.pop_front() else {
            break;
        };
        some.push(next);
    }
    some
}

/// What an earlier try left, if it is of the same file. Where nothing is noted that
/// shows only when it is compared with its digests, as all of it is: so it is with
/// a file that was complete, whose note went when it was put in place.
pub(super) fn claims(sink: &dyn Sink, manifest: &Manifest) -> Ranges {
    let note = sink.note();
    if note.is_empty() || note == manifest.root().0 {
        let total = manifest.total();
        let received = sink.received().into_iter();
        received
            .map(|range| range.start.min(total)..range.end.min(total))
            .collect()
    } else {
        sink.forget(0..manifest.total());
        Ranges::default()
    }
}

/// What the disk found.
#[derive(Default)]
pub(super) struct Report {
    /// Of blocks that came.
    pub(super) checked: Vec<Checked>,
    /// Blocks that were here already.
    pub(super) had: Vec<usize>,
    /// Blocks that were said to be here, and are not.
    pub(super) missing: Vec<usize>,
}

/// The sink and the digests of what goes into it.
pub(super) struct Disk {
    sink: Arc<dyn Sink>,
    checker: Option<Checker>,
    /// What the sink is to note, until it has.
    note: Option<Digest>,
    scratch: Vec<u8>,
}

impl Disk {
    pub(super) fn new(sink: Arc<dyn Sink>) -> Self {
        Self {
            sink,
            checker: None,
            note: None,
            scratch: Vec::new(),
        }
    }

    /// The manifest is there.
    pub(super) fn begin(&mut self, manifest: Arc<Manifest>) {
        self.note = Some(manifest.root());
        self.checker = Some(Checker::new(manifest));
    }

    /// From the first byte on the sink knows of which file it is.
    fn save_note(&mut self) -> io::Result<()> {
        if let Some(root) = self.note.take() {
            self.sink.save(&root.0)?;
        }
        Ok(())
    }

    /// Writes and checks what came.
    pub(super) fn write(&mut self, batch: &Batch) -> io::Result<Report> {
        self.save_note()?;
        let mut found = Vec::new();
        for (offset, piece) in &batch.pieces {
            let mut offset = *offset;
            // So little that what was written is still near when it is hashed.
            for window in piece.chunks(WINDOW) {
                self.sink.write_at(offset, window)?;
                if let Some(checker) = &mut self.checker {
                    checker.feed(offset, window, &mut found);
                }
                offset += window.len() as u64;
            }
        }
        let mut report = Report::default();
        for mut checked in found {
            if let Checked::Again(index) = checked {
                checked = self.read_back(index)?;
            }
            self.settle(checked);
            report.checked.push(checked);
        }
        Ok(report)
    }

    /// Checks or copies what is here already.
    pub(super) fn local(&mut self, work: Vec<Local>) -> io::Result<Report> {
        self.save_note()?;
        let mut report = Report::default();
        for one in work {
            let index = one.index();
            let checked = match one {
                Local::Claim(_) => self.read_back(index)?,
                Local::Start { bytes, .. } => {
                    self.feed_start(index, bytes)?;
                    continue;
                }
                Local::Known { source, offset, .. } => {
                    let read = |at: u64, into: &mut [u8]| source.read_at(offset + at, into);
                    self.copy(index, read)?
                }
                Local::Twin(copy) => {
                    let sink = self.sink.clone();
                    let from = self.range(copy.from).map_or(0, |range| range.start);
                    let read = |at: u64, into: &mut [u8]| sink.read_at(from + at, into);
                    self.copy(index, read)?
                }
            };
            match checked {
                Checked::Good(_) => {
                    self.settle(checked);
                    report.had.push(index);
                }
                _ => {
                    if let Some(range) = self.range(index) {
                        self.sink.forget(range);
                    }
                    report.missing.push(index);
                }
            }
        }
        self.scratch = Vec::new();
        Ok(report)
    }

    fn range(&self, index: usize) -> Option<std::ops::Range<u64>> {
        Some(self.checker.as_ref()?.block(index)?.range())
    }

    fn block(&self, index: usize) -> io::Result<BlockCheck> {
        let checker = self.checker.as_ref();
        let block = checker.and_then(|checker| checker.block(index));
        block.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn settle(&self, checked: Checked) {
        let (Checked::Good(index) | Checked::Bad(index) | Checked::Again(index)) = checked;
        if let Some(range) = self.range(index) {
            match checked {
                Checked::Good(_) => self.sink.verified(range),
                Checked::Bad(_) | Checked::Again(_) => self.sink.forget(range),
            }
        }
    }

    fn read_back(&mut self, index: usize) -> io::Result<Checked> {
        let sink = self.sink.clone();
        let mut check = self.block(index)?;
        let range = check.range();
        let mut at = range.start;
        while at < range.end {
            let window = self.window(range.end - at);
            sink.read_at(at, window)?;
            check.feed(window);
            at += window.len() as u64;
        }
        Ok(check.finish())
    }

    fn feed_start(&mut self, index: usize, bytes: u64) -> io::Result<()> {
        let Some(mut range) = self.range(index) else {
            return Ok(());
        };
        let end = range.end.min(range.start + bytes);
        let mut found = Vec::new();
        while range.start < end {
            let sink = self.sink.clone();
            let mut window = std::mem::take(&mut self.scratch);
            let here = usize::try_from(end - range.start).unwrap_or(usize::MAX);
            window.resize(here.min(limits::TRANSFER_BATCH), 0);
            sink.read_at(range.start, &mut window)?;
            if let Some(checker) = &mut self.checker {
                checker.feed(range.start, &window, &mut found);
            }
            range.start += window.len() as u64;
            self.scratch = window;
        }
        Ok(())
    }

    /// Copies a block to its place. A source that cannot be read is no harm: the
    /// block is pulled.
    fn copy(
        &mut self,
        index: usize,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Checked> {
        let sink = self.sink.clone();
        let mut check = self.block(index)?;
        let range = check.range();
        let mut at = range.start;
        while at < range.end {
            let window = self.window(range.end - at);
            if read(at - range.start, window).is_err() {
                return Ok(Checked::Bad(index));
            }
            check.feed(window);
            sink.write_at(at, window)?;
            at += window.len() as u64;
        }
        Ok(check.finish())
    }

    fn window(&mut self, left: u64) -> &mut [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX);
        self.scratch.resize(here.min(limits::TRANSFER_BATCH), 0);
        &mut self.scratch
    }
}
