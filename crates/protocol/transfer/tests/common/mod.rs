//! A sender and a receiver, and whatever happens between them.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::Time;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};
use firesteel_transfer::frame::{HEAD, Head};
use firesteel_transfer::{
    Admit, Checked, Checker, Event, Layout, Manifest, ManifestBuilder, ObjectRef, Receiver, Sender,
    SenderEvent, TransferError, WorkKind,
};

pub const IDLE: Duration = Duration::from_secs(60);

pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A model file of `u8` tensors; those of the same length and `twin` are equal.
pub fn model(lengths: &[(usize, u64)]) -> (Vec<u8>, ModelHeader) {
    let mut builder = HeaderBuilder::new();
    for (at, (length, _)) in lengths.iter().enumerate() {
        builder.tensor(&format!("t{at}"), DType::U8, &[*length as u64]);
    }
    let (mut bytes, header) = builder.encode().unwrap();
    for (length, twin) in lengths {
        bytes.extend(noise(*length, *twin));
    }
    (bytes, header)
}

pub fn manifest(bytes: &[u8], layout: Layout) -> Arc<Manifest> {
    let mut builder = ManifestBuilder::new(layout);
    builder.feed(bytes);
    Arc::new(builder.finish().unwrap())
}

/// One frame with its payload.
#[derive(Clone)]
pub struct Frame {
    pub head: Head,
    pub payload: Vec<u8>,
}

/// The sender's end, with the file in memory.
pub struct Source {
    pub bytes: Vec<u8>,
    pub manifest: Arc<Manifest>,
    pub sender: Sender,
}

impl Source {
    pub fn new(bytes: Vec<u8>, manifest: Arc<Manifest>) -> Self {
        Self {
            bytes,
            manifest,
            sender: Sender::new(),
        }
    }

    /// Takes a frame; the answer, if there is one at once.
    pub fn handle(&mut self, head: &Head) -> Result<Option<Frame>, TransferError> {
        let head = &Head::decode(&head.encode())?;
        Ok(match self.sender.handle(head)? {
            SenderEvent::Open(_) => {
                let (head, root) = self.sender.offer(self.manifest.clone());
                Some(Frame {
                    head,
                    payload: root.0.to_vec(),
                })
            }
            _ => None,
        })
    }

    pub fn next(&mut self, most: usize) -> Option<Frame> {
        let work = self.sender.next(most)?;
        let start = work.head.offset as usize;
        let end = start + work.head.payload as usize;
        let payload = match work.kind {
            WorkKind::Data => self.bytes[start..end].to_vec(),
            WorkKind::Manifest => self.manifest.encoded()[start..end].to_vec(),
        };
        Some(Frame {
            head: work.head,
            payload,
        })
    }
}

/// The receiver's end, with what came in memory.
pub struct Target {
    pub receiver: Receiver,
    pub checker: Option<Checker>,
    pub bytes: Vec<u8>,
    /// What a new stream's transfers are numbered from.
    pub next_transfer: u64,
    pub now: Time,
}

impl Target {
    pub fn new(length: u64) -> Self {
        let object = ObjectRef::new(7, length).unwrap();
        Self {
            receiver: Receiver::new(object, IDLE).unwrap(),
            checker: None,
            bytes: vec![0xaa; length as usize],
            next_transfer: 1,
            now: Time::ZERO,
        }
    }

    pub fn open(&mut self) -> Head {
        self.next_transfer += 1;
        self.receiver.open(self.next_transfer, self.now)
    }

    /// Takes as much of a frame as came.
    pub fn handle(&mut self, frame: &Frame, came: usize) -> Result<(), TransferError> {
        let head = Head::decode(&frame.head.encode())?;
        assert!(frame.payload.len() == head.payload as usize && frame.head.encode().len() == HEAD);
        match self.receiver.admit(&head)? {
            Admit::Drop => {}
            Admit::Message if came < frame.payload.len() => {}
            Admit::Message => {
                if self.receiver.message(&head, &frame.payload, self.now)? == Event::Planning {
                    self.plan(|_| false);
                }
            }
            Admit::Data { offset } => {
                let piece = &frame.payload[..came];
                let start = offset as usize;
                self.bytes[start..start + came].copy_from_slice(piece);
                self.receiver.came(offset, came as u64, self.now);
                let mut found = Vec::new();
                if let Some(checker) = &mut self.checker {
                    checker.feed(offset, piece, &mut found);
                }
                for checked in found {
                    self.checked(checked)?;
                }
            }
        }
        Ok(())
    }

    /// The manifest is there; `here` says which blocks' bytes are in place.
    pub fn plan(&mut self, here: impl Fn(usize) -> bool) {
        let manifest = self.receiver.manifest().unwrap().clone();
        let checker = Checker::new(manifest.clone());
        let mut local = Vec::new();
        self.receiver.plan(|index, _| {
            if here(index) {
                local.push(index);
            }
            here(index)
        });
        for index in local {
            let mut check = checker.block(index).unwrap();
            let range = check.range();
            check.feed(&self.bytes[range.start as usize..range.end as usize]);
            match check.finish() {
                Checked::Good(_) => self.receiver.had(index),
                _ => self.receiver.missing(index),
            }
        }
        self.checker = Some(checker);
        self.copies();
    }

    fn checked(&mut self, mut checked: Checked) -> Result<(), TransferError> {
        if let Checked::Again(index) = checked {
            let mut check = self.checker.as_ref().unwrap().block(index).unwrap();
            let range = check.range();
            check.feed(&self.bytes[range.start as usize..range.end as usize]);
            checked = check.finish();
        }
        self.receiver.checked(checked)?;
        self.copies();
        Ok(())
    }

    fn copies(&mut self) {
        while let Some(copy) = self.receiver.next_copy() {
            let checker = self.checker.as_ref().unwrap();
            let from = checker.block(copy.from).unwrap().range();
            let mut check = checker.block(copy.to).unwrap();
            let piece = self.bytes[from.start as usize..from.end as usize].to_vec();
            check.feed(&piece);
            let to = check.range();
            self.bytes[to.start as usize..to.end as usize].copy_from_slice(&piece);
            match check.finish() {
                Checked::Good(index) => self.receiver.had(index),
                _ => self.receiver.missing(copy.to),
            }
        }
    }
}

/// A whole transfer over a perfect stream.
pub fn transfer(source: &mut Source, target: &mut Target) -> Result<(), TransferError> {
    let mut wire = VecDeque::new();
    let open = target.open();
    wire.extend(source.handle(&open)?);
    loop {
        if target.receiver.is_complete() {
            return Ok(());
        }
        let (wishes, _) = target.receiver.wants(1 << 20, target.now);
        for head in &wishes {
            wire.extend(source.handle(head)?);
        }
        wire.extend(source.next(usize::MAX));
        let Some(frame) = wire.pop_front() else {
            panic!("both wait for each other: {:?}", target.receiver);
        };
        target.handle(&frame, frame.payload.len())?;
    }
}
