//! A job's own clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Microseconds on a job's own clock.
///
/// The clock starts at zero with the job, is advanced by the monotonic clock
/// of whoever drives the job, and is saved with every snapshot, so it never
/// runs backwards over a restart or a stepped wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

impl Time {
    /// The moment the job started.
    pub const ZERO: Self = Self(0);

    /// A moment `seconds` after the start.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1_000_000)
    }

    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Saturates at the end of time, some 580,000 years in.
    fn add(self, after: Duration) -> Self {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0 / 100_000;
        write!(f, "{}.{}s", tenths / 10, tenths % 10)
    }
}
