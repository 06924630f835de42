//! The end that has the file.

use std::collections::VecDeque;
use std::sync::Arc;

use firesteel_base::limits;

use crate::frame::{Head, Kind};
use crate::{Digest, Manifest, ObjectRef, Ranges, RefusalCode, TransferError};

/// Serves one stream: answers with offers, and says which bytes to send next.
/// Transfers follow each other on it; the newest one counts.
#[derive(Debug, Default)]
pub struct Sender {
    transfer: Option<u64>,
    object: Option<ObjectRef>,
    manifest: Option<Arc<Manifest>>,
    wanted: VecDeque<(WorkKind, u64, u64)>,
    /// What of the file waits in `wanted`.
    waiting: Ranges,
    waiting_manifest: u64,
    late: u64,
}

/// What a frame of the receiver asks of whoever drives the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderEvent {
    /// Find the object and [`Sender::offer`] it, or [`Sender::refuse`].
    Open(ObjectRef),
    /// There is more to send: [`Sender::next`].
    Want,
    /// The receiver wants nothing more: it has everything, or gave up.
    Close {
        /// It has everything.
        complete: bool,
    },
    /// Nothing to do.
    Nothing,
}

/// What a frame to send carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// Bytes of the encoded manifest.
    Manifest,
    /// Bytes of the file.
    Data,
}

/// One frame to send: its head, behind which go `head.payload` bytes from
/// `head.offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bytes of what.
    pub kind: WorkKind,
    /// The frame's head.
    pub head: Head,
}

impl Sender {
    /// Waits for a receiver.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a frame of the receiver. Frames of a transfer that is over are
    /// counted and otherwise ignored.
    ///
    /// # Errors
    /// [`TransferError`] when the receiver asks for what it may not.
    pub fn handle(&mut self, head: &Head) -> Result<SenderEvent, TransferError> {
        if head.kind == Kind::Open {
            let object = ObjectRef::new(head.offset, head.value)?;
            *self = Self {
                transfer: Some(head.transfer),
                object: Some(object),
                late: self.late,
                ..Self::default()
            };
            return Ok(SenderEvent::Open(object));
        }
        if Some(head.transfer) != self.transfer {
            self.late += 1;
            return Ok(SenderEvent::Nothing);
        }
        match head.kind {
            Kind::Want => self.want(WorkKind::Data, head),
            Kind::WantManifest => self.want(WorkKind::Manifest, head),
            Kind::Close => {
                self.end();
                let complete = head.value == 0;
                Ok(SenderEvent::Close { complete })
            }
            Kind::Wait => Ok(SenderEvent::Nothing),
            kind => Err(TransferError::unexpected(format!(
                "a frame {kind:?}, which only a sender sends"
            ))),
        }
    }

    fn want(&mut self, kind: WorkKind, head: &Head) -> Result<SenderEvent, TransferError> {
        let Some(manifest) = &self.manifest else {
            return Err(TransferError::unexpected(
                "a wish before it was offered anything",
            ));
        };
        let (what, total) = match kind {
            WorkKind::Data => ("file", manifest.total()),
            WorkKind::Manifest => ("manifest", manifest.encoded().len() as u64),
        };
        let (offset, length) = (head.offset, head.value);
        let end = offset.checked_add(length).filter(|end| *end <= total);
        let Some(end) = end.filter(|_| length > 0) else {
            return Err(TransferError::Range {
                what,
                offset,
                length,
                total,
            });
        };
        let waiting = match kind {
            WorkKind::Data => {
                if self
                    .waiting
                    .first_from(offset)
                    .is_some_and(|r| r.start < end)
                {
                    return Err(TransferError::unexpected(
                        "a wish for bytes that it waits for already",
                    ));
                }
                self.waiting.insert(offset..end);
                self.waiting.bytes()
            }
            WorkKind::Manifest => {
                self.waiting_manifest = self.waiting_manifest.saturating_add(length);
                self.waiting_manifest
            }
        };
        let ranges = self.wanted.len() as u64 + 1;
        for (what, asked, limit) in [
            ("bytes", waiting, limits::TRANSFER_WINDOW),
            ("ranges", ranges, limits::TRANSFER_RANGES as u64),
        ] {
            if asked > limit {
                return Err(TransferError::TooMuch { what, asked, limit });
            }
        }
        self.wanted.push_back((kind, offset, length));
        Ok(SenderEvent::Want)
    }

    /// The object that is being pulled.
    pub fn object(&self) -> Option<ObjectRef> {
        self.object
    }

    /// Offers a file to the transfer that was opened last; the frame to send.
    pub fn offer(&mut self, manifest: Arc<Manifest>) -> (Head, Digest) {
        let root = manifest.root();
        let mut head = self.head(
            Kind::Offer,
            manifest.encoded().len() as u64,
            manifest.total(),
        );
        head.payload = Digest::BYTES as u32;
        self.manifest = Some(manifest);
        (head, root)
    }

    /// Refuses, or ends, the transfer that was opened last; the frame to send.
    pub fn refuse(&mut self, code: RefusalCode, sentence: &str) -> (Head, Vec<u8>) {
        let cut = sentence.floor_char_boundary(limits::REFUSAL);
        let sentence = sentence.get(..cut).unwrap_or_default();
        let mut head = self.head(Kind::Refused, 0, code.code());
        head.payload = sentence.len() as u32;
        self.end();
        (head, sentence.as_bytes().to_vec())
    }

    /// A frame that says: still there, and so many bytes read for the manifest.
    pub fn wait(&self, read: u64) -> Head {
        self.head(Kind::Wait, 0, read)
    }

    /// The next frame to send, of at most `most` bytes of payload.
    pub fn next(&mut self, most: usize) -> Option<Work> {
        let most = most.clamp(1, limits::TRANSFER_PAYLOAD) as u64;
        let (kind, offset, length) = self.wanted.front_mut()?;
        let (kind, start, taken) = (*kind, *offset, most.min(*length));
        *offset += taken;
        *length -= taken;
        if *length == 0 {
            self.wanted.pop_front();
        }
        let frame = match kind {
            WorkKind::Data => {
                self.waiting.remove(start..start + taken);
                Kind::Data
            }
            WorkKind::Manifest => {
                self.waiting_manifest -= taken;
                Kind::Manifest
            }
        };
        let mut head = self.head(frame, start, 0);
        head.payload = taken as u32;
        Some(Work { kind, head })
    }

    /// Whether there is nothing to send now.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Frames of transfers that were over when they came.
    pub fn late(&self) -> u64 {
        self.late
    }

    fn head(&self, kind: Kind, offset: u64, value: u64) -> Head {
        Head::new(kind, self.transfer.unwrap_or(0), offset, value)
    }

    fn end(&mut self) {
        *self = Self {
            late: self.late,
            ..Self::default()
        };
    }
}
