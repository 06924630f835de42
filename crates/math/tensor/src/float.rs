//! Conversions between f16, bf16 and fp8 and the floats that arithmetic runs on.
//!
//! Widening is exact. Narrowing rounds once, from the f64, to nearest with ties
//! to even; a detour over f32 would round twice and give other bits. What is too
//! large becomes infinity, or NaN in `e4m3fn`, which has no infinity.
//!
//! All of it is integer arithmetic and exact float operations without branches,
//! so that the compiler can vectorize it and every machine gives the same bits.

use crate::DType;

/// A float format of at most 16 bits.
trait Format {
    const EXPONENT_BITS: u32;
    const MANTISSA_BITS: u32;
    /// Whether the top exponent holds values, and only the top code is NaN.
    const FINITE_ONLY: bool = false;

    const BIAS: i32 = (1 << (Self::EXPONENT_BITS - 1)) - 1;
    /// Every bit but the sign.
    const MAGNITUDE: u32 = (1 << (Self::EXPONENT_BITS + Self::MANTISSA_BITS)) - 1;
    /// The code of infinity, or of NaN where there is no infinity.
    const OVERFLOW: u32 = if Self::FINITE_ONLY {
        Self::MAGNITUDE
    } else {
        Self::MAGNITUDE & !((1 << Self::MANTISSA_BITS) - 1)
    };
    /// The code of a quiet NaN.
    const NAN: u32 = if Self::FINITE_ONLY {
        Self::MAGNITUDE
    } else {
        Self::OVERFLOW | (1 << (Self::MANTISSA_BITS - 1))
    };
}

struct Half;
impl Format for Half {
    const EXPONENT_BITS: u32 = 5;
    const MANTISSA_BITS: u32 = 10;
}

struct Brain;
impl Format for Brain {
    const EXPONENT_BITS: u32 = 8;
    const MANTISSA_BITS: u32 = 7;
}

struct E4M3;
impl Format for E4M3 {
    const EXPONENT_BITS: u32 = 4;
    const MANTISSA_BITS: u32 = 3;
    const FINITE_ONLY: bool = true;
}

struct E5M2;
impl Format for E5M2 {
    const EXPONENT_BITS: u32 = 5;
    const MANTISSA_BITS: u32 = 2;
}

#[inline(always)]
fn widen<F: Format>(code: u32) -> f32 {
    let magnitude = code & F::MAGNITUDE;
    let sign = (code & (F::MAGNITUDE + 1)) << (31 - F::EXPONENT_BITS - F::MANTISSA_BITS);
    // Exponent and mantissa put where an f32 has them, then the bias corrected by
    // an exact product, which also makes the subnormals right.
    let shifted = f32::from_bits(magnitude << (23 - F::MANTISSA_BITS));
    let scale = f32::from_bits(((127 - F::BIAS + 127) as u32) << 23);
    let finite = (shifted * scale).to_bits();
    let special = 0x7f80_0000 | (magnitude << (23 - F::MANTISSA_BITS));
    let bits = if magnitude >= F::OVERFLOW {
        special
    } else {
        finite
    };
    f32::from_bits(bits | sign)
}

#[inline(always)]
fn narrow<F: Format>(value: f64) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & (u64::MAX >> 1);
    let sign = (bits >> 63) as u32 * (F::MAGNITUDE + 1);

    // The smallest normal's exponent, biased as an f64's is.
    let least = (1023 + 1 - F::BIAS) as u64;
    let drop = 52 - F::MANTISSA_BITS;
    // Nearest, ties to even: half a unit less one, and one more if the bit that
    // will be last is odd.
    let odd = (magnitude >> drop) & 1;
    let rounded = (magnitude + (1 << (drop - 1)) - 1 + odd) >> drop;
    let normal = rounded.wrapping_sub((least - 1) << F::MANTISSA_BITS);
    // Below the normals, adding a number whose last place is the smallest
    // subnormal lets the float unit do the rounding.
    let anchor = (least + 52 - F::MANTISSA_BITS as u64) << 52;
    let sum = f64::from_bits(magnitude) + f64::from_bits(anchor);
    let subnormal = sum.to_bits().wrapping_sub(anchor);

    let code = if magnitude < least << 52 {
        subnormal
    } else {
        normal
    };
    let code = code.min(u64::from(F::OVERFLOW)) as u32;
    let infinity = 0x7ff0_0000_0000_0000;
    let code = if magnitude > infinity { F::NAN } else { code };
    code | sign
}

