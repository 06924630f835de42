//! A file while it is being received: its blocks are there from the start, its
//! bytes come in any order, and it survives the process.
//!
//! On the disk it is `incoming/<name>.part`, two pages longer than the file that
//! it becomes. In these pages stands which bytes have arrived, in turns, so that
//! one of them is always whole. Finished, it is `incoming/<name>.whole`, of the
//! file's own length.
//!
//! What is written down is a claim, never a proof: nothing is synced, so after a
//! loss of power bytes may be missing that were said to be there. Whoever goes on
//! with a file compares its bytes with their digests first.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use firesteel_base::{TaskKey, limits};
use firesteel_tensor::ModelHeader;
use rustix::fs::OFlags;

use super::identity::Identity;
use super::output::{allocate, with_room};
use super::ranges::Ranges;
use super::{Body, Mapped, ModelObject, Objects, Shelf, lock};
use crate::error::{IncomingError, ObjectError, StoreError};
use crate::files;
use crate::mmap::Mapping;
use crate::outbox::not_ours;
use crate::spool::Reservation;

/// Where files are received, below the directory of an [`Objects`].
pub(super) const DIR: &str = "incoming";
const PART: &str = "part";
const WHOLE: &str = "whole";

/// What a slot starts with; the last byte is the version.
const MAGIC: [u8; 8] = *b"FS-PART\x01";
const SLOT: u64 = 4096;
const SLOTS: u64 = 2;

/// The name of a file being received, by which it is found again after a
/// restart.
///
/// Made of checked parts only, so that it is safe as a file's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartName(String);

impl PartName {
    /// That of a site's update.
    pub fn of_update(key: &TaskKey) -> Self {
        Self(format!(
            "update-{:06}-{:06}-{}",
            key.round.0,
            key.attempt.0,
            key.site.as_str()
        ))
    }

    /// That of a file known by its digest.
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        let mut name = String::from("digest-");
        for byte in digest {
            name.push_str(&format!("{byte:02x}"));
        }
        Self(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_file(path: &Path) -> Option<(Self, &str)> {
        let (name, kind) = path.file_name()?.to_str()?.rsplit_once('.')?;
        Some((Self(name.to_owned()), kind))
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file that an earlier transfer left, finished or not, and that nobody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: PartName,
    /// Bytes it takes on the disk.
    pub size: u64,
    path: PathBuf,
    modified: (i64, i64),
}

/// What was there when a file was to be received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: every byte is to come.
    Nothing,
    /// An earlier transfer's bytes; [`Incoming::received`] says which.
    Earlier,
    /// A file that cannot be gone on with; it was removed, every byte is to come.
    Refused(PartProblem),
}

/// Why a file that an earlier transfer left is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartProblem {
    /// It is shorter than it was made.
    #[error("`{}` was cut to {found} of its {expected} bytes", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes there were.
        expected: u64,
    },
    /// It is of another object.
    #[error("`{}` is of an object of another length", path.display())]
    OtherLength {
        /// The file.
        path: PathBuf,
    },
    /// What was written down of it cannot be read.
    #[error("what `{}` has received was not written down in full", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It is a link, a directory, or somebody else's.
    #[error("`{}` cannot be gone on with: {why}", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// The system refused to open it.
    #[error("`{}` cannot be opened: {message}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
}

/// A file that is being received. Bytes are written at any offset, from several
/// threads at once.
///
/// Dropped unfinished, it leaves what has arrived on the disk, for a later
/// [`Objects::incoming`] of the same name and length; [`Incoming::discard`]
/// leaves nothing. Up to `limits::INLINE_OBJECT` bytes stay in memory and are
/// not kept.
pub struct Incoming {
    len: u64,
    /// `None` once it is finished.
    room: Option<Room>,
    found: Found,
    state: Mutex<Arrived>,
    reservation: Option<Reservation>,
    /// Last, so that the name is free only when everything else is done.
    name: Claim,
}

enum Room {
    Memory(Mutex<Vec<u8>>),
    File { file: File, path: PathBuf },
}

#[derive(Default)]
struct Arrived {
    ranges: Ranges,
    note: Vec<u8>,
    /// Bytes that arrived since it was written down.
    unsaved: u64,
    /// How often it was written down.
    saves: u64,
}

