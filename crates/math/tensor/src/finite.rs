//! Finding NaN and infinity in raw elements.

use fearless_simd::{Level, Simd, dispatch};

use crate::DType;

/// How many elements of `bytes` are NaN or infinite; 0 for dtypes that have
/// neither. A trailing part of an element is not counted.
pub fn check_finite(dtype: DType, bytes: &[u8]) -> u64 {
    let level = Level::new();
    dispatch!(level, simd => count(simd, dtype, bytes))
}

#[inline(always)]
fn count<S: Simd>(simd: S, dtype: DType, bytes: &[u8]) -> u64 {
    // Bools and integers are finite without a look, so the closure sees floats.
    simd.vectorize(
        #[inline(always)]
        || match dtype {
            DType::F64 => count64(bytes),
            DType::F32 => count32(bytes),
            DType::F16 => count16(bytes, 0x7c00),
            DType::BF16 => count16(bytes, 0x7f80),
            DType::F8E4M3 => count8(bytes, 0x7f),
            DType::F8E5M2 => count8(bytes, 0x7c),
            _ => 0,
        },
    )
}

// Each counter is as wide as its elements, so that the loop needs no widening,
// and is emptied before it can overflow.

#[inline(always)]
fn count64(bytes: &[u8]) -> u64 {
    const EXPONENT: u64 = 0x7ff0_0000_0000_0000;
    let mut bad = 0u64;
    for element in bytes.as_chunks().0 {
        bad += u64::from(u64::from_le_bytes(*element) & EXPONENT == EXPONENT);
    }
    bad
}

#[inline(always)]
fn count32(bytes: &[u8]) -> u64 {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut total = 0;
    for block in bytes.chunks(1 << 16) {
        let mut bad = 0u32;
        for element in block.as_chunks().0 {
            bad += u32::from(u32::from_le_bytes(*element) & EXPONENT == EXPONENT);
        }
        total += u64::from(bad);
    }
    total
}

#[inline(always)]
fn count16(bytes: &[u8], exponent: u16) -> u64 {
    let mut total = 0;
    for block in bytes.chunks(1 << 16) {
        let mut bad = 0u16;
        for element in block.as_chunks().0 {
            bad += u16::from(u16::from_le_bytes(*element) & exponent == exponent);
        }
        total += u64::from(bad);
    }
    total
}

#[inline(always)]
fn count8(bytes: &[u8], exponent: u8) -> u64 {
    let mut total = 0;
    // 64 lanes of 255 would be enough for u8 counters; u16 leaves no doubt.
    for block in bytes.chunks(1 << 12) {
        let mut bad = 0u16;
        for &element in block {
            bad += u16::from(element & exponent == exponent);
        }
        total += u64::from(bad);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float;

    /// Every 8- and 16-bit code, and chosen wide ones, against the plain rule.
    #[test]
    fn every_code_is_judged_as_its_value_is() {
        for dtype in [DType::F8E4M3, DType::F8E5M2, DType::F16, DType::BF16] {
            let codes = 1u32 << (8 * dtype.size());
            let mut expected = 0;
            let mut all = Vec::new();
            for code in 0..codes {
                let bytes = &code.to_le_bytes()[..dtype.size()];
                let mut value = [0f32];
                float::decode(dtype, bytes, &mut value);
                let bad = u64::from(!value[0].is_finite());
                assert_eq!(check_finite(dtype, bytes), bad, "{dtype} {code:#x}");
                expected += bad;
                all.extend_from_slice(bytes);
            }
            assert_eq!(check_finite(dtype, &all), expected, "{dtype}");
        }
        let wide = [0.0, f64::MAX, -f64::MAX, 5e-324, f64::NAN, f64::INFINITY];
        let bytes: Vec<u8> = wide.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(check_finite(DType::F64, &bytes), 2);
        let bytes: Vec<u8> = wide
            .iter()
            .flat_map(|&v| (v as f32).to_le_bytes())
            .collect();
        // f64::MAX is infinite as an f32, and so is its negative.
        assert_eq!(check_finite(DType::F32, &bytes), 4);
        assert_eq!(check_finite(DType::I64, &[0xff; 64]), 0);
    }

    /// More bad elements than a block's counter would hold without care, at an
    /// address that no element is aligned to.
    #[test]
    fn long_and_unaligned_runs_are_counted_in_full() {
        for (dtype, bad) in [
            (DType::F64, &f64::NAN.to_le_bytes()[..]),
            (DType::F32, &f32::INFINITY.to_le_bytes()),
            (DType::F16, &[0x00, 0x7c]),
            (DType::BF16, &[0x80, 0xff]),
            (DType::F8E4M3, &[0x7f]),
            (DType::F8E5M2, &[0xfc]),
        ] {
            let mut bytes = vec![0];
            for _ in 0..200_003 {
                bytes.extend_from_slice(bad);
            }
            assert_eq!(check_finite(dtype, &bytes[1..]), 200_003, "{dtype}");
        }
    }
}
