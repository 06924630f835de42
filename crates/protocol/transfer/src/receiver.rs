//! The end that wants the file.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::{Time, limits};

use crate::frame::{Head, Kind};
use crate::manifest::LONGEST;
use crate::{Block, Checked, Digest, Manifest, Ranges, RefusalCode, TransferError};

/// How often a block is pulled before the transfer fails for it: once more than
/// once, since a disk or a memory may have been the reason.
const TIMES: u32 = 2;

/// What names an object at its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// The number under which it is offered.
    pub id: u64,
    /// Bytes of it.
    pub length: u64,
}

impl ObjectRef {
    /// Checks the length.
    ///
    /// # Errors
    /// [`TransferError::Length`] past 2⁶³ − 1.
    pub fn new(id: u64, length: u64) -> Result<Self, TransferError> {
        if length > LONGEST {
            return Err(TransferError::Length {
                announced: LONGEST,
                offered: length,
            });
        }
        Ok(Self { id, length })
    }
}

/// Pulls one object, over one stream or several that follow each other.
///
/// Whoever drives it sends the heads that it gives out, reads each frame's
/// payload where [`Receiver::admit`] says, has the bytes checked by a
/// [`crate::Checker`], and reports back.
#[derive(Debug)]
pub struct Receiver {
    object: ObjectRef,
    idle: Duration,
    transfer: Option<u64>,
    stage: Stage,
    /// What the last offer said; an object does not change.
    offered: Option<(Digest, u64)>,
    /// The manifest's bytes that came, and how many were asked for.
    manifest_bytes: Vec<u8>,
    manifest_asked: u64,
    manifest: Option<Arc<Manifest>>,
    /// Only these bytes, in this order; `None` is all of them.
    only: Option<Vec<Range<u64>>>,
    /// How many of `only` have nothing left to ask for.
    only_done: usize,
    todo: Ranges,
    asked: Ranges,
    /// What is asked, wish by wish as the sender counts them: `asked` makes one
    /// range of those that touch.
    wishes: VecDeque<Range<u64>>,
    /// Blocks that were checked.
    good: Vec<bool>,
    left: usize,
    /// Bad blocks and how often they were pulled.
    bad: BTreeMap<usize, u32>,
    /// Blocks that are copies of one that comes.
    twins: BTreeMap<usize, Vec<usize>>,
    copies: VecDeque<Copy>,
    progress_at: Time,
    waited: u64,
    counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No stream.
    Cut,
    /// Waits for the offer.
    Opening,
    /// Waits for the manifest.
    Manifest,
    /// The manifest is there; [`Receiver::plan`] is due.
    Planning,
    /// Pulls.
    Pulling,
    /// The sender refused or the transfer failed.
    Over,
}

/// What to do with the payload of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Read it whole, then [`Receiver::message`].
    Message,
    /// Bytes of the file at `offset`: read them, have them written and checked,
    /// then [`Receiver::came`].
    Data {
        /// Where they belong.
        offset: u64,
    },
    /// Read it and forget it.
    Drop,
}

/// What a message changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do but [`Receiver::wants`].
    Nothing,
    /// The manifest is complete: [`Receiver::plan`].
    Planning,
}

/// A block that is equal to one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// The block that is there.
    pub from: usize,
    /// The one that is to become its copy.
    pub to: usize,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of the file that came and were taken.
    pub pulled: u64,
    /// Bytes of the manifest that came.
    pub manifest: u64,
    /// Bytes that were there already: from an earlier try, from another file of
    /// the job, or equal to others of this one.
    pub skipped: u64,
    /// Frames of a transfer that was over.
    pub late_frames: u64,
    /// Bytes that were not asked for, or had come before.
    pub surplus: u64,
    /// Blocks that were pulled more than once for being wrong.
    pub bad_blocks: u64,
}

impl Receiver {
    /// Pulls an object; `idle` is how long the peer may send nothing while
    /// something is asked of it.
    ///
    /// # Errors
    /// [`TransferError::Length`] past 2⁶³ − 1.
    pub fn new(object: ObjectRef, idle: Duration) -> Result<Self, TransferError> {
        let object = ObjectRef::new(object.id, object.length)?;
        Ok(Self {
            object,
            idle,
            transfer: None,
            stage: Stage::Cut,
            offered: None,
            manifest_bytes: Vec::new(),
            manifest_asked: 0,
            manifest: None,
            only: None,
            only_done: 0,
            todo: Ranges::default(),
            asked: Ranges::default(),
            wishes: VecDeque::new(),
            good: Vec::new(),
            left: 0,
            bad: BTreeMap::new(),
            twins: BTreeMap::new(),
            copies: VecDeque::new(),
            progress_at: Time::ZERO,
            waited: 0,
            counters: Counters::default(),
        })
    }

