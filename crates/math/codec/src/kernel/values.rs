//! From a tensor's elements to f32 values and back.

use fearless_simd::{Level, dispatch};
use firesteel_tensor::{DType, float};

use super::half;

/// The values of elements of any float dtype; those of an F64 are rounded.
pub(crate) fn widen(level: Level, dtype: DType, bytes: &[u8], into: &mut [f32]) {
    if dtype == DType::F32 {
        // Elements are little-endian, and so is the machine: a copy will do.
        let length = into.len() * 4;
        if let Some(bytes) = bytes.get(..length) {
            bytemuck::cast_slice_mut(into).copy_from_slice(bytes);
        }
        return;
    }
    dispatch!(level, _ => widen_all(dtype, bytes, into));
}

#[inline(always)]
fn widen_all(dtype: DType, bytes: &[u8], into: &mut [f32]) {
    if dtype == DType::F64 {
        for (value, element) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = f64::from_le_bytes(*element) as f32;
        }
    } else {
        float::decode(dtype, bytes, into);
    }
}

/// Writes values as elements of a dtype, rounding to nearest; what is too large
/// for it becomes the largest.
pub(crate) fn narrow(level: Level, dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            if let Some(out) = out.get_mut(..bytes.len()) {
                out.copy_from_slice(bytes);
            }
        }
        DType::F64 => dispatch!(level, _ => narrow_to_f64(values, out)),
        DType::F16 => {
            half::encode(level, half::Half::Fp16, values, None, out);
        }
        DType::BF16 => {
            half::encode(level, half::Half::Bf16, values, None, out);
        }
        // No other dtype is ever encoded, so none is decoded.
        _ => {}
    }
}

#[inline(always)]
fn narrow_to_f64(values: &[f32], out: &mut [u8]) {
    for (value, element) in values.iter().zip(out.as_chunks_mut().0) {
        *element = f64::from(*value).to_le_bytes();
    }
}

/// `sum[i] += more[i]`.
pub(crate) fn add(level: Level, sum: &mut [f32], more: &[f32]) {
    #[inline(always)]
    fn all(sum: &mut [f32], more: &[f32]) {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += more;
        }
    }
    dispatch!(level, _ => all(sum, more));
}

/// `left[i] -= less[i]`.
pub(crate) fn subtract(level: Level, left: &mut [f32], less: &[f32]) {
    #[inline(always)]
    fn all(left: &mut [f32], less: &[f32]) {
        for (left, less) in left.iter_mut().zip(less) {
            *left -= less;
        }
    }
    dispatch!(level, _ => all(left, less));
}

/// How many values are NaN or infinite.
pub(crate) fn not_finite(level: Level, values: &[f32]) -> u64 {
    #[inline(always)]
    fn all(values: &[f32]) -> u32 {
        let mut count = 0u32;
        for value in values {
            count += u32::from(value.to_bits() & super::INFINITE == super::INFINITE);
        }
        count
    }
    // A window has fewer elements than a u32 counts.
    u64::from(dispatch!(level, _ => all(values)))
}