macro_rules! conversions {
    ($($name:literal: $format:ident $code:ty, $to_f32:ident, $from_f32:ident, $from_f64:ident;)*) => { $(
        #[doc = concat!("The value of an ", $name, " code, exactly.")]
        #[inline(always)]
        pub fn $to_f32(code: $code) -> f32 {
            widen::<$format>(u32::from(code))
        }

        #[doc = concat!("The nearest ", $name, " code, ties to even.")]
        #[inline(always)]
        pub fn $from_f32(value: f32) -> $code {
            narrow::<$format>(f64::from(value)) as $code
        }

        #[doc = concat!("The nearest ", $name, " code, ties to even, rounded once.")]
        #[inline(always)]
        pub fn $from_f64(value: f64) -> $code {
            narrow::<$format>(value) as $code
        }
    )* };
}

conversions! {
    "f16": Half u16, f16_to_f32, f16_from_f32, f16_from_f64;
    "bf16": Brain u16, bf16_to_f32, bf16_from_f32, bf16_from_f64;
    "e4m3fn": E4M3 u8, f8e4m3_to_f32, f8e4m3_from_f32, f8e4m3_from_f64;
    "e5m2": E5M2 u8, f8e5m2_to_f32, f8e5m2_from_f32, f8e5m2_from_f64;
}

/// Decodes elements of a float dtype of at most 32 bits, exactly. As many as
/// both sides have; other dtypes are left alone.
#[inline(always)]
pub fn decode(dtype: DType, bytes: &[u8], into: &mut [f32]) {
    match dtype {
        DType::F32 => each(bytes, into, f32::from_le_bytes),
        DType::F16 => each(bytes, into, |b| f16_to_f32(u16::from_le_bytes(b))),
        DType::BF16 => each(bytes, into, |b| bf16_to_f32(u16::from_le_bytes(b))),
        DType::F8E4M3 => each(bytes, into, |[b]| f8e4m3_to_f32(b)),
        DType::F8E5M2 => each(bytes, into, |[b]| f8e5m2_to_f32(b)),
        _ => {}
    }
}

/// Encodes into elements of any float dtype, rounding once. As many as both
/// sides have; other dtypes are left alone.
#[inline(always)]
pub fn encode(dtype: DType, values: &[f64], into: &mut [u8]) {
    match dtype {
        DType::F64 => each_back(values, into, f64::to_le_bytes),
        DType::F32 => each_back(values, into, |v| (v as f32).to_le_bytes()),
        DType::F16 => each_back(values, into, |v| f16_from_f64(v).to_le_bytes()),
        DType::BF16 => each_back(values, into, |v| bf16_from_f64(v).to_le_bytes()),
        DType::F8E4M3 => each_back(values, into, |v| [f8e4m3_from_f64(v)]),
        DType::F8E5M2 => each_back(values, into, |v| [f8e5m2_from_f64(v)]),
        _ => {}
    }
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], into: &mut [f32], of: impl Fn([u8; N]) -> f32) {
    for (value, element) in into.iter_mut().zip(bytes.as_chunks().0) {
        *value = of(*element);
    }
}

