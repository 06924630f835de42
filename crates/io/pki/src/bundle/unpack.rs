//! Taking a bundle apart, in one pass, believing nothing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use firesteel_base::limits;

use super::archive::{BLOCK, Entry, exactly, next, padding};
use super::{
    Bundle, BundleError, CODE, INITIAL, LIST, Limits, List, Member, SIGNATURE, SIGNATURE_BYTES,
    SPEC, SUBMITTER, Taker,
};
use crate::certificate::{Authority, ChainError};
use crate::files;
use crate::sign::{Purpose, Signed, VerifyError, verify, verify_by};

/// Unpacks a bundle into a folder that is not there yet, and appears only when
/// every byte was checked.
///
/// Blocks on the reader and the disk.
///
/// # Errors
/// [`BundleError`], which names the member; then nothing is left on the disk.
pub fn unpack(
    mut reader: impl Read,
    into: &Path,
    limits: &Limits,
    authority: &Authority,
) -> Result<Bundle, BundleError> {
    if into.symlink_metadata().is_ok() {
        return Err(BundleError::Exists {
            folder: into.to_owned(),
        });
    }
    let reader = &mut reader;
    let json = small(reader, LIST, limits::BUNDLE_LIST, "its start")?;
    let signature = small(reader, SIGNATURE, SIGNATURE_BYTES, LIST)?;
    let chain = small(reader, SUBMITTER, limits::PEM_FILE, SIGNATURE)?;
    // Before anything of it is parsed or written.
    let submitter = verify(&chain, authority, Purpose::Bundle, &json, &signature)
        .map_err(BundleError::Signature)?;
    let list = parse(&json)?;
    list.check(limits)?;

    let part = Part::make(into)?;
    for (name, bytes) in [(LIST, &json), (SIGNATURE, &signature), (SUBMITTER, &chain)] {
        let (mut file, path) = part.create(name, false)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| BundleError::Write { path, source })?;
    }
    part.folder(CODE)?;
    let mut after = SUBMITTER.to_owned();
    for member in &list.members {
        if member.server_only && limits.taker == Taker::Site {
            continue;
        }
        let announced = || format!("`{}`", member.path);
        let entry = next(reader, &after)?.ok_or_else(|| BundleError::Unannounced {
            found: "its end".to_owned(),
            expected: announced(),
        })?;
        if entry.path != member.path {
            return Err(BundleError::Unannounced {
                found: entry.path,
                expected: announced(),
            });
        }
        if entry.length != member.length {
            return Err(BundleError::Unannounced {
                found: format!("{} bytes of `{}`", entry.length, entry.path),
                expected: format!("{}", member.length),
            });
        }
        part.take(reader, member)?;
        after.clone_from(&member.path);
    }
    if let Some(Entry { path, .. }) = next(reader, &after)? {
        return Err(BundleError::Unannounced {
            found: path,
            expected: "its end".to_owned(),
        });
    }
    part.settle(into)?;
    described(into, &list, submitter)
}

/// Opens a folder that [`unpack`] made, after a restart say, and checks every
/// byte anew. Members that are the server's alone may be missing.
///
/// # Errors
/// [`BundleError`], which names the member.
pub fn open(folder: &Path, authority: &Authority) -> Result<Bundle, BundleError> {
    let read = |name: &str, limit: usize| {
        files::read(&folder.join(name), limit).map_err(BundleError::Stream)
    };
    let json = read(LIST, limits::BUNDLE_LIST)?;
    let signature = read(SIGNATURE, SIGNATURE_BYTES)?;
    let chain = read(SUBMITTER, limits::PEM_FILE)?;
    let submitter = verify_kept(&chain, authority, &json, &signature)?;
    let list = parse(&json)?;
    list.check(&Limits::server())?;
    for member in &list.members {
        let path = folder.join(&member.path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if member.server_only && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(BundleError::Stream(error)),
        };
        let mut context = digest::Context::new(&digest::SHA256);
        let mut file = file.take(member.length + 1);
        let mut buffer = vec![0; limits::TRANSFER_BATCH];
        let mut length = 0;
        loop {
            let read = file.read(&mut buffer).map_err(BundleError::Stream)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            length += bytes.len() as u64;
            context.update(bytes);
        }
        if length != member.length || files::hex(context.finish().as_ref()) != member.sha256 {
            return Err(BundleError::Changed {
                path: member.path.clone(),
            });
        }
    }
    described(folder, &list, submitter)
}

/// As [`verify`]; but a certificate that was good when the bundle came, and has
/// expired since, does not end a job that waits or runs.
fn verify_kept(
    chain: &[u8],
    authority: &Authority,
    json: &[u8],
    signature: &[u8],
) -> Result<Signed, BundleError> {
    let refused = BundleError::Signature;
    let now = SystemTime::now();
    let checked = match authority.checked(chain, now) {
        Err(ChainError::Expired { .. }) => {
            let until = authority
                .expires(chain)
                .map_err(|error| refused(VerifyError::Chain(error)))?;
            authority.checked(chain, until - Duration::from_secs(1))
        }
        other => other,
    };
    let (holder, leaf) = checked.map_err(|error| refused(VerifyError::Chain(error)))?;
    verify_by(&leaf, &holder.name, Purpose::Bundle, json, signature).map_err(refused)?;
    Ok(Signed {
        name: holder.name,
        org: holder.org,
        role: holder.role,
    })
}