/// The right to the files of one name, as long as this lives.
pub(super) struct Claim {
    pub(super) objects: Objects,
    pub(super) name: PartName,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.objects.0.claimed).remove(&self.name);
    }
}

impl Objects {
    /// Room for a file of `len` bytes that is about to be received: all its
    /// blocks are allocated, so that a full disk shows now. What an earlier
    /// transfer of this name and length left is gone on with.
    ///
    /// # Errors
    /// [`IncomingError::Store`] when the disk has no room for it,
    /// [`IncomingError::Busy`] while that name is received or its object held.
    pub fn incoming(&self, name: &PartName, len: u64) -> Result<Incoming, IncomingError> {
        let room_len = len
            .checked_next_multiple_of(SLOT)
            .and_then(|whole| whole.checked_add(SLOTS * SLOT))
            .filter(|&room| i64::try_from(room).is_ok())
            .ok_or(IncomingError::TooLong { len })?;
        if !lock(&self.0.claimed).insert(name.clone()) {
            return Err(IncomingError::Busy { name: name.clone() });
        }
        let claim = Claim {
            objects: self.clone(),
            name: name.clone(),
        };
        let (mut found, mut state) = (Found::Nothing, Arrived::default());
        let small = usize::try_from(len)
            .ok()
            .filter(|&len| len <= limits::INLINE_OBJECT);
        let room = if let Some(len) = small {
            Room::Memory(Mutex::new(vec![0; len]))
        } else {
            files::create_dir(&self.0.dir.join(DIR))?;
            let path = self.0.part_path(name, PART);
            match earlier(&self.0, name, len, room_len) {
                Ok(Some((file, arrived))) => {
                    (found, state) = (Found::Earlier, arrived);
                    Room::File { file, path }
                }
                other => {
                    if let Err(problem) = other {
                        remove_whatever(&self.0.part_path(name, WHOLE))?;
                        remove_whatever(&path)?;
                        found = Found::Refused(problem);
                    }
                    let file = self.part_file(&path, len, room_len)?;
                    Room::File { file, path }
                }
            }
        };
        Ok(Incoming {
            name: claim,
            len,
            room: Some(room),
            found,
            state: Mutex::new(state),
            reservation: None,
        })
    }

    /// Whether that name is received or its object held.
    pub(crate) fn is_claimed(&self, name: &PartName) -> bool {
        lock(&self.0.claimed).contains(name)
    }

    /// What earlier transfers left and nobody has taken up, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be read.
    pub fn parts(&self) -> Result<Vec<Part>, StoreError> {
        let dir = self.0.dir.join(DIR);
        let failed = |source| StoreError::new("list", &dir, source);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut parts = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let Some((name, PART | WHOLE)) = PartName::of_file(&path) else {
                continue;
            };
            if lock(&self.0.claimed).contains(&name) {
                continue;
            }
            // One that was removed meanwhile is no part any more.
            let Ok(found) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            parts.push(Part {
                name,
                size: found.blocks() * 512,
                modified: (found.mtime(), found.mtime_nsec()),
                path,
            });
        }
        parts.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
        Ok(parts)
    }

    /// Removes what earlier transfers left, but for the names that `keep` says:
    /// once a round is committed, nobody asks for its updates again.
    ///
    /// # Errors
    /// [`StoreError`] when one cannot be removed.
    pub fn discard_parts(&self, keep: impl Fn(&PartName) -> bool) -> Result<(), StoreError> {
        for part in self.parts()? {
            if !keep(&part.name) {
                self.discard_part(&part)?;
            }
        }
        Ok(())
    }

    /// Removes one, unless somebody has taken it up meanwhile.
    pub(crate) fn discard_part(&self, part: &Part) -> Result<(), StoreError> {
        if !lock(&self.0.claimed).insert(part.name.clone()) {
            return Ok(());
        }
        let _claim = Claim {
            objects: self.clone(),
            name: part.name.clone(),
        };
        remove_whatever(&part.path)
    }

    /// From now on, received models that nobody needs any more stay on the disk,
    /// complete: for a process that is about to end and wants to find them again.
    pub fn keep_received(&self) {
        self.0
            .keep_received
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A file with all blocks of `room_len`, from the pool if one fits.
    fn part_file(&self, path: &Path, len: u64, room_len: u64) -> Result<File, StoreError> {
        let failed =
            |source| StoreError::sized("make room to receive", path, Some(room_len), source);
        let spare = lock(&self.0.pool).take(len);
        if let Some(spare) = spare {
            let ready = std::fs::rename(&spare.path, path)
                .and_then(|()| spare.file.set_len(room_len))
                .and_then(|()| allocate(&spare.file, room_len));
            match ready {
                Ok(()) => {
                    // Old slots would speak of another file.
                    let zeros = [0; SLOT as usize];
                    for slot in 0..SLOTS {
                        let at = room_len - (slot + 1) * SLOT;
                        spare.file.write_all_at(&zeros, at).map_err(failed)?;
                    }
                    return Ok(spare.file);
                }
                Err(_) => {
                    let _ = std::fs::remove_file(&spare.path);
                    let _ = std::fs::remove_file(path);
                }
            }
        }
        with_room(self, room_len, || fresh(path, room_len)).map_err(failed)
    }
}

