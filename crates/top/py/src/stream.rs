//! Offers and fetches as Python sees them, and files of items.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use firesteel_base::Durations;
use firesteel_bridge::stream::StreamKind;
use firesteel_bridge::{BridgeClient, Dial, Mapping};
use firesteel_wire::bridge::{Fetch, Offer};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bridge::waiting;
use crate::errors::{raise, sentence};
use crate::model::{Aside, Given, ModelFile, Outline, View, named};

/// Bytes copied between two looks for signals.
const WINDOW: usize = 4 << 20;
/// The start of a file of items: `docs/specs/stream.md`.
const ITEMS_MAGIC: &[u8; 16] = b"firesteel-items\n";
/// The version of that format.
const ITEMS_VERSION: u32 = 1;
/// Items and their headers start at multiples of it, so that an item can be
/// mapped where it lies.
const ITEM_ALIGNMENT: u64 = 64;

const ITEM_MODEL: u8 = 1;
const ITEM_BYTES: u8 = 2;
const ITEM_END: u8 = 255;

/// A connection to the site's agent for offers and fetches; one question at a
/// time. Calls that wait let go of the interpreter and honor signals.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct StreamLink {
    client: Mutex<Option<Arc<BridgeClient>>>,
}

#[pymethods]
impl StreamLink {
    /// Dials an agent and shows it the token.
    #[staticmethod]
    fn connect(py: Python<'_>, socket: PathBuf, token: &str, rank: u32) -> PyResult<Self> {
        let client = waiting(py, |check| {
            BridgeClient::connect_streams(
                Dial {
                    socket: &socket,
                    token,
                    rank,
                    version: env!("CARGO_PKG_VERSION"),
                    connect: Durations::default().connect,
                },
                check,
            )
        })?;
        Ok(Self {
            client: Mutex::new(Some(Arc::new(client))),
        })
    }

    /// Offers a file or folder; returns the offer's id and its size in bytes.
    #[pyo3(signature = (path, kind, *, name="", to=Vec::new(), times=0, owned=false))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python method"
    )]
    fn offer(
        &self,
        py: Python<'_>,
        path: PathBuf,
        kind: &str,
        name: &str,
        to: Vec<String>,
        times: u32,
        owned: bool,
    ) -> PyResult<(String, u64)> {
        let client = self.client(py)?;
        let kind = parse_kind(kind)?;
        let (file, length) = py
            .detach(|| {
                // NONBLOCK: a pipe would hold us until it is written to. What is no
                // regular file is refused by the agent.
                let flags = rustix::fs::OFlags::NONBLOCK.bits();
                let file = File::options()
                    .read(true)
                    .custom_flags(flags.cast_signed())
                    .open(&path)?;
                let length = file.metadata()?.len();
                Ok((file, length))
            })
            .map_err(|error: io::Error| named(&error, &path))?;
        let length = if kind == StreamKind::Folder {
            0
        } else {
            length
        };
        let offer = Offer {
            name: name.to_owned(),
            kind: kind.into(),
            length,
            to,
            times,
            owned,
        };
        let id = waiting(py, |check| client.offer(offer, file.as_fd(), check))?;
        Ok((id, length))
    }

    /// Ends an offer.
    fn withdraw(&self, py: Python<'_>, id: String) -> PyResult<()> {
        let client = self.client(py)?;
        waiting(py, |check| client.withdraw(id, check))
    }

    /// Asks for what a site offers, by id or by name; waits until it is on this
    /// machine.
    #[pyo3(signature = (site, *, id="", name="", wait=0.0))]
    fn fetch(
        &self,
        py: Python<'_>,
        site: &str,
        id: &str,
        name: &str,
        wait: f64,
    ) -> PyResult<StreamFile> {
        let client = self.client(py)?;
        let wait = std::time::Duration::try_from_secs_f64(wait).map_err(|_| {
            PyValueError::new_err(format!("wait is {wait}, expected seconds from 0 up"))
        })?;
        let fetch = Fetch {
            site: site.to_owned(),
            id: id.to_owned(),
            name: name.to_owned(),
            wait: u64::try_from(wait.as_micros()).unwrap_or(u64::MAX),
        };
        let fetched = waiting(py, |check| client.fetch(fetch, check))?;
        Ok(StreamFile {
            kind: StreamKind::try_from(fetched.about.kind).unwrap_or(StreamKind::File),
            id: fetched.about.id,
            name: fetched.about.name,
            length: fetched.about.length,
            owned: fetched.about.owned,
            file: File::from(fetched.file),
        })
    }

    /// Ends the connection. Safe to call twice.
    fn close(&self, py: Python<'_>) {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(client) = client.and_then(Arc::into_inner) {
            py.detach(|| client.close(&mut || Ok(())));
        }
    }
}

