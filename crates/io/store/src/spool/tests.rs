use firesteel_base::{Attempt, Round, SiteName, TaskKey};
use tempfile::TempDir;

use super::*;
use crate::objects::tests::model;

fn update(site: u32) -> PartName {
    PartName::of_update(&TaskKey {
        round: Round(0),
        site: SiteName::new(&format!("site-{site}")).unwrap(),
        attempt: Attempt(0),
    })
}

const LEN: u64 = 1_000_000;

fn spool(budget: u64) -> (TempDir, Objects, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    // Where temporary files lie in memory, too.
    let spool = Spool::open(&objects, SpoolBudget::Bytes(budget), InMemory::Allow).unwrap();
    (dir, objects, spool)
}

fn spooled(admitted: Admitted) -> Incoming {
    match admitted {
        Admitted::Spooled(incoming) => incoming,
        Admitted::Live(reason) => panic!("{reason}"),
    }
}

#[test]
fn what_exceeds_the_budget_stays_at_its_site() {
    let (_dir, objects, spool) = spool(2 * LEN + 10);
    let first = spooled(spool.admit(&update(1), LEN).unwrap());
    let second = spooled(spool.admit(&update(2), LEN).unwrap());
    let Admitted::Live(reason) = spool.admit(&update(3), LEN).unwrap() else {
        panic!("three fit where two do");
    };
    assert_eq!(
        reason,
        LiveReason::Budget {
            needed: LEN,
            left: 10
        }
    );
    assert_eq!(
        reason.to_string(),
        "976.6 KiB do not fit into the spool, of which 10 bytes are left"
    );
    assert_eq!(spool.used(), 2 * LEN);
    // Discarded, or used up: the room is there again.
    first.discard();
    assert_eq!(spool.used(), LEN);
    let bytes = model(LEN as usize - 200, 1);
    let third = spooled(spool.admit(&update(3), bytes.len() as u64).unwrap());
    third.write_at(0, &bytes).unwrap();
    let object = third.finish().unwrap();
    assert_eq!(
        spool.used(),
        LEN + bytes.len() as u64,
        "the object holds it"
    );
    let other = objects.get(object.id()).unwrap();
    drop(object);
    assert_eq!(spool.used(), LEN + bytes.len() as u64);
    drop(other);
    assert_eq!(spool.used(), LEN);
    drop(second);
    assert_eq!(spool.used(), 0);
}

#[test]
fn an_update_that_is_given_up_for_itself_is_waited_for_not_left_at_its_site() {
    let (_dir, _objects, spool) = spool(LEN);
    let first = spooled(spool.admit(&update(1), LEN).unwrap());
    let again = spool.admit(&update(1), LEN).unwrap_err();
    assert!(matches!(again, IncomingError::Busy { .. }), "{again}");
    drop(first);
    spooled(spool.admit(&update(1), LEN).unwrap());
}

#[test]
fn an_update_that_is_written_here_counts_too() {
    let (_dir, objects, spool) = spool(LEN);
    let bytes = model(LEN as usize - 200, 1);
    let reservation = spool.reserve(bytes.len() as u64).unwrap();
    assert_eq!(reservation.bytes(), bytes.len() as u64);
    let mut output = objects
        .output(bytes.len() as u64)
        .unwrap()
        .hold(reservation);
    for (at, chunk) in bytes.chunks(100_000).enumerate() {
        output.write_at(at as u64 * 100_000, chunk).unwrap();
    }
    assert!(output.write_at(output.len() - 1, &[0; 2]).is_err());
    assert!(output.write_at(u64::MAX, &[0; 2]).is_err());
    let object = output.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    assert!(matches!(
        spool.reserve(1000),
        Err(LiveReason::Budget { .. })
    ));
    drop(object);
    assert_eq!(spool.used(), 0);
}

#[test]
fn what_was_left_makes_way_oldest_first() {
    let (_dir, objects, spool) = spool(3 * LEN + 100_000);
    for site in 1..=3 {
        drop(spooled(spool.admit(&update(site), LEN).unwrap()));
    }
    assert_eq!(objects.parts().unwrap().len(), 3);
    // Its own part is gone on with, so nobody has to go.
    let third = spooled(spool.admit(&update(3), LEN).unwrap());
    assert_eq!(objects.parts().unwrap().len(), 2);
    let fourth = spooled(spool.admit(&update(4), LEN).unwrap());
    let left: Vec<_> = objects
        .parts()
        .unwrap()
        .into_iter()
        .map(|p| p.name)
        .collect();
    assert_eq!(left, [update(2)], "the oldest went");
    drop((third, fourth));
}

#[test]
fn files_that_wait_to_be_written_again_are_within_the_budget() {
    let (dir, _objects, spool) = spool(6 * LEN);
    let receive = |site: u32, len: u64| {
        let bytes = model(len as usize - 200, 1);
        let incoming = spooled(spool.admit(&update(site), bytes.len() as u64).unwrap());
        incoming.write_at(0, &bytes).unwrap();
        incoming.finish().unwrap()
    };
    let held: Vec<_> = (0..6).map(|site| receive(site, LEN)).collect();
    drop(held);
    let on_disk = || {
        let files = std::fs::read_dir(dir.path().join("objects")).unwrap();
        let sizes = files.map(|entry| entry.unwrap().metadata().unwrap());
        sizes
            .filter(|found| found.is_file())
            .map(|found| found.len())
            .sum::<u64>()
    };
    assert!(on_disk() > 5 * LEN, "one round's files serve the next");
    // A larger one fits none of them: they make way, but for a few.
    let large = receive(7, 3 * LEN);
    assert!(on_disk() <= 3 * LEN, "{}", on_disk());
    drop(large);
}

#[test]
fn the_default_budget_is_half_of_what_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    let before = disk::free(dir.path()).unwrap();
    let spool = Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Allow).unwrap();
    // Others write to that disk meanwhile.
    assert!(
        spool.budget() <= before / 2 + before / 8,
        "{} of {before}",
        spool.budget()
    );
    assert!(
        spool.budget() >= before / 4,
        "{} of {before}",
        spool.budget()
    );
}