fn parse(json: &[u8]) -> Result<List, BundleError> {
    serde_json::from_slice(json).map_err(|error| BundleError::List {
        problem: error.to_string(),
    })
}

/// One of the members before all others, which is held in memory.
fn small(
    reader: &mut impl Read,
    name: &str,
    limit: usize,
    after: &str,
) -> Result<Vec<u8>, BundleError> {
    let unannounced = |found: String| BundleError::Unannounced {
        found,
        expected: format!("`{name}`"),
    };
    let entry = next(reader, after)?.ok_or_else(|| unannounced("its end".to_owned()))?;
    if entry.path != name {
        return Err(unannounced(entry.path));
    }
    if entry.length > limit as u64 {
        return Err(BundleError::TooLarge {
            what: name.to_owned(),
            found: entry.length,
            unit: "bytes",
            limit: limit as u64,
        });
    }
    let mut bytes = vec![0; usize::try_from(entry.length).unwrap_or(limit)];
    exactly(reader, &mut bytes, name)?;
    skip(reader, entry.length, name)?;
    Ok(bytes)
}

/// What stands between a member and the next header: zeros.
fn skip(reader: &mut impl Read, length: u64, name: &str) -> Result<(), BundleError> {
    let mut zeros = [0; BLOCK];
    let padding = zeros.get_mut(..padding(length)).unwrap_or_default();
    exactly(reader, padding, name)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(BundleError::Archive {
            problem: format!("something stands between `{name}` and what follows"),
        });
    }
    Ok(())
}

fn described(folder: &Path, list: &List, submitter: Signed) -> Result<Bundle, BundleError> {
    let spec = files::read(&folder.join(SPEC), limits::JOB_SPEC).map_err(BundleError::Stream)?;
    let initial = folder.join(INITIAL);
    Ok(Bundle {
        folder: folder.to_owned(),
        project: list.project.clone(),
        spec,
        submitter,
        submit_key: list.submit_key.clone(),
        code: folder.join(CODE),
        brings_code: list
            .members
            .iter()
            .any(|member| member.path != SPEC && member.path != INITIAL),
        initial: initial.is_file().then_some(initial),
    })
}

/// A folder beside the one that is to appear; removed unless it becomes that.
struct Part {
    folder: PathBuf,
    done: bool,
}

impl Part {
    fn make(into: &Path) -> Result<Self, BundleError> {
        let failed = |path: &Path, source| BundleError::Write {
            path: path.to_owned(),
            source,
        };
        let above = match into.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        fs::create_dir_all(above).map_err(|error| failed(above, error))?;
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let tag = files::random(6).map_err(|error| failed(into, error))?;
        let folder = above.join(format!(".{name}.part-{tag}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed(&folder, error))?;
        Ok(Self {
            folder,
            done: false,
        })
    }

    fn folder(&self, name: &str) -> Result<(), BundleError> {
        let path = self.folder.join(name);
        // What is there was made here: the folder is new, and nobody else's.
        fs::create_dir_all(&path).map_err(|source| BundleError::Write { path, source })
    }

    fn create(&self, name: &str, executable: bool) -> Result<(File, PathBuf), BundleError> {
        if let Some((above, _)) = name.rsplit_once('/') {
            self.folder(above)?;
        }
        let path = self.folder.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o755 } else { 0o644 })
            .open(&path)
            .map(|file| (file, path.clone()))
            .map_err(|source| BundleError::Write { path, source })
    }

    fn take(&self, reader: &mut impl Read, member: &Member) -> Result<(), BundleError> {
        let (mut file, path) = self.create(&member.path, member.executable)?;
        let failed = |source| BundleError::Write {
            path: path.clone(),
            source,
        };
        let mut context = digest::Context::new(&digest::SHA256);
        let mut left = member.length;
        let mut buffer = vec![0; limits::TRANSFER_BATCH];
        while left > 0 {
            let ask = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let part = buffer.get_mut(..ask).unwrap_or_default();
            exactly(reader, part, &member.path)?;
            context.update(part);
            file.write_all(part).map_err(failed)?;
            left -= part.len() as u64;
        }
        if files::hex(context.finish().as_ref()) != member.sha256 {
            return Err(BundleError::Changed {
                path: member.path.clone(),
            });
        }
        file.sync_all().map_err(failed)?;
        skip(reader, member.length, &member.path)
    }

    fn settle(mut self, into: &Path) -> Result<(), BundleError> {
        let failed = |source| BundleError::Write {
            path: into.to_owned(),
            source,
        };
        files::rename_new(&self.folder, into).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => BundleError::Exists {
                folder: into.to_owned(),
            },
            _ => failed(error),
        })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be removed now is seen by its name, and harmless.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