impl StreamLink {
    fn client(&self, py: Python<'_>) -> PyResult<Arc<BridgeClient>> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client
            .clone()
            .ok_or_else(|| raise(py, "ClientError", "the connection is closed", ""))
    }
}

const KINDS: [(&str, StreamKind); 4] = [
    ("file", StreamKind::File),
    ("model", StreamKind::Model),
    ("items", StreamKind::Items),
    ("folder", StreamKind::Folder),
];

fn parse_kind(word: &str) -> PyResult<StreamKind> {
    KINDS
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, kind)| *kind)
        .ok_or_else(|| PyValueError::new_err(format!("there is no kind of stream {word:?}")))
}

/// Something that was fetched: an open file, read by position.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct StreamFile {
    kind: StreamKind,
    id: String,
    name: String,
    length: u64,
    owned: bool,
    file: File,
}

#[pymethods]
impl StreamFile {
    /// Opens a file of this machine.
    #[staticmethod]
    fn open(path: PathBuf, kind: &str) -> PyResult<Self> {
        let file = File::open(&path).map_err(|error| named(&error, &path))?;
        let length = file.metadata().map_err(|error| named(&error, &path))?.len();
        Ok(Self {
            kind: parse_kind(kind)?,
            id: String::new(),
            name: String::new(),
            length,
            owned: false,
            file,
        })
    }

    /// `file`, `model`, `items` or `folder`.
    #[getter]
    fn kind(&self) -> &'static str {
        KINDS
            .iter()
            .find(|(_, kind)| *kind == self.kind)
            .map_or("file", |(name, _)| name)
    }

    /// The offer's id; empty for a file in a folder.
    #[getter]
    fn id(&self) -> &str {
        &self.id
    }

    /// The name it was offered under.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes.
    #[getter]
    fn length(&self) -> u64 {
        self.length
    }

    /// Reads `size` bytes from `offset`.
    ///
    /// Raises:
    ///     OSError: the file ends before, or cannot be read.
    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        size: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let end = offset.checked_add(size as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(PyOSError::new_err(format!(
                "{size} bytes from {offset} are not in a file of {} bytes",
                self.length
            )));
        }
        PyBytes::new_with(py, size, |into| {
            py.detach(|| self.file.read_exact_at(into, offset))
                .map_err(|error| PyOSError::new_err(error.to_string()))
        })
    }

    /// Maps a model that lies at `offset`, a multiple of 64.
    ///
    /// Raises:
    ///     firesteel.errors.ModelError: there is no model.
    fn model(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<ModelFile> {
        let file = self
            .file
            .try_clone()
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
        let mapping = Mapping::part_of(file, offset, length)
            .map_err(|error| PyMemoryError::new_err(sentence(&error)))?;
        ModelFile::new(py, mapping)
    }

    /// Writes the whole file to `path`: as a second name where nobody changes it
    /// any more, as a clone where the file system can, else as a copy.
    ///
    /// Raises:
    ///     firesteel.errors.StoreError: the file changed meanwhile.
    ///     OSError: it cannot be written.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let aside = aside_name(&path)?;
        let saved = self
            .save_aside(py, &aside)
            .and_then(|()| std::fs::rename(&aside, &path).map_err(|error| named(&error, &path)));
        if saved.is_err() {
            // The error that came first is the one to tell.
            let _ = std::fs::remove_file(&aside);
        }
        saved
    }
}

impl StreamFile {
    fn save_aside(&self, py: Python<'_>, aside: &Path) -> PyResult<()> {
        let failed = |error: io::Error| named(&error, aside);
        // Left behind by a process of our number that was killed.
        let _ = std::fs::remove_file(aside);
        if self.owned && py.detach(|| link(&self.file, aside)).is_ok() {
            return Ok(());
        }
        let before = self.file.metadata().map_err(failed)?;
        let target = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(aside)
            .map_err(failed)?;
        if !(self.length > 0 && py.detach(|| cloned(&self.file, &target))) {
            let mut window = Vec::new();
            let mut at = 0;
            while at < self.length {
                py.check_signals()?;
                let copied = py
                    .detach(|| copy(&self.file, &target, at, self.length - at, &mut window))
                    .map_err(failed)?;
                if copied == 0 {
                    break;
                }
                at += copied;
            }
        }
        let after = self.file.metadata().map_err(failed)?;
        let written = target.metadata().map_err(failed)?.len();
        let same = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
        if same(&before) != same(&after) || written != self.length || after.len() != self.length {
            return Err(raise(
                py,
                "StoreError",
                format!("{:?} changed while it was fetched", self.name),
                "offer it again, and leave an offered file as it is",
            ));
        }
        Ok(())
    }
}

