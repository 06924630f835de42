//! How much disk a job needs, and whether it is there.

use std::path::{Path, PathBuf};

use firesteel_base::limits;

use crate::error::{Shortage, SpaceError, StoreError};

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

/// Bytes of disk that a job needs at its fullest moment.
///
/// That moment is the end of a round, when every update has arrived and the
/// next model is being written:
///
/// ```text
///   initial, best and keep_models last models      (2 + keep_models) × model
/// + the model being written                                      1 × model
/// + files waiting to be used again                     SPARE_FILES × model
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
        plan.sites.saturating_add(limits::SPARE_FILES as u64)
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
        .saturating_add(limits::BESIDE_MODELS)
}

/// What a server's need for disk depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerDisk {
    /// Bytes of the model's file.
    pub model_len: u64,
    /// Bytes of the largest update: the model's, unless filters change that.
    pub update_len: u64,
    /// Sites whose updates a round collects.
    pub sites: u64,
    /// Last models to keep.
    pub keep_models: u64,
    /// What becomes of updates that do not fit.
    pub updates: Updates,
}

/// What becomes of updates that do not fit on the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// They are folded straight from their sites; so many bytes may be spooled.
    Elastic {
        /// The spool's budget; `None` for half of what is free.
        budget: Option<u64>,
    },
    /// The method reads them more than once, so all of them must fit.
    AllSpooled,
}

/// What a site's need for disk depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteDisk {
    /// Bytes of the model's file.
    pub model_len: u64,
    /// Bytes of what the trainer writes: the model's, at most.
    pub update_len: u64,
    /// Bytes of the update as it leaves the site, when filters make another file
    /// of it; 0 when the trainer's is sent as it is.
    pub filtered_len: u64,
    /// Bytes that the site may keep in its state folder; 0 when none is used.
    pub site_state_len: u64,
}

/// Bytes of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskNeed {
    /// Without which a round cannot end.
    pub required: u64,
    /// With which it also is as fast as it can be: nothing is folded live, and
    /// files are written again.
    pub wanted: u64,
}

/// What the server of a job needs.
///
/// ```text
///   initial, best and keep_models last models      (2 + keep_models) × model
/// + the model being written                                      1 × model
/// + logs and metrics                                                16 MiB
/// + one update per site, if all must be spooled             sites × update
/// wanted beside it:
/// + files waiting to be used again                     SPARE_FILES × model
/// + one update per site, up to the spool's budget           sites × update
/// ```
pub fn server_disk_need(disk: &ServerDisk) -> DiskNeed {
    let models = disk.keep_models.max(1).saturating_add(3);
    let kept = models
        .saturating_mul(disk.model_len)
        .saturating_add(limits::BESIDE_MODELS);
    let on_disk = |len: u64| {
        if len <= limits::INLINE_OBJECT as u64 {
            0
        } else {
            len
        }
    };
    let updates = disk.sites.saturating_mul(on_disk(disk.update_len));
    let spares = (limits::SPARE_FILES as u64).saturating_mul(on_disk(disk.model_len));
    let (required, spooled) = match disk.updates {
        Updates::AllSpooled => (kept.saturating_add(updates), updates),
        Updates::Elastic { budget } => (kept, updates.min(budget.unwrap_or(u64::MAX))),
    };
    DiskNeed {
        required,
        wanted: kept.saturating_add(spooled).saturating_add(spares),
    }
}

/// What a site of a job needs.
///
/// ```text
///   the model, and that of the last round while a trainer has it   2 × model
/// + the trainer's update, and the last one until it counts        2 × update
/// + the same as they leave the site, if filters change them     2 × filtered
/// + two versions of the site's state                               2 × state
/// + logs                                                              16 MiB
/// wanted beside it:
/// + files waiting to be used again                       SPARE_FILES × model
/// ```
pub fn site_disk_need(disk: &SiteDisk) -> DiskNeed {
    let on_disk = |len: u64| {
        if len <= limits::INLINE_OBJECT as u64 {
            0
        } else {
            len
        }
    };
    let each = [
        on_disk(disk.model_len),
        on_disk(disk.update_len),
        on_disk(disk.filtered_len),
        disk.site_state_len,
    ];
    let twice = each
        .iter()
        .fold(0u64, |sum, len| sum.saturating_add(len.saturating_mul(2)));
    let required = twice.saturating_add(limits::BESIDE_MODELS);
    let spares = (limits::SPARE_FILES as u64).saturating_mul(on_disk(disk.model_len));
    DiskNeed {
        required,
        wanted: required.saturating_add(spares),
    }
}

/// What is to go into a directory.
#[derive(Debug, Clone, Copy)]
pub struct DiskUse<'a> {
    /// The directory, which need not be there yet.
    pub dir: &'a Path,
    /// What for, as in "the spool needs …".
    pub what: &'a str,
    /// Bytes.
    pub needed: u64,
}

