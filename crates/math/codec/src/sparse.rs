//! The largest values of a tensor and their places: top-k.
//!
//! Places are 16 bits within stretches of 65,536 elements, and a running count
//! says where each stretch's values start, so that any part of the tensor can be
//! read by itself.

use std::io;

use fearless_simd::Level;
use firesteel_base::limits;
use firesteel_tensor::DType;

use crate::bytes::{ReadAt, WriteAt};
use crate::error::DecodeError;
use crate::kernel::values;
use crate::layer::STRETCH;
use crate::view::damaged;

/// Where the parts of a thinned-out tensor are.
pub(crate) struct Origin {
    pub values: u64,
    pub index: u64,
    pub ends: u64,
    pub kept: u64,
    pub stretches: u64,
    pub elements: u64,
}

impl Origin {
    /// Fills `into` with the tensor's bytes from `from` on.
    pub(crate) fn read(
        &self,
        inner: &dyn ReadAt,
        name: &str,
        size: usize,
        from: u64,
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        into.fill(0);
        let end = from + into.len() as u64;
        let bytes = STRETCH * size as u64;
        let (mut index, mut found) = (Vec::new(), Vec::new());
        for stretch in from / bytes..end.div_ceil(bytes) {
            let kept = self.ends_of(inner, name, stretch)?;
            let count = (kept.1 - kept.0) as usize;
            index.resize(2 * count, 0);
            found.resize(size * count, 0);
            let read =
                |at: u64, into: &mut [u8]| inner.read_at(at, into).map_err(DecodeError::Read);
            read(self.index + 2 * kept.0, &mut index)?;
            read(self.values + size as u64 * kept.0, &mut found)?;
            let length = STRETCH.min(self.elements - stretch * STRETCH);
            let mut least = 0;
            let places = index
                .as_chunks()
                .0
                .iter()
                .map(|b| u64::from(u16::from_le_bytes(*b)));
            for (place, value) in places.zip(found.chunks(size)) {
                if place < least || place >= length {
                    return Err(damaged(name, "the places of its values are not in order"));
                }
                least = place + 1;
                // The first and the last value may be cut.
                let start = (stretch * STRETCH + place) * size as u64;
                for (at, byte) in (start..).zip(value) {
                    let to = at
                        .checked_sub(from)
                        .and_then(|at| into.get_mut(at as usize));
                    if let Some(to) = to {
                        *to = *byte;
                    }
                }
            }
        }
        Ok(())
    }

    /// Which of the kept values are in a stretch.
    fn ends_of(
        &self,
        inner: &dyn ReadAt,
        name: &str,
        stretch: u64,
    ) -> Result<(u64, u64), DecodeError> {
        let end = |stretch: u64| {
            let mut bytes = [0; 8];
            let at = self.ends + 8 * stretch;
            inner.read_at(at, &mut bytes).map_err(DecodeError::Read)?;
            Ok::<_, DecodeError>(u64::from_le_bytes(bytes))
        };
        let before = match stretch.checked_sub(1) {
            Some(before) => end(before)?,
            None => 0,
        };
        let after = end(stretch)?;
        let last = stretch + 1 == self.stretches;
        let fits = before <= after
            && after - before <= STRETCH
            && after <= self.kept
            && (!last || after == self.kept);
        if fits {
            Ok((before, after))
        } else {
            Err(damaged(name, "the counts of its values do not add up"))
        }
    }
}

/// How many of so many elements a share keeps: at least one of any.
pub(crate) fn kept(elements: u64, share: f64) -> u64 {
    ((elements as f64 * share).ceil() as u64).clamp(1.min(elements), elements)
}

/// A float tensor that is to be thinned out.
pub(crate) struct Dense<'a> {
    pub inner: &'a dyn ReadAt,
    pub at: u64,
    pub dtype: DType,
    pub elements: u64,
    pub level: Level,
}

/// Which values are kept: those of a greater magnitude than `bits`, and the first
/// `ties` of that magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    bits: u32,
    ties: u64,
}

