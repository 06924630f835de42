//! Times as programs and people write them, but for those of the calendar
//! (`base::calendar`).

use std::time::{Duration, SystemTime};

/// Seconds since 1970 as TensorBoard wants them.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// `7s`, `1m 05s`, `2h 03m`: a duration in the least room.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (40, "0.0s"),
            (9_400, "9.4s"),
            (10_000, "10s"),
            (65_000, "1m 05s"),
            (7_380_000, "2h 03m"),
        ] {
            assert_eq!(short(Duration::from_millis(ms)), text);
        }
    }
}
