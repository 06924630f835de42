//! Rust errors as the exceptions of `firesteel.errors`.

use std::error::Error as StdError;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};

/// What makes up one of our exceptions.
pub(crate) struct Raise<'a> {
    /// The class in `firesteel.errors`.
    pub class: &'a str,
    /// The sentence.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// A stable code; may be empty.
    pub code: &'a str,
    /// Further keyword arguments of the class.
    pub extra: Vec<(&'a str, String)>,
}

impl Raise<'_> {
    /// The exception, ready to be returned.
    pub(crate) fn into_err(self, py: Python<'_>) -> PyErr {
        self.build(py).unwrap_or_else(|error| error)
    }

    fn build(self, py: Python<'_>) -> PyResult<PyErr> {
        let class = py.import("firesteel.errors")?.getattr(self.class)?;
        let kwargs: Bound<'_, PyDict> =
            [("hint", self.hint.as_str()), ("code", self.code)].into_py_dict(py)?;
        for (key, value) in self.extra {
            kwargs.set_item(key, value)?;
        }
        let value = class.call((self.message,), Some(&kwargs))?;
        Ok(PyErr::from_value(value))
    }
}

/// An exception of a class without further arguments.
pub(crate) fn raise(
    py: Python<'_>,
    class: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> PyErr {
    Raise {
        class,
        message: message.into(),
        hint: hint.into(),
        code: "",
        extra: Vec::new(),
    }
    .into_err(py)
}

/// The error and its sources as one sentence.
pub(crate) fn sentence(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
