//! What a file holds, part by part, so that each can be checked by itself.

mod build;
mod codec;

use std::ops::Range;
use std::sync::Arc;

use firesteel_base::limits;
use firesteel_tensor::ModelHeader;
use firesteel_tensor::facts::Facts;

use crate::digest::{self, Place};
use crate::{Digest, ManifestError};

pub use build::{Layout, ManifestBuilder};

/// No file is longer.
pub(crate) const LONGEST: u64 = i64::MAX as u64;

/// What one immutable file holds.
///
/// The parts are, in the order of the file: for a model its head (the bytes
/// before the tensors' data), then each tensor; for any other file the whole of
/// it. They lie one behind the other, so a manifest cannot describe parts that
/// overlap or leave a hole.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    total: u64,
    /// The parts, the head included.
    parts: Vec<Part>,
    /// Of all parts, part by part.
    blocks: Vec<Digest>,
    model: bool,
    encoded: Arc<[u8]>,
    root: Digest,
}

/// One part of a file: a model's head, a tensor, or a whole plain file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Where it starts in the file.
    pub offset: u64,
    /// Bytes of it.
    pub length: u64,
    /// What the sender says of its numbers.
    pub facts: Facts,
    /// Its first block's place among all.
    first_block: u32,
}

/// A piece of a part that has a digest of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Where it starts in the file.
    pub offset: u64,
    /// Bytes of it, never none.
    pub length: u64,
    /// Of its bytes, where they lie in the part.
    pub digest: Digest,
    pub(crate) place: Place,
}

impl Block {
    /// Its bytes in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }

    /// Whether the bytes of this block are `bytes`.
    pub fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.length && digest::of_block(self.place, bytes) == self.digest
    }
}

impl Manifest {
    /// Reads a manifest whose bytes were offered under `root`.
    ///
    /// # Errors
    /// [`ManifestError`] unless it is one, whole, and in its only encoding.
    pub fn decode(bytes: Arc<[u8]>, root: &Digest) -> Result<Self, ManifestError> {
        codec::decode(bytes, root)
    }

    /// The longest manifest that a file of `total` bytes can have.
    pub fn longest(total: u64) -> u64 {
        // A tensor takes more bytes of a model's header than of its manifest.
        limits::MANIFEST.min(total.saturating_add(64 * 1024))
    }

    /// Its bytes, as they travel.
    pub fn encoded(&self) -> &Arc<[u8]> {
        &self.encoded
    }

    /// The digest of its bytes: files with the same one are the same.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// Bytes of the file.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether it is of a model, and not of any other file.
    pub fn is_model(&self) -> bool {
        self.model
    }

    /// Bytes before a model's data; 0 for other files.
    pub fn head(&self) -> u64 {
        match self.parts.first() {
            Some(head) if self.model => head.length,
            _ => 0,
        }
    }

    /// Every part, a model's head included.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The tensors of a model, in the order of their bytes; none of other files.
    pub fn tensors(&self) -> &[Part] {
        match self.parts.split_first() {
            Some((_, tensors)) if self.model => tensors,
            _ => &[],
        }
    }

    /// What the sender says of each tensor, in the order of
    /// [`ModelHeader::tensors`]; the manifest must fit the header.
    pub fn facts(&self, header: &ModelHeader) -> Vec<Facts> {
        let mut order: Vec<usize> = (0..header.tensors().len()).collect();
        let place = |at: &usize| header.tensors().get(*at).map(|t| (t.start, t.end));
        order.sort_by_key(place);
        let mut facts = vec![
            Facts {
                finite: false,
                norm: 0.0
            };
            order.len()
        ];
        for (at, part) in order.into_iter().zip(self.tensors()) {
            if let Some(place) = facts.get_mut(at) {
                *place = part.facts;
            }
        }
        facts
    }

    /// The digest of a part's bytes.
    pub fn digest(&self, part: &Part) -> Digest {
        let first = part.first_block as usize;
        let count = block_count(part.length);
        digest::of_part(self.blocks.get(first..first + count).unwrap_or(&[]))
    }

    /// How many blocks the file has.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The block at a place, first to last.
    pub fn block(&self, index: usize) -> Option<Block> {
        let digest = *self.blocks.get(index)?;
        let index = index as u64;
        // The last part that starts at or before this block and has one.
        let at = self
            .parts
            .partition_point(|part| u64::from(part.first_block) <= index);
        let part = self.parts.get(at.checked_sub(1)?)?;
        Some(block_of(part, index - u64::from(part.first_block), digest))
    }