    /// Pulls only these bytes, in this order. Blocks are pulled whole, so that
    /// they can be checked. Say so before [`Receiver::plan`].
    #[must_use]
    pub fn only(mut self, ranges: Vec<Range<u64>>) -> Self {
        self.only = Some(ranges);
        self
    }

    /// A manifest that is known from before: it is not pulled again if the
    /// offer is of the same file.
    #[must_use]
    pub fn with_manifest(mut self, manifest: Arc<Manifest>) -> Self {
        self.manifest = Some(manifest);
        self
    }

    /// A new stream: what was asked for on the last one and did not come is
    /// missing again. `transfer` is a number that was not used on this stream.
    /// The head to send.
    pub fn open(&mut self, transfer: u64, now: Time) -> Head {
        self.transfer = Some(transfer);
        self.stage = Stage::Opening;
        self.manifest_asked = self.manifest_bytes.len() as u64;
        self.cut();
        self.stage = Stage::Opening;
        self.progress_at = now;
        self.waited = 0;
        Head::new(Kind::Open, transfer, self.object.id, self.object.length)
    }

    /// The stream is lost.
    pub fn cut(&mut self) {
        for range in std::mem::take(&mut self.asked).iter() {
            self.wish(range);
        }
        self.wishes.clear();
        self.stage = Stage::Cut;
    }

    /// The frame that tells the sender that nothing more is wanted.
    pub fn close(&mut self) -> Option<Head> {
        let value = u64::from(!self.is_complete());
        let transfer = self.transfer.take()?;
        self.cut();
        self.stage = Stage::Over;
        Some(Head::new(Kind::Close, transfer, 0, value))
    }

    /// A frame that tells the sender that the receiver is busy, not gone.
    pub fn wait(&self) -> Option<Head> {
        Some(Head::new(Kind::Wait, self.transfer?, 0, 0))
    }

    /// Asks for up to `room` bytes more; the heads to send, and how many of the
    /// bytes they ask for.
    pub fn wants(&mut self, room: u64, now: Time) -> (Vec<Head>, u64) {
        let Some(transfer) = self.transfer else {
            return (Vec::new(), 0);
        };
        let nothing_asked = !self.is_waiting();
        let mut heads = Vec::new();
        let mut taken = 0;
        match self.stage {
            Stage::Manifest => {
                let length = self.offered.map_or(0, |(_, length)| length);
                let more = room.min(length - self.manifest_asked);
                if more > 0 {
                    let offset = self.manifest_asked;
                    heads.push(Head::new(Kind::WantManifest, transfer, offset, more));
                    self.manifest_asked += more;
                    taken = more;
                }
            }
            // When half of them were answered, as with the bytes of a window.
            Stage::Pulling if self.wishes.len() <= limits::TRANSFER_RANGES / 2 => {
                while taken < room && self.wishes.len() < limits::TRANSFER_RANGES {
                    let Some(range) = self.next_wish(room - taken) else {
                        break;
                    };
                    let length = range.end - range.start;
                    heads.push(Head::new(Kind::Want, transfer, range.start, length));
                    taken += length;
                    self.todo.remove(range.clone());
                    self.asked.insert(range.clone());
                    self.wishes.push_back(range);
                }
            }
            _ => {}
        }
        if nothing_asked && taken > 0 {
            self.progress_at = now;
        }
        (heads, taken)
    }

    fn next_wish(&mut self, room: u64) -> Option<Range<u64>> {
        let found = match &self.only {
            None => self.todo.first()?,
            Some(order) => loop {
                let range = order.get(self.only_done)?;
                match self.todo.first_from(range.start) {
                    Some(first) if first.start < range.end => {
                        break first.start..first.end.min(range.end);
                    }
                    _ => self.only_done += 1,
                }
            },
        };
        Some(found.start..found.end.min(found.start + room))
    }

    /// These bytes are to be asked for, again.
    fn wish(&mut self, range: Range<u64>) {
        self.todo.insert(range);
        self.only_done = 0;
    }

    /// Bytes that were asked for and have not come.
    pub fn asked(&self) -> u64 {
        match self.stage {
            Stage::Manifest => self.manifest_asked - self.manifest_bytes.len() as u64,
            _ => self.asked.bytes(),
        }
    }

