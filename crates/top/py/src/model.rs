//! Model files as Python sees them.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use firesteel_bridge::Mapping;
use firesteel_store::SPARE;
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader, Tree};
use pyo3::exceptions::{PyBufferError, PyOSError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyIterator;

use crate::errors::{raise, sentence};

/// Bytes gathered before they are written: one system call per this many.
const WRITE_BUFFER: usize = 1 << 20;

/// A model's bytes in memory and what its header says of them.
///
/// Offers the buffer protocol: the whole file as writable bytes, private to this
/// process. Pages of a mapped file are copied when they are first written to (a
/// trainer that writes to most of them has its next models read into memory that
/// is used again); the file itself never changes. The bytes live as long as any array made from them.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct ModelFile {
    mapping: Mapping,
    header: ModelHeader,
}

impl ModelFile {
    pub(crate) fn new(py: Python<'_>, mapping: Mapping) -> PyResult<Self> {
        let bytes = mapping.as_slice();
        let header = ModelHeader::parse(bytes, bytes.len() as u64).map_err(|error| {
            raise(
                py,
                "ModelError",
                format!("not a model: {}", sentence(&error)),
                "",
            )
        })?;
        Ok(Self { mapping, header })
    }

    /// The work on it is done.
    pub(crate) fn done(&self) {
        self.mapping.done();
    }
}

#[pymethods]
impl ModelFile {
    /// Maps a model file.
    ///
    /// Raises:
    ///     firesteel.errors.ModelError: the file is no model.
    ///     OSError: it cannot be read.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let mapping = Mapping::open(&path).map_err(|error| {
            PyOSError::new_err(format!("{}: {}", path.display(), sentence(&error)))
        })?;
        Self::new(py, mapping)
    }

    /// Takes a copy of a model file's bytes.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let mapping = Mapping::from_bytes(data)
            .map_err(|error| pyo3::exceptions::PyMemoryError::new_err(sentence(&error)))?;
        Self::new(py, mapping)
    }

    /// Each tensor's name, dtype, shape, offset in the buffer and size in bytes.
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyList>> {
        let start = self.header.data_start();
        let entries = self.header.tensors().iter().map(|tensor| {
            let shape = pyo3::types::PyTuple::new(py, &tensor.shape)?;
            let name: &str = &tensor.name;
            (
                name,
                tensor.dtype.as_str(),
                shape,
                start + tensor.start,
                tensor.size(),
            )
                .into_pyobject(py)
        });
        let entries = entries.collect::<PyResult<Vec<_>>>()?;
        pyo3::types::PyList::new(py, entries)
    }

    /// The params tree as JSON; None when the params are a flat dict.
    fn tree(&self) -> Option<String> {
        self.header.tree().map(Tree::to_json)
    }

    /// Second names of tensors.
    fn aliases(&self) -> BTreeMap<String, String> {
        let aliases = self.header.aliases().iter();
        aliases
            .map(|(alias, name)| (alias.to_string(), name.to_string()))
            .collect()
    }

    /// The file's own metadata.
    fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().clone()
    }

    /// The same model in a mapping of its own: from a file without what was
    /// written to this one, else as this one is now.
    fn reopen(&self) -> PyResult<Self> {
        let mapping = self
            .mapping
            .again()
            .map_err(|error| pyo3::exceptions::PyMemoryError::new_err(sentence(&error)))?;
        Ok(Self {
            mapping,
            header: self.header.clone(),
        })
    }

    fn __len__(&self) -> usize {
        self.mapping.len()
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let (pointer, length) = {
            let this = slf.get();
            (this.mapping.as_ptr(), this.mapping.len())
        };
        let length = ffi::Py_ssize_t::try_from(length)
            .map_err(|_| PyBufferError::new_err("the model is too large for this machine"))?;
        // SAFETY: `view` is valid for writing by the protocol's contract; the
        // bytes stay where they are, readable and writable, while the mapping
        // lives, and the view holds a reference to its owner.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), pointer.cast(), length, 0, flags) };
        if filled == -1 {
            Err(PyErr::fetch(slf.py()))
        } else {
            Ok(())
        }
    }
}

