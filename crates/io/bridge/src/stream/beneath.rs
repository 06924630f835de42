//! Opening a file within a folder, and nothing outside of it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use firesteel_base::limits;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// Bytes of one part of a path; file systems stop there too.
const PART: usize = 255;
/// Times a lookup is tried again when somebody moves things about meanwhile.
#[cfg(target_os = "linux")]
const TRIES: usize = 16;

/// What is wrong with a name that an offer is to have.
pub(super) fn offer_name(name: &str) -> Option<&'static str> {
    if name.len() > PART {
        Some("a name has at most 255 bytes")
    } else if name.contains('/') {
        Some("a name has no slash")
    } else {
        characters(name)
    }
}

/// What is wrong with a name that is asked for.
pub(super) fn wanted_name(name: &str) -> Option<&'static str> {
    if name.len() > limits::STREAM_NAME {
        return Some("it is too long");
    }
    if name.starts_with('/') {
        return Some("it is an absolute path");
    }
    for part in name.split('/') {
        let wrong = match part {
            ".." => Some("it leads upwards (..)"),
            "" | "." => Some("a part of it is empty or a dot"),
            _ if part.len() > PART => Some("a part of it has more than 255 bytes"),
            _ => characters(part),
        };
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

fn characters(name: &str) -> Option<&'static str> {
    if name.contains('\0') {
        Some("it holds a NUL byte")
    } else if name.chars().any(char::is_control) {
        Some("it holds a control character")
    } else if matches!(name, "." | "..") {
        Some("a dot is no name")
    } else {
        None
    }
}

/// Opens the regular file at a path below a folder, following no link on the way.
///
/// # Errors
/// A sentence that says why not.
pub(super) fn open(folder: impl AsFd, path: &str) -> Result<File, String> {
    let folder = folder.as_fd();
    let opened = lookup(folder, path).map_err(|errno| match errno {
        Errno::NOENT => "there is no such file".to_owned(),
        // Refused by the lookup: a link, or the way out.
        Errno::LOOP | Errno::XDEV => "a symbolic link is in the way".to_owned(),
        Errno::NOTDIR => "a part of its path is no folder".to_owned(),
        Errno::NXIO => "it is not a regular file".to_owned(),
        errno => std::io::Error::from(errno).to_string(),
    })?;
    let stat = fstat(&opened).map_err(|errno| std::io::Error::from(errno).to_string())?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err("it is not a regular file".to_owned());
    }
    Ok(opened.into())
}

// NONBLOCK: a pipe in its place would hold us until it is written to.
const LAST: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW);

#[cfg(target_os = "linux")]
fn lookup(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(folder.as_fd(), path, LAST, Mode::empty(), within) {
            // Somebody renames on the way: the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Old kernels and some sandboxes lack the call.
            Err(Errno::NOSYS | Errno::PERM) => break,
            result => return result,
        }
    }
    by_parts(folder, path)
}

#[cfg(not(target_os = "linux"))]
fn lookup(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    by_parts(folder, path)
}

