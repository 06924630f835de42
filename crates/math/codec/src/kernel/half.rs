//! Half precision and its brain variant, from f32.

use fearless_simd::{Level, dispatch};
use firesteel_tensor::float;

use super::dice::Throw;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Fp16,
    Bf16,
}

/// Writes values in 16 bits. To nearest with ties to even, or, with dice, up with
/// the probability that makes the mean right. What is too large, infinity too,
/// becomes the largest; NaN stays one. The return says whether all values are finite.
pub(crate) fn encode(
    level: Level,
    half: Half,
    values: &[f32],
    dice: Option<Throw>,
    out: &mut [u8],
) -> bool {
    match (half, dice) {
        (Half::Fp16, None) => dispatch!(level, _ => each(values, out, |_, v| fp16(v))),
        (Half::Bf16, None) => dispatch!(level, _ => each(values, out, |_, v| bf16(v))),
        (Half::Fp16, Some(dice)) => {
            dispatch!(level, _ => each(values, out, |at, v| fp16_by_chance(v, dice.unit(at))))
        }
        (Half::Bf16, Some(dice)) => {
            dispatch!(level, _ => each(values, out, |at, v| bf16_by_chance(v, dice.bits(at))))
        }
    }
}

/// The values of 16-bit elements.
pub(crate) fn decode(level: Level, half: Half, bytes: &[u8], into: &mut [f32]) {
    #[inline(always)]
    fn all(half: Half, bytes: &[u8], into: &mut [f32]) {
        let pairs = into.iter_mut().zip(bytes.as_chunks().0);
        match half {
            Half::Fp16 => {
                pairs.for_each(|(v, b)| *v = float::f16_to_f32(u16::from_le_bytes(*b)));
            }
            Half::Bf16 => {
                pairs.for_each(|(v, b)| *v = float::bf16_to_f32(u16::from_le_bytes(*b)));
            }
        }
    }
    dispatch!(level, _ => all(half, bytes, into));
}

/// The same from f64, rounded once and to nearest.
pub(crate) fn encode_f64(level: Level, half: Half, bytes: &[u8], out: &mut [u8]) {
    #[inline(always)]
    fn all(half: Half, bytes: &[u8], out: &mut [u8]) {
        let pairs = bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0);
        for (value, element) in pairs {
            let value = f64::from_le_bytes(*value);
            let code = match half {
                Half::Fp16 => float::f16_from_f64(value.clamp(-65504.0, 65504.0)),
                Half::Bf16 => float::bf16_from_f64(value.clamp(-MOST_BF16, MOST_BF16)),
            };
            *element = code.to_le_bytes();
        }
    }
    dispatch!(level, _ => all(half, bytes, out));
}

/// The largest bf16.
const MOST_BF16: f64 = 3.389_531_389_251_535_5e38;

#[inline(always)]
fn each(values: &[f32], out: &mut [u8], code: impl Fn(u32, f32) -> u16) -> bool {
    let mut most = 0;
    let pairs = values.iter().zip(out.as_chunks_mut().0);
    for (at, (value, element)) in pairs.enumerate() {
        *element = code(at as u32, *value).to_le_bytes();
        most = most.max(value.to_bits() & MAGNITUDE);
    }
    most < super::INFINITE
}

const MAGNITUDE: u32 = 0x7fff_ffff;
/// 65504 as an f32.
const MOST_FP16_BITS: u32 = 0x477f_e000;
/// The largest bf16 as an f32.
const MOST_BF16_BITS: u32 = 0x7f7f_0000;

#[inline(always)]
fn fp16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = (bits & MAGNITUDE).min(MOST_FP16_BITS);
    // Nearest, ties to even: half a unit less one, and one more if the bit that
    // will be last is odd.
    let rounded = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1));
    let normal = rounded.wrapping_sub(112 << 23) >> 13;
    // Below the normals, adding a number whose last place is the smallest
    // subnormal lets the float unit do the rounding.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() & 0x7fff;
    let code = if magnitude < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    let code = if bits & MAGNITUDE > super::INFINITE {
        0x7e00
    } else {
        code
    };
    (code | sign) as u16
}

#[inline(always)]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = (bits & MAGNITUDE).min(MOST_BF16_BITS);
    let code = (magnitude + 0x7fff + ((magnitude >> 16) & 1)) >> 16;
    let code = if bits & MAGNITUDE > super::INFINITE {
        0x7fc0
    } else {
        code
    };
    (code | ((bits >> 16) & 0x8000)) as u16
}

#[inline(always)]
fn bf16_by_chance(value: f32, random: u32) -> u16 {
    let bits = value.to_bits();
    let magnitude = (bits & MAGNITUDE).min(MOST_BF16_BITS);
    // What the truncation would drop, as a share of 2^16, is the chance of a carry.
    let code = (magnitude + (random >> 16)) >> 16;
    let code = if bits & MAGNITUDE > super::INFINITE {
        0x7fc0
    } else {
        code
    };
    (code | ((bits >> 16) & 0x8000)) as u16
}

