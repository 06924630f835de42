//! Four bits per element: `fp4` and `nf4` of bitsandbytes, to the bit.
//!
//! A block's values are scaled by its largest magnitude, and each takes the
//! nearest code; a value in the middle between two takes the lower one. Two codes
//! share a byte, the first in the high half.

use fearless_simd::{Level, dispatch};

use super::Scale;
use super::dice::Throw;

/// Which code book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Four {
    Fp4,
    Nf4,
}

/// The values of the codes of `nf4`, as bitsandbytes has them.
const NF4: [f32; 16] = [
    -1.0,
    f32::from_bits(0xbf32_39b1),
    f32::from_bits(0xbf06_6b30),
    f32::from_bits(0xbeca_32a0),
    f32::from_bits(0xbe91_a24d),
    f32::from_bits(0xbe3d_353f),
    f32::from_bits(0xbdba_7871),
    0.0,
    f32::from_bits(0x3da2_faff),
    f32::from_bits(0x3e24_cae3),
    f32::from_bits(0x3e7c_04dd),
    f32::from_bits(0x3ead_033a),
    f32::from_bits(0x3ee1_a4b8),
    f32::from_bits(0x3f10_07ab),
    f32::from_bits(0x3f39_13b3),
    1.0,
];

/// The values of the codes of `fp4`: a sign, then eight magnitudes in an order of
/// their own. Its second zero has no sign, as in what bitsandbytes sends.
const FP4: [f32; 16] = [
    0.0,
    f32::from_bits(0x3baa_aaab),
    f32::from_bits(0x3f2a_aaab),
    1.0,
    f32::from_bits(0x3eaa_aaab),
    0.5,
    f32::from_bits(0x3e2a_aaab),
    0.25,
    0.0,
    f32::from_bits(0xbbaa_aaab),
    f32::from_bits(0xbf2a_aaab),
    -1.0,
    f32::from_bits(0xbeaa_aaab),
    -0.5,
    f32::from_bits(0xbe2a_aaab),
    -0.25,
];

/// The codes of the magnitudes of `fp4`, least first.
const FP4_RISING: [usize; 8] = [0, 1, 6, 7, 4, 5, 2, 3];

impl Four {
    /// The value of each code.
    pub(crate) const fn codes(self) -> [f32; 16] {
        match self {
            Self::Fp4 => FP4,
            Self::Nf4 => NF4,
        }
    }
}