    /// Whether there is more to ask for.
    pub fn has_wishes(&self) -> bool {
        match self.stage {
            Stage::Manifest => self
                .offered
                .is_some_and(|(_, length)| self.manifest_asked < length),
            Stage::Pulling => !self.todo.is_empty(),
            _ => false,
        }
    }

    /// Looks at a frame's head, before its payload is read.
    ///
    /// # Errors
    /// [`TransferError`]; the stream is of no use after one.
    pub fn admit(&mut self, head: &Head) -> Result<Admit, TransferError> {
        if Some(head.transfer) != self.transfer || matches!(self.stage, Stage::Cut | Stage::Over) {
            self.counters.late_frames += 1;
            return self.surplus(head);
        }
        match head.kind {
            Kind::Offer | Kind::Refused | Kind::Wait | Kind::Manifest => Ok(Admit::Message),
            Kind::Data => {
                let (offset, length) = (head.offset, u64::from(head.payload));
                let total = self.object.length;
                let end = offset.checked_add(length).filter(|end| *end <= total);
                let Some(end) = end.filter(|_| length > 0) else {
                    return Err(TransferError::Range {
                        what: "file",
                        offset,
                        length,
                        total,
                    });
                };
                if self.asked.covers(&(offset..end)) {
                    Ok(Admit::Data { offset })
                } else {
                    self.surplus(head)
                }
            }
            kind => Err(TransferError::unexpected(format!(
                "a frame {kind:?}, which only a receiver sends"
            ))),
        }
    }

    fn surplus(&mut self, head: &Head) -> Result<Admit, TransferError> {
        let surplus = &mut self.counters.surplus;
        *surplus = surplus.saturating_add(u64::from(head.payload));
        if *surplus > limits::TRANSFER_SURPLUS {
            return Err(TransferError::Surplus { bytes: *surplus });
        }
        Ok(Admit::Drop)
    }

    /// Takes a whole message.
    ///
    /// # Errors
    /// [`TransferError`]; the stream is of no use after one.
    pub fn message(
        &mut self,
        head: &Head,
        payload: &[u8],
        now: Time,
    ) -> Result<Event, TransferError> {
        match head.kind {
            Kind::Offer => self.offer(head, payload, now),
            Kind::Manifest => self.manifest_part(head, payload, now),
            Kind::Refused => {
                self.stage = Stage::Over;
                let sentence = String::from_utf8_lossy(payload);
                let sentence = sentence
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                Err(TransferError::Refused {
                    code: RefusalCode::parse(head.value),
                    sentence,
                })
            }
            Kind::Wait => {
                // Only a sender that gets on with its manifest makes progress.
                if self.stage == Stage::Opening && head.value > self.waited {
                    self.waited = head.value;
                    self.progress_at = now;
                }
                Ok(Event::Nothing)
            }
            kind => Err(TransferError::unexpected(format!(
                "a frame {kind:?} as a message"
            ))),
        }
    }

    fn offer(&mut self, head: &Head, payload: &[u8], now: Time) -> Result<Event, TransferError> {
        if self.stage != Stage::Opening {
            return Err(TransferError::unexpected("a second offer"));
        }
        let Some(root) = Digest::from_slice(payload) else {
            return Err(TransferError::frame("an offer without a digest".into()));
        };
        if head.value != self.object.length {
            return Err(TransferError::Length {
                announced: self.object.length,
                offered: head.value,
            });
        }
        let length = head.offset;
        let longest = Manifest::longest(self.object.length);
        if length > longest || length == 0 {
            return Err(TransferError::TooMuch {
                what: "bytes of manifest",
                asked: length,
                limit: longest,
            });
        }
        if self.offered.is_some_and(|before| before != (root, length)) {
            return Err(TransferError::Replaced);
        }
        self.offered = Some((root, length));
        self.progress_at = now;
        if self.manifest.as_ref().is_some_and(|m| m.root() == root) {
            self.check_total()?;
            let planned = !self.good.is_empty() || self.object.length == 0;
            if planned && self.manifest_bytes.is_empty() && self.planned() {
                self.stage = Stage::Pulling;
                return Ok(Event::Nothing);
            }
            self.stage = Stage::Planning;
            return Ok(Event::Planning);
        }
        self.manifest = None;
        self.stage = Stage::Manifest;
        Ok(Event::Nothing)
    }

    /// The digest of the offered file while its manifest is missing: whoever has
    /// that manifest gives it to [`Receiver::found`], and it need not travel.
    pub fn missing_manifest(&self) -> Option<Digest> {
        let (root, _) = self.offered?;
        (self.stage == Stage::Manifest && self.manifest_bytes.is_empty()).then_some(root)
    }

