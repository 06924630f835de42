//! How much a line matters.

use std::fmt;

/// How much a line matters; numbered as Python's `logging` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Per chunk; off unless asked for.
    Trace = 5,
    /// Per round.
    Debug = 10,
    /// A person's action took effect.
    Info = 20,
    /// Recovered, worth knowing.
    Warning = 30,
    /// Data or a round was lost; someone must act.
    Error = 40,
    /// The job cannot go on.
    Critical = 50,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 6] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warning,
        Self::Error,
        Self::Critical,
    ];

    /// The word in logs and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }

    /// Reads a word (in any case, `WARN` and `FATAL` included) or a number; a
    /// number between two levels lets through what is at least that.
    pub fn parse(word: &str) -> Option<Self> {
        if let Ok(number) = word.trim().parse::<i64>() {
            return Some(
                Self::ALL
                    .into_iter()
                    .find(|&level| level as i64 >= number)
                    .unwrap_or(Self::Critical),
            );
        }
        let word = word.trim().to_ascii_uppercase();
        match word.as_str() {
            "WARN" => Some(Self::Warning),
            "FATAL" => Some(Self::Critical),
            "NOTSET" => Some(Self::Trace),
            _ => Self::ALL.into_iter().find(|level| level.as_str() == word),
        }
    }

    /// The level of a line that Python gave this number: the highest one that
    /// is not above it.
    pub fn of_number(number: i64) -> Self {
        Self::ALL
            .into_iter()
            .rfind(|&level| level as i64 <= number)
            .unwrap_or(Self::Trace)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_levels() {
        for (word, level) in [
            ("info", Some(Level::Info)),
            ("WARN", Some(Level::Warning)),
            ("0", Some(Level::Trace)),
            ("10", Some(Level::Debug)),
            ("25", Some(Level::Warning)),
            ("99", Some(Level::Critical)),
            ("loud", None),
            ("", None),
        ] {
            assert_eq!(Level::parse(word), level, "{word}");
        }
        assert_eq!(Level::of_number(25), Level::Info);
        assert_eq!(Level::of_number(-3), Level::Trace);
        assert_eq!(Level::of_number(1000), Level::Critical);
    }
}
