//! Order statistics across sources: medians and trimmed means by coordinate.
//!
//! Up to [`NETWORK_SOURCES`] sources are sorted by a network of compare-exchange
//! steps (Batcher's merge exchange, Knuth 5.2.2 M), each of them two vector
//! instructions over a whole row; more are gathered and selected one coordinate
//! at a time.

use fearless_simd::{Level, dispatch};

/// Beyond so many sources a network has more steps than a selection.
pub(crate) const NETWORK_SOURCES: usize = 64;

/// Elements of all rows of a block together: 32 KiB of 32-bit keys.
const BLOCK_ELEMENTS: usize = 8192;

/// Which part of the sorted values counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    /// The middle one, or the mean of the middle two.
    Median,
    /// All but so many at either end.
    Trimmed(usize),
}

impl Rank {
    /// The places, in sorted order, of the values whose mean is the result.
    pub(crate) fn kept(self, sources: usize) -> std::ops::Range<usize> {
        match self {
            Self::Median => (sources - 1) / 2..sources / 2 + 1,
            Self::Trimmed(cut) => cut..sources - cut,
        }
    }
}

/// Pairs of rows to be compared, in order: the lower goes to the first.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    sources: usize,
    rank: Rank,
    steps: Vec<(usize, usize)>,
}

impl Network {
    /// The steps that put the values of `rank` in their places.
    pub(crate) fn new(sources: usize, rank: Rank) -> Self {
        let steps = if sources <= NETWORK_SOURCES {
            needed(merge_exchange(sources), rank.kept(sources), sources)
        } else {
            Vec::new()
        };
        Self {
            sources,
            rank,
            steps,
        }
    }

    /// How many elements of each source fit a block.
    pub(crate) fn block(&self) -> usize {
        (BLOCK_ELEMENTS / self.sources).clamp(16, super::BLOCK)
    }

    /// Sorts `rows`, one source's keys after the other's, and writes the mean of
    /// the values that count. The keys are left in no particular order.
    pub(crate) fn run<K: Key>(&self, level: Level, keys: &mut [K], out: &mut [f64]) {
        let width = out.len();
        debug_assert_eq!(keys.len(), width * self.sources);
        if width == 0 {
            return;
        }
        let kept = self.rank.kept(self.sources);
        if self.sources > NETWORK_SOURCES {
            self.select(keys, out);
            return;
        }
        dispatch!(level, _ => exchange(keys, width, &self.steps));
        let rows = &keys[kept.start * width..kept.end * width];
        dispatch!(level, _ => mean_of_rows(rows, out));
    }

    /// The same for more sources than a network is good for.
    fn select<K: Key>(&self, keys: &[K], out: &mut [f64]) {
        let width = out.len();
        let kept = self.rank.kept(self.sources);
        let mut column = vec![K::default(); self.sources];
        for (at, out) in out.iter_mut().enumerate() {
            for (source, key) in column.iter_mut().enumerate() {
                *key = keys[source * width + at];
            }
            if kept.len() <= 2 {
                // Everything below the last kept place is not above it, so the
                // place before it is the greatest of those.
                let (below, last, _) = column.select_nth_unstable(kept.end - 1);
                let last = *last;
                if kept.len() == 2 {
                    let before = below.iter().copied().max();
                    column[kept.start] = before.expect("two are kept, so one is below");
                }
                column[kept.end - 1] = last;
            } else {
                column.sort_unstable();
            }
            *out = mean(column[kept.clone()].iter().map(|k| k.value()));
        }
    }
}

/// The mean in the given order: the sum, then one division.
fn mean(mut values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len();
    let mut sum = values.next().expect("something is always kept");
    for value in values {
        sum += value;
    }
    sum / count as f64
}

/// Floats as integers in the same order, negative zero below zero. NaN, which
/// never should be here, sorts to an end like any other bits.
pub(crate) trait Key: Copy + Ord + Default {
    /// The float.
    fn value(self) -> f64;
}

impl Key for i32 {
    #[inline(always)]
    fn value(self) -> f64 {
        f64::from(f32::from_bits(flip32(self) as u32))
    }
}

impl Key for i64 {
    #[inline(always)]
    fn value(self) -> f64 {
        f64::from_bits(flip64(self) as u64)
    }
}