    /// The manifest that [`Receiver::missing_manifest`] speaks of was here.
    ///
    /// # Errors
    /// [`TransferError::Length`] when it is of a file of another length.
    pub fn found(&mut self, manifest: Arc<Manifest>) -> Result<Event, TransferError> {
        if self.missing_manifest() != Some(manifest.root()) {
            return Ok(Event::Nothing);
        }
        self.manifest = Some(manifest);
        self.check_total()?;
        self.stage = Stage::Planning;
        Ok(Event::Planning)
    }

    /// The offered file is as long as its manifest says.
    fn check_total(&self) -> Result<(), TransferError> {
        match self.manifest.as_ref().map(|manifest| manifest.total()) {
            Some(total) if total != self.object.length => Err(TransferError::Length {
                announced: self.object.length,
                offered: total,
            }),
            _ => Ok(()),
        }
    }

    fn planned(&self) -> bool {
        let blocks = self.manifest.as_ref().map_or(0, |m| m.block_count());
        self.good.len() == blocks
    }

    fn manifest_part(
        &mut self,
        head: &Head,
        payload: &[u8],
        now: Time,
    ) -> Result<Event, TransferError> {
        let here = self.manifest_bytes.len() as u64;
        let asked = self.manifest_asked - here;
        // Out of order or twice: as good as lost.
        if self.stage != Stage::Manifest
            || head.offset != here
            || payload.len() as u64 > asked
            || payload.is_empty()
        {
            self.surplus(head)?;
            return Ok(Event::Nothing);
        }
        self.manifest_bytes.extend_from_slice(payload);
        self.counters.manifest += payload.len() as u64;
        self.progress_at = now;
        let Some((root, length)) = self.offered else {
            return Err(TransferError::unexpected("a manifest that is not offered"));
        };
        if (self.manifest_bytes.len() as u64) < length {
            return Ok(Event::Nothing);
        }
        let bytes = std::mem::take(&mut self.manifest_bytes);
        let manifest = Manifest::decode(bytes.into(), &root)?;
        if manifest.total() != self.object.length {
            return Err(TransferError::Length {
                announced: self.object.length,
                offered: manifest.total(),
            });
        }
        self.manifest = Some(Arc::new(manifest));
        self.stage = Stage::Planning;
        Ok(Event::Planning)
    }

    /// The manifest, once it is there.
    pub fn manifest(&self) -> Option<&Arc<Manifest>> {
        self.manifest.as_ref()
    }

    /// Decides what to pull, once the manifest is there: not what `here` says is
    /// on its way without the peer (checked again, or copied from another file),
    /// and of blocks that are equal only the first. For each block that `here`
    /// says is, report [`Receiver::checked`].
    pub fn plan(&mut self, mut here: impl FnMut(usize, &Block) -> bool) {
        let Some(manifest) = self.manifest.clone() else {
            return;
        };
        self.good = vec![false; manifest.block_count()];
        self.left = 0;
        self.todo = Ranges::default();
        self.asked = Ranges::default();
        self.wishes.clear();
        self.twins.clear();
        self.copies.clear();
        // Whole blocks in the order asked for: a block is of use once it is checked.
        for range in self
            .only
            .iter_mut()
            .flatten()
            .filter(|range| !range.is_empty())
        {
            let block = |at: u64| manifest.block_at(at).and_then(|at| manifest.block(at));
            let (first, last) = (block(range.start), block(range.end - 1));
            range.start = first.map_or(range.start, |block| block.range().start);
            range.end = last.map_or(range.end, |block| block.range().end);
        }
        let only: Option<Ranges> = self
            .only
            .as_ref()
            .map(|list| list.iter().cloned().collect());
        let mut first: HashMap<Digest, usize> = HashMap::new();
        for (index, block) in manifest.blocks_from(0).enumerate() {
            let range = block.range();
            let wanted = only.as_ref().is_none_or(|only| {
                only.first_from(range.start)
                    .is_some_and(|next| next.start < range.end)
            });
            if !wanted {
                if let Some(good) = self.good.get_mut(index) {
                    *good = true;
                }
                continue;
            }
            self.left += 1;
            if here(index, &block) {
                continue;
            }
            // Whoever wants an order reads once and keeps nothing to copy from.
            if only.is_none() && block.length >= limits::TRANSFER_SKIP {
                let twin = *first.entry(block.digest).or_insert(index);
                if twin != index {
                    self.twins.entry(twin).or_default().push(index);
                    continue;
                }
            }
            self.todo.insert(range);
        }
        self.stage = Stage::Pulling;
    }

