//! Arithmetic over one block of elements, the same operations on every CPU.
//!
//! The loops are plain Rust, compiled once per instruction set and picked at run
//! time. Rust neither reorders float operations nor fuses a product with a sum,
//! so each gives the same bits; min and max run on integers for the same reason
//! (the float instructions disagree about the sign of zero).

pub(crate) mod order;

use fearless_simd::{Level, dispatch};
use firesteel_tensor::{DType, check_finite, float};

/// Elements of a block: its f64 sums take 16 KiB, a third of a small L1 cache.
pub(crate) const BLOCK: usize = 2048;

/// Sources that one pass sums, so that sums stay in registers among them.
pub(crate) const GROUP: usize = 8;

/// Adds `weight × value` of each row to `sums`, row after row. With `fresh`, the
/// first product starts the sum: so a mean of negative zeros is one.
pub(crate) fn add<T: Copy + Into<f64>>(
    level: Level,
    sums: &mut [f64],
    rows: &[&[T]],
    weights: &[f64],
    mut fresh: bool,
) {
    let (mut rows, mut weights) = (rows, weights);
    while !rows.is_empty() {
        let count = [8, 4, 2, 1].into_iter().find(|n| *n <= rows.len());
        let count = count.expect("there is at least one row");
        let (these, rest) = rows.split_at(count);
        let (scales, more) = weights.split_at(count);
        dispatch!(level, _ => add_some(sums, these, scales, fresh));
        (rows, weights, fresh) = (rest, more, false);
    }
}

#[inline(always)]
fn add_some<T: Copy + Into<f64>>(sums: &mut [f64], rows: &[&[T]], weights: &[f64], fresh: bool) {
    match (rows.len(), fresh) {
        (8, true) => add_rows::<T, 8, true>(sums, rows, weights),
        (8, false) => add_rows::<T, 8, false>(sums, rows, weights),
        (4, true) => add_rows::<T, 4, true>(sums, rows, weights),
        (4, false) => add_rows::<T, 4, false>(sums, rows, weights),
        (2, true) => add_rows::<T, 2, true>(sums, rows, weights),
        (2, false) => add_rows::<T, 2, false>(sums, rows, weights),
        (_, true) => add_rows::<T, 1, true>(sums, rows, weights),
        (_, false) => add_rows::<T, 1, false>(sums, rows, weights),
    }
}

#[inline(always)]
fn add_rows<T: Copy + Into<f64>, const N: usize, const FRESH: bool>(
    sums: &mut [f64],
    rows: &[&[T]],
    weights: &[f64],
) {
    let length = sums.len();
    // Slices of one known length: no bounds are checked in the loop.
    let rows: [&[T]; N] = std::array::from_fn(|k| &rows[k][..length]);
    let weights: [f64; N] = std::array::from_fn(|k| weights[k]);
    for at in 0..length {
        let first = weights[0] * rows[0][at].into();
        let mut sum = if FRESH { first } else { sums[at] + first };
        for k in 1..N {
            sum += weights[k] * rows[k][at].into();
        }
        sums[at] = sum;
    }
}

/// Divides the sums and adds the model's values to them, if there are any.
pub(crate) fn divide(level: Level, sums: &mut [f64], by: f64, model: Option<&[f64]>) {
    dispatch!(level, _ => divide_all(sums, by, model));
}

#[inline(always)]
fn divide_all(sums: &mut [f64], by: f64, model: Option<&[f64]>) {
    match model {
        None => {
            for sum in sums {
                *sum /= by;
            }
        }
        Some(model) => {
            for (sum, base) in sums.iter_mut().zip(model) {
                *sum = base + *sum / by;
            }
        }
    }
}

/// Rounds the values into `out`; how many of them became NaN or infinite there.
pub(crate) fn round_into(level: Level, dtype: DType, values: &[f64], out: &mut [u8]) -> u64 {
    dispatch!(level, _ => float::encode(dtype, values, out));
    check_finite(dtype, out)
}

/// The values of a float dtype of at most 32 bits.
pub(crate) fn widen(level: Level, dtype: DType, bytes: &[u8], into: &mut [f32]) {
    dispatch!(level, _ => float::decode(dtype, bytes, into));
}

/// The values of any float dtype.
pub(crate) fn widen_to_f64(level: Level, dtype: DType, bytes: &[u8], into: &mut [f64]) {
    if dtype == DType::F64 {
        for (value, element) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = f64::from_le_bytes(*element);
        }
        return;
    }
    let mut narrow = [0f32; 256];
    let blocks = bytes.chunks(narrow.len() * dtype.size());
    for (bytes, into) in blocks.zip(into.chunks_mut(narrow.len())) {
        widen(level, dtype, bytes, &mut narrow);
        for (value, narrow) in into.iter_mut().zip(narrow) {
            *value = f64::from(narrow);
        }
    }
}