/// Turns the order of negative floats around; its own inverse.
#[inline(always)]
fn flip32(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

#[inline(always)]
fn flip64(bits: i64) -> i64 {
    bits ^ ((bits >> 63) & i64::MAX)
}

/// The keys of f32 values.
pub(crate) fn keys32(level: Level, values: &[f32], keys: &mut [i32]) {
    #[inline(always)]
    fn each(values: &[f32], keys: &mut [i32]) {
        for (key, value) in keys.iter_mut().zip(values) {
            *key = flip32(value.to_bits() as i32);
        }
    }
    dispatch!(level, _ => each(values, keys));
}

/// The keys of f64 values.
pub(crate) fn keys64(level: Level, values: &[f64], keys: &mut [i64]) {
    #[inline(always)]
    fn each(values: &[f64], keys: &mut [i64]) {
        for (key, value) in keys.iter_mut().zip(values) {
            *key = flip64(value.to_bits() as i64);
        }
    }
    dispatch!(level, _ => each(values, keys));
}

#[inline(always)]
fn exchange<K: Key>(keys: &mut [K], width: usize, steps: &[(usize, usize)]) {
    for &(low, high) in steps {
        let (before, after) = keys.split_at_mut(high * width);
        let low = &mut before[low * width..][..width];
        let high = &mut after[..width];
        for (low, high) in low.iter_mut().zip(high) {
            let (a, b) = (*low, *high);
            *low = a.min(b);
            *high = a.max(b);
        }
    }
}

#[inline(always)]
fn mean_of_rows<K: Key>(rows: &[K], out: &mut [f64]) {
    let width = out.len();
    let count = (rows.len() / width) as f64;
    let (first, rest) = rows.split_at(width);
    for (sum, key) in out.iter_mut().zip(first) {
        *sum = key.value();
    }
    for row in rest.chunks_exact(width) {
        for (sum, key) in out.iter_mut().zip(row) {
            *sum += key.value();
        }
    }
    for sum in out {
        *sum /= count;
    }
}

/// Batcher's merge exchange for any number of rows.
fn merge_exchange(rows: usize) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    if rows < 2 {
        return steps;
    }
    let top = rows.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            for low in 0..rows - d {
                if low & p == r {
                    steps.push((low, low + d));
                }
            }
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    steps
}

/// The steps without those that no kept place depends on.
fn needed(
    steps: Vec<(usize, usize)>,
    kept: std::ops::Range<usize>,
    rows: usize,
) -> Vec<(usize, usize)> {
    let mut wanted: Vec<bool> = (0..rows).map(|row| kept.contains(&row)).collect();
    let mut needed: Vec<_> = steps
        .into_iter()
        .rev()
        .filter(|&(low, high)| {
            let counts = wanted[low] || wanted[high];
            (wanted[low], wanted[high]) = (wanted[low] || counts, wanted[high] || counts);
            counts
        })
        .collect();
    needed.reverse();
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that sorts every sequence of zeros and ones sorts everything.
    #[test]
    fn networks_put_every_kept_place_right() {
        for sources in 1usize..=16 {
            let mut ranks = vec![Rank::Median];
            ranks.extend((0..sources.div_ceil(2)).map(Rank::Trimmed));
            for rank in ranks {
                let network = Network::new(sources, rank);
                for bits in 0u32..1 << sources {
                    let mut keys: Vec<i32> = (0..sources).map(|k| (bits >> k & 1) as i32).collect();
                    exchange(&mut keys, 1, &network.steps);
                    let zeros = sources - bits.count_ones() as usize;
                    for place in rank.kept(sources) {
                        assert_eq!(keys[place], i32::from(place >= zeros), "{sources} {rank:?}");
                    }
                }
            }
        }
        assert_eq!(Network::new(8, Rank::Trimmed(0)).steps.len(), 19);
    }

    #[test]
    fn keys_are_ordered_as_their_floats_are() {
        let floats = [
            f32::NEG_INFINITY,
            -1.5,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            2.0,
            f32::MAX,
        ];
        let mut keys = [0; 8];
        keys32(Level::new(), &floats, &mut keys);
        assert!(keys.is_sorted());
        for (key, float) in keys.into_iter().zip(floats) {
            assert_eq!(key.value().to_bits(), f64::from(float).to_bits());
        }
        let wide = floats.map(f64::from);
        let mut keys = [0; 8];
        keys64(Level::new(), &wide, &mut keys);
        assert!(keys.is_sorted());
        for (key, float) in keys.into_iter().zip(wide) {
            assert_eq!(key.value().to_bits(), float.to_bits());
        }
    }
}
