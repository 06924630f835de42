//! Typed names. Each is checked once, where it enters, and cannot be wrong after.

use std::fmt;
use std::sync::Arc;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Nothing was given.
    #[error("a {kind} must not be empty")]
    Empty {
        /// What was being named.
        kind: &'static str,
    },
    /// Longer than the limit.
    #[error("{kind} `{start}…` has {length} characters, the limit is {limit}")]
    TooLong {
        /// What was being named.
        kind: &'static str,
        /// The first characters of what was given.
        start: String,
        /// Its length in bytes.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// A character that could mean something to a shell, a path or a terminal.
    #[error(
        "{kind} {name:?} contains {character:?}; use letters, digits, `.`, `_` and `-`, starting with a letter or digit"
    )]
    Character {
        /// What was being named.
        kind: &'static str,
        /// The name as given, at most the limit long.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

fn check(kind: &'static str, name: &str) -> Result<(), IdError> {
    let limit = crate::limits::NAME_LENGTH;
    if name.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if name.len() > limit {
        return Err(IdError::TooLong {
            kind,
            start: name.chars().take(16).collect(),
            length: name.len(),
            limit,
        });
    }
    let plain = |c: char| c.is_ascii_alphanumeric();
    let bad = name
        .chars()
        .enumerate()
        .find(|&(at, c)| !(plain(c) || (at > 0 && matches!(c, '.' | '_' | '-'))));
    match bad {
        None => Ok(()),
        Some((_, character)) => Err(IdError::Character {
            kind,
            name: name.to_owned(),
            character,
        }),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long or holds a character
            /// other than letters, digits, `.`, `_` and `-`.
            pub fn new(name: &str) -> Result<Self, IdError> {
                check($kind, name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name_type!(
    /// The name of a site: an organisation's node in the federation.
    ///
    /// Ordered byte by byte; `site order` everywhere in the product means the
    /// order of the job's list of sites, not this one.
    SiteName,
    "site name"
);
name_type!(
    /// The id of a job, made by the server (or by the simulation) at submission.
    JobId,
    "job id"
);

/// A round of a job, counted from zero as FLARE's `current_round` does.
///
/// Programs get the number itself, in messages, metrics, log fields and file
/// names. People count rounds from one, so that is how it is displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Round(pub u32);

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&(u64::from(self.0) + 1), f)
    }
}

/// How often a site was given the same round's task, counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What identifies one piece of work within a job. Handlers are idempotent
/// per key: the same key twice is the same work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    /// The round the work belongs to.
    pub round: Round,
    /// The site that does it.
    pub site: SiteName,
    /// Which try it is.
    pub attempt: Attempt,
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round {} {} attempt {}",
            self.round, self.site, self.attempt
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_commands_are_refused() {
        for bad in [
            "",
            "../x",
            "a/b",
            "a b",
            "-rf",
            ".hidden",
            "a;id",
            "a\0b",
            "é",
            &"x".repeat(64),
        ] {
            assert!(SiteName::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["site-1", "hospital.north_2", "7", &"x".repeat(63)] {
            assert_eq!(SiteName::new(good).unwrap().as_str(), good);
        }
    }
}
