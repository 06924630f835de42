//! Startup kits from Python: jobs signed with them, and projects made into them.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use firesteel_base::Hint;
use firesteel_pki::bundle::{self, Draft};
use firesteel_pki::{Kit, Signer};
use firesteel_wire::spec::JobSpec;
use pyo3::prelude::*;

use crate::errors::{raise, sentence};
use crate::sim::spec_error;

/// Writes a job's bundle, signed with a kit's key; what tells the job when it is
/// submitted twice.
///
/// Raises:
///     firesteel.errors.SpecError: naming the field that is wrong.
///     firesteel.errors.KitError: the kit is not taken.
///     firesteel.errors.StoreError: a file cannot be read or written.
#[allow(clippy::too_many_arguments, reason = "Python passes them by name")]
#[pyfunction]
#[pyo3(signature = (kit_dir, spec_json, code, initial_model, out, submit_key = None))]
pub(crate) fn make_bundle(
    py: Python<'_>,
    kit_dir: PathBuf,
    spec_json: &str,
    code: Vec<(String, PathBuf)>,
    initial_model: Option<PathBuf>,
    out: PathBuf,
    submit_key: Option<String>,
) -> PyResult<String> {
    JobSpec::parse_submitted(spec_json.as_bytes()).map_err(|error| spec_error(py, &error))?;
    let made = py.detach(|| {
        let kit = Kit::open(&kit_dir).map_err(|error| told("KitError", &error))?;
        let signer = Signer::from_kit(&kit).map_err(|error| told("KitError", &error))?;
        let draft = Draft {
            project: kit.project(),
            spec: spec_json.as_bytes(),
            code: &code,
            initial: initial_model.as_deref(),
            submit_key: submit_key.as_deref(),
        };
        write(&draft, &signer, &out)
    });
    made.map_err(|(class, message, hint)| raise(py, class, message, hint))
}

/// The class, the sentence and the hint of an error.
type Told = (&'static str, String, String);

fn told<E: StdError + Hint + 'static>(class: &'static str, error: &E) -> Told {
    (class, sentence(error), error.hint().unwrap_or_default())
}

fn write(draft: &Draft<'_>, signer: &Signer, out: &Path) -> Result<String, Told> {
    let failed = |error: std::io::Error| {
        let message = format!("could not write `{}`: {error}", out.display());
        ("StoreError", message, String::new())
    };
    let mut file = BufWriter::new(File::create(out).map_err(failed)?);
    let written =
        bundle::write(draft, signer, &mut file).map_err(|error| told("StoreError", &error))?;
    file.flush().map_err(failed)?;
    Ok(written.submit_key)
}