impl Shelf {
    fn part_path(&self, name: &PartName, kind: &str) -> PathBuf {
        self.dir.join(DIR).join(format!("{name}.{kind}"))
    }
}

impl Incoming {
    /// Its name.
    pub fn name(&self) -> &PartName {
        &self.name.name
    }

    /// Bytes of the whole file.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is not received")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What was there already.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Writes bytes where they belong.
    ///
    /// # Errors
    /// As the system says; `InvalidInput` for bytes beyond the end.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.within(offset, bytes.len())?;
        match self.room.as_ref() {
            Some(Room::File { file, .. }) => file.write_all_at(bytes, offset)?,
            Some(Room::Memory(room)) => {
                let mut room = lock(room);
                slot_of(&mut room, &range)?.copy_from_slice(bytes);
            }
            None => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let mut state = lock(&self.state);
        state.ranges.insert(range);
        state.unsaved += bytes.len() as u64;
        if state.unsaved >= limits::PART_SAVE {
            self.write_down(&mut state)?;
        }
        Ok(())
    }

    /// Reads bytes back, those of an earlier transfer to be compared with their
    /// digests.
    ///
    /// # Errors
    /// As the system says; `InvalidInput` for bytes beyond the end.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let range = self.within(offset, into.len())?;
        match self.room.as_ref() {
            Some(Room::File { file, .. }) => file.read_exact_at(into, offset),
            Some(Room::Memory(room)) => {
                into.copy_from_slice(slot_of(&mut lock(room), &range)?);
                Ok(())
            }
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Which bytes are there, in order and apart from each other. Of those of an
    /// earlier transfer it is a claim: compare them with their digests, and
    /// [`Incoming::forget`] what does not match.
    pub fn received(&self) -> Vec<Range<u64>> {
        lock(&self.state).ranges.iter().collect()
    }

    /// Bytes that are there.
    pub fn received_len(&self) -> u64 {
        lock(&self.state).ranges.total()
    }

    /// These bytes are to come again.
    pub fn forget(&self, range: Range<u64>) {
        lock(&self.state).ranges.remove(range);
    }

    /// What [`Incoming::save`] was given by an earlier transfer; empty if nothing.
    pub fn note(&self) -> Vec<u8> {
        lock(&self.state).note.clone()
    }

    /// Writes down which bytes are there, and `note` with it; happens by itself,
    /// with the last note, every `limits::PART_SAVE` bytes and when this is
    /// dropped.
    ///
    /// # Errors
    /// As the system says; `InvalidInput` for a note beyond `limits::PART_NOTE`.
    pub fn save(&self, note: &[u8]) -> io::Result<()> {
        if note.len() > limits::PART_NOTE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a note beside a received file is at most `limits::PART_NOTE` bytes",
            ));
        }
        let mut state = lock(&self.state);
        note.clone_into(&mut state.note);
        self.write_down(&mut state)
    }

    /// The file's blocks count against a spool's budget as long as it, or the
    /// object that comes of it, lives.
    pub(crate) fn hold(&mut self, reservation: Reservation) {
        self.reservation = Some(reservation);
    }

    /// Ends the receiving of a model: its header is checked, its bytes never
    /// change again. The file stays under its name, so that a process that is
    /// killed before it used the model finds it again.
    ///
    /// # Errors
    /// [`ObjectError::Incomplete`] when bytes are missing (what has arrived is
    /// kept), [`ObjectError::Malformed`] when it is no model (nothing is kept).
    pub fn finish(mut self) -> Result<ModelObject, ObjectError> {
        self.check_complete()?;
        let objects = self.name.objects.clone();
        let (file, path) = match self.room.take() {
            Some(Room::File { file, path }) => (file, path),
            Some(Room::Memory(room)) => {
                let bytes = room
                    .into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                return objects.in_memory(bytes);
            }
            None => unreachable_room(),
        };
        let mapping = Mapping::read_only(&file, self.len)
            .map_err(|source| StoreError::new("map", &path, source));
        let parsed = mapping.map_err(ObjectError::from).and_then(|mapping| {
            let header = ModelHeader::parse(mapping.bytes(), self.len)
                .map_err(|source| ObjectError::Malformed { source })?;
            Ok((mapping, header))
        });
        let (mapping, header) = parsed.inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })?;
        let whole = self.put_in_place(&file, &path)?;
        let identity = Identity::of(&file).map_err(|e| StoreError::new("look at", &whole, e))?;
        let (id, _) = objects.new_name();
        let body = Body::Mapped(Some(Mapped {
            path: whole,
            mapping,
            writable: Some(file),
            identity,
            adopted: false,
            reservation: self.reservation.take(),
            received: Some(self.take_claim()),
        }));
        Ok(objects.register(id, header, body))
    }

    /// The same of a file that is no model.
    ///
    /// # Errors
    /// [`ObjectError::Incomplete`] when bytes are missing, [`StoreError`] when
    /// the system refuses.
    pub fn finish_file(mut self) -> Result<ReceivedFile, ObjectError> {
        self.check_complete()?;
        let (file, path) = match self.room.take() {
            Some(Room::File { file, path }) => {
                let whole = self.put_in_place(&file, &path)?;
                (file, whole)
            }
            Some(Room::Memory(room)) => {
                let bytes = room
                    .into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let objects = &self.name.objects;
                files::create_dir(&objects.0.dir.join(DIR))?;
                let path = objects.0.part_path(self.name(), WHOLE);
                files::write_aside(&path, &bytes, 0o400)?;
                let file =
                    File::open(&path).map_err(|source| StoreError::new("open", &path, source))?;
                (file, path)
            }
            None => unreachable_room(),
        };
        let identity = Identity::of(&file).map_err(|e| StoreError::new("look at", &path, e))?;
        Ok(ReceivedFile {
            path,
            file,
            len: self.len,
            identity,
            _reservation: self.reservation.take(),
            _claim: self.take_claim(),
        })
    }

    /// Gives up; nothing is left.
    pub fn discard(mut self) {
        if let Some(Room::File { path, .. }) = self.room.take() {
            let _ = std::fs::remove_file(path);
        }
    }

    fn check_complete(&self) -> Result<(), ObjectError> {
        let there = self.received_len();
        if there == self.len {
            return Ok(());
        }
        Err(ObjectError::Incomplete {
            name: self.name().to_string(),
            missing: self.len - there,
            len: self.len,
        })
    }

    /// Renames it and cuts the slots off; in this order, for a file that is
    /// killed in between is known to be whole.
    fn put_in_place(&self, file: &File, path: &Path) -> Result<PathBuf, StoreError> {
        let whole = self.name.objects.0.part_path(self.name(), WHOLE);
        std::fs::rename(path, &whole)
            .map_err(|source| StoreError::new("rename to", &whole, source))?;
        file.set_len(self.len).map_err(|source| {
            let _ = std::fs::remove_file(&whole);
            StoreError::new("shorten", &whole, source)
        })?;
        Ok(whole)
    }

    /// The claim, for what comes of it. What stays claims nothing.
    fn take_claim(&mut self) -> Claim {
        let objects = self.name.objects.clone();
        let name = PartName(String::new());
        let nobody = Claim { objects, name };
        std::mem::replace(&mut self.name, nobody)
    }

    fn within(&self, offset: u64, len: usize) -> io::Result<Range<u64>> {
        let end = offset
            .checked_add(len as u64)
            .filter(|&end| end <= self.len);
        end.map(|end| offset..end).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} are beyond the end at {}", self.len),
            )
        })
    }

    fn write_down(&self, state: &mut Arrived) -> io::Result<()> {
        let Some(Room::File { file, .. }) = &self.room else {
            return Ok(());
        };
        state.saves += 1;
        let slot = encode(state, self.len);
        let first = self.len.next_multiple_of(SLOT);
        file.write_all_at(&slot, first + state.saves % SLOTS * SLOT)?;
        state.unsaved = 0;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if matches!(self.room, Some(Room::File { .. })) {
            // Without it a little more is pulled again.
            let mut state = std::mem::take(&mut *lock(&self.state));
            let _ = self.write_down(&mut state);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("name", self.name())
            .field("len", &self.len)
            .field("received", &self.received_len())
            .finish_non_exhaustive()
    }
}

