//! Making a bundle.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use firesteel_base::{Hint, limits};

use super::archive::{BLOCK, header, padding};
use super::{
    BundleError, CODE, INITIAL, LIST, Limits, List, Member, SIGNATURE, SPEC, SUBMITTER, VERSION,
};
use crate::files;
use crate::sign::{Purpose, SignError, Signer};

/// What goes into a bundle.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The project it is for: the kit's.
    pub project: &'a str,
    /// The job's spec, JSON.
    pub spec: &'a [u8],
    /// The code: each file's path below `code/`, and where it lies.
    pub code: &'a [(String, PathBuf)],
    /// The first model's file.
    pub initial: Option<&'a Path>,
    /// What tells the same job submitted twice; absent: a random one, so that
    /// each bundle is a job.
    pub submit_key: Option<&'a str>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its bytes.
    pub length: u64,
    /// Their SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// The submit key in it.
    pub submit_key: String,
}

/// Why no bundle was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// It would not be taken.
    #[error("the job cannot be bundled")]
    Refused(#[source] BundleError),
    /// A file could not be read.
    #[error("could not read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file that is none.
    #[error("`{}` is no plain file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file that was written while it was bundled.
    #[error("`{}` changed while it was bundled", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The key failed.
    #[error("the bundle could not be signed")]
    Sign(#[from] SignError),
    /// What it is written to failed.
    #[error("the bundle could not be written")]
    Write(#[source] io::Error),
}

impl Hint for WriteError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(error) => error.hint(),
            Self::Sign(error) => error.hint(),
            Self::Changing { .. } => Some("wait until nothing writes to it".to_owned()),
            _ => None,
        }
    }
}

/// Writes a bundle. Files are read twice: for their digests, and for their bytes.
///
/// # Errors
/// [`WriteError`], which names the file.
pub fn write(draft: &Draft<'_>, signer: &Signer, out: impl Write) -> Result<Written, WriteError> {
    let mut members = vec![Member {
        path: SPEC.to_owned(),
        length: draft.spec.len() as u64,
        sha256: files::sha256(draft.spec),
        server_only: false,
        executable: false,
    }];
    let mut sources = vec![None];
    let mut code: Vec<_> = draft.code.iter().collect();
    code.sort();
    for (path, source) in code {
        members.push(measure(format!("{CODE}/{path}"), source, false)?);
        sources.push(Some(source.as_path()));
    }
    if let Some(source) = draft.initial {
        members.push(measure(INITIAL.to_owned(), source, true)?);
        sources.push(Some(source));
    }
    let submit_key = match draft.submit_key {
        Some(key) => key.to_owned(),
        None => files::random(16).map_err(WriteError::Write)?,
    };
    let list = List {
        version: VERSION,
        project: draft.project.to_owned(),
        submit_key: submit_key.clone(),
        members,
    };
    // What the server would refuse is refused here, before anything travels.
    list.check(&Limits::server()).map_err(WriteError::Refused)?;
    let json = serde_json::to_vec_pretty(&list).map_err(|error| WriteError::Write(error.into()))?;
    if json.len() > limits::BUNDLE_LIST {
        return Err(WriteError::Refused(BundleError::TooLarge {
            what: LIST.to_owned(),
            found: json.len() as u64,
            unit: "bytes",
            limit: limits::BUNDLE_LIST as u64,
        }));
    }
    let signature = signer.sign(Purpose::Bundle, &json)?;
    let mut out = Archive::new(out);
    out.bytes(LIST, &json)?;
    out.bytes(SIGNATURE, &signature)?;
    out.bytes(SUBMITTER, signer.chain_pem())?;
    for (member, source) in list.members.iter().zip(sources) {
        match source {
            None => out.bytes(&member.path, draft.spec)?,
            Some(source) => out.file(member, source)?,
        }
    }
    out.end(submit_key)
}

/// Writes what sites get of an unpacked bundle: the same list and signature,
/// without the members that are the server's alone.
///
/// # Errors
/// [`WriteError`], also when the folder holds no bundle.
pub fn for_sites(folder: &Path, out: impl Write) -> Result<Written, WriteError> {
    let read = |name: &str, limit: usize| {
        let path = folder.join(name);
        files::read(&path, limit).map_err(|source| WriteError::Read { path, source })
    };
    let json = read(LIST, limits::BUNDLE_LIST)?;
    let list: List = serde_json::from_slice(&json).map_err(|error| {
        WriteError::Refused(BundleError::List {
            problem: error.to_string(),
        })
    })?;
    list.check(&Limits::server()).map_err(WriteError::Refused)?;
    let mut out = Archive::new(out);
    out.bytes(LIST, &json)?;
    out.bytes(SIGNATURE, &read(SIGNATURE, super::SIGNATURE_BYTES)?)?;
    out.bytes(SUBMITTER, &read(SUBMITTER, limits::PEM_FILE)?)?;
    for member in list.members.iter().filter(|member| !member.server_only) {
        out.file(member, &folder.join(&member.path))?;
    }
    out.end(list.submit_key)
}

fn measure(path: String, source: &Path, server_only: bool) -> Result<Member, WriteError> {
    let failed = |error| WriteError::Read {
        path: source.to_owned(),
        source: error,
    };
    let mut file = File::open(source).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(WriteError::NotAFile {
            path: source.to_owned(),
        });
    }
    let mut context = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    let mut buffer = vec![0; limits::TRANSFER_BATCH];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        context.update(part);
        length += part.len() as u64;
    }
    Ok(Member {
        path,
        length,
        sha256: files::hex(context.finish().as_ref()),
        server_only,
        executable: !server_only && metadata.permissions().mode() & 0o111 != 0,
    })
}

/// An archive that is being written, with its own length and digest.
struct Archive<W> {
    out: W,
    length: u64,
    digest: digest::Context,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            length: 0,
            digest: digest::Context::new(&digest::SHA256),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes).map_err(WriteError::Write)?;
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn head(&mut self, path: &str, length: u64, executable: bool) -> Result<(), WriteError> {
        let header = header(path, length, executable).map_err(WriteError::Write)?;
        self.put(header.as_bytes())
    }

    fn pad(&mut self, length: u64) -> Result<(), WriteError> {
        let zeros = [0; BLOCK];
        self.put(zeros.get(..padding(length)).unwrap_or_default())
    }

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.head(path, bytes.len() as u64, false)?;
        self.put(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn file(&mut self, member: &Member, source: &Path) -> Result<(), WriteError> {
        let failed = |error| WriteError::Read {
            path: source.to_owned(),
            source: error,
        };
        self.head(&member.path, member.length, member.executable)?;
        // One more byte than announced is asked for, to notice that it grew.
        let mut file = File::open(source).map_err(failed)?.take(member.length + 1);
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; limits::TRANSFER_BATCH];
        let mut done = 0;
        let changing = || WriteError::Changing {
            path: source.to_owned(),
        };
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
                break;
            };
            done += part.len() as u64;
            if done > member.length {
                return Err(changing());
            }
            context.update(part);
            self.put(part)?;
        }
        if done != member.length || files::hex(context.finish().as_ref()) != member.sha256 {
            return Err(changing());
        }
        self.pad(member.length)
    }

    fn end(mut self, submit_key: String) -> Result<Written, WriteError> {
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(WriteError::Write)?;
        Ok(Written {
            length: self.length,
            sha256: files::hex(self.digest.finish().as_ref()),
            submit_key,
        })
    }
}
