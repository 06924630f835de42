//! Where a site keeps what it has of jobs.
//!
//! ```text
//! <workspace>/lock            one process at a time
//!             log.txt …       the site's own logs, in `logs`
//!             jobs/<job>/job.json      where the job is, for the next process
//!                        bundle.part   being fetched
//!                        work/         what people may see: logs, the unpacked bundle
//!                        own/          models in flight, results, state: nobody's but the site's
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firesteel_base::JobId;
use firesteel_wire::node::Stage;
use serde_json::{Value, json};

/// The folder of one job.
#[derive(Debug, Clone)]
pub(super) struct JobPlace {
    dir: PathBuf,
}

impl JobPlace {
    pub(super) fn new(workspace: &Path, job: &JobId) -> Self {
        // A `JobId` is one plain component by construction.
        Self {
            dir: workspace.join("jobs").join(job.as_str()),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What people may see.
    pub(super) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The unpacked bundle.
    pub(super) fn bundle(&self) -> PathBuf {
        self.work().join("job")
    }

    /// The job's log.
    pub(super) fn log(&self) -> PathBuf {
        self.work().join("log.txt")
    }

    /// The bundle as it is fetched.
    pub(super) fn part(&self) -> PathBuf {
        self.dir.join("bundle.part")
    }

    /// What is the site's alone.
    pub(super) fn own(&self) -> PathBuf {
        self.dir.join("own")
    }

    /// Removes everything of the job.
    pub(super) fn forget(&self) -> io::Result<()> {
        gone(fs::remove_dir_all(&self.dir))
    }

    /// Removes what is of no use after the job's end.
    pub(super) fn tidy(&self) -> io::Result<()> {
        gone(fs::remove_dir_all(self.own())).and(gone(fs::remove_file(self.part())))
    }

    /// Writes down where the job is.
    pub(super) fn save(&self, note: &Note) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let aside = self.dir.join("job.json.new");
        fs::write(&aside, note.to_json().to_string())?;
        fs::rename(&aside, self.dir.join("job.json"))
    }

    /// Where the job is, as it was written down.
    pub(super) fn load(&self) -> Option<Note> {
        let text = fs::read_to_string(self.dir.join("job.json")).ok()?;
        Note::from_json(&serde_json::from_str(&text).ok()?)
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is written down of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Its name, for people.
    pub(super) name: String,
    pub(super) attempt: u32,
    /// The digest of its bundle.
    pub(super) sha256: Vec<u8>,
    /// Where it is; none: it has ended.
    pub(super) stage: Option<Stage>,
    /// Who submitted it: name and organization.
    pub(super) submitter: (String, String),
    /// What is set aside for it, as the server said.
    pub(super) resources: Vec<u8>,
    /// Whether the server has all of its log, or wants none.
    pub(super) logged: bool,
}

impl Note {
    fn to_json(&self) -> Value {
        let stage = match self.stage {
            Some(Stage::Ready) => "ready",
            Some(Stage::Running) => "running",
            _ => "ended",
        };
        let hex: String = self
            .sha256
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        json!({
            "version": 1,
            "name": self.name,
            "attempt": self.attempt,
            "sha256": hex,
            "stage": stage,
            "submitter": self.submitter.0,
            "organization": self.submitter.1,
            "resources": String::from_utf8_lossy(&self.resources),
            "logged": self.logged,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let hex = text("sha256")?;
        let sha256 = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        Some(Self {
            name: text("name")?,
            attempt: u32::try_from(value.get("attempt")?.as_u64()?).ok()?,
            sha256,
            stage: match text("stage")?.as_str() {
                "ready" => Some(Stage::Ready),
                "running" => Some(Stage::Running),
                _ => None,
            },
            submitter: (text("submitter")?, text("organization")?),
            resources: text("resources")?.into_bytes(),
            logged: value.get("logged")?.as_bool()?,
        })
    }
}

/// The jobs that an earlier process left, with what it wrote down of them.
pub(super) fn left(workspace: &Path) -> Vec<(JobId, JobPlace, Option<Note>)> {
    let entries = fs::read_dir(workspace.join("jobs"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let job = JobId::new(entry.file_name().to_str()?).ok()?;
            let place = JobPlace::new(workspace, &job);
            let note = place.load();
            Some((job, place, note))
        })
        .collect()
}

/// Removes the oldest folders of ended jobs until no more than `budget` bytes are
/// kept; the names of those that went.
pub(super) fn sweep(workspace: &Path, in_hand: &[String], budget: u64) -> Vec<String> {
    let mut ended: Vec<(SystemTime, u64, JobId, JobPlace)> = left(workspace)
        .into_iter()
        .filter(|(job, ..)| !in_hand.iter().any(|held| held == job.as_str()))
        .map(|(job, place, _)| {
            let changed = fs::metadata(place.dir()).and_then(|found| found.modified());
            let age = changed.unwrap_or(SystemTime::UNIX_EPOCH);
            (age, size(place.dir()), job, place)
        })
        .collect();
    ended.sort_by_key(|(age, ..)| *age);
    let mut kept: u64 = ended.iter().map(|(_, size, ..)| *size).sum();
    let mut removed = Vec::new();
    for (_, size, job, place) in ended {
        if kept <= budget {
            break;
        }
        if place.forget().is_ok() {
            kept = kept.saturating_sub(size);
            removed.push(job.as_str().to_owned());
        }
    }
    removed
}

/// Bytes of the files below a folder; links are not followed.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> JobId {
        JobId::new(name).unwrap()
    }

    #[test]
    fn what_is_written_down_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let place = JobPlace::new(dir.path(), &job("j-1"));
        assert!(place.load().is_none());
        for stage in [None, Some(Stage::Ready), Some(Stage::Running)] {
            let note = Note {
                name: "digits".into(),
                attempt: 3,
                sha256: vec![0, 255, 16],
                stage,
                submitter: ("ann@lab".into(), "lab".into()),
                resources: b"{\"gpus\":1}".to_vec(),
                logged: stage.is_none(),
            };
            place.save(&note).unwrap();
            assert_eq!(place.load(), Some(note));
        }
        std::fs::write(place.dir().join("job.json"), "{").unwrap();
        assert_eq!(place.load(), None);
        assert_eq!(left(dir.path()).len(), 1);
    }

    #[test]
    fn the_oldest_goes_first_and_none_that_is_in_hand() {
        let dir = tempfile::tempdir().unwrap();
        for (age, name) in [(30u64, "old"), (20, "held"), (10, "new")] {
            let place = JobPlace::new(dir.path(), &job(name));
            std::fs::create_dir_all(place.work()).unwrap();
            std::fs::write(place.log(), vec![b'x'; 1000]).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            let folder = std::fs::File::open(place.dir()).unwrap();
            folder.set_modified(then).unwrap();
        }
        let held = ["held".to_owned()];
        assert_eq!(sweep(dir.path(), &held, 2500), Vec::<String>::new());
        assert_eq!(sweep(dir.path(), &held, 1500), ["old"]);
        assert_eq!(sweep(dir.path(), &held, 0), ["new"]);
        assert!(dir.path().join("jobs/held").exists());
    }
}