/// A second name for an open file.
#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    use std::os::fd::AsRawFd;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has the file system share the file's blocks.
#[cfg(target_os = "linux")]
fn cloned(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn cloned(_: &File, _: &File) -> bool {
    false
}

/// Copies a window, within the kernel where it can; how many bytes.
fn copy(from: &File, to: &File, at: u64, left: u64, window: &mut Vec<u8>) -> io::Result<u64> {
    let size = usize::try_from(left).map_or(WINDOW, |left| left.min(WINDOW));
    #[cfg(target_os = "linux")]
    if window.is_empty() {
        let (mut read_at, mut write_at) = (at, at);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), size) {
            Ok(copied) if copied > 0 => return Ok(copied as u64),
            // Other file systems, old kernels: by hand, and if the disk is full
            // that says so, too.
            _ => {}
        }
    }
    window.resize(WINDOW, 0);
    let window = window.get_mut(..size).unwrap_or_default();
    let read = from.read_at(window, at)?;
    to.write_all_at(window.get(..read).unwrap_or_default(), at)?;
    Ok(read as u64)
}

fn aside_name(path: &Path) -> PyResult<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        PyValueError::new_err(format!("`{}` does not name a file", path.display()))
    })?;
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}.part", std::process::id()));
    Ok(path.with_file_name(aside))
}

/// Writes a file of items, one after the other; it gets its name when it is whole.
#[pyclass(module = "firesteel._native")]
pub(crate) struct ItemsWriter {
    path: PathBuf,
    aside: Option<Aside>,
    at: u64,
    count: u64,
}

#[pymethods]
impl ItemsWriter {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let mut writer = Self {
            aside: Some(Aside::create(&path)?),
            path,
            at: 0,
            count: 0,
        };
        let mut head = [0; ITEM_ALIGNMENT as usize];
        head[..16].copy_from_slice(ITEMS_MAGIC);
        head[16..20].copy_from_slice(&ITEMS_VERSION.to_le_bytes());
        writer.write(py, &head)?;
        Ok(writer)
    }

    /// Adds a params tree, tensor by tensor.
    #[pyo3(signature = (tensors, *, tree=None, aliases=None, metadata=None))]
    fn add_model(
        &mut self,
        py: Python<'_>,
        tensors: Vec<Given<'_>>,
        tree: Option<&str>,
        aliases: Option<BTreeMap<String, String>>,
        metadata: Option<BTreeMap<String, String>>,
    ) -> PyResult<()> {
        let model = Outline::new(py, &tensors, tree, aliases, metadata, false)?;
        self.head(py, ITEM_MODEL, model.total())?;
        model.write(|data| self.write(py, data))?;
        self.pad(py)
    }

    /// Adds bytes.
    fn add_bytes(&mut self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let view = View::of(data)?;
        self.head(py, ITEM_BYTES, view.bytes().len() as u64)?;
        self.write(py, view.bytes())?;
        self.pad(py)
    }

    /// Ends the file and gives it its name; returns its size in bytes.
    fn finish(&mut self, py: Python<'_>) -> PyResult<u64> {
        self.head(py, ITEM_END, self.count)?;
        if let Some(mut aside) = self.aside.take() {
            aside.finish(py, &self.path)?;
        }
        Ok(self.at)
    }

    /// Gives it up: nothing stays.
    fn discard(&mut self) {
        self.aside = None;
    }
}

impl ItemsWriter {
    fn head(&mut self, py: Python<'_>, kind: u8, length: u64) -> PyResult<()> {
        let mut head = [0; ITEM_ALIGNMENT as usize];
        head[..8].copy_from_slice(&length.to_le_bytes());
        head[8] = kind;
        self.write(py, &head)?;
        self.count += 1;
        Ok(())
    }

    fn pad(&mut self, py: Python<'_>) -> PyResult<()> {
        let over = self.at % ITEM_ALIGNMENT;
        let missing = if over == 0 { 0 } else { ITEM_ALIGNMENT - over };
        let zeros = [0; ITEM_ALIGNMENT as usize];
        self.write(py, &zeros[..missing as usize])
    }

    fn write(&mut self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        let Some(aside) = &mut self.aside else {
            return Err(PyValueError::new_err("the file of items is finished"));
        };
        aside.write(py, data)?;
        self.at += data.len() as u64;
        Ok(())
    }
}
