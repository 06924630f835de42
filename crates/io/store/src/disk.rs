//! How much disk a job needs, and whether it is there.

use std::path::Path;

use firesteel_base::limits;

use crate::error::{SpaceError, StoreError};
use crate::objects::RECYCLED_FILES;

/// What the need for disk depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskPlan {
    /// Bytes of the model's file.
    pub model_len: u64,
    /// Sites whose updates may lie in the spool at once.
    pub sites: u64,
    /// Last models to keep.
    pub keep_models: u64,
    /// Bytes that each site may keep in its state folder; 0 when none is used.
    pub site_state_len: u64,
}

/// Bytes beside models: logs, metrics and event files of a usual run. Logs may
/// grow to `LOG_FILE × (LOG_FILES_KEPT + 1)` each, but only in jobs that run
/// for days, and what they lose when the disk fills is log lines, never a
/// round.
const BESIDE_MODELS: u64 = 16 * 1024 * 1024;

/// Bytes of disk that a job needs at its fullest moment.
///
/// That moment is the end of a round, when every update has arrived and the
/// next model is being written:
///
/// ```text
///   initial, best and keep_models last models      (2 + keep_models) × model
/// + the model being written                                      1 × model
/// + files waiting to be used again                  RECYCLED_FILES × model
/// + one update per site                                      sites × model
/// + two versions of every site's state                   2 × sites × state
/// + logs and metrics                                                16 MiB
/// ```
///
/// Updates up to `INLINE_OBJECT` stay in memory, so only the kept models of
/// such a job count. An update is counted as large as the model; a file that is
/// written anew and one renamed from an outbox are the same file, so neither
/// counts twice.
pub fn disk_needed(plan: &DiskPlan) -> u64 {
    let in_flight = if plan.model_len <= limits::INLINE_OBJECT as u64 {
        0
    } else {
        plan.sites.saturating_add(RECYCLED_FILES as u64)
    };
    let models = plan
        .keep_models
        .max(1)
        .saturating_add(3)
        .saturating_add(in_flight);
    models
        .saturating_mul(plan.model_len)
        .saturating_add(
            plan.sites
                .saturating_mul(2)
                .saturating_mul(plan.site_state_len),
        )
        .saturating_add(BESIDE_MODELS)
}

/// Checks that `needed` bytes are free where `dir` is, or will be made.
///
/// # Errors
/// [`SpaceError::TooSmall`] when they are not.
pub fn check_free(dir: &Path, needed: u64) -> Result<(), SpaceError> {
    let free = free(dir)?;
    if free < needed {
        return Err(SpaceError::TooSmall {
            dir: dir.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Bytes free to this user on the disk of `dir`, or of the nearest directory
/// above it that exists.
pub(crate) fn free(dir: &Path) -> Result<u64, StoreError> {
    let absolute =
        std::path::absolute(dir).map_err(|source| StoreError::new("find", dir, source))?;
    let existing = absolute
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(|errno| StoreError::new("ask for the free space of", existing, errno))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_base::Hint;

    const MODEL: u64 = 256 * 1024 * 1024;

    #[test]
    fn the_formula_counts_each_file_once() {
        let plan = DiskPlan {
            model_len: MODEL,
            sites: 8,
            keep_models: 2,
            site_state_len: 0,
        };
        assert_eq!(
            disk_needed(&plan),
            (2 + 2 + 1 + 2 + 8) * MODEL + BESIDE_MODELS
        );
        let with_state = DiskPlan {
            site_state_len: 1000,
            ..plan
        };
        assert_eq!(disk_needed(&with_state) - disk_needed(&plan), 16_000);
        // A small model stays in memory but for what is kept.
        let small = DiskPlan {
            model_len: 1000,
            sites: 100_000,
            ..plan
        };
        assert_eq!(disk_needed(&small), 5 * 1000 + BESIDE_MODELS);
        let absurd = DiskPlan {
            model_len: u64::MAX,
            ..plan
        };
        assert_eq!(disk_needed(&absurd), u64::MAX);
    }

    #[test]
    fn too_little_space_is_said_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let later = dir.path().join("not/yet/there");
        check_free(&later, 1).unwrap();
        let error = check_free(&later, u64::MAX).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("the job needs 16.0 EiB in `") && text.ends_with(" is free"),
            "{text}"
        );
        assert!(error.hint().unwrap().contains("keep_models"));
    }
}
