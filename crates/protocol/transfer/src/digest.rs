//! BLAKE3 digests, of whole parts and of the blocks of large ones.
//!
//! A part of at most one block has the plain digest of its bytes. A larger one is
//! cut into blocks of [`limits::TRANSFER_BLOCK`] bytes, the last one shorter; a
//! block's digest is the chaining value of its subtree, from which the plain
//! digest of the part follows. So each block is checked by itself, and the part
//! still has the digest that any other program would compute.

use std::fmt;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use firesteel_base::limits;

/// 32 bytes of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; Self::BYTES]);

impl Digest {
    /// Bytes of one.
    pub const BYTES: usize = 32;

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads one.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(8) {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a block lies in its part: its bytes are hashed accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The part is this block.
    Whole,
    /// It is one of several, and starts so many bytes behind the part's start.
    At(u64),
}

/// Hashes one block, piece by piece.
#[derive(Clone)]
pub(crate) struct BlockHasher {
    hasher: blake3::Hasher,
    place: Place,
}

impl BlockHasher {
    pub(crate) fn new(place: Place) -> Self {
        let mut hasher = blake3::Hasher::new();
        if let Place::At(offset) = place {
            hasher.set_input_offset(offset);
        }
        Self { hasher, place }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub(crate) fn finish(&self) -> Digest {
        match self.place {
            Place::Whole => Digest(*self.hasher.finalize().as_bytes()),
            Place::At(_) => Digest(self.hasher.finalize_non_root()),
        }
    }
}

/// The digest of a block whose bytes are all at hand.
pub(crate) fn of_block(place: Place, bytes: &[u8]) -> Digest {
    match place {
        Place::Whole => Digest::of(bytes),
        Place::At(_) => {
            let mut hasher = BlockHasher::new(place);
            hasher.update(bytes);
            hasher.finish()
        }
    }
}

/// The digest of a part from its blocks'.
pub(crate) fn of_part(blocks: &[Digest]) -> Digest {
    match blocks {
        [] => Digest::of(&[]),
        [one] => *one,
        more => {
            let (left, right) = halves(more);
            let merged = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
            Digest(*merged.as_bytes())
        }
    }
}

fn subtree(blocks: &[Digest]) -> [u8; 32] {
    match blocks {
        [one] => one.0,
        more => {
            let (left, right) = halves(more);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The left subtree is the largest whole one that leaves something on the right.
fn halves(blocks: &[Digest]) -> (&[Digest], &[Digest]) {
    let left = blocks.len().next_power_of_two() / 2;
    blocks.split_at(left)
}

const _: () = assert!(limits::TRANSFER_BLOCK.is_power_of_two() && limits::TRANSFER_BLOCK >= 1024);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_plain_digest_of_its_bytes_whatever_its_length() {
        let block = limits::TRANSFER_BLOCK;
        for length in [
            1,
            block - 1,
            block,
            block + 1,
            2 * block,
            3 * block + 5,
            7 * block,
        ] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            let mut blocks = Vec::new();
            for (index, piece) in bytes.chunks(block as usize).enumerate() {
                let place = if length <= block {
                    Place::Whole
                } else {
                    Place::At(index as u64 * block)
                };
                blocks.push(of_block(place, piece));
            }
            assert_eq!(of_part(&blocks), Digest::of(&bytes), "{length}");
        }
        assert_eq!(of_part(&[]), Digest::of(&[]));
    }
}
