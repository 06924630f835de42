//! A manifest's bytes. There is one encoding of each.

use std::sync::Arc;

use firesteel_base::limits;
use firesteel_tensor::facts::Facts;

use super::{LONGEST, Manifest, block_count};
use crate::{Digest, ManifestError};

/// The first bytes.
const MAGIC: &[u8; 4] = b"FSMF";
/// The version of the encoding.
const VERSION: u8 = 1;

/// A model's head and its tensors. Each costs far more memory than the two bytes
/// that an empty one takes here.
const MOST_PARTS: usize = limits::TREE_LEAVES + 1;

/// Bits of a part's flags.
const FINITE: u8 = 1;
/// A norm other than zero follows.
const NORM: u8 = 2;

pub(super) fn encode(
    total: u64,
    model: bool,
    parts: &[(u64, Facts)],
    blocks: &[Digest],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 + parts.len() * 16 + blocks.len() * Digest::BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, u8::from(model)]);
    put_number(&mut bytes, total);
    put_number(&mut bytes, parts.len() as u64);
    let mut rest = blocks;
    for (length, facts) in parts {
        put_number(&mut bytes, *length);
        let norm = facts.norm != 0.0;
        bytes.push(u8::from(facts.finite) * FINITE + u8::from(norm) * NORM);
        if norm {
            bytes.extend_from_slice(&facts.norm.to_le_bytes());
        }
        let (own, others) = rest.split_at(block_count(*length).min(rest.len()));
        rest = others;
        for digest in own {
            bytes.extend_from_slice(&digest.0);
        }
    }
    bytes
}

pub(super) fn decode(bytes: Arc<[u8]>, root: &Digest) -> Result<Manifest, ManifestError> {
    let found = Digest::of(&bytes);
    if found != *root {
        return Err(ManifestError::Digest {
            found,
            offered: *root,
        });
    }
    let mut input = Input {
        bytes: &bytes,
        whole: bytes.len(),
    };
    if input.take(MAGIC.len())? != MAGIC {
        return Err(input.malformed("no manifest"));
    }
    if input.byte()? != VERSION {
        return Err(input.malformed("a version that we do not speak"));
    }
    let model = match input.byte()? {
        0 => false,
        1 => true,
        _ => return Err(input.malformed("a kind of file that we do not know")),
    };
    let total = input.length()?;
    let count = input.number()?;
    // A part takes two bytes at least: nobody gets memory by saying a number.
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= input.bytes.len() / 2)
        .ok_or_else(|| input.malformed("more parts than bytes"))?;
    if count > MOST_PARTS {
        return Err(input.malformed("more parts than a model has"));
    }
    if count == 0 || (!model && count != 1) {
        return Err(input.malformed("a number of parts that no such file has"));
    }
    let mut parts = Vec::with_capacity(count);
    let mut blocks = Vec::new();
    let mut sum = 0u64;
    for _ in 0..count {
        let length = input.length()?;
        sum = sum
            .checked_add(length)
            .filter(|sum| *sum <= total)
            .ok_or(ManifestError::Cover {
                parts: sum.saturating_add(length),
                total,
            })?;
        parts.push((length, input.facts()?));
        let needed = length.div_ceil(limits::TRANSFER_BLOCK);
        if needed > (input.bytes.len() / Digest::BYTES) as u64 {
            return Err(input.malformed("fewer digests than the part has blocks"));
        }
        for _ in 0..needed {
            let digest = Digest::from_slice(input.take(Digest::BYTES)?);
            blocks.push(digest.expect("as many bytes were taken"));
        }
    }
    if sum != total {
        return Err(ManifestError::Cover { parts: sum, total });
    }
    if !input.bytes.is_empty() {
        return Err(input.malformed("more than a manifest"));
    }
    Ok(Manifest::assemble(total, model, parts, blocks, bytes))
}

/// Seven bits to a byte, lowest first; the top bit says that more follow.
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Input<'a> {
    bytes: &'a [u8],
    whole: usize,
}

impl<'a> Input<'a> {
    fn malformed(&self, what: &'static str) -> ManifestError {
        ManifestError::Malformed {
            at: self.whole - self.bytes.len(),
            what,
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return Err(self.malformed("the end"));
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ManifestError> {
        let Some((byte, rest)) = self.bytes.split_first() else {
            return Err(self.malformed("the end"));
        };
        self.bytes = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<u64, ManifestError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(self.malformed("a number of more than 64 bits"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.malformed("a number with more bytes than it needs"));
                }
                return Ok(number);
            }
        }
        Err(self.malformed("a number of more than 64 bits"))
    }

    fn length(&mut self) -> Result<u64, ManifestError> {
        let length = self.number()?;
        if length > LONGEST {
            return Err(ManifestError::Length { length });
        }
        Ok(length)
    }

    fn facts(&mut self) -> Result<Facts, ManifestError> {
        let flags = self.byte()?;
        if flags & !(FINITE | NORM) != 0 {
            return Err(self.malformed("flags that we do not know"));
        }
        let finite = flags & FINITE != 0;
        let mut norm = 0.0;
        if flags & NORM != 0 {
            let bytes = self.take(8)?;
            norm = f64::from_le_bytes(bytes.try_into().expect("eight bytes were taken"));
            if !(finite && norm > 0.0 && norm.is_finite()) {
                return Err(self.malformed("a norm that no tensor has"));
            }
        }
        Ok(Facts { finite, norm })
    }
}