    /// The blocks from a place on.
    pub fn blocks_from(&self, index: usize) -> impl Iterator<Item = Block> + '_ {
        let mut index = index;
        let mut part = self
            .parts
            .partition_point(|part| part.first_block as usize <= index)
            .saturating_sub(1);
        std::iter::from_fn(move || {
            let digest = *self.blocks.get(index)?;
            loop {
                let here = self.parts.get(part)?;
                let within = (index as u64).checked_sub(u64::from(here.first_block))?;
                if within < block_count(here.length) as u64 {
                    index += 1;
                    return Some(block_of(here, within, digest));
                }
                part += 1;
            }
        })
    }

    /// The place of the block that holds the byte at `offset`.
    pub fn block_at(&self, offset: u64) -> Option<usize> {
        if offset >= self.total {
            return None;
        }
        // Empty parts start where the next one does, so the last that starts at
        // or before a byte of the file holds it.
        let at = self.parts.partition_point(|part| part.offset <= offset);
        let part = self.parts.get(at.checked_sub(1)?)?;
        let within = (offset - part.offset) / limits::TRANSFER_BLOCK;
        Some(part.first_block as usize + usize::try_from(within).ok()?)
    }

    /// What to call the part that a byte is in, for a person.
    pub fn part_name(&self, offset: u64) -> String {
        let at = self.parts.partition_point(|part| part.offset <= offset);
        match (self.model, at.saturating_sub(1)) {
            (false, _) => "the file".into(),
            (true, 0) => "the model's header".into(),
            (true, number) => format!("tensor {number} of {}", self.parts.len() - 1),
        }
    }

    /// Checks that it is of the model with this header: as many tensors, of the
    /// same lengths at the same places.
    ///
    /// # Errors
    /// [`ManifestError::Misfit`].
    pub fn fits(&self, header: &ModelHeader) -> Result<(), ManifestError> {
        let misfit = |what: String| Err(ManifestError::Misfit { what });
        if !self.model {
            return misfit("it is of a plain file".into());
        }
        if self.head() != header.data_start() {
            return misfit(format!(
                "the data starts at byte {}, not {}",
                header.data_start(),
                self.head()
            ));
        }
        let order = header.data_order();
        if order.len() != self.tensors().len() {
            return misfit(format!(
                "the model has {} tensors, not {}",
                order.len(),
                self.tensors().len()
            ));
        }
        for (tensor, part) in order.iter().zip(self.tensors()) {
            if header.data_start() + tensor.start != part.offset || tensor.size() != part.length {
                let name = firesteel_tensor::text::shown(&tensor.name);
                return misfit(format!("tensor `{name}` lies elsewhere"));
            }
        }
        Ok(())
    }

    /// Puts the index together. Lengths were checked to add up to `total`.
    fn assemble(
        total: u64,
        model: bool,
        parts: Vec<(u64, Facts)>,
        blocks: Vec<Digest>,
        encoded: Arc<[u8]>,
    ) -> Self {
        let mut offset = 0;
        let mut first_block = 0u32;
        let parts = parts
            .into_iter()
            .map(|(length, facts)| {
                let part = Part {
                    offset,
                    length,
                    facts,
                    first_block,
                };
                offset += length;
                let count = u32::try_from(block_count(length));
                first_block += count.expect("a manifest of 256 MiB has fewer blocks");
                part
            })
            .collect();
        let root = Digest::of(&encoded);
        Self {
            total,
            parts,
            blocks,
            model,
            encoded,
            root,
        }
    }
}

/// Blocks of a part of so many bytes.
fn block_count(length: u64) -> usize {
    usize::try_from(length.div_ceil(limits::TRANSFER_BLOCK)).unwrap_or(usize::MAX)
}

fn block_of(part: &Part, within: u64, digest: Digest) -> Block {
    let start = within * limits::TRANSFER_BLOCK;
    Block {
        offset: part.offset + start,
        length: (part.length - start).min(limits::TRANSFER_BLOCK),
        digest,
        place: if part.length <= limits::TRANSFER_BLOCK {
            Place::Whole
        } else {
            Place::At(start)
        },
    }
}
