//! Integer tensors: the same everywhere goes through, counters take the maximum,
//! the rest is averaged and rounded.

use firesteel_tensor::DType;

use crate::kernel::order::Rank;

/// How the values of one element become one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule<'w> {
    /// The greatest.
    Maximum,
    /// The mean in f64 with these weights, whose sum is given.
    Mean { weights: &'w [f64], total: f64 },
    /// An order statistic.
    Rank(Rank),
}

/// Folds one block. `model` are the bytes that differences are added to. Whether
/// any element was not the same everywhere.
pub(crate) fn fold(
    dtype: DType,
    rule: Rule<'_>,
    sources: &[&[u8]],
    model: Option<&[u8]>,
    out: &mut [u8],
) -> bool {
    match dtype {
        DType::U8 => fold_as::<u8, 1>(rule, sources, model, out),
        DType::I8 => fold_as::<i8, 1>(rule, sources, model, out),
        DType::U16 => fold_as::<u16, 2>(rule, sources, model, out),
        DType::I16 => fold_as::<i16, 2>(rule, sources, model, out),
        DType::U32 => fold_as::<u32, 4>(rule, sources, model, out),
        DType::I32 => fold_as::<i32, 4>(rule, sources, model, out),
        DType::U64 => fold_as::<u64, 8>(rule, sources, model, out),
        DType::I64 => fold_as::<i64, 8>(rule, sources, model, out),
        _ => unreachable!("only integer tensors come here"),
    }
}

fn fold_as<T: Int<N>, const N: usize>(
    rule: Rule<'_>,
    sources: &[&[u8]],
    model: Option<&[u8]>,
    out: &mut [u8],
) -> bool {
    let Some((first, others)) = sources.split_first() else {
        return false;
    };
    // The common case, at the speed of a comparison.
    if model.is_none() && others.iter().all(|other| other == first) {
        out.copy_from_slice(first);
        return false;
    }
    let mut differed = false;
    let mut column = vec![0i128; sources.len()];
    let model = model.map(|bytes| bytes.as_chunks::<N>().0);
    for (at, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        for (value, source) in column.iter_mut().zip(sources) {
            let element = source.as_chunks::<N>().0[at];
            *value = match model {
                None => T::read(element),
                Some(_) => T::read_difference(element),
            };
        }
        let base = model.map_or(0, |model| T::read(model[at]));
        let same = column.iter().all(|value| *value == column[0]);
        let exact = match rule {
            _ if same => Some(column[0]),
            Rule::Maximum => column.iter().copied().max(),
            Rule::Rank(rank) => only_kept(rank, &mut column),
            Rule::Mean { .. } => None,
        };
        differed |= !same;
        *out = match exact {
            Some(value) => T::write(base + value),
            None => T::write_rounded(base as f64 + inexact(rule, &column)),
        };
    }
    differed
}

/// What a relay hands up of one stretch of an integer tensor.
pub(crate) struct Summed<'p> {
    /// Of weight and value, as f64.
    pub(crate) sum: &'p [u8],
    pub(crate) least: &'p [u8],
    pub(crate) most: &'p [u8],
}

/// Which end of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extreme {
    Least,
    Most,
}

