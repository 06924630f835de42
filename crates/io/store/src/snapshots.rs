//! What a job must know to go on after its process died.

use std::path::{Path, PathBuf};

use firesteel_base::Round;

use crate::error::StoreError;
use crate::files;

/// The file starts with this; the number is its version.
const MAGIC: &[u8; 8] = b"FSSNAP\x00\x01";
const KEPT: usize = 2;

/// The `state/` directory of a run: one file per round, the last two kept.
///
/// A file is the magic, the CRC-32C of the rest (4 bytes, little-endian), and
/// the bytes as given.
#[derive(Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

/// The newest snapshot that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedSnapshot {
    /// The round after which it was taken.
    pub round: Round,
    /// What was saved.
    pub bytes: Vec<u8>,
    /// A sentence for each newer one that was damaged.
    pub warnings: Vec<String>,
}

impl Snapshots {
    /// Opens `dir`, creating it if need be. What a killed process left half
    /// written is removed.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        files::remove_asides(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Saves the state after `round`, atomically, and removes all but the last
    /// two. Snapshots of later rounds (of a run that went on from here before)
    /// go too.
    ///
    /// # Errors
    /// [`StoreError`]; the earlier snapshots stay.
    pub fn save(&self, round: Round, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = Vec::with_capacity(bytes.len() + 12);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        file.extend_from_slice(bytes);
        let path = self.dir.join(format!("round-{:06}.snapshot", round.0));
        files::write_aside(&path, &file, 0o600)?;
        let mut found = self.list()?;
        for (_, later) in found.extract_if(.., |(number, _)| *number > round.0) {
            files::remove_if_there(&later)?;
        }
        let excess = found.len().saturating_sub(KEPT);
        for (_, old) in found.drain(..excess) {
            files::remove_if_there(&old)?;
        }
        Ok(())
    }

    /// The newest snapshot that is whole; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or a file cannot be read.
    pub fn load_latest(&self) -> Result<Option<LoadedSnapshot>, StoreError> {
        let mut warnings = Vec::new();
        for (number, path) in self.list()?.into_iter().rev() {
            let file =
                std::fs::read(&path).map_err(|source| StoreError::new("read", &path, source))?;
            match checked(&file) {
                Some(bytes) => {
                    return Ok(Some(LoadedSnapshot {
                        round: Round(number),
                        bytes: bytes.to_vec(),
                        warnings,
                    }));
                }
                None => warnings.push(format!(
                    "the snapshot `{}` is damaged; going back to the one before",
                    path.display()
                )),
            }
        }
        Ok(None)
    }

    fn list(&self) -> Result<Vec<(u32, PathBuf)>, StoreError> {
        files::numbered(&self.dir, "round-", ".snapshot")
    }
}

fn checked(file: &[u8]) -> Option<&[u8]> {
    let rest = file.strip_prefix(MAGIC)?;
    let (crc, bytes) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*crc) == crc32c::crc32c(bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_last_two_are_kept_and_the_newest_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&dir.path().join("state")).unwrap();
        assert_eq!(snapshots.load_latest().unwrap(), None);
        for round in 0..5 {
            snapshots
                .save(Round(round), format!("state {round}").as_bytes())
                .unwrap();
        }
        assert_eq!(
            names(&dir.path().join("state")),
            ["round-000003.snapshot", "round-000004.snapshot"]
        );
        let loaded = snapshots.load_latest().unwrap().unwrap();
        assert_eq!((loaded.round, &*loaded.bytes), (Round(4), &b"state 4"[..]));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn a_damaged_newest_one_falls_back_with_a_warning() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 5] = [
            ("cut", |file| file.truncate(14)),
            ("empty", Vec::clear),
            ("one bit", |file| file[15] ^= 1),
            ("another version", |file| file[7] = 9),
            ("longer", |file| file.push(0)),
        ];
        for (what, damage) in damages {
            let dir = tempfile::tempdir().unwrap();
            let snapshots = Snapshots::open(dir.path()).unwrap();
            snapshots.save(Round(6), b"previous").unwrap();
            snapshots.save(Round(7), b"the newest").unwrap();
            let path = dir.path().join("round-000007.snapshot");
            let mut file = std::fs::read(&path).unwrap();
            damage(&mut file);
            std::fs::write(&path, file).unwrap();
            let loaded = snapshots.load_latest().unwrap().unwrap();
            assert_eq!(loaded.round, Round(6), "{what}");
            assert_eq!(loaded.bytes, b"previous", "{what}");
            assert_eq!(loaded.warnings.len(), 1, "{what}");
            assert!(loaded.warnings[0].contains("round-000007.snapshot"));
        }
    }

    #[test]
    fn a_half_written_one_is_never_seen() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path()).unwrap();
        snapshots.save(Round(1), b"whole").unwrap();
        // What a process killed while writing leaves.
        std::fs::write(dir.path().join(".round-000002.snapshot.part"), b"FSS").unwrap();
        let loaded = snapshots.load_latest().unwrap().unwrap();
        assert_eq!((loaded.round, loaded.warnings.len()), (Round(1), 0));
        let snapshots = Snapshots::open(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["round-000001.snapshot"]);
        snapshots.save(Round(2), b"again").unwrap();
        assert_eq!(
            names(dir.path()),
            ["round-000001.snapshot", "round-000002.snapshot"]
        );
    }

    #[test]
    fn going_on_from_an_earlier_round_forgets_the_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path()).unwrap();
        snapshots.save(Round(8), b"8").unwrap();
        snapshots.save(Round(9), b"9").unwrap();
        snapshots.save(Round(3), b"3").unwrap();
        assert_eq!(snapshots.load_latest().unwrap().unwrap().round, Round(3));
    }
}