/// A received file that is no model: mode 0400, removed when this is dropped.
pub struct ReceivedFile {
    path: PathBuf,
    file: File,
    len: u64,
    identity: Identity,
    _reservation: Option<Reservation>,
    _claim: Claim,
}

impl ReceivedFile {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads bytes of it.
    ///
    /// # Errors
    /// As the system says, or a [`crate::ChangedError`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.identity.read_at(&self.file, &self.path, offset, into)
    }

    /// A descriptor of its own for a trainer, open for reading.
    ///
    /// # Errors
    /// [`StoreError`] when the system refuses.
    pub fn open_shared(&self) -> Result<OwnedFd, StoreError> {
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::CLOEXEC))
            .open(&self.path);
        open.map(OwnedFd::from)
            .map_err(|source| StoreError::new("open", &self.path, source))
    }

    /// Gives it a second name, in the place of what has that name.
    ///
    /// # Errors
    /// [`StoreError`] when the system refuses.
    pub fn keep_as(&self, path: &Path) -> Result<(), StoreError> {
        files::link_over(&self.path, path)
    }
}

impl Drop for ReceivedFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl fmt::Debug for ReceivedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedFile")
            .field("path", &self.path)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn unreachable_room() -> ! {
    unreachable!("only finishing and discarding take the room, and both take the whole value")
}