/// The least or the greatest of each element, of rows and of what relays hand up.
pub(crate) fn extreme(
    dtype: DType,
    which: Extreme,
    diff: bool,
    rows: &[&[u8]],
    summed: &[Summed<'_>],
    out: &mut [u8],
) {
    match dtype {
        DType::U8 => extreme_as::<u8, 1>(which, diff, rows, summed, out),
        DType::I8 => extreme_as::<i8, 1>(which, diff, rows, summed, out),
        DType::U16 => extreme_as::<u16, 2>(which, diff, rows, summed, out),
        DType::I16 => extreme_as::<i16, 2>(which, diff, rows, summed, out),
        DType::U32 => extreme_as::<u32, 4>(which, diff, rows, summed, out),
        DType::I32 => extreme_as::<i32, 4>(which, diff, rows, summed, out),
        DType::U64 => extreme_as::<u64, 8>(which, diff, rows, summed, out),
        DType::I64 => extreme_as::<i64, 8>(which, diff, rows, summed, out),
        _ => unreachable!("only integer tensors come here"),
    }
}

/// The sum of weight and value of each element.
pub(crate) fn sum(
    dtype: DType,
    diff: bool,
    (rows, weights): (&[&[u8]], &[f64]),
    summed: &[Summed<'_>],
    out: &mut [u8],
) {
    match dtype {
        DType::U8 => sum_as::<u8, 1>(diff, (rows, weights), summed, out),
        DType::I8 => sum_as::<i8, 1>(diff, (rows, weights), summed, out),
        DType::U16 => sum_as::<u16, 2>(diff, (rows, weights), summed, out),
        DType::I16 => sum_as::<i16, 2>(diff, (rows, weights), summed, out),
        DType::U32 => sum_as::<u32, 4>(diff, (rows, weights), summed, out),
        DType::I32 => sum_as::<i32, 4>(diff, (rows, weights), summed, out),
        DType::U64 => sum_as::<u64, 8>(diff, (rows, weights), summed, out),
        DType::I64 => sum_as::<i64, 8>(diff, (rows, weights), summed, out),
        _ => unreachable!("only integer tensors come here"),
    }
}

/// As [`fold`] for a mean, when some of it was summed by relays. `counter` takes
/// the greatest.
pub(crate) fn fold_summed(
    dtype: DType,
    (counter, total): (bool, f64),
    rows: (&[&[u8]], &[f64]),
    summed: &[Summed<'_>],
    model: Option<&[u8]>,
    out: &mut [u8],
) -> bool {
    let how = (counter, total);
    match dtype {
        DType::U8 => summed_as::<u8, 1>(how, rows, summed, model, out),
        DType::I8 => summed_as::<i8, 1>(how, rows, summed, model, out),
        DType::U16 => summed_as::<u16, 2>(how, rows, summed, model, out),
        DType::I16 => summed_as::<i16, 2>(how, rows, summed, model, out),
        DType::U32 => summed_as::<u32, 4>(how, rows, summed, model, out),
        DType::I32 => summed_as::<i32, 4>(how, rows, summed, model, out),
        DType::U64 => summed_as::<u64, 8>(how, rows, summed, model, out),
        DType::I64 => summed_as::<i64, 8>(how, rows, summed, model, out),
        _ => unreachable!("only integer tensors come here"),
    }
}

fn read<T: Int<N>, const N: usize>(diff: bool, bytes: &[u8], at: usize) -> i128 {
    let element = bytes.as_chunks::<N>().0[at];
    if diff {
        T::read_difference(element)
    } else {
        T::read(element)
    }
}

/// The least and the greatest of one element.
fn span<T: Int<N>, const N: usize>(
    diff: bool,
    at: usize,
    rows: &[&[u8]],
    summed: &[Summed<'_>],
) -> (i128, i128) {
    let rows = rows.iter().map(|row| (*row, *row));
    let all = rows.chain(summed.iter().map(|summed| (summed.least, summed.most)));
    let spans = all.map(|(l, m)| (read::<T, N>(diff, l, at), read::<T, N>(diff, m, at)));
    spans.fold((i128::MAX, i128::MIN), |(least, most), (l, m)| {
        (least.min(l), most.max(m))
    })
}

/// The sum of weight and value of one element.
fn sum_of<T: Int<N>, const N: usize>(
    diff: bool,
    at: usize,
    (rows, weights): (&[&[u8]], &[f64]),
    summed: &[Summed<'_>],
) -> f64 {
    let products = rows.iter().zip(weights);
    let products = products.map(|(row, weight)| weight * read::<T, N>(diff, row, at) as f64);
    let sums = summed.iter();
    let sums = sums.map(|summed| f64::from_le_bytes(summed.sum.as_chunks().0[at]));
    let mut all = products.chain(sums);
    let first = all.next().unwrap_or(0.0);
    all.fold(first, |sum, more| sum + more)
}

fn extreme_as<T: Int<N>, const N: usize>(
    which: Extreme,
    diff: bool,
    rows: &[&[u8]],
    summed: &[Summed<'_>],
    out: &mut [u8],
) {
    for (at, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let span = span::<T, N>(diff, at, rows, summed);
        let value = match which {
            Extreme::Least => span.0,
            Extreme::Most => span.1,
        };
        *out = if diff {
            T::write_difference(value)
        } else {
            T::write(value)
        };
    }
}

fn sum_as<T: Int<N>, const N: usize>(
    diff: bool,
    rows: (&[&[u8]], &[f64]),
    summed: &[Summed<'_>],
    out: &mut [u8],
) {
    for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *out = sum_of::<T, N>(diff, at, rows, summed).to_le_bytes();
    }
}

fn summed_as<T: Int<N>, const N: usize>(
    (counter, total): (bool, f64),
    rows: (&[&[u8]], &[f64]),
    summed: &[Summed<'_>],
    model: Option<&[u8]>,
    out: &mut [u8],
) -> bool {
    let diff = model.is_some();
    let mut differed = false;
    for (at, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let base = model.map_or(0, |model| read::<T, N>(false, model, at));
        let (least, most) = span::<T, N>(diff, at, rows.0, summed);
        differed |= least != most;
        *out = if counter || least == most {
            T::write(base + most)
        } else {
            let mean = sum_of::<T, N>(diff, at, rows, summed) / total;
            T::write_rounded(base as f64 + mean)
        };
    }
    differed
}

/// The one value that counts, when it is one; the column is sorted after.
fn only_kept(rank: Rank, column: &mut [i128]) -> Option<i128> {
    column.sort_unstable();
    match &column[rank.kept(column.len())] {
        [value] => Some(*value),
        _ => None,
    }
}

fn inexact(rule: Rule<'_>, column: &[i128]) -> f64 {
    match rule {
        Rule::Mean { weights, total } => {
            let mut products = column.iter().zip(weights).map(|(v, w)| w * *v as f64);
            let first = products.next().unwrap_or(0.0);
            products.fold(first, |sum, product| sum + product) / total
        }
        Rule::Maximum => column.iter().copied().max().unwrap_or(0) as f64,
        Rule::Rank(rank) => {
            let kept = &column[rank.kept(column.len())];
            // Whole numbers have an exact sum, so only the quotient is rounded.
            kept.iter().sum::<i128>() as f64 / kept.len() as f64
        }
    }
}

/// An integer dtype of `N` bytes.
trait Int<const N: usize> {
    fn read(bytes: [u8; N]) -> i128;
    /// A difference: unsigned types hold it as two's complement.
    fn read_difference(bytes: [u8; N]) -> i128;
    /// The inverse of [`Int::read_difference`].
    fn write_difference(value: i128) -> [u8; N];
    /// The nearest value of the type.
    fn write(value: i128) -> [u8; N];
    /// The nearest whole number, ties to even, then the nearest of the type.
    fn write_rounded(value: f64) -> [u8; N];
}

macro_rules! ints {
    ($($int:ident $signed:ident $bytes:literal;)*) => { $(
        impl Int<$bytes> for $int {
            fn read(bytes: [u8; $bytes]) -> i128 {
                i128::from($int::from_le_bytes(bytes))
            }

            fn read_difference(bytes: [u8; $bytes]) -> i128 {
                i128::from($signed::from_le_bytes(bytes))
            }

            fn write_difference(value: i128) -> [u8; $bytes] {
                let least = i128::from($signed::MIN);
                let greatest = i128::from($signed::MAX);
                (value.clamp(least, greatest) as $signed).to_le_bytes()
            }

            fn write(value: i128) -> [u8; $bytes] {
                let least = i128::from($int::MIN);
                let greatest = i128::from($int::MAX);
                (value.clamp(least, greatest) as $int).to_le_bytes()
            }

            fn write_rounded(value: f64) -> [u8; $bytes] {
                // `as` saturates.
                (value.round_ties_even() as $int).to_le_bytes()
            }
        }
    )* };
}

ints! {
    u8 i8 1; i8 i8 1;
    u16 i16 2; i16 i16 2;
    u32 i32 4; i32 i32 4;
    u64 i64 8; i64 i64 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Rule<'static> = Rule::Mean {
        weights: &[1.0, 1.0],
        total: 2.0,
    };

    fn one<T: Int<N>, const N: usize>(
        rule: Rule<'_>,
        values: &[[u8; N]],
        model: Option<[u8; N]>,
    ) -> [u8; N] {
        let sources: Vec<&[u8]> = values.iter().map(<[u8; N]>::as_slice).collect();
        let mut out = [0; N];
        fold_as::<T, N>(
            rule,
            &sources,
            model.as_ref().map(|m| m.as_slice()),
            &mut out,
        );
        out
    }

    #[test]
    fn means_round_half_to_even_and_saturate() {
        for (a, b, mean) in [
            (1i8, 2i8, 2i8),
            (2, 3, 2),
            (-1, -2, -2),
            (-2, -3, -2),
            (5, 5, 5),
        ] {
            let got = one::<i8, 1>(EVEN, &[a.to_le_bytes(), b.to_le_bytes()], None);
            assert_eq!(i8::from_le_bytes(got), mean, "mean of {a} and {b}");
        }
        // The mean of two large neighbours is not one of theirs in f64.
        let big = [u64::MAX.to_le_bytes(), (u64::MAX - 1).to_le_bytes()];
        assert_eq!(one::<u64, 8>(EVEN, &big, None), u64::MAX.to_le_bytes());
        // Equal values never pass through a float.
        let odd = (i64::MAX - 2).to_le_bytes();
        assert_eq!(one::<i64, 8>(EVEN, &[odd, odd], None), odd);
        let added = one::<i8, 1>(EVEN, &[[100], [101]], Some([100]));
        assert_eq!(i8::from_le_bytes(added), i8::MAX);
    }

    #[test]
    fn differences_of_unsigned_integers_can_be_negative() {
        let less = [(-3i8) as u8];
        assert_eq!(one::<u8, 1>(EVEN, &[less, less], Some([200])), [197]);
        assert_eq!(one::<u8, 1>(EVEN, &[less, [1]], Some([200])), [199]);
        assert_eq!(one::<u8, 1>(EVEN, &[less, less], Some([1])), [0]);
    }

    #[test]
    fn counters_and_medians_are_exact() {
        let values = [7i64, i64::MAX, -9].map(i64::to_le_bytes);
        assert_eq!(
            one::<i64, 8>(Rule::Maximum, &values, None),
            i64::MAX.to_le_bytes()
        );
        let median = one::<i64, 8>(Rule::Rank(Rank::Median), &values, None);
        assert_eq!(median, 7i64.to_le_bytes());
    }
}
