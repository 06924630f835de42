//! The Python module `firesteel._native`: the seam between Rust and Python.
//!
//! Never: holds a default or a policy (those are in the crates below and in the
//! Python package above), or waits while it holds the interpreter.
//!
//! Start at the functions and classes of [`_native`]; their Python stub is
//! `python/firesteel/_native.pyi`.

mod admin;
mod bridge;
mod errors;
mod kits;
mod model;
mod sim;
mod stream;

use pyo3::prelude::*;

/// What Python imports.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<sim::Simulation>()?;
    module.add_class::<admin::Admin>()?;
    module.add_class::<model::ModelFile>()?;
    module.add_class::<bridge::Bridge>()?;
    module.add_class::<bridge::Task>()?;
    module.add_class::<stream::StreamLink>()?;
    module.add_class::<stream::StreamFile>()?;
    module.add_class::<stream::ItemsWriter>()?;
    module.add_function(wrap_pyfunction!(model::write_model, module)?)?;
    module.add_function(wrap_pyfunction!(sim::validate_job, module)?)?;
    module.add_function(wrap_pyfunction!(kits::make_bundle, module)?)?;
    Ok(())
}