fn slot_of<'r>(room: &'r mut [u8], range: &Range<u64>) -> io::Result<&'r mut [u8]> {
    let start = usize::try_from(range.start).ok();
    let end = usize::try_from(range.end).ok();
    let slot = start
        .zip(end)
        .and_then(|(start, end)| room.get_mut(start..end));
    slot.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn fresh(path: &Path, room_len: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o400)
        .custom_flags(files::flags(OFlags::NOFOLLOW))
        .open(path)?;
    match allocate(&file, room_len) {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

pub(super) fn remove_whatever(path: &Path) -> Result<(), StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {
            std::fs::remove_dir_all(path).map_err(|source| StoreError::new("remove", path, source))
        }
        _ => files::remove_if_there(path),
    }
}

type Earlier = Option<(File, Arrived)>;

/// The file of an earlier transfer, open for writing under its name as a part.
fn earlier(
    shelf: &Shelf,
    name: &PartName,
    len: u64,
    room_len: u64,
) -> Result<Earlier, PartProblem> {
    let part = shelf.part_path(name, PART);
    let whole = shelf.part_path(name, WHOLE);
    if let Some((file, size)) = reopened(&whole)? {
        // Killed after it was put in place, perhaps before the slots were cut off.
        if size != len && size != room_len {
            return Err(match size < len {
                true => PartProblem::Truncated {
                    path: whole,
                    found: size,
                    expected: len,
                },
                false => PartProblem::OtherLength { path: whole },
            });
        }
        let unreadable = |error: io::Error| PartProblem::Unreadable {
            path: whole.clone(),
            message: error.to_string(),
        };
        file.set_len(room_len)
            .and_then(|()| allocate(&file, room_len))
            .and_then(|()| std::fs::rename(&whole, &part))
            .map_err(unreadable)?;
        let mut state = Arrived::default();
        state.ranges.insert(0..len);
        return Ok(Some((file, state)));
    }
    let Some((file, size)) = reopened(&part)? else {
        return Ok(None);
    };
    let slots = (0..SLOTS).filter_map(|slot| {
        let mut bytes = [0; SLOT as usize];
        let at = size.checked_sub((slot + 1) * SLOT)?;
        file.read_exact_at(&mut bytes, at).ok()?;
        decode(&bytes)
    });
    let newest = slots.max_by_key(|(state, _)| state.saves);
    match newest {
        Some((state, of)) if of == len && size == room_len => Ok(Some((file, state))),
        Some((_, of)) if of != len => Err(PartProblem::OtherLength { path: part }),
        _ if size < room_len => Err(PartProblem::Truncated {
            path: part,
            found: size,
            expected: room_len,
        }),
        _ if size > room_len => Err(PartProblem::OtherLength { path: part }),
        // Killed before it was written down for the first time.
        _ => Err(PartProblem::Damaged { path: part }),
    }
}