#[inline(always)]
fn each_back<const N: usize>(values: &[f64], into: &mut [u8], of: impl Fn(f64) -> [u8; N]) {
    for (value, element) in values.iter().zip(into.as_chunks_mut().0) {
        *element = of(*value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value of a code by the definition of the format, in f64.
    fn by_definition<F: Format>(code: u32) -> f64 {
        let mantissa = f64::from(code & ((1 << F::MANTISSA_BITS) - 1));
        let exponent = ((code & F::MAGNITUDE) >> F::MANTISSA_BITS) as i32;
        let sign = if code > F::MAGNITUDE { -1.0 } else { 1.0 };
        let steps = f64::from(1u32 << F::MANTISSA_BITS);
        let top = (1 << F::EXPONENT_BITS) - 1;
        if F::FINITE_ONLY && code & F::MAGNITUDE == F::MAGNITUDE {
            return f64::NAN;
        }
        if !F::FINITE_ONLY && exponent == top {
            return if mantissa == 0.0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        if exponent == 0 {
            sign * mantissa / steps * 2f64.powi(1 - F::BIAS)
        } else {
            sign * (1.0 + mantissa / steps) * 2f64.powi(exponent - F::BIAS)
        }
    }

    /// The nearest code by looking at its neighbours, ties to the even one.
    fn nearest<F: Format>(value: f64) -> u32 {
        let sign = if value.is_sign_negative() {
            F::MAGNITUDE + 1
        } else {
            0
        };
        let value = value.abs();
        let largest = F::OVERFLOW - 1;
        // Codes are ordered as their values are, so a binary search finds the
        // greatest that is not above.
        let (mut low, mut high) = (0, largest);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if by_definition::<F>(middle) <= value {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let below = by_definition::<F>(low);
        // The step above the largest is as wide as the one below it.
        let above = if low == largest {
            below + (below - by_definition::<F>(low - 1))
        } else {
            by_definition::<F>(low + 1)
        };
        let up = match (value - below).total_cmp(&(above - value)) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => low & 1 == 1,
        };
        (low + u32::from(up)) | sign
    }

    fn check_format<F: Format>() {
        let codes = (F::MAGNITUDE + 1) * 2;
        for code in 0..codes {
            let expected = by_definition::<F>(code);
            let got = f64::from(widen::<F>(code));
            if expected.is_nan() {
                assert!(got.is_nan(), "{code:#x}");
                assert_eq!(narrow::<F>(got) & F::MAGNITUDE, F::NAN, "{code:#x}");
            } else {
                assert_eq!(got.to_bits(), expected.to_bits(), "{code:#x}");
                assert_eq!(narrow::<F>(got), code, "{code:#x}");
            }
        }
        // Every midpoint between neighbours, and what lies closest to it.
        for code in 0..F::OVERFLOW {
            let here = by_definition::<F>(code);
            let step = by_definition::<F>(code.max(1)) - by_definition::<F>(code.max(1) - 1);
            let next = if code + 1 < F::OVERFLOW {
                by_definition::<F>(code + 1)
            } else {
                here + step
            };
            let middle = f64::midpoint(here, next);
            for value in [middle, middle.next_down(), middle.next_up()] {
                for value in [value, -value] {
                    assert_eq!(narrow::<F>(value), nearest::<F>(value), "{value:e}");
                }
            }
        }
        for (value, code) in [
            (f64::INFINITY, F::OVERFLOW),
            (f64::MAX, F::OVERFLOW),
            (5e-324, 0),
            (0.0, 0),
            (f64::NAN, F::NAN),
        ] {
            assert_eq!(narrow::<F>(value), code, "{value:e}");
        }
        assert_eq!(narrow::<F>(-0.0), F::MAGNITUDE + 1);
    }

    #[test]
    fn half_follows_its_definition() {
        check_format::<Half>();
    }

    #[test]
    fn brain_follows_its_definition() {
        check_format::<Brain>();
    }

    #[test]
    fn e4m3_follows_its_definition() {
        check_format::<E4M3>();
        assert_eq!(f8e4m3_to_f32(0x7e), 448.0);
        assert_eq!(f8e4m3_from_f32(464.0), 0x7e);
        assert_eq!(f8e4m3_from_f32(465.0), 0x7f);
    }

    #[test]
    fn e5m2_follows_its_definition() {
        check_format::<E5M2>();
        assert_eq!(f8e5m2_to_f32(0x7b), 57344.0);
    }

    #[test]
    fn a_double_rounding_would_be_seen() {
        // Just above the middle of two halves, but the middle itself as an f32.
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(f16_from_f64(value), 0x3c01);
        assert_eq!(f16_from_f32(value as f32), 0x3c00);
    }

    proptest! {
        #[test]
        fn any_f32_becomes_what_the_half_crate_makes_of_it(bits: u32) {
            let value = f32::from_bits(bits);
            if value.is_nan() {
                prop_assert!(half::f16::from_bits(f16_from_f32(value)).is_nan());
                prop_assert!(half::bf16::from_bits(bf16_from_f32(value)).is_nan());
            } else {
                prop_assert_eq!(f16_from_f32(value), half::f16::from_f32(value).to_bits());
                prop_assert_eq!(bf16_from_f32(value), half::bf16::from_f32(value).to_bits());
            }
        }

        #[test]
        fn any_f64_becomes_the_nearest_code(bits: u64, small in -70i32..70) {
            let any = f64::from_bits(bits);
            // Most random exponents are far outside; this one is in reach.
            let mantissa = bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000;
            let near = f64::from_bits(mantissa) * 2f64.powi(small);
            for value in [any, near, -near] {
                if !value.is_finite() { continue; }
                prop_assert_eq!(narrow::<Half>(value), nearest::<Half>(value));
                prop_assert_eq!(narrow::<Brain>(value), nearest::<Brain>(value));
                prop_assert_eq!(narrow::<E4M3>(value), nearest::<E4M3>(value));
                prop_assert_eq!(narrow::<E5M2>(value), nearest::<E5M2>(value));
            }
        }
    }
}
