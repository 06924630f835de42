//! What a fold did, beside its result.

use std::sync::Arc;

/// What became of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many sites the fold counted.
    pub sites: usize,
    /// Sentences for people, at most one per cause.
    pub warnings: Vec<String>,
    /// Keys that some sites did not send, and how many did.
    pub partial: Vec<PartialKey>,
    /// Bools and integers that were the same everywhere and went through as they
    /// were.
    pub passed_through: Vec<Arc<str>>,
    /// Keys that no site sent: the model keeps its own.
    pub kept: Vec<Arc<str>>,
    /// Keys that the job leaves out: the model keeps its own.
    pub excluded: Vec<Arc<str>>,
}

/// A key that was folded over fewer sites than there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialKey {
    /// The tensor's name or the path in the params.
    pub key: Arc<str>,
    /// How many sites sent it.
    pub sites: usize,
}

/// Names for a sentence: the first few, and how many more.
pub(crate) fn joined<T: AsRef<str>>(names: &[T], quote: &str) -> String {
    const SHOWN: usize = 5;
    let shown = |name: &T| {
        format!(
            "{quote}{}{quote}",
            firesteel_tensor::text::shown(name.as_ref())
        )
    };
    let mut text = String::new();
    for (at, name) in names.iter().take(SHOWN).enumerate() {
        let last = at + 1 == names.len();
        let before = match at {
            0 => "",
            _ if last => " and ",
            _ => ", ",
        };
        text.push_str(before);
        text.push_str(&shown(name));
    }
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
