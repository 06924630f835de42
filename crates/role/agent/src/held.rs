//! Results that the site holds until their round is committed, so that the server
//! can ask for them again: after a cut, and after this process was started anew.

use std::path::{Path, PathBuf};

use firesteel_base::{Round, TaskKey};
use firesteel_observe::Logger;
use firesteel_store::{ModelObject, Objects, StoreError, write_aside};
use firesteel_wire::control::{Key, Update};
use firesteel_wire::frame;

/// Under which server process the results were made.
const LEASE: &str = "lease";

/// The results that are held.
pub(crate) struct Held {
    /// Where they are kept for the next process; none where there will be none.
    dir: Option<PathBuf>,
    results: Vec<Result>,
    logger: Logger,
}

/// One of them.
pub(crate) struct Result {
    pub(crate) key: TaskKey,
    /// What the server was told, to be told again.
    pub(crate) update: Update,
    /// Its params, when they are no part of the message.
    pub(crate) object: Option<ModelObject>,
}

impl Held {
    /// Nothing is held yet; with `dir` it outlives this process.
    pub(crate) fn new(dir: Option<PathBuf>, logger: Logger) -> Self {
        Self {
            dir,
            results: Vec::new(),
            logger,
        }
    }

    /// The epoch under which an earlier process of this site worked; zero when
    /// there was none. What it held is found again.
    pub(crate) fn restore(&mut self, objects: &Objects) -> u64 {
        let Some(dir) = &self.dir else { return 0 };
        let epoch = std::fs::read_to_string(dir.join(LEASE))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        if epoch == 0 {
            return 0;
        }
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<Result> = names
            .filter(|name| name.ends_with(".update"))
            .filter_map(|name| {
                let read = read(&dir.join(&name), objects);
                if read.is_none() {
                    // A process that was killed while it wrote: the task is done anew.
                    self.logger
                        .warning(&format!("the kept result `{name}` cannot be read"));
                }
                read
            })
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        self.results = found;
        epoch
    }

    /// What it did before was for another epoch, or is the first: begins anew.
    pub(crate) fn begin(&mut self, epoch: u64) {
        self.results.clear();
        let Some(dir) = &self.dir else { return };
        let emptied = std::fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in emptied {
            let _ = std::fs::remove_file(entry.path());
        }
        let begun = std::fs::create_dir_all(dir)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                write_aside(&dir.join(LEASE), epoch.to_string().as_bytes(), 0o600)
                    .map_err(|error| crate::agent::sentence(&error))
            });
        if let Err(why) = begun {
            self.logger.warning(&format!(
                "results are not kept over an end of this process: {why}"
            ));
            self.dir = None;
        }
    }

    /// Holds a result, which is to be offered again under what `update` says.
    pub(crate) fn add(&mut self, result: Result) {
        if let Some(dir) = &self.dir
            && let Err(error) = keep(dir, &result)
        {
            self.logger.warning(&format!(
                "the result is not kept over an end of this process: {}",
                crate::agent::sentence(&error)
            ));
        }
        self.results.push(result);
    }

    /// Lets go of what was made in `round` and before.
    pub(crate) fn committed(&mut self, round: Round) -> Vec<Result> {
        let (done, held) = std::mem::take(&mut self.results)
            .into_iter()
            .partition(|result| result.key.round <= round);
        self.results = held;
        let done: Vec<Result> = done;
        for result in &done {
            self.forget(&result.key);
        }
        done
    }

    /// Lets go of all.
    pub(crate) fn clear(&mut self) -> Vec<Result> {
        self.committed(Round(u32::MAX))
    }

    fn forget(&self, key: &TaskKey) {
        if let Some(dir) = &self.dir {
            for path in paths(dir, key) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    pub(crate) fn get(&self, key: &TaskKey) -> Option<&Result> {
        self.results.iter().find(|result| &result.key == key)
    }

    pub(crate) fn all(&self) -> &[Result] {
        &self.results
    }
}

/// The message, and the model that it names.
fn paths(dir: &Path, key: &TaskKey) -> [PathBuf; 2] {
    ["update", "safetensors"]
        .map(|kind| dir.join(format!("r{}-a{}.{kind}", key.round.0, key.attempt.0)))
}

fn keep(dir: &Path, result: &Result) -> std::result::Result<(), StoreError> {
    let [message, model] = paths(dir, &result.key);
    if let Some(path) = result.object.as_ref().and_then(ModelObject::path) {
        let _ = std::fs::remove_file(&model);
        // A second name for the same file. Where there is none to be had (another
        // disk), the task is simply done again by the next process.
        if std::fs::hard_link(path, &model).is_err() {
            return Ok(());
        }
    }
    let Ok(bytes) = frame::encode(&result.update) else {
        return Ok(());
    };
    write_aside(&message, &bytes, 0o600)
}

fn read(path: &Path, objects: &Objects) -> Option<Result> {
    let bytes = std::fs::read(path).ok()?;
    let mut buffer = bytes::BytesMut::from(&bytes[..]);
    let update: Update = frame::decode(&mut buffer, "Update").ok()??;
    let key = TaskKey::try_from(update.key.as_ref()?).ok()?;
    let stored = update
        .model
        .as_ref()
        .is_some_and(|model| model.inline.is_none());
    let object = if stored {
        Some(
            objects
                .import_kept(&path.with_extension("safetensors"))
                .ok()?,
        )
    } else {
        None
    };
    Some(Result {
        key,
        update,
        object,
    })
}

/// The keys of what is held.
pub(crate) fn keys(results: &[Result]) -> impl Iterator<Item = Key> {
    results.iter().map(|result| Key::from(&result.key))
}