/// A tensor to be written: name, dtype, shape and its bytes, or a function that
/// makes them when their turn comes, at once or as an iterator of buffers.
pub(crate) type Given<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>);

/// Writes a model file, tensor by tensor.
///
/// With `path=None` returns the file's bytes; else writes aside, renames, sets
/// mode 0400, and returns the file's size. `partial` says that the model is an
/// update that holds only what changed.
#[pyfunction]
#[pyo3(signature = (path, tensors, *, tree=None, aliases=None, metadata=None, partial=false))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
pub(crate) fn write_model<'py>(
    py: Python<'py>,
    path: Option<PathBuf>,
    tensors: Vec<Given<'py>>,
    tree: Option<&str>,
    aliases: Option<BTreeMap<String, String>>,
    metadata: Option<BTreeMap<String, String>>,
    partial: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let model = Outline::new(py, &tensors, tree, aliases, metadata, partial)?;
    match path {
        None => {
            let total = usize::try_from(model.total())
                .map_err(|_| PyValueError::new_err("the model is too large for this machine"))?;
            let mut bytes = Vec::with_capacity(total);
            model.write(|data| {
                bytes.extend_from_slice(data);
                Ok(())
            })?;
            Ok(pyo3::types::PyBytes::new(py, &bytes).into_any())
        }
        Some(path) => {
            let mut aside = Aside::create(&path)?;
            model.write(|data| aside.write(py, data))?;
            aside.finish(py, &path)?;
            Ok(model.total().into_pyobject(py)?.into_any())
        }
    }
}

/// A model that is about to be written.
pub(crate) struct Outline<'a, 'py> {
    tensors: &'a [Given<'py>],
    head: Vec<u8>,
    header: ModelHeader,
}

impl<'a, 'py> Outline<'a, 'py> {
    pub(crate) fn new(
        py: Python<'py>,
        tensors: &'a [Given<'py>],
        tree: Option<&str>,
        aliases: Option<BTreeMap<String, String>>,
        metadata: Option<BTreeMap<String, String>>,
        partial: bool,
    ) -> PyResult<Self> {
        let refused = |problem: String| raise(py, "ModelError", problem, "");
        let mut builder = HeaderBuilder::new();
        for (name, dtype, shape, _) in tensors {
            let dtype = DType::parse(dtype)
                .ok_or_else(|| refused(format!("tensor `{name}`: there is no dtype `{dtype}`")))?;
            builder.tensor(name, dtype, shape);
        }
        for (alias, name) in aliases.unwrap_or_default() {
            builder.alias(&alias, &name);
        }
        for (key, value) in metadata.unwrap_or_default() {
            builder.metadata(&key, &value);
        }
        if let Some(tree) = tree {
            builder.tree(Tree::parse(tree).map_err(|error| refused(sentence(&error)))?);
        }
        if partial {
            builder.partial();
        }
        let (head, header) = builder
            .encode()
            .map_err(|error| refused(sentence(&error)))?;
        Ok(Self {
            tensors,
            head,
            header,
        })
    }

    /// Bytes of the whole file.
    pub(crate) fn total(&self) -> u64 {
        self.header.total_len()
    }

    /// Hands the file's bytes out from first to last, a tensor at a time.
    pub(crate) fn write(&self, mut take: impl FnMut(&[u8]) -> PyResult<()>) -> PyResult<()> {
        take(&self.head)?;
        // By place in the file, which differs from the user's order.
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(|&at| {
            let tensor = self.header.tensors().get(at);
            tensor.map_or(0, |tensor| tensor.start)
        });
        for at in order {
            let (name, _, _, data) = &self.tensors[at];
            let size = self.header.tensors()[at].size();
            Piece { name, size, data }.with(&mut take)?;
        }
        Ok(())
    }
}

struct Piece<'a, 'py> {
    name: &'a str,
    size: u64,
    data: &'a Bound<'py, PyAny>,
}