/// The same, part by part: each is opened in the one before it, and is no link.
fn by_parts(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let way = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let (folders, last) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at: Option<OwnedFd> = None;
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        at = Some(match &at {
            None => openat(folder.as_fd(), part, way, Mode::empty())?,
            Some(above) => openat(above, part, way, Mode::empty())?,
        });
    }
    match &at {
        None => openat(folder.as_fd(), last, LAST, Mode::empty()),
        Some(above) => openat(above, last, LAST, Mode::empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn folder() -> (tempfile::TempDir, File) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("open/deep/er")).unwrap();
        fs::write(root.path().join("secret"), "secret").unwrap();
        fs::write(root.path().join("open/plain"), "plain").unwrap();
        fs::write(root.path().join("open/deep/er/file"), "deep").unwrap();
        let open = File::open(root.path().join("open")).unwrap();
        (root, open)
    }

    type Lookup = fn(&File, &str) -> Result<File, String>;

    /// With the kernel's own confinement, and part by part.
    fn both() -> [Lookup; 2] {
        [
            |folder, path| open(folder, path),
            |folder, path| {
                by_parts(folder, path)
                    .map(File::from)
                    .map_err(|errno| errno.to_string())
            },
        ]
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn files_below_the_folder_are_found() {
        let (_root, folder) = folder();
        for open in both() {
            assert_eq!(text(open(&folder, "plain").unwrap()), "plain");
            assert_eq!(text(open(&folder, "deep/er/file").unwrap()), "deep");
        }
        assert_eq!(
            open(&folder, "nothing").unwrap_err(),
            "there is no such file"
        );
        assert_eq!(
            open(&folder, "deep").unwrap_err(),
            "it is not a regular file"
        );
        assert_eq!(
            open(&folder, "plain/x").unwrap_err(),
            "a part of its path is no folder"
        );
    }

    #[test]
    fn retrieve_dot_dot_is_refused() {
        for name in ["x/../y", "..", "x/..", "../secret"] {
            assert_eq!(wanted_name(name), Some("it leads upwards (..)"), "{name}");
        }
        // And were it not, the lookup would not go there.
        #[cfg(target_os = "linux")]
        {
            let (_root, folder) = folder();
            assert!(open(&folder, "../secret").is_err());
            assert!(open(&folder, "deep/../../secret").is_err());
        }
    }

    #[test]
    fn retrieve_absolute_is_refused() {
        assert_eq!(wanted_name("/etc/passwd"), Some("it is an absolute path"));
        assert_eq!(
            wanted_name("x//etc"),
            Some("a part of it is empty or a dot")
        );
        #[cfg(target_os = "linux")]
        {
            let (root, folder) = folder();
            let absolute = root.path().join("secret");
            assert!(open(&folder, absolute.to_str().unwrap()).is_err());
        }
    }

    #[test]
    fn retrieve_symlink_is_refused() {
        let (root, folder) = folder();
        let inside = root.path().join("open");
        symlink(root.path().join("secret"), inside.join("out")).unwrap();
        symlink("plain", inside.join("in")).unwrap();
        symlink(root.path(), inside.join("deep/up")).unwrap();
        for open in both() {
            for name in ["out", "in", "deep/up/secret"] {
                assert!(open(&folder, name).is_err(), "{name}");
            }
        }
        assert_eq!(
            open(&folder, "out").unwrap_err(),
            "a symbolic link is in the way"
        );
    }

    #[test]
    fn retrieve_race_never_leads_out() {
        // A folder of the path is swapped for a link to the outside, and back.
        let (root, folder) = folder();
        let inside = root.path().join("open");
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/file"), "secret").unwrap();
        symlink(root.path().join("outside"), inside.join("link")).unwrap();
        fs::create_dir(inside.join("dir")).unwrap();
        fs::write(inside.join("dir/file"), "inside").unwrap();
        fs::rename(inside.join("dir"), inside.join("x")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::rename(inside.join("x"), inside.join("dir"));
                    let _ = fs::rename(inside.join("link"), inside.join("x"));
                    let _ = fs::rename(inside.join("x"), inside.join("link"));
                    let _ = fs::rename(inside.join("dir"), inside.join("x"));
                }
            });
            let mut found = 0;
            for _ in 0..4000 {
                for open in both() {
                    if let Ok(file) = open(&folder, "x/file") {
                        assert_eq!(text(file), "inside");
                        found += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(found > 0, "the race was never won by the right file");
        });
    }

    #[test]
    fn retrieve_nul_is_refused() {
        assert_eq!(wanted_name("x\0y"), Some("it holds a NUL byte"));
        assert_eq!(offer_name("x\0y"), Some("it holds a NUL byte"));
        assert_eq!(wanted_name("x\ny"), Some("it holds a control character"));
    }

    #[test]
    fn retrieve_over_long_is_refused() {
        let long = "x".repeat(limits::STREAM_NAME + 1);
        assert_eq!(wanted_name(&long), Some("it is too long"));
        let part = "x".repeat(PART + 1);
        assert_eq!(
            wanted_name(&format!("a/{part}")),
            Some("a part of it has more than 255 bytes")
        );
        assert_eq!(offer_name(&part), Some("a name has at most 255 bytes"));
        assert_eq!(wanted_name(&"x/".repeat(100)[..199]), None);
    }

    #[test]
    fn pipes_and_sockets_are_refused_at_once() {
        let (root, folder) = folder();
        let _socket =
            std::os::unix::net::UnixListener::bind(root.path().join("open/socket")).unwrap();
        for open in both() {
            assert!(open(&folder, "socket").is_err());
        }
        let pipe = root.path().join("open/pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(
            open(&folder, "pipe").unwrap_err(),
            "it is not a regular file"
        );
    }
}