    /// Bytes of a block's start that are there and were fed to the checker: the
    /// rest of it is pulled. Say so right after [`Receiver::plan`].
    pub fn has_start(&mut self, index: usize, bytes: u64) {
        if let Some(block) = self.manifest.as_ref().and_then(|m| m.block(index)) {
            let had = bytes.min(block.length);
            self.todo.remove(block.offset..block.offset + had);
            self.counters.skipped += had;
        }
    }

    /// Bytes of an admitted frame came: all of its payload, or what came of it
    /// before the stream was cut.
    pub fn came(&mut self, offset: u64, length: u64, now: Time) {
        if length > 0 {
            self.asked.remove(offset..offset.saturating_add(length));
            // They are answered in their order.
            while let Some(wish) = self.wishes.front()
                && self
                    .asked
                    .first_from(wish.start)
                    .is_none_or(|left| left.start >= wish.end)
            {
                self.wishes.pop_front();
            }
            self.counters.pulled += length;
            self.progress_at = now;
        }
    }

    /// What a check found. A block that is [`Checked::Again`] is to be read back.
    ///
    /// # Errors
    /// [`TransferError::Damaged`] when a block was wrong too often.
    pub fn checked(&mut self, found: Checked) -> Result<(), TransferError> {
        match found {
            Checked::Again(_) => Ok(()),
            Checked::Good(index) => {
                self.good_block(index);
                Ok(())
            }
            Checked::Bad(index) => self.bad_block(index),
        }
    }

    /// A block that was said to be here is not: it is pulled.
    pub fn missing(&mut self, index: usize) {
        if let Some(block) = self.manifest.as_ref().and_then(|m| m.block(index)) {
            self.wish(block.range());
        }
    }

    /// A block that was there already is right.
    pub fn had(&mut self, index: usize) {
        if let Some(block) = self.manifest.as_ref().and_then(|m| m.block(index)) {
            self.counters.skipped += block.length;
            self.good_block(index);
        }
    }

    fn good_block(&mut self, index: usize) {
        if let Some(good) = self.good.get_mut(index)
            && !*good
        {
            *good = true;
            self.left -= 1;
            for to in self.twins.remove(&index).unwrap_or_default() {
                self.copies.push_back(Copy { from: index, to });
            }
        }
    }

    fn bad_block(&mut self, index: usize) -> Result<(), TransferError> {
        let Some(manifest) = self.manifest.clone() else {
            return Ok(());
        };
        let Some(block) = manifest.block(index) else {
            return Ok(());
        };
        let times = self.bad.entry(index).or_default();
        *times += 1;
        self.counters.bad_blocks += 1;
        if *times >= TIMES {
            return Err(TransferError::Damaged {
                start: block.offset,
                end: block.offset + block.length,
                part: manifest.part_name(block.offset),
                times: *times,
            });
        }
        self.wish(block.range());
        Ok(())
    }

    /// The next block to copy within the file; report it as [`Receiver::had`], or
    /// as [`Receiver::missing`].
    pub fn next_copy(&mut self) -> Option<Copy> {
        self.copies.pop_front()
    }

    /// Whether every wanted block is there and was checked.
    pub fn is_complete(&self) -> bool {
        self.left == 0 && self.manifest.is_some() && self.planned() && self.asked.is_empty()
    }

    /// Whether something is asked of the peer.
    fn is_waiting(&self) -> bool {
        match self.stage {
            Stage::Opening => true,
            Stage::Manifest | Stage::Pulling => self.asked() > 0,
            Stage::Cut | Stage::Planning | Stage::Over => false,
        }
    }

    /// When to call [`Receiver::check_idle`].
    pub fn next_wakeup(&self) -> Option<Time> {
        self.is_waiting().then(|| self.progress_at + self.idle)
    }

    /// Whether the peer has been silent for too long.
    ///
    /// # Errors
    /// [`TransferError::Idle`] when it has.
    pub fn check_idle(&self, now: Time) -> Result<(), TransferError> {
        let silent = now - self.progress_at;
        if self.is_waiting() && silent >= self.idle {
            return Err(TransferError::Idle {
                seconds: silent.as_secs(),
            });
        }
        Ok(())
    }

    /// The peer sends, if slowly: bytes of a frame that is not complete.
    pub fn alive(&mut self, now: Time) {
        self.progress_at = now;
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of the object.
    pub fn object(&self) -> ObjectRef {
        self.object
    }
}