/// Opens a file of ours for writing, which its mode forbids everybody.
fn reopened(path: &Path) -> Result<Option<(File, u64)>, PartProblem> {
    let unreadable = |error: io::Error| PartProblem::Unreadable {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let not_ours = |why| PartProblem::NotOurs {
        path: path.to_owned(),
        why,
    };
    let open = |write: bool| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
            .open(path)
    };
    let file = match open(false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|errno| unreadable(errno.into()))?;
    if let Some(why) = self::not_ours(&stat) {
        return Err(not_ours(why));
    }
    let mode = |bits| file.set_permissions(Permissions::from_mode(bits));
    let writable = mode(0o600).and_then(|()| open(true));
    mode(0o400).map_err(unreadable)?;
    let writable = writable.map_err(unreadable)?;
    // Nobody else is below a 0700 directory; the check costs nothing.
    let again = rustix::fs::fstat(&writable).map_err(|errno| unreadable(errno.into()))?;
    if (again.st_ino, again.st_dev) != (stat.st_ino, stat.st_dev) {
        return Err(not_ours("it was exchanged meanwhile"));
    }
    Ok(Some((writable, stat.st_size.cast_unsigned())))
}

/// One slot: magic, checksum of what follows, how often it was written, the
/// file's length, the note, the ranges.
fn encode(state: &Arrived, len: u64) -> Vec<u8> {
    let ranges = state.ranges.longest(limits::PART_RANGES);
    let mut body = Vec::with_capacity(SLOT as usize);
    body.extend(state.saves.to_le_bytes());
    body.extend(len.to_le_bytes());
    // Both lengths are limited, and far below 2³².
    body.extend((state.note.len() as u32).to_le_bytes());
    body.extend((ranges.len() as u32).to_le_bytes());
    body.extend(&state.note);
    for range in ranges {
        body.extend(range.start.to_le_bytes());
        body.extend(range.end.to_le_bytes());
    }
    let mut slot = Vec::with_capacity(SLOT as usize);
    slot.extend(MAGIC);
    slot.extend((body.len() as u32).to_le_bytes());
    slot.extend(crc32c::crc32c(&body).to_le_bytes());
    slot.extend(body);
    slot.resize(SLOT as usize, 0);
    slot
}

/// What a slot says, and of a file of what length; `None` if it is not whole.
fn decode(slot: &[u8]) -> Option<(Arrived, u64)> {
    let mut rest = slot.strip_prefix(&MAGIC)?;
    let body_len = usize::try_from(take_u32(&mut rest)?).ok()?;
    let checksum = take_u32(&mut rest)?;
    let mut body = rest.get(..body_len)?;
    if crc32c::crc32c(body) != checksum {
        return None;
    }
    let saves = take_u64(&mut body)?;
    let len = take_u64(&mut body)?;
    let note_len = usize::try_from(take_u32(&mut body)?).ok()?;
    let count = take_u32(&mut body)?;
    let (note, mut body) = body.split_at_checked(note_len)?;
    let mut ranges = Ranges::default();
    for _ in 0..count {
        let (start, end) = (take_u64(&mut body)?, take_u64(&mut body)?);
        if start > end || end > len {
            return None;
        }
        ranges.insert(start..end);
    }
    let state = Arrived {
        ranges,
        note: note.to_owned(),
        unsaved: 0,
        saves,
    };
    Some((state, len))
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests;
