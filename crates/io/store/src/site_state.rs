//! What a site keeps for itself from round to round, such as control variates.

use std::path::{Path, PathBuf};

use firesteel_base::Round;

use crate::error::StoreError;
use crate::files;

const PREFIX: &str = "r";
const SUFFIX: &str = ".safetensors";

/// The `sites/<site>/state/` directory of a run: one version per round whose
/// update was taken, the last two kept. It never leaves the site.
#[derive(Debug)]
pub struct SiteState {
    dir: PathBuf,
}

impl SiteState {
    /// Opens `dir`, creating it if need be.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The newest version made by a round before `round` or by itself; `None`
    /// when the site has none yet.
    ///
    /// A task of round 4 starts from `current(Round(3))`: what an earlier try of
    /// round 4 left does not count.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be read.
    pub fn current(&self, round: Round) -> Result<Option<PathBuf>, StoreError> {
        let newest = self
            .list()?
            .into_iter()
            .rfind(|&(number, _)| number <= round.0);
        Ok(newest.map(|(_, path)| path))
    }

    /// Makes the file at `written` the version of `round`, atomically, and
    /// removes all but it and the one before it.
    ///
    /// # Errors
    /// [`StoreError`]; the earlier versions stay.
    pub fn commit(&self, written: &Path, round: Round) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(format!("{PREFIX}{:06}{SUFFIX}", round.0));
        std::fs::rename(written, &path)
            .map_err(|source| StoreError::new("rename to", &path, source))?;
        let mut found = self.list()?;
        found.retain(|&(number, _)| number < round.0);
        found.pop();
        for (_, old) in found {
            files::remove_if_there(&old)?;
        }
        Ok(path)
    }

    /// Forgets every version made after `round`.
    ///
    /// # Errors
    /// [`StoreError`] when one cannot be removed.
    pub fn rollback_to(&self, round: Round) -> Result<(), StoreError> {
        for (number, path) in self.list()? {
            if number > round.0 {
                files::remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Where a new version may be written before it is committed; on the same
    /// disk, made by us, and never mistaken for a version.
    pub fn draft(&self, round: Round, attempt: firesteel_base::Attempt) -> PathBuf {
        self.dir
            .join(format!(".r{:06}-{}.draft", round.0, attempt.0))
    }

    fn list(&self) -> Result<Vec<(u32, PathBuf)>, StoreError> {
        files::numbered(&self.dir, PREFIX, SUFFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_base::Attempt;

    fn commit(state: &SiteState, round: u32, text: &str) {
        let draft = state.draft(Round(round), Attempt(0));
        std::fs::write(&draft, text).unwrap();
        state.commit(&draft, Round(round)).unwrap();
    }

    fn current(state: &SiteState, round: u32) -> Option<String> {
        let path = state.current(Round(round)).unwrap()?;
        Some(std::fs::read_to_string(path).unwrap())
    }

    #[test]
    fn a_round_starts_from_the_newest_version_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = SiteState::open(&dir.path().join("state")).unwrap();
        assert_eq!(current(&state, 5), None);
        commit(&state, 0, "zero");
        commit(&state, 3, "three"); // the site was left out of rounds 1 and 2
        assert_eq!(current(&state, 2).as_deref(), Some("zero"));
        assert_eq!(current(&state, 9).as_deref(), Some("three"));
        commit(&state, 4, "four");
        assert_eq!(current(&state, 2), None, "older than the previous is gone");
        assert_eq!(current(&state, 3).as_deref(), Some("three"));
    }

    #[test]
    fn a_rollback_forgets_what_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let state = SiteState::open(dir.path()).unwrap();
        commit(&state, 3, "three");
        commit(&state, 4, "four");
        std::fs::write(state.draft(Round(5), Attempt(1)), "half").unwrap();
        state.rollback_to(Round(3)).unwrap();
        assert_eq!(current(&state, 9).as_deref(), Some("three"));
        commit(&state, 4, "four again");
        commit(&state, 4, "four once more");
        assert_eq!(current(&state, 4).as_deref(), Some("four once more"));
        assert_eq!(current(&state, 3).as_deref(), Some("three"));
    }

    #[test]
    fn a_failed_commit_keeps_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let state = SiteState::open(dir.path()).unwrap();
        commit(&state, 1, "one");
        let error = state
            .commit(&dir.path().join("missing"), Round(2))
            .unwrap_err();
        assert!(error.to_string().contains("r000002.safetensors"));
        assert_eq!(current(&state, 2).as_deref(), Some("one"));
    }
}
