//! A moment as people and programs write it, always in UTC: the lines of several
//! sites can then be laid side by side.

use std::time::{Duration, SystemTime};

/// A moment, split into the calendar's fields (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    micros: u32,
}

impl Moment {
    /// A clock before 1970 reads as 1970.
    pub fn of(time: SystemTime) -> Self {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let seconds = since.as_secs();
        let (year, month, day) = date(seconds / 86_400);
        Self {
            year,
            month,
            day,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            micros: since.subsec_micros(),
        }
    }

    /// `2026-11-22 12:00:00,123`, as Python's logging writes it.
    pub fn plain(&self) -> String {
        format!(
            "{:04}-{:02}-{:02} {},{:03}",
            self.year,
            self.month,
            self.day,
            self.clock(),
            self.micros / 1000
        )
    }

    /// `2026-11-22T12:00:00.123456Z`, RFC 3339.
    pub fn rfc3339(&self) -> String {
        format!(
            "{:04}-{:02}-{:02}T{}.{:06}Z",
            self.year,
            self.month,
            self.day,
            self.clock(),
            self.micros
        )
    }

    /// `12:00:00`.
    pub fn clock(&self) -> String {
        format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second)
    }

    /// `20261122-120000`: names made of it sort by time.
    pub fn stamp(&self) -> String {
        format!(
            "{:04}{:02}{:02}-{:02}{:02}{:02}",
            self.year, self.month, self.day, self.hour, self.minute, self.second
        )
    }
}

/// Year, month and day of a number of days after 1970-01-01.
///
/// Counts in eras of 400 years that start on a first of March, so that the leap
/// day is the last one of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // 0000-03-01 to 1970-01-01
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_348_800_123_456);
        let moment = Moment::of(time);
        assert_eq!(moment.plain(), "2026-11-22 12:00:00,123");
        assert_eq!(moment.rfc3339(), "2026-11-22T12:00:00.123456Z");
        assert_eq!(moment.clock(), "12:00:00");
        assert_eq!(moment.stamp(), "20261122-120000");
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Moment::of(before).stamp(), "19700101-000000");
    }

    #[test]
    fn every_kind_of_year_is_right() {
        for (seconds, stamp) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (951_868_799, "20000229-235959"),
            (951_868_800, "20000301-000000"),
            (1_709_251_199, "20240229-235959"),
            (1_795_521_600, "20261124-120000"),
            (4_107_542_399, "21000228-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Moment::of(at).stamp(), stamp);
        }
    }
}