impl Piece<'_, '_> {
    /// Lends the tensor's bytes; they are let go before the next tensor's turn.
    fn with(&self, take: &mut impl FnMut(&[u8]) -> PyResult<()>) -> PyResult<()> {
        let made = if self.data.is_callable() {
            self.data.call0()?
        } else {
            self.data.clone()
        };
        let mut written = 0;
        if made.cast::<PyIterator>().is_ok() {
            for buffer in made.try_iter()? {
                let view = View::of(&buffer?)?;
                written += view.bytes().len() as u64;
                // Before more is written than there is room for.
                if written > self.size {
                    break;
                }
                take(view.bytes())?;
            }
        } else {
            let view = View::of(&made)?;
            written = view.bytes().len() as u64;
            if written == self.size {
                take(view.bytes())?;
            }
        }
        if written == self.size {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "tensor `{}` has {written} bytes, its dtype and shape make {}",
            self.name, self.size
        )))
    }
}

/// A contiguous view of an object's bytes.
pub(crate) struct View<'py> {
    raw: Box<ffi::Py_buffer>,
    _py: Python<'py>,
}

impl<'py> View<'py> {
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut raw = Box::new(ffi::Py_buffer::new());
        // SAFETY: `object` is alive and `raw` is writable. `PyBUF_SIMPLE` asks for
        // contiguous bytes and fails otherwise.
        let got =
            unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *raw, ffi::PyBUF_SIMPLE) };
        if got == -1 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self {
            raw,
            _py: object.py(),
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.raw.buf.is_null() {
            return &[];
        }
        let length = usize::try_from(self.raw.len).unwrap_or(0);
        // SAFETY: the exporter keeps `len` bytes at `buf` in place until the view
        // is released. That Python code writes to them meanwhile would be a race
        // in the user's program; the caller holds or has lent the arrays to us.
        unsafe { std::slice::from_raw_parts(self.raw.buf.cast(), length) }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // SAFETY: filled by `PyObject_GetBuffer`, released once, with the
        // interpreter attached as `_py` says.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.raw) }
    }
}

/// A file that is written aside and either gets its name or is removed.
pub(crate) struct Aside {
    file: Option<io::BufWriter<File>>,
    path: PathBuf,
}

impl Aside {
    pub(crate) fn create(path: &Path) -> PyResult<Self> {
        let name = path.file_name().ok_or_else(|| {
            PyValueError::new_err(format!("`{}` does not name a file", path.display()))
        })?;
        let mut aside = std::ffi::OsString::from(".");
        aside.push(name);
        aside.push(format!(".{}.part", std::process::id()));
        let aside = path.with_file_name(aside);
        // The file of an earlier result, whose pages need not be found again. It is
        // cut to its length at the end.
        let again = std::fs::rename(path.with_file_name(SPARE), &aside).is_ok();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(!again)
            .mode(0o600)
            .open(&aside)
            .map_err(|error| named(&error, &aside))?;
        Ok(Self {
            file: Some(io::BufWriter::with_capacity(WRITE_BUFFER, file)),
            path: aside,
        })
    }

    pub(crate) fn write(&mut self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let written = if bytes.len() < WRITE_BUFFER {
            file.write_all(bytes)
        } else {
            py.detach(|| file.write_all(bytes))
        };
        written.map_err(|error| named(&error, &self.path))
    }

    pub(crate) fn finish(&mut self, py: Python<'_>, path: &Path) -> PyResult<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let aside = &self.path;
        py.detach(|| {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            let written = file.stream_position()?;
            if file.metadata()?.len() != written {
                file.set_len(written)?;
            }
            file.set_permissions(std::fs::Permissions::from_mode(0o400))?;
            std::fs::rename(aside, path)
        })
        .map_err(|error| {
            // The error that came first is the one to tell.
            let _ = std::fs::remove_file(aside);
            named(&error, path)
        })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing half-written stays; that it is gone already is fine.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The same error as Python would raise it: with its number and the file.
pub(crate) fn named(error: &io::Error, path: &Path) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, error.to_string(), path.to_path_buf())),
        None => PyOSError::new_err(format!("{}: {error}", path.display())),
    }
}
