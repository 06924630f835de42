//! The updates that a relay holds until their round is committed.

use std::collections::HashMap;

use firesteel_base::{Round, TaskKey};
use firesteel_store::ModelObject;

/// An update of a site that is connected here.
#[derive(Clone)]
pub(super) struct HeldUpdate {
    pub(super) model: ModelObject,
    /// The base against which it was checked; `None` when there was none to check
    /// it against.
    pub(super) checked: Option<u64>,
    /// The round whose sums it is part of.
    summed_in: Option<Round>,
}

impl HeldUpdate {
    pub(super) fn new(model: ModelObject, checked: Option<u64>) -> Self {
        Self {
            model,
            checked,
            summed_in: None,
        }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct HeldUpdates {
    updates: HashMap<TaskKey, HeldUpdate>,
    /// The tries for which sums are offered, by round.
    offered: HashMap<Round, Vec<u32>>,
}

/// What is of no use any more.
pub(super) struct Dropped {
    pub(super) updates: Vec<HeldUpdate>,
    pub(super) attempts: Vec<u32>,
}

impl HeldUpdates {
    pub(super) fn get(&self, key: &TaskKey) -> Option<&HeldUpdate> {
        self.updates.get(key)
    }

    pub(super) fn put(&mut self, key: TaskKey, update: HeldUpdate) {
        self.updates.insert(key, update);
    }

    /// Sums of these are offered.
    pub(super) fn summed(&mut self, keys: &[TaskKey], round: Round, attempt: u32) {
        for key in keys {
            if let Some(update) = self.updates.get_mut(key) {
                update.summed_in = Some(round);
            }
        }
        self.offered.entry(round).or_default().push(attempt);
    }

    /// What a committed round has made superfluous: what was summed for it, and
    /// what is too old to count in any other.
    pub(super) fn committed(&mut self, round: Round) -> Dropped {
        let gone = |key: &TaskKey, update: &HeldUpdate| {
            update.summed_in.is_some_and(|summed| summed <= round) || key.round < round
        };
        let gone = self.updates.extract_if(|key, update| gone(key, update));
        let updates = gone.map(|(_, update)| update).collect();
        let attempts = self.offered.remove(&round).unwrap_or_default();
        self.offered.retain(|offered, _| *offered > round);
        Dropped { updates, attempts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_base::{Attempt, SiteName};
    use firesteel_store::Objects;
    use firesteel_tensor::{DType, HeaderBuilder};

    #[test]
    fn late_updates_outlive_the_round_that_they_missed() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let mut builder = HeaderBuilder::new();
        builder.tensor("w", DType::U8, &[0]);
        let (bytes, _) = builder.encode().unwrap();
        let model = objects.from_bytes(bytes).unwrap();
        let key = |site: &str, round: u32| TaskKey {
            round: Round(round),
            site: SiteName::new(site).unwrap(),
            attempt: Attempt(0),
        };
        let mut held = HeldUpdates::default();
        held.put(key("in-time", 3), HeldUpdate::new(model.clone(), None));
        held.put(key("late", 3), HeldUpdate::new(model, None));
        held.summed(&[key("in-time", 3)], Round(3), 1);
        let dropped = held.committed(Round(3));
        assert_eq!((dropped.updates.len(), dropped.attempts), (1, vec![1]));
        assert!(held.get(&key("late", 3)).is_some());
        // The next round is its last chance.
        assert_eq!(held.committed(Round(4)).updates.len(), 1);
    }
}
