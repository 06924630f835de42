//! Sets of bytes of a file.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, as ranges that do not touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// From start to end.
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Ranges {
    /// How many bytes are in it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many ranges they make.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, first to last.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// The first range.
    pub fn first(&self) -> Option<Range<u64>> {
        self.iter().next()
    }

    /// The first range of what is at or behind `offset`.
    pub fn first_from(&self, offset: u64) -> Option<Range<u64>> {
        if let Some(holding) = self.holding(offset) {
            return Some(offset..holding.end);
        }
        let (start, end) = self.ranges.range(offset..).next()?;
        Some(*start..*end)
    }

    /// The range that `offset` is in.
    pub fn holding(&self, offset: u64) -> Option<Range<u64>> {
        let (start, end) = self.ranges.range(..=offset).next_back()?;
        (offset < *end).then_some(*start..*end)
    }

    /// Whether all of `range` is in it.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self
                .holding(range.start)
                .is_some_and(|holding| range.end <= holding.end)
    }

    /// Adds the bytes of `range` that are not in it yet.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that overlaps or touches becomes one.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            self.bytes -= e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
        self.bytes += end - start;
    }

    /// Takes the bytes of `range` out of it.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            self.bytes -= e - s;
            if s < range.start {
                self.ranges.insert(s, range.start);
                self.bytes += range.start - s;
            }
            if e > range.end {
                self.ranges.insert(range.end, e);
                self.bytes += e - range.end;
            }
        }
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set_of_bytes(
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60),
            probe in 0u64..90,
            length in 0u64..10,
        ) {
            let mut ranges = Ranges::default();
            let mut plain = BTreeSet::new();
            for (insert, start, length) in steps {
                if insert {
                    ranges.insert(start..start + length);
                    plain.extend(start..start + length);
                } else {
                    ranges.remove(start..start + length);
                    plain.retain(|at| !(start..start + length).contains(at));
                }
            }
            let listed: Vec<u64> = ranges.iter().flatten().collect();
            prop_assert_eq!(&listed, &plain.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ranges.bytes(), plain.len() as u64);
            prop_assert_eq!(ranges.covers(&(probe..probe + length)), (probe..probe + length).all(|at| plain.contains(&at)));
            prop_assert_eq!(ranges.first_from(probe).map(|r| r.start), plain.range(probe..).next().copied());
            let apart: Vec<_> = ranges.iter().collect();
            prop_assert!(apart.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
