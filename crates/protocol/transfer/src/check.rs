//! Compares what came with the manifest, block by block.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::digest::BlockHasher;
use crate::{Block, Manifest};

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Its bytes are right.
    Good(usize),
    /// They are not.
    Bad(usize),
    /// All of them came, but not in order: read them back into a
    /// [`Checker::block`].
    Again(usize),
}

/// Hashes what comes while it is in the cache. Whoever drives it feeds each byte
/// of the file at most once, from any thread.
#[derive(Clone)]
pub struct Checker {
    manifest: Arc<Manifest>,
    open: BTreeMap<usize, Begun>,
}

/// A block of which some bytes came.
#[derive(Clone)]
struct Begun {
    hasher: BlockHasher,
    /// Bytes from its start that were hashed.
    hashed: u64,
    /// Bytes that came.
    came: u64,
}

impl Checker {
    /// Nothing fed yet.
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Self {
            manifest,
            open: BTreeMap::new(),
        }
    }

    /// Takes bytes of the file; what is beyond its end is left out.
    pub fn feed(&mut self, mut offset: u64, mut bytes: &[u8], found: &mut Vec<Checked>) {
        let Some(mut index) = self.manifest.block_at(offset) else {
            return;
        };
        let manifest = self.manifest.clone();
        for block in manifest.blocks_from(index) {
            if bytes.is_empty() {
                return;
            }
            let range = block.range();
            let here = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(here.min(bytes.len()));
            bytes = rest;
            if piece.len() as u64 == block.length {
                self.open.remove(&index);
                found.push(match block.is(piece) {
                    true => Checked::Good(index),
                    false => Checked::Bad(index),
                });
            } else {
                let begun = self.open.entry(index).or_insert_with(|| Begun {
                    hasher: BlockHasher::new(block.place),
                    hashed: 0,
                    came: 0,
                });
                if offset == range.start + begun.hashed {
                    begun.hasher.update(piece);
                    begun.hashed += piece.len() as u64;
                }
                begun.came += piece.len() as u64;
                if begun.came >= block.length {
                    found.push(if begun.hashed < block.length {
                        Checked::Again(index)
                    } else if begun.hasher.finish() == block.digest {
                        Checked::Good(index)
                    } else {
                        Checked::Bad(index)
                    });
                    self.open.remove(&index);
                }
            }
            offset += piece.len() as u64;
            index += 1;
        }
    }

    /// Checks a block whose bytes are at hand, one behind the other: read back,
    /// or copied from elsewhere. `None` when there is no such block.
    pub fn block(&self, index: usize) -> Option<BlockCheck> {
        let block = self.manifest.block(index)?;
        Some(BlockCheck {
            hasher: BlockHasher::new(block.place),
            index,
            block,
        })
    }
}

/// Checks one block from its bytes in order.
pub struct BlockCheck {
    hasher: BlockHasher,
    index: usize,
    block: Block,
}

impl BlockCheck {
    /// Which bytes of the file it is.
    pub fn range(&self) -> Range<u64> {
        self.block.range()
    }

    /// The next of its bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Whether they were right.
    pub fn finish(self) -> Checked {
        if self.hasher.finish() == self.block.digest {
            Checked::Good(self.index)
        } else {
            Checked::Bad(self.index)
        }
    }
}