#[inline(always)]
fn fp16_by_chance(value: f32, unit: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = f32::from_bits((bits & MAGNITUDE).min(MOST_FP16_BITS));
    // The step between neighbors here is a power of two, so dividing by it and
    // multiplying again is exact: 2^(exponent - 10), at least 2^-24.
    let exponent = (magnitude.to_bits() >> 23).max(113);
    let step = f32::from_bits((exponent - 10) << 23);
    let inverse = f32::from_bits((254 + 10 - exponent) << 23);
    let steps = magnitude * inverse;
    let whole = steps as i32 as f32;
    let up = if unit < steps - whole { 1.0 } else { 0.0 };
    let code = fp16((whole + up) * step);
    let code = if bits & MAGNITUDE > super::INFINITE {
        0x7e00
    } else {
        code
    };
    code | ((bits >> 16) & 0x8000) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Dice;

    fn clamped(value: f32) -> f32 {
        // Keeps NaN.
        value.clamp(-65504.0, 65504.0)
    }

    fn check(value: f32) {
        let ours = fp16(value);
        let bf = bf16(value);
        if value.is_nan() {
            assert!(half::f16::from_bits(ours).is_nan());
            assert!(half::bf16::from_bits(bf).is_nan());
        } else {
            let theirs = half::f16::from_f32(clamped(value)).to_bits();
            assert_eq!(ours, theirs, "{value:e}");
            let most = half::bf16::MAX.to_f32();
            let theirs = half::bf16::from_f32(value.clamp(-most, most)).to_bits();
            assert_eq!(bf, theirs, "{value:e}");
        }
    }

    /// Every f16, every middle between two, and what lies closest to it.
    #[test]
    fn every_code_and_every_tie_is_rounded_as_the_half_crate_does() {
        for code in 0..0x7c00u16 {
            let here = half::f16::from_bits(code).to_f32();
            let next = half::f16::from_bits(code + 1).to_f32();
            let middle = if next.is_finite() {
                f32::midpoint(here, next)
            } else {
                65520.0
            };
            for value in [here, middle, middle.next_down(), middle.next_up()] {
                check(value);
                check(-value);
            }
        }
        for value in [f32::INFINITY, f32::MAX, f32::NAN, 1e-45, 65520.0, 1e6] {
            check(value);
            check(-value);
        }
        assert_eq!(fp16(1e9), 0x7bff);
        assert_eq!(fp16(f32::NEG_INFINITY), 0xfbff);
        assert_eq!(bf16(f32::MAX), 0x7f7f);
    }

    #[test]
    fn a_double_is_rounded_once() {
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        let mut out = [0; 2];
        encode_f64(Level::new(), Half::Fp16, &value.to_le_bytes(), &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x3c01);
        encode_f64(Level::new(), Half::Bf16, &1e300f64.to_le_bytes(), &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x7f7f);
    }

    /// Chance takes one of the two neighbors, and the mean is the value.
    #[test]
    fn chance_rounds_to_a_neighbor_and_is_right_in_the_mean() {
        let throw = Dice::new(3, "t").from(0);
        for value in [1.0004, -1.0004, 3e-7, 1000.3, -0.1, 65503.0, 6e-8, 1e-8] {
            let (mut sum16, mut sum_bf) = (0f64, 0f64);
            let count = 1 << 16;
            let (low, high) = (value * 0.99 - 6e-8, value * 1.01 + 6e-8);
            let (low, high) = (f32::min(low, high), f32::max(low, high));
            for at in 0..count {
                let a = half::f16::from_bits(fp16_by_chance(value, throw.unit(at))).to_f32();
                let b = half::bf16::from_bits(bf16_by_chance(value, throw.bits(at))).to_f32();
                assert!(a >= low - 6e-8 && a <= high + 6e-8, "{value}: {a}");
                assert!(b >= low && b <= high, "{value}: {b}");
                sum16 += f64::from(a);
                sum_bf += f64::from(b);
            }
            let n = f64::from(count);
            let exact = f64::from(value);
            let room = exact.abs() * 2f64.powi(-11) + 6e-8;
            assert!((sum16 / n - exact).abs() < room * 0.05, "{value}");
            assert!(
                (sum_bf / n - exact).abs() < exact.abs() * 0.004 * 0.05,
                "{value}"
            );
        }
        assert_eq!(fp16_by_chance(f32::INFINITY, 0.999), 0x7bff);
        assert!(half::f16::from_bits(fp16_by_chance(f32::NAN, 0.1)).is_nan());
        // A value that 16 bits hold stays itself.
        for code in 0..0x7c00u16 {
            let value = half::f16::from_bits(code).to_f32();
            assert_eq!(fp16_by_chance(value, 0.0), code);
        }
    }

    proptest! {
        #[test]
        fn any_f32_is_rounded_as_the_half_crate_does(bits: u32) {
            check(f32::from_bits(bits));
        }
    }
}
