//! Which bytes of a file have arrived.

use std::collections::BTreeMap;
use std::ops::Range;

/// Stretches of bytes, apart from each other and in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a stretch, which becomes one with those that it touches.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Those that begin within it or at its end, and the one before it.
        if let Some((&before, &its_end)) = self.0.range(..=start).next_back()
            && its_end >= start
        {
            start = before;
            end = end.max(its_end);
        }
        while let Some((&next, &its_end)) = self.0.range(start..=end).next() {
            end = end.max(its_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// Takes a stretch out.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        if let Some((&before, &its_end)) = self.0.range(..range.start).next_back()
            && its_end > range.start
        {
            self.0.insert(before, range.start);
            if its_end > range.end {
                self.0.insert(range.end, its_end);
            }
        }
        while let Some((&next, &its_end)) = self.0.range(range.start..range.end).next() {
            self.0.remove(&next);
            if its_end > range.end {
                self.0.insert(range.end, its_end);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// Bytes of all together.
    pub(super) fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// The longest so many, in order.
    pub(super) fn longest(&self, count: usize) -> Vec<Range<u64>> {
        let mut all: Vec<_> = self.iter().collect();
        if all.len() > count {
            all.sort_by_key(|range| std::cmp::Reverse(range.end - range.start));
            all.truncate(count);
            all.sort_by_key(|range| range.start);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set of bytes.
        #[test]
        fn stretches_are_what_a_set_of_bytes_is(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..20), 0..40)
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 100];
            for (add, start, len) in steps {
                let range = start..start + len;
                for at in range.clone() {
                    bytes[at as usize] = add;
                }
                match add {
                    true => ranges.insert(range),
                    false => ranges.remove(range),
                }
                let mut expected: Vec<Range<u64>> = Vec::new();
                for (at, _) in bytes.iter().enumerate().filter(|(_, there)| **there) {
                    let at = at as u64;
                    match expected.last_mut() {
                        Some(last) if last.end == at => last.end += 1,
                        _ => expected.push(at..at + 1),
                    }
                }
                prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), expected);
                prop_assert_eq!(ranges.total(), bytes.iter().filter(|b| **b).count() as u64);
            }
        }
    }

    #[test]
    fn the_longest_stay_in_order() {
        let mut ranges = Ranges::default();
        for range in [0..1, 10..30, 40..42, 50..60] {
            ranges.insert(range);
        }
        assert_eq!(ranges.longest(2), [10..30, 50..60]);
        assert_eq!(ranges.longest(9).len(), 4);
    }
}
