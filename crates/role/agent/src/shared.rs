//! One copy of a job spec for all agents of a process: a simulation has a
//! thousand of them, and the spec names every site.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use firesteel_wire::spec::{JobSpec, SpecError};

/// The spec that was read last, for as long as an agent uses it.
static LAST: Mutex<Weak<Read>> = Mutex::new(Weak::new());

struct Read {
    text: Bytes,
    spec: JobSpec,
}

/// A job spec that agents of the same job share.
pub(crate) struct SharedSpec(Arc<Read>);

impl SharedSpec {
    /// Reads a spec, or finds it read already.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, SpecError> {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.upgrade().filter(|known| known.text == text) {
            return Ok(Self(known));
        }
        let spec = JobSpec::parse(text)?;
        // Copied: what was received is a part of a larger buffer.
        let read = Arc::new(Read {
            text: Bytes::copy_from_slice(text),
            spec,
        });
        *last = Arc::downgrade(&read);
        Ok(Self(read))
    }

    /// The same job with its files in this folder.
    pub(crate) fn rooted(&self, code: &Path) -> Self {
        let spec = self.0.spec.clone().rooted(&code.to_string_lossy());
        Self(Arc::new(Read {
            text: Bytes::new(),
            spec,
        }))
    }
}

impl Deref for SharedSpec {
    type Target = JobSpec;

    fn deref(&self) -> &JobSpec {
        &self.0.spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        format!(
            r#"{{"version":1,"name":"{name}","algorithm":{{"kind":"fedavg","num_rounds":1,"start_round":0}},
            "sites":["site-1"],"min_clients":1,
            "trainer":{{"script":"/client.py","mode":"warm","framework":"numpy","exchange":"numpy","transfer":"FULL"}}}}"#
        )
    }

    #[test]
    fn equal_specs_are_one_and_others_are_not() {
        let first = SharedSpec::parse(text("a").as_bytes()).unwrap();
        let same = SharedSpec::parse(text("a").as_bytes()).unwrap();
        assert!(Arc::ptr_eq(&first.0, &same.0));
        let other = SharedSpec::parse(text("b").as_bytes()).unwrap();
        assert_eq!((first.name.as_str(), other.name.as_str()), ("a", "b"));
        assert!(SharedSpec::parse(b"{").is_err());
    }
}
