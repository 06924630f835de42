//! As many levels as a tensor's range needs (AdaQuantFL, arXiv 2208.05174, with
//! the constants of FLARE), in f64.
//!
//! FLARE's version makes no level at all of a range below some 2e-4 and decodes
//! such a tensor to NaN; here there is always at least one step.

use fearless_simd::{Level, dispatch};
use firesteel_tensor::DType;

use super::dice::Throw;

/// Where a tensor's values lie, and how many steps that range has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    /// The least value.
    pub least: f64,
    /// The greatest less the least.
    pub width: f64,
    /// Steps from the least to the greatest value; 0 when they are the same.
    pub steps: u32,
}

/// What the error is worth against the bits, as FLARE has it.
const WEIGHT: f64 = 0.01;

impl Range {
    /// The range of values from `least` to `greatest` of elements of so many
    /// bits; `None` when the codes would have more than 16 bits, or as many as
    /// the elements.
    pub(crate) fn new(least: f64, greatest: f64, element_bits: u32) -> Option<Self> {
        let width = greatest - least;
        if width == 0.0 {
            return Some(Self {
                least,
                width,
                steps: 0,
            });
        }
        let levels = (width * f64::from(element_bits) * 4f64.ln() / WEIGHT).sqrt();
        let levels = levels.max(1.0).ceil();
        // One bit at the least: no bit is no level, and a division by zero.
        let bits = levels.log2().ceil().max(1.0);
        (bits < f64::from(element_bits) && bits <= 16.0).then(|| Self {
            least,
            width,
            steps: (1 << bits as u32) - 1,
        })
    }

    /// The one with the longest codes; `None` when values are shorter than those
    /// and then always stay as they are.
    pub(crate) fn widest(element_bits: u32) -> Option<Self> {
        (element_bits > 8).then_some(Self {
            least: 0.0,
            width: 1.0,
            steps: if element_bits > 16 { 65_535 } else { 255 },
        })
    }

    /// What a code is.
    pub(crate) fn dtype(&self) -> DType {
        if self.steps > 255 {
            DType::U16
        } else {
            DType::U8
        }
    }
}

/// Writes values as codes of [`Range::dtype`].
pub(crate) fn encode(
    level: Level,
    range: &Range,
    values: &[f32],
    dice: Option<Throw>,
    out: &mut [u8],
) {
    dispatch!(level, _ => encode_all(range, values, dice, out));
}

#[inline(always)]
fn encode_all(range: &Range, values: &[f32], dice: Option<Throw>, out: &mut [u8]) {
    let (least, width) = (range.least, range.width);
    let steps = f64::from(range.steps);
    let place = |value: f32| (f64::from(value) - least) / width * steps;
    // To the nearest step, ties to even, as torch rounds.
    let nearest = |_: u32, value: f32| place(value).round_ties_even().clamp(0.0, steps);
    match dice {
        None => write(range, values, nearest, out),
        Some(dice) => {
            let by_chance = |at: u32, value: f32| {
                let place = place(value);
                let whole = place.floor();
                let up = f64::from(dice.unit(at)) < place - whole;
                (whole + f64::from(u8::from(up))).clamp(0.0, steps)
            };
            write(range, values, by_chance, out);
        }
    }
}

#[inline(always)]
fn write(range: &Range, values: &[f32], code: impl Fn(u32, f32) -> f64, out: &mut [u8]) {
    let values = values.iter().enumerate();
    if range.steps > 255 {
        for ((at, value), out) in values.zip(out.as_chunks_mut().0) {
            *out = (code(at as u32, *value) as u16).to_le_bytes();
        }
    } else {
        for ((at, value), out) in values.zip(out) {
            *out = code(at as u32, *value) as u8;
        }
    }
}

/// The values of codes; with no step, `bytes` is empty and all are the same.
pub(crate) fn decode(level: Level, range: &Range, bytes: &[u8], into: &mut [f32]) {
    dispatch!(level, _ => decode_all(range, bytes, into));
}

#[inline(always)]
fn decode_all(range: &Range, bytes: &[u8], into: &mut [f32]) {
    let steps = f64::from(range.steps);
    let value = |code: f64| (code * range.width / steps + range.least) as f32;
    if range.steps == 0 {
        into.fill(range.least as f32);
    } else if range.steps > 255 {
        for (into, code) in into.iter_mut().zip(bytes.as_chunks().0) {
            *into = value(f64::from(u16::from_le_bytes(*code)));
        }
    } else {
        for (into, code) in into.iter_mut().zip(bytes) {
            *into = value(f64::from(*code));
        }
    }
}