impl Dense<'_> {
    /// Calls `each` with windows of the values as bytes and as f32.
    fn walk(&self, mut each: impl FnMut(u64, &[u8], &[f32]) -> io::Result<()>) -> io::Result<()> {
        let size = self.dtype.size();
        let (mut bytes, mut floats) = (Vec::new(), Vec::new());
        let mut first = 0;
        while first < self.elements {
            let count = (self.elements - first).min(limits::CODEC_WINDOW as u64) as usize;
            bytes.resize(count * size, 0);
            floats.resize(count, 0.0);
            self.inner
                .read_at(self.at + first * size as u64, &mut bytes)?;
            values::widen(self.level, self.dtype, &bytes, &mut floats);
            each(first, &bytes, &floats)?;
            first += count as u64;
        }
        Ok(())
    }

    /// Finds the cut in two passes: by the upper half of the bits, then by the
    /// lower half of those that share it. Also counts what is not finite.
    fn cut(&self, kept: u64) -> io::Result<(Cut, u64)> {
        let mut bad = 0;
        let mut upper = vec![0u64; 1 << 16];
        self.walk(|_, _, floats| {
            bad += values::not_finite(self.level, floats);
            for value in floats {
                if let Some(count) = upper.get_mut((value.abs().to_bits() >> 16) as usize) {
                    *count += 1;
                }
            }
            Ok(())
        })?;
        let (high, above) = place(&upper, kept);
        let mut lower = vec![0u64; 1 << 16];
        self.walk(|_, _, floats| {
            for value in floats {
                let bits = value.abs().to_bits();
                if bits >> 16 == high
                    && let Some(count) = lower.get_mut((bits & 0xffff) as usize)
                {
                    *count += 1;
                }
            }
            Ok(())
        })?;
        let left = kept - above;
        let (low, greater) = place(&lower, left);
        let cut = Cut {
            bits: high << 16 | low,
            ties: left - greater,
        };
        Ok((cut, bad))
    }

    /// Writes the `kept` largest values, their places and the running counts, to
    /// the three offsets. The return is how many values are not finite.
    pub(crate) fn thin_out(
        &self,
        kept: u64,
        out: &mut dyn WriteAt,
        [values, index, ends]: [u64; 3],
    ) -> Result<u64, ThinError> {
        let (mut cut, bad) = self.cut(kept).map_err(ThinError::Read)?;
        if bad > 0 {
            return Ok(bad);
        }
        let size = self.dtype.size();
        let mut written = 0u64;
        let mut room: (Vec<u8>, Vec<u8>) = Default::default();
        let mut failure = None;
        // A window is a stretch: both are 65,536 elements.
        const { assert!(limits::CODEC_WINDOW as u64 == STRETCH) };
        let walked = self.walk(|first, bytes, floats| {
            let (found, places) = &mut room;
            found.clear();
            places.clear();
            for ((at, value), element) in (0u16..=u16::MAX).zip(floats).zip(bytes.chunks(size)) {
                let bits = value.abs().to_bits();
                let tie = bits == cut.bits && cut.ties > 0;
                cut.ties -= u64::from(tie);
                if bits > cut.bits || tie {
                    found.extend_from_slice(element);
                    places.extend_from_slice(&at.to_le_bytes());
                }
            }
            let before = written;
            written += places.len() as u64 / 2;
            let stretch = first / STRETCH;
            let all = out
                .write_at(values + before * size as u64, found)
                .and_then(|()| out.write_at(index + before * 2, places))
                .and_then(|()| out.write_at(ends + stretch * 8, &written.to_le_bytes()));
            all.map_err(|error| {
                failure = Some(error);
                io::ErrorKind::Other.into()
            })
        });
        match (walked, failure) {
            (_, Some(error)) => Err(ThinError::Write(error)),
            (Err(error), None) => Err(ThinError::Read(error)),
            (Ok(()), None) => Ok(0),
        }
    }
}

/// Which end failed.
pub(crate) enum ThinError {
    Read(io::Error),
    Write(io::Error),
}

/// The greatest place so that it and those above it hold `wanted`, and how many
/// those above hold.
fn place(counts: &[u64], wanted: u64) -> (u32, u64) {
    let mut above = 0;
    for (at, count) in counts.iter().enumerate().rev() {
        if above + count >= wanted {
            return (at as u32, above);
        }
        above += count;
    }
    (0, above)
}