/// Checks that there is room for all of this; directories on one disk share what
/// is free there.
///
/// # Errors
/// [`SpaceError::Missing`] with every disk that is too small.
pub fn check_disks(uses: &[DiskUse<'_>]) -> Result<(), SpaceError> {
    let mut disks: Vec<(u64, Shortage)> = Vec::new();
    for wanted in uses {
        let existing = existing(wanted.dir)?;
        let stat = rustix::fs::stat(&existing)
            .map_err(|errno| StoreError::new("look at", &existing, errno))?;
        let place = (wanted.dir.to_owned(), wanted.what.to_owned());
        match disks.iter_mut().find(|(device, _)| *device == stat.st_dev) {
            Some((_, disk)) => {
                disk.places.push(place);
                disk.needed = disk.needed.saturating_add(wanted.needed);
            }
            None => {
                let disk = Shortage {
                    places: vec![place],
                    needed: wanted.needed,
                    free: free(&existing)?,
                };
                disks.push((stat.st_dev, disk));
            }
        }
    }
    disks.retain(|(_, disk)| disk.free < disk.needed);
    if disks.is_empty() {
        return Ok(());
    }
    let shortages = disks.into_iter().map(|(_, disk)| disk).collect();
    Err(SpaceError::Missing { shortages })
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
    let existing = existing(dir)?;
    let stat = rustix::fs::statvfs(&existing)
        .map_err(|errno| StoreError::new("ask for the free space of", &existing, errno))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether the disk of `dir` says that it has less than `needed` bytes. One that
/// does not say how large it is has room until a write fails.
pub(crate) fn plainly_too_small(dir: &Path, needed: u64) -> bool {
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return false;
    };
    stat.f_blocks > 0 && stat.f_bavail.saturating_mul(stat.f_frsize) < needed
}

/// The name of the file system of `dir`, if its files lie in memory.
pub(crate) fn memory_kind(dir: &Path) -> Result<Option<&'static str>, StoreError> {
    let existing = existing(dir)?;
    let stat = rustix::fs::statfs(&existing)
        .map_err(|errno| StoreError::new("ask for the file system of", &existing, errno))?;
    // The kernel's own numbers (`linux/magic.h`); the field is signed on some
    // systems and 32 bits wide on others.
    #[allow(clippy::unnecessary_cast, reason = "it differs between systems")]
    let kind = stat.f_type as u32;
    Ok(match kind {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    })
}

/// `dir`, or the nearest directory above it that exists.
fn existing(dir: &Path) -> Result<PathBuf, StoreError> {
    let absolute =
        std::path::absolute(dir).map_err(|source| StoreError::new("find", dir, source))?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    Ok(existing.unwrap_or(Path::new("/")).to_owned())
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
            (2 + 2 + 1 + 2 + 8) * MODEL + limits::BESIDE_MODELS
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
        assert_eq!(disk_needed(&small), 5 * 1000 + limits::BESIDE_MODELS);
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

    #[test]
    fn a_server_needs_room_for_updates_only_where_they_must_be_spooled() {
        let elastic = ServerDisk {
            model_len: MODEL,
            update_len: MODEL / 4,
            sites: 8,
            keep_models: 2,
            updates: Updates::Elastic { budget: None },
        };
        let need = server_disk_need(&elastic);
        assert_eq!(need.required, 5 * MODEL + limits::BESIDE_MODELS);
        assert_eq!(need.wanted - need.required, 2 * MODEL + 2 * MODEL);
        let budget = Updates::Elastic {
            budget: Some(MODEL),
        };
        let need = server_disk_need(&ServerDisk {
            updates: budget,
            ..elastic
        });
        assert_eq!(need.wanted - need.required, MODEL + 2 * MODEL);
        let need = server_disk_need(&ServerDisk {
            updates: Updates::AllSpooled,
            ..elastic
        });
        assert_eq!(need.required, 7 * MODEL + limits::BESIDE_MODELS);
        let absurd = server_disk_need(&ServerDisk {
            model_len: u64::MAX,
            update_len: u64::MAX,
            ..elastic
        });
        assert_eq!(absurd.required, u64::MAX);
    }

    #[test]
    fn a_site_needs_the_last_rounds_files_beside_this_ones() {
        let site = SiteDisk {
            model_len: MODEL,
            update_len: MODEL,
            filtered_len: 0,
            site_state_len: 10,
        };
        let need = site_disk_need(&site);
        assert_eq!(need.required, 4 * MODEL + 20 + limits::BESIDE_MODELS);
        assert_eq!(need.wanted - need.required, 2 * MODEL);
        let filtered = SiteDisk {
            filtered_len: MODEL / 4,
            ..site
        };
        let more = site_disk_need(&filtered).required - need.required;
        assert_eq!(more, MODEL / 2);
        let small = SiteDisk {
            model_len: 100,
            update_len: 100,
            ..site
        };
        assert_eq!(site_disk_need(&small).required, 20 + limits::BESIDE_MODELS);
    }

    #[test]
    fn what_is_missing_is_said_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, run) = (dir.path().join("spool"), dir.path().join("run"));
        let uses = |needed: u64| {
            let one = |dir, what| DiskUse { dir, what, needed };
            [one(&spool, "the spool"), one(&run, "the models")]
        };
        check_disks(&uses(1)).unwrap();
        check_disks(&[]).unwrap();
        let SpaceError::Missing { shortages } = check_disks(&uses(1 << 61)).unwrap_err() else {
            panic!("another error");
        };
        // Both are on one disk, whose room they share.
        assert_eq!(shortages.len(), 1);
        assert_eq!(shortages[0].needed, 1 << 62);
        let text = SpaceError::Missing { shortages }.to_string();
        let expected = format!(
            "the disk is too small: the spool in `{}` and the models in `{}` need 4.0 EiB, ",
            spool.display(),
            run.display()
        );
        assert!(
            text.starts_with(&expected) && text.ends_with(" is free"),
            "{text}"
        );
        // Each fits alone, both do not.
        let free = free(dir.path()).unwrap();
        let error = check_disks(&uses(free / 10 * 6)).unwrap_err();
        assert!(error.hint().is_some());
    }
}
