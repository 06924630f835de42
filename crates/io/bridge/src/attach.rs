//! The file by which a trainer that a person starts finds the agent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use firesteel_base::Hint;
use firesteel_wire::bridge::AttachProfile;

/// Bytes of a profile; a larger file is something else.
const PROFILE_BYTES: u64 = 64 * 1024;

/// Why a profile could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The file could not be written.
    #[error("the attach profile `{}` could not be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("the attach profile `{}` could not be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no profile.
    #[error("`{}` is not an attach profile: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Hint for AttachError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Write { .. } => None,
            Self::Read { .. } | Self::Malformed { .. } => {
                Some("a running job prints where the profile of each waiting site lies".into())
            }
        }
    }
}

/// Writes a profile that only this user can read: aside, then renamed.
///
/// # Errors
/// [`AttachError::Write`].
pub fn write_profile(path: &Path, profile: &AttachProfile) -> Result<(), AttachError> {
    let failed = |source| AttachError::Write {
        path: path.to_owned(),
        source,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(profile.to_json().as_bytes()))
        .and_then(|()| fs::rename(&aside, path));
    written.map_err(|error| {
        // What is left of a failed attempt may hold the token.
        let _ = fs::remove_file(&aside);
        failed(error)
    })
}

/// Reads a profile.
///
/// # Errors
/// [`AttachError::Read`] or [`AttachError::Malformed`].
pub fn read_profile(path: &Path) -> Result<AttachProfile, AttachError> {
    let failed = |source| AttachError::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |reason: String| AttachError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > PROFILE_BYTES {
        return Err(malformed(format!(
            "it has {length} bytes, the limit is {PROFILE_BYTES}"
        )));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    AttachProfile::from_json(&text).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_profile_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site-1.json");
        let profile = AttachProfile {
            schema_version: AttachProfile::SCHEMA_VERSION,
            execution_mode: "attach".into(),
            socket: "/tmp/x.sock".into(),
            token: "1.abc".into(),
            site: "site-1".into(),
            job: "digits".into(),
        };
        for _ in 0..2 {
            write_profile(&path, &profile).unwrap();
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert_eq!(read_profile(&path).unwrap(), profile);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(&path, "{}").unwrap();
        assert!(
            read_profile(&path)
                .unwrap_err()
                .to_string()
                .contains("is not an attach profile")
        );
        assert!(matches!(
            read_profile(folder.path()),
            Err(AttachError::Read { .. })
        ));
    }
}
