//! What to do about an error, beside what went wrong.

/// Implemented by errors that a person meets: the sentence after `hint:`.
pub trait Hint {
    /// What the reader can do; `None` when there is nothing useful to say.
    fn hint(&self) -> Option<String>;
}
