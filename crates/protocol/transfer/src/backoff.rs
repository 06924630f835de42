//! How long to wait before the next try.

use std::time::Duration;

/// Waits between tries: a random time up to a bound that doubles with each
/// failure, so that a thousand sites do not come back in the same second.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The bound of the first wait.
    pub const FIRST: Duration = Duration::from_millis(200);
    /// No wait is longer.
    pub const LONGEST: Duration = Duration::from_secs(5);

    /// The wait after one more failure; `random` is any number, drawn anew each
    /// time.
    pub fn next(&mut self, random: u64) -> Duration {
        let bound = Self::FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(random % (micros + 1))
    }

    /// Something got through: the next failure is the first again.
    pub fn progressed(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_is_capped() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        for _ in 0..100 {
            let bound = (0..200)
                .map(|draw: u64| {
                    backoff
                        .clone()
                        .next(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                })
                .max()
                .unwrap();
            bounds.push(bound);
            let _ = backoff.next(1);
        }
        assert!(bounds[0] <= Backoff::FIRST && bounds[0] > Backoff::FIRST / 2);
        assert!(bounds.iter().all(|bound| *bound <= Backoff::LONGEST));
        assert!(bounds[99] > Backoff::LONGEST / 2);
        backoff.progressed();
        assert!(backoff.next(u64::MAX) <= Backoff::FIRST);
    }
}
