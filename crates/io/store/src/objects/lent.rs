//! Files of results that nobody needs any more, to be written again by trainers.
//!
//! They stay apart from the files that this process writes itself: who wrote one
//! may still have it open. So none of them ever becomes a model that was checked.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use firesteel_base::limits;

use super::identity::Identity;
use super::{Objects, lock};
use crate::outbox::Outbox;

/// Never more than there were results at once: so the disk holds no more than it
/// has held already.
#[derive(Default)]
pub(super) struct Returned {
    files: VecDeque<(PathBuf, u64)>,
    /// Results whose objects live.
    live: usize,
    /// The most that there were of them.
    most: usize,
}

impl Returned {
    /// A result was taken.
    pub(super) fn taken(&mut self) {
        self.live += 1;
        self.most = self.most.max(self.live);
    }

    /// Its object is gone; this is its file, if it may be written again.
    pub(super) fn put(&mut self, file: Option<(PathBuf, u64)>) {
        self.live = self.live.saturating_sub(1);
        self.files.extend(file);
        while self.live + self.files.len() > self.most {
            let Some((oldest, _)) = self.files.pop_front() else {
                break;
            };
            let _ = std::fs::remove_file(oldest);
        }
    }

    /// The one whose length is nearest, unless that is far away.
    fn take(&mut self, len: u64) -> Option<PathBuf> {
        let near = self.files.iter().enumerate();
        let near = near.filter(|(_, (_, has))| *has >= len / 2 && *has / 2 <= len);
        let (at, _) = near.min_by_key(|(_, (_, has))| has.abs_diff(len))?;
        let (path, _) = self.files.remove(at)?;
        Some(path)
    }

    /// Removes them all; whether there were any.
    pub(super) fn clear(&mut self) -> bool {
        let any = !self.files.is_empty();
        for (path, _) in self.files.drain(..) {
            let _ = std::fs::remove_file(path);
        }
        any
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Objects {
    /// Gives a trainer the file of an earlier result to write its next one into,
    /// if there is one of about `len` bytes. A fresh file costs a page fault and a
    /// zeroed page per 4 KiB; without one the trainer makes its own.
    pub fn lend(&self, outbox: &Outbox, len: u64) {
        if len <= limits::INLINE_OBJECT as u64 || outbox.has_spare() {
            return;
        }
        let Some(path) = lock(&self.0.returned).take(len) else {
            return;
        };
        if !outbox.put_spare(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The file of a result whose object goes, if it is as it was and has no other
/// name; else it is removed.
pub(super) fn reusable(path: PathBuf, identity: &Identity) -> Option<(PathBuf, u64)> {
    if is_ours_alone(&path, identity) {
        return Some((path, identity.len()));
    }
    let _ = std::fs::remove_file(path);
    None
}

fn is_ours_alone(path: &Path, identity: &Identity) -> bool {
    rustix::fs::lstat(path)
        .is_ok_and(|stat| stat.st_nlink == 1 && Identity::from(&stat) == *identity)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::tests::model;
    use super::*;
    use crate::{KeptModels, ModelObject, SPARE};
    use firesteel_base::Round;
    use rustix::fs::FlockOperation;
    use tempfile::TempDir;

    const LEN: usize = 200_000;

    struct Place {
        dir: TempDir,
        objects: Objects,
        outbox: Outbox,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let objects = Objects::open(&dir.path().join("objects")).unwrap();
            let outbox = Outbox::create(&dir.path().join("outbox")).unwrap();
            Self {
                dir,
                objects,
                outbox,
            }
        }

        /// As a trainer sends one: into the file that was lent, if there is one.
        fn result(&self, name: &str, fill: u8) -> ModelObject {
            let (spare, path) = (self.spare(), self.outbox.path().join(name));
            let _ = std::fs::rename(spare, &path);
            let bytes = model(LEN, fill);
            let file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            drop(file);
            let object = self.objects.adopt(&self.outbox, name).unwrap();
            assert_eq!(object.bytes(), bytes);
            object
        }

        fn spare(&self) -> PathBuf {
            self.outbox.path().join(SPARE)
        }

        fn lend(&self) -> bool {
            self.objects.lend(&self.outbox, LEN as u64);
            self.spare().exists()
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.objects.dir()).unwrap().count()
        }
    }

    fn inode(object: &ModelObject) -> u64 {
        object.path().unwrap().metadata().unwrap().ino()
    }

    #[test]
    fn the_next_result_is_written_into_the_file_of_the_last() {
        let place = Place::new();
        assert!(!place.lend(), "there was no result yet");
        let first = place.result("a", 1);
        let file = inode(&first);
        assert!(!place.lend(), "somebody still has it");
        drop(first);
        assert!(place.lend());
        let mode = place.spare().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(place.lend(), "it lies there until it is used");
        let second = place.result("b", 2);
        assert_eq!(inode(&second), file);
        assert_eq!(
            second
                .path()
                .unwrap()
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o400
        );
        drop(second);
        // Never into one that this process writes itself.
        let bytes = model(LEN, 3);
        let own = place.objects.from_bytes(bytes).unwrap();
        assert_ne!(inode(&own), file);
    }

    #[test]
    fn there_are_never_more_files_than_there_were_results() {
        let place = Place::new();
        let both = [place.result("a", 1), place.result("b", 2)];
        assert_eq!(place.files(), 2);
        drop(both);
        assert_eq!(place.files(), 2);
        // Two results in fresh files: the spares make way.
        let both = [place.result("c", 3), place.result("d", 4)];
        drop(place.result("e", 5));
        assert_eq!(place.files(), 3);
        drop(both);
        assert_eq!(place.files(), 3);
        drop(place.objects);
        assert!(!place.outbox.has_spare());
    }

    #[test]
    fn one_that_is_kept_mapped_or_altered_is_not_lent() {
        let place = Place::new();
        let kept = place.result("a", 1);
        let mut models = KeptModels::open(&place.dir.path().join("models"), 1).unwrap();
        let path = models.save_last(Round(0), &kept).unwrap();
        models.prune().unwrap();
        drop((kept, models));
        assert!(!place.lend());
        assert_eq!(std::fs::read(path).unwrap(), model(LEN, 1));

        let mapped = place.result("b", 2);
        let descriptor = mapped.open_shared().unwrap().unwrap();
        drop(mapped);
        assert!(!place.lend());
        rustix::fs::flock(&descriptor, FlockOperation::Unlock).unwrap();

        let altered = place.result("c", 3);
        let path = altered.path().unwrap().to_owned();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, b"another").unwrap();
        drop(altered);
        assert!(!place.lend());
        assert_eq!(place.files(), 0);
    }

    #[test]
    fn one_of_quite_another_length_is_not_lent() {
        let place = Place::new();
        drop(place.result("a", 1));
        for len in [1, LEN as u64 / 3, LEN as u64 * 3, u64::MAX] {
            place.objects.lend(&place.outbox, len);
            assert!(!place.outbox.has_spare(), "{len}");
        }
        assert!(place.lend());
        // It goes with whatever else is left of a trainer that failed.
        place.outbox.clear().unwrap();
        assert!(!place.outbox.has_spare());
    }
}
