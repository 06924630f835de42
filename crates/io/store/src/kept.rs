//! The models that outlive their round: initial, best and the last few.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firesteel_base::Round;
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::files;
use crate::objects::ModelObject;

const INITIAL: &str = "initial.safetensors";
const LAST: &str = "last.safetensors";
const BEST: &str = "best.safetensors";
const INDEX: &str = "index.json";

/// The `models/` directory of a run.
///
/// Keeping a model gives its file a second name; no byte is copied. A round is
/// committed in three steps, so that at every moment the model which the newest
/// snapshot names is there: [`save_last`](Self::save_last), then the snapshot,
/// then [`prune`](Self::prune).
///
/// `index.json` says which rounds `last.safetensors` and `best.safetensors` are
/// from.
pub struct KeptModels {
    dir: PathBuf,
    keep: usize,
    index: Index,
    /// The last models by round, held so that their files are used again, not
    /// freed, when they are pruned.
    held: BTreeMap<Round, ModelObject>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Index {
    last: Option<Round>,
    best: Option<Round>,
}

impl KeptModels {
    /// Opens `dir`, creating it if need be, to keep the last `keep` models (at
    /// least one). What a killed process left half done is put right.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be made or read.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        files::remove_asides(dir)?;
        let index = Index::read(&dir.join(INDEX));
        if let Some(last) = index.last {
            // `save_last` was interrupted between the model and the index: the
            // model of the index has its round's name by then.
            let previous = dir.join(round_name(last));
            if previous.exists() {
                files::link_over(&previous, &dir.join(LAST))?;
                files::remove_if_there(&previous)?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            keep: keep.max(1),
            index,
            held: BTreeMap::new(),
        })
    }

    /// Keeps the model that the job started from.
    ///
    /// # Errors
    /// [`StoreError`]; what was kept before stays.
    pub fn save_initial(&mut self, model: &ModelObject) -> Result<PathBuf, StoreError> {
        self.place(model, INITIAL)
    }

    /// Keeps the model that `round` ended with as the last one; the one before
    /// gets its round's name.
    ///
    /// # Errors
    /// [`StoreError`]; what was kept before stays.
    pub fn save_last(&mut self, round: Round, model: &ModelObject) -> Result<PathBuf, StoreError> {
        let last = self.dir.join(LAST);
        // One that is not earlier was made before a resume from an older round.
        if let Some(previous) = self.index.last.filter(|&previous| previous < round) {
            files::link_over(&last, &self.dir.join(round_name(previous)))?;
        }
        self.place(model, LAST)?;
        self.index.last = Some(round);
        self.write_index()?;
        // The same round again (after a resume) has no name of its own.
        files::remove_if_there(&self.dir.join(round_name(round)))?;
        if model.path().is_some() {
            self.held.insert(round, model.clone());
        }
        Ok(last)
    }

    /// Keeps the best model so far, which `round` handed out or ended with.
    ///
    /// # Errors
    /// [`StoreError`]; what was kept before stays.
    pub fn save_best(&mut self, round: Round, model: &ModelObject) -> Result<PathBuf, StoreError> {
        let path = self.place(model, BEST)?;
        self.index.best = Some(round);
        self.write_index()?;
        Ok(path)
    }

    /// Removes the last models beyond those to keep; to be called once the
    /// snapshot of the round is written.
    ///
    /// # Errors
    /// [`StoreError`] when one cannot be removed.
    pub fn prune(&mut self) -> Result<(), StoreError> {
        let Some(last) = self.index.last else {
            return Ok(());
        };
        let mut previous = files::numbered(&self.dir, "round-", ".safetensors")?;
        // A resume from an older round leaves newer names behind.
        for (_, newer) in previous.extract_if(.., |(round, _)| *round >= last.0) {
            files::remove_if_there(&newer)?;
        }
        let excess = previous.len().saturating_sub(self.keep - 1);
        for (round, path) in previous.drain(..excess) {
            files::remove_if_there(&path)?;
            self.held.remove(&Round(round));
        }
        self.held
            .retain(|round, _| *round == last || previous.iter().any(|&(kept, _)| kept == round.0));
        Ok(())
    }

    /// The model that `round` ended with, if it is still kept.
    pub fn of_round(&self, round: Round) -> Option<PathBuf> {
        let name = if self.index.last == Some(round) {
            LAST.into()
        } else {
            round_name(round)
        };
        Some(self.dir.join(name)).filter(|path| path.exists())
    }

    /// The model that the job started from.
    pub fn initial(&self) -> Option<PathBuf> {
        Some(self.dir.join(INITIAL)).filter(|path| path.exists())
    }

    /// The last model and its round.
    pub fn last(&self) -> Option<(Round, PathBuf)> {
        let path = Some(self.dir.join(LAST)).filter(|path| path.exists())?;
        Some((self.index.last?, path))
    }

    /// The best model and its round.
    pub fn best(&self) -> Option<(Round, PathBuf)> {
        let path = Some(self.dir.join(BEST)).filter(|path| path.exists())?;
        Some((self.index.best?, path))
    }

    fn place(&self, model: &ModelObject, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(name);
        match model.path() {
            Some(file) => files::link_over(file, &path)?,
            None => files::write_aside(&path, model.bytes(), 0o400)?,
        }
        Ok(path)
    }

    fn write_index(&self) -> Result<(), StoreError> {
        let round = |round: Option<Round>| round.map_or(Value::Null, |round| json!(round.0));
        let text = json!({
            "version": 1,
            "last": round(self.index.last),
            "best": round(self.index.best),
        });
        files::write_aside(&self.dir.join(INDEX), format!("{text}\n").as_bytes(), 0o600)
    }
}

impl Index {
    /// A damaged index is as good as none: the models are there under their
    /// names all the same.
    fn read(path: &Path) -> Self {
        let value = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .unwrap_or_default();
        let round = |field: &str| {
            let number = value.get(field)?.as_u64()?;
            u32::try_from(number).ok().map(Round)
        };
        Self {
            last: round("last"),
            best: round("best"),
        }
    }
}

fn round_name(round: Round) -> String {
    format!("round-{:06}.safetensors", round.0)
}

#[cfg(test)]
mod tests;
