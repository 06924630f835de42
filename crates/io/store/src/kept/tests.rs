use super::*;
use crate::objects::Objects;
use firesteel_tensor::{DType, HeaderBuilder};
use std::os::unix::fs::MetadataExt;
use tempfile::TempDir;

/// A model that says which round it is from.
fn model(objects: &Objects, elements: u64, round: u32) -> ModelObject {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U32, &[elements]);
    let (mut bytes, header) = builder.encode().unwrap();
    while (bytes.len() as u64) < header.total_len() {
        bytes.extend_from_slice(&round.to_le_bytes());
    }
    objects.from_bytes(bytes).unwrap()
}

struct Place {
    dir: TempDir,
    objects: Objects,
    elements: u64,
}

fn places() -> [Place; 2] {
    [4, 50_000].map(|elements| {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(&dir.path().join("objects")).unwrap();
        Place {
            dir,
            objects,
            elements,
        }
    })
}

impl Place {
    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn open(&self, keep: usize) -> KeptModels {
        KeptModels::open(&self.models(), keep).unwrap()
    }

    fn model(&self, round: u32) -> ModelObject {
        model(&self.objects, self.elements, round)
    }

    /// Every model file and the round it is from.
    fn kept(&self) -> Vec<(String, u32)> {
        let mut found: Vec<_> = std::fs::read_dir(self.models())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name() != INDEX)
            .map(|entry| {
                let bytes = std::fs::read(entry.path()).unwrap();
                let round = u32::from_le_bytes(*bytes.last_chunk().unwrap());
                (entry.file_name().into_string().unwrap(), round)
            })
            .collect();
        found.sort();
        found
    }
}

fn names(expected: &[(&str, u32)]) -> Vec<(String, u32)> {
    expected
        .iter()
        .map(|&(name, round)| (name.to_owned(), round))
        .collect()
}

#[test]
fn the_initial_the_best_and_the_last_ones_are_kept() {
    for place in places() {
        let mut kept = place.open(3);
        kept.save_initial(&place.model(999)).unwrap();
        for round in 0..10 {
            let model = place.model(round);
            kept.save_last(Round(round), &model).unwrap();
            if round == 4 {
                kept.save_best(Round(round), &model).unwrap();
            }
            kept.prune().unwrap();
        }
        assert_eq!(
            place.kept(),
            names(&[
                ("best.safetensors", 4),
                ("initial.safetensors", 999),
                ("last.safetensors", 9),
                ("round-000007.safetensors", 7),
                ("round-000008.safetensors", 8),
            ])
        );
        drop(kept);
        let again = place.open(3);
        assert_eq!(again.last().unwrap().0, Round(9));
        assert_eq!(again.best().unwrap().0, Round(4));
        assert!(again.initial().is_some());
        assert_eq!(again.of_round(Round(9)), Some(again.last().unwrap().1));
        assert!(again.of_round(Round(8)).is_some());
        assert!(again.of_round(Round(6)).is_none());
        let mode = again.last().unwrap().1.metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o400);
    }
}

#[test]
fn until_pruned_the_model_of_the_round_before_is_there() {
    for place in places() {
        let mut kept = place.open(1);
        kept.save_last(Round(0), &place.model(0)).unwrap();
        kept.prune().unwrap();
        kept.save_last(Round(1), &place.model(1)).unwrap();
        // Killed here, before the snapshot of round 1: round 0 goes on.
        drop(kept);
        let mut kept = place.open(1);
        let path = kept.of_round(Round(0)).unwrap();
        assert_eq!(
            place.objects.import_kept(&path).unwrap().len(),
            place.model(0).len()
        );
        kept.save_last(Round(1), &place.model(1)).unwrap();
        kept.prune().unwrap();
        assert_eq!(place.kept(), names(&[("last.safetensors", 1)]));
    }
}

#[test]
fn a_kill_between_model_and_index_is_put_right() {
    for place in places() {
        let mut kept = place.open(2);
        kept.save_last(Round(0), &place.model(0)).unwrap();
        kept.save_last(Round(1), &place.model(1)).unwrap();
        kept.prune().unwrap();
        // The steps of `save_last(2)` up to where the process was killed.
        let last = place.models().join(LAST);
        files::link_over(&last, &place.models().join(round_name(Round(1)))).unwrap();
        kept.place(&place.model(2), LAST).unwrap();
        std::fs::write(place.models().join(".index.json.part"), "{").unwrap();
        drop(kept);
        let kept = place.open(2);
        assert_eq!(kept.last().unwrap().0, Round(1));
        assert_eq!(
            place.kept(),
            names(&[("last.safetensors", 1), ("round-000000.safetensors", 0)])
        );
    }
}

#[test]
fn going_on_from_an_older_round_forgets_the_newer_ones() {
    for place in places() {
        let mut kept = place.open(3);
        for round in 0..5 {
            kept.save_last(Round(round), &place.model(round)).unwrap();
            kept.prune().unwrap();
        }
        // The snapshots of rounds 3 and 4 were damaged: round 2 goes on.
        kept.save_last(Round(3), &place.model(1003)).unwrap();
        kept.prune().unwrap();
        kept.save_last(Round(4), &place.model(1004)).unwrap();
        kept.prune().unwrap();
        assert_eq!(
            place.kept(),
            names(&[
                ("last.safetensors", 1004),
                ("round-000002.safetensors", 2),
                ("round-000003.safetensors", 1003),
            ])
        );
    }
}

#[test]
fn a_damaged_index_is_as_good_as_none() {
    for place in places() {
        let mut kept = place.open(2);
        kept.save_last(Round(5), &place.model(5)).unwrap();
        drop(kept);
        std::fs::write(place.models().join(INDEX), "{\"last\":").unwrap();
        let kept = place.open(2);
        assert_eq!(kept.last(), None);
        assert_eq!(place.kept(), names(&[("last.safetensors", 5)]));
    }
}

#[test]
fn the_same_model_may_be_kept_twice() {
    for place in places() {
        let mut kept = place.open(2);
        let model = place.model(1);
        for _ in 0..2 {
            kept.save_best(Round(1), &model).unwrap();
            kept.save_last(Round(1), &model).unwrap();
            kept.prune().unwrap();
        }
        assert_eq!(
            place.kept(),
            names(&[("best.safetensors", 1), ("last.safetensors", 1)])
        );
    }
}
