//! Makes a manifest from a file's bytes, fed first to last.

use firesteel_base::limits;
use firesteel_tensor::facts::{Facts, FactsBuilder};
use firesteel_tensor::{DType, ModelHeader};

use super::{LONGEST, Manifest, codec};
use crate::digest::{BlockHasher, Place, of_block};
use crate::{Digest, ManifestError};

/// Where the parts of a file lie, before its bytes are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    total: u64,
    model: bool,
    /// In the order of the file; a dtype where there are numbers to look at.
    parts: Vec<(u64, Option<DType>)>,
}

impl Layout {
    /// Of a model file.
    pub fn of_model(header: &ModelHeader) -> Self {
        let tensors = header.data_order();
        let mut parts = Vec::with_capacity(1 + tensors.len());
        parts.push((header.data_start(), None));
        parts.extend(tensors.iter().map(|t| (t.size(), Some(t.dtype))));
        Self {
            total: header.total_len(),
            model: true,
            parts,
        }
    }

    /// Of any other file of `total` bytes.
    ///
    /// # Errors
    /// [`ManifestError::Length`] past 2⁶³ − 1.
    pub fn of_file(total: u64) -> Result<Self, ManifestError> {
        if total > LONGEST {
            return Err(ManifestError::Length { length: total });
        }
        Ok(Self {
            total,
            model: false,
            parts: vec![(total, None)],
        })
    }

    /// Bytes of the file.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// Makes a [`Manifest`]: feed it the whole file in order, in pieces of any size.
#[derive(Clone)]
pub struct ManifestBuilder {
    layout: Layout,
    fed: u64,
    /// The part that the next byte belongs to, and how many of its bytes came.
    part: usize,
    within: u64,
    hasher: Option<BlockHasher>,
    numbers: Option<FactsBuilder>,
    facts: Vec<Facts>,
    blocks: Vec<Digest>,
}

/// What is said of a part that has no numbers.
const NO_NUMBERS: Facts = Facts {
    finite: true,
    norm: 0.0,
};

impl ManifestBuilder {
    /// Nothing fed yet.
    pub fn new(layout: Layout) -> Self {
        Self {
            facts: Vec::with_capacity(layout.parts.len()),
            layout,
            fed: 0,
            part: 0,
            within: 0,
            hasher: None,
            numbers: None,
            blocks: Vec::new(),
        }
    }

    /// Bytes fed so far: where to read on.
    pub fn fed(&self) -> u64 {
        self.fed
    }

    /// The next bytes of the file. What is beyond its end is only counted.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        self.fed += bytes.len() as u64;
        while let Some(&(length, dtype)) = self.layout.parts.get(self.part) {
            if self.within == length {
                self.end_part();
                continue;
            }
            if bytes.is_empty() {
                return;
            }
            // Blocks are hashed while the bytes are in the cache for the numbers.
            let to_block_end = limits::TRANSFER_BLOCK - self.within % limits::TRANSFER_BLOCK;
            let here = to_block_end.min(length - self.within);
            let here = usize::try_from(here).unwrap_or(usize::MAX).min(bytes.len());
            let (piece, rest) = bytes.split_at(here);
            bytes = rest;
            self.hash(piece, length);
            if let Some(dtype) = dtype.filter(|dtype| dtype.is_float()) {
                self.numbers
                    .get_or_insert_with(|| FactsBuilder::new(dtype))
                    .push(piece);
            }
        }
    }

    fn hash(&mut self, piece: &[u8], length: u64) {
        let start = self.within / limits::TRANSFER_BLOCK * limits::TRANSFER_BLOCK;
        let end = length.min(start + limits::TRANSFER_BLOCK);
        let place = if length <= limits::TRANSFER_BLOCK {
            Place::Whole
        } else {
            Place::At(start)
        };
        let whole = piece.len() as u64 == end - start;
        self.within += piece.len() as u64;
        if whole {
            self.blocks.push(of_block(place, piece));
            return;
        }
        let hasher = self.hasher.get_or_insert_with(|| BlockHasher::new(place));
        hasher.update(piece);
        if self.within == end {
            self.blocks.push(hasher.finish());
            self.hasher = None;
        }
    }

    fn end_part(&mut self) {
        let facts = self.numbers.take().map_or(NO_NUMBERS, FactsBuilder::finish);
        self.facts.push(facts);
        self.part += 1;
        self.within = 0;
    }

    /// The manifest.
    ///
    /// # Errors
    /// [`ManifestError::Fed`] unless exactly the file's bytes were fed.
    pub fn finish(mut self) -> Result<Manifest, ManifestError> {
        // Ends the last part, and empty ones behind it.
        self.feed(&[]);
        if self.fed != self.layout.total {
            return Err(ManifestError::Fed {
                found: self.fed,
                expected: self.layout.total,
            });
        }
        let Layout {
            total,
            model,
            parts,
        } = self.layout;
        let parts: Vec<_> = parts
            .into_iter()
            .zip(self.facts)
            .map(|((length, _), facts)| (length, facts))
            .collect();
        let encoded = codec::encode(total, model, &parts, &self.blocks);
        Ok(Manifest::assemble(
            total,
            model,
            parts,
            self.blocks,
            encoded.into(),
        ))
    }
}