/// The bits of a float as a number that is ordered as floats are.
#[inline(always)]
const fn ordered(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The middles between neighboring codes of `nf4`, [`ordered`].
const NF4_MIDDLES: [i32; 15] = {
    let mut middles = [0; 15];
    let mut at = 0;
    while at < 15 {
        middles[at] = ordered((NF4[at] + NF4[at + 1]) / 2.0);
        at += 1;
    }
    middles
};

/// The middles between neighboring magnitudes of `fp4`, [`ordered`].
const FP4_MIDDLES: [i32; 7] = {
    let mut middles = [0; 7];
    let mut at = 0;
    while at < 7 {
        let sum = FP4[FP4_RISING[at]] + FP4[FP4_RISING[at + 1]];
        middles[at] = ordered(sum / 2.0);
        at += 1;
    }
    middles
};

/// The nearest codes of values from -1 to 1: the number of middles below each.
#[inline(always)]
fn nearest_nf4(values: &[f32; LANES], codes: &mut [u8; LANES]) {
    let mut compared = [0i32; LANES];
    for (to, value) in compared.iter_mut().zip(values) {
        *to = ordered(*value);
    }
    let ranks = count_below(&compared, NF4_MIDDLES);
    for (code, rank) in codes.iter_mut().zip(ranks) {
        *code = rank as u8;
    }
}

/// How many middles are below each value: seven or fifteen of them.
#[inline(always)]
fn count_below<const N: usize>(values: &[i32; LANES], middles: [i32; N]) -> [i32; LANES] {
    let mut ranks = [0; LANES];
    for (rank, value) in ranks.iter_mut().zip(values) {
        // A tree of sums, so that no addition waits for all those before it.
        let above = |at: usize| i32::from(*value > middles[at]);
        let four = |at: usize| (above(at) + above(at + 1)) + (above(at + 2) + above(at + 3));
        let three = |at: usize| above(at) + above(at + 1) + above(at + 2);
        *rank = four(0) + three(4);
        if N == 15 {
            *rank += four(7) + four(11);
        }
    }
    ranks
}

/// The same for `fp4`. A negative value in the middle takes the greater
/// magnitude, because that is the lower number; zero and what rounds to it from
/// below is code 0, what rounds to it from above code 8.
#[inline(always)]
fn nearest_fp4(values: &[f32; LANES], codes: &mut [u8; LANES]) {
    let mut compared = [0i32; LANES];
    for (to, value) in compared.iter_mut().zip(values) {
        let bits = value.to_bits();
        // One more makes "greater" of "greater or equal".
        *to = (bits & 0x7fff_ffff) as i32 + (bits >> 31) as i32;
    }
    let ranks = count_below(&compared, FP4_MIDDLES);
    for ((code, rank), value) in codes.iter_mut().zip(ranks).zip(values) {
        let negative = (value.to_bits() >> 31) as i32;
        let above = i32::from(value.to_bits() & 0x7fff_ffff != 0) & (1 - negative);
        let sign = if rank == 0 { above } else { negative };
        // 0 1 2 3 4 5 6 7 becomes 0 1 6 7 4 5 2 3.
        *code = (rank ^ ((rank & 2) << 1) | (sign << 3)) as u8;
    }
}

/// One of the two codes around a value, the nearer one more often.
#[inline(always)]
fn by_chance_nf4(value: f32, unit: f32) -> i32 {
    let mut low = 0usize;
    for code in &NF4[1..15] {
        low += usize::from(value >= *code);
    }
    let (below, above) = (NF4[low], NF4[low + 1]);
    low as i32 + i32::from(unit < (value - below) / (above - below))
}

/// The same for `fp4`.
#[inline(always)]
fn by_chance_fp4(value: f32, unit: f32) -> i32 {
    let magnitude = value.abs();
    let mut low = 0usize;
    for code in &FP4_RISING[1..7] {
        low += usize::from(magnitude >= FP4[*code]);
    }
    let (below, above) = (FP4[FP4_RISING[low]], FP4[FP4_RISING[low + 1]]);
    let rank = low + usize::from(unit < (magnitude - below) / (above - below));
    let code = FP4_RISING[rank] as i32;
    let sign = i32::from(value < 0.0 && rank > 0);
    code | (sign << 3)
}

/// Elements that are quantized at a time: one block, or a part of a larger one.
const LANES: usize = 64;

/// Quantizes values from the start of a block on. `absmax` gets one number per
/// block and `out` one byte per two values; the last block may be short. The
/// return says whether all values are finite.
pub(crate) fn encode(
    level: Level,
    four: Four,
    block: usize,
    values: &[f32],
    dice: Option<Throw>,
    (absmax, out): (&mut [f32], &mut [u8]),
) -> bool {
    let out = (absmax, out);
    match (four, dice) {
        (Four::Nf4, None) => {
            dispatch!(level, _ => all(block, values, out, |_, v, codes| nearest_nf4(v, codes)))
        }
        (Four::Fp4, None) => {
            dispatch!(level, _ => all(block, values, out, |_, v, codes| nearest_fp4(v, codes)))
        }
        (Four::Nf4, Some(dice)) => dispatch!(level, _ => all(block, values, out,
            |at, v, codes| each(at, v, codes, dice, by_chance_nf4))),
        (Four::Fp4, Some(dice)) => dispatch!(level, _ => all(block, values, out,
            |at, v, codes| each(at, v, codes, dice, by_chance_fp4))),
    }
}

#[inline(always)]
fn all(
    block: usize,
    values: &[f32],
    (absmax, out): (&mut [f32], &mut [u8]),
    codes_of: impl Fn(u32, &[f32; LANES], &mut [u8; LANES]),
) -> bool {
    let mut most = 0;
    let mut at = 0u32;
    let mut codes = [0; LANES];
    let mut scaled = [0.0; LANES];
    let blocks = values.chunks(block).zip(out.chunks_mut(block / 2));
    for ((values, out), absmax) in blocks.zip(absmax) {
        let largest = super::largest(values);
        most = most.max(largest);
        *absmax = f32::from_bits(largest);
        let scale = Scale::new(largest);
        let (parts, rest) = values.as_chunks::<LANES>();
        let mut outs = out.chunks_mut(LANES / 2);
        for part in parts {
            scale.apply(part, &mut scaled);
            codes_of(at, &scaled, &mut codes);
            if let Some(out) = outs.next() {
                pack(&codes, out);
            }
            at = at.wrapping_add(LANES as u32);
        }
        if let (false, Some(out)) = (rest.is_empty(), outs.next()) {
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            scale.apply(&padded, &mut scaled);
            codes_of(at, &scaled, &mut codes);
            // The half that stands for no element.
            codes[rest.len()..].fill(0);
            pack(&codes, out);
        }
    }
    most < super::INFINITE
}

/// Puts two codes into each byte.
#[inline(always)]
fn pack(codes: &[u8; LANES], out: &mut [u8]) {
    // Two bytes as one number of 16 bits: shifts then bring them together.
    for (out, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        *out = ((pair << 4) | (pair >> 8)) as u8;
    }
}

#[inline(always)]
fn each(
    at: u32,
    values: &[f32; LANES],
    codes: &mut [u8; LANES],
    dice: Throw,
    code: impl Fn(f32, f32) -> i32,
) {
    for (lane, (to, value)) in codes.iter_mut().zip(values).enumerate() {
        *to = code(*value, dice.unit(at.wrapping_add(lane as u32))) as u8;
    }
}

/// The values of codes from the start of a block on: as many as `into` has.
pub(crate) fn decode(four: Four, block: usize, absmax: &[f32], bytes: &[u8], into: &mut [f32]) {
    let codes = four.codes();
    let blocks = into.chunks_mut(block).zip(bytes.chunks(block / 2));
    for ((into, bytes), absmax) in blocks.zip(absmax) {
        let mut scaled = [0.0f32; 16];
        for (scaled, code) in scaled.iter_mut().zip(codes) {
            *scaled = code * absmax;
        }
        let (pairs, last) = into.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            *pair = [
                scaled[usize::from(byte >> 4)],
                scaled[usize::from(byte & 15)],
            ];
        }
        if let (Some(last), Some(byte)) = (last.first_mut(), bytes.get(pairs.len())) {
            *last = scaled[usize::from(byte >> 4)];
        }
    }
}
