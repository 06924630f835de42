use std::os::unix::fs::symlink;

use firesteel_base::{Attempt, Round, SiteName};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::objects::tests::model;

const LARGE: usize = 300_000;

fn update(site: &str) -> PartName {
    PartName::of_update(&TaskKey {
        round: Round(3),
        site: SiteName::new(site).unwrap(),
        attempt: Attempt(1),
    })
}

/// A directory in which processes come and go: each opens its own `Objects`.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn objects(&self) -> Objects {
        Objects::open(&self.0.path().join("objects")).unwrap()
    }

    fn path(&self, kind: &str) -> PathBuf {
        let name = update("site-1");
        self.0
            .path()
            .join(format!("objects/incoming/{name}.{kind}"))
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path().join("objects/incoming"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// As a process that is killed: nothing is dropped.
fn killed<T>(value: T) {
    std::mem::forget(value);
}

#[test]
fn bytes_that_come_in_any_order_from_any_thread_make_the_model() {
    let disk = Disk::new();
    let objects = disk.objects();
    let bytes = model(LARGE, 7);
    let incoming = objects
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    assert_eq!(incoming.found(), &Found::Nothing);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (incoming, bytes) = (&incoming, &bytes);
            scope.spawn(move || {
                for (at, chunk) in bytes
                    .chunks(10_007)
                    .enumerate()
                    .filter(|(at, _)| at % 4 == thread)
                {
                    incoming.write_at(at as u64 * 10_007, chunk).unwrap();
                }
            });
        }
    });
    assert_eq!(incoming.received(), vec![0..bytes.len() as u64]);
    let object = incoming.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    let path = object.path().unwrap().to_owned();
    let found = path.metadata().unwrap();
    assert_eq!(found.mode() & 0o7777, 0o400);
    assert_eq!(found.len(), bytes.len() as u64, "the slots are cut off");
    assert_eq!(objects.get(object.id()).unwrap().bytes(), bytes);
    object.check_intact().unwrap();
    drop(object);
    assert_eq!(disk.files(), [""; 0], "it goes with its last handle");
}

#[test]
fn folders_that_a_killed_process_left_are_no_obstacle() {
    let disk = Disk::new();
    let left = disk.objects().dir().join("filtering");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("between-1"), b"half").unwrap();
    drop(disk.objects());
    assert!(!left.exists());
}

#[test]
fn a_small_file_stays_in_memory() {
    let disk = Disk::new();
    let bytes = model(500, 7);
    let incoming = disk
        .objects()
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    incoming.write_at(100, &bytes[100..]).unwrap();
    incoming.write_at(0, &bytes[..100]).unwrap();
    let mut read = vec![0; 50];
    incoming.read_at(80, &mut read).unwrap();
    assert_eq!(read, bytes[80..130]);
    let object = incoming.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    assert_eq!(disk.files(), [""; 0]);
}

#[test]
fn what_has_arrived_survives_a_restart() {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    incoming.write_at(0, &bytes[..100_000]).unwrap();
    incoming
        .write_at(200_000, &bytes[200_000..250_000])
        .unwrap();
    incoming.save(b"the root digest").unwrap();
    incoming
        .write_at(100_000, &bytes[100_000..110_000])
        .unwrap();
    killed(incoming);

    let objects = disk.objects();
    assert_eq!(objects.parts().unwrap()[0].name, update("site-1"));
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.found(), &Found::Earlier);
    assert_eq!(incoming.note(), b"the root digest");
    assert_eq!(incoming.received(), vec![0..100_000, 200_000..250_000]);
    let mut read = vec![0; 50_000];
    incoming.read_at(200_000, &mut read).unwrap();
    assert_eq!(read, bytes[200_000..250_000]);
    incoming.forget(0..10);
    incoming.write_at(0, &bytes[..10]).unwrap();
    incoming
        .write_at(100_000, &bytes[100_000..200_000])
        .unwrap();
    incoming.write_at(250_000, &bytes[250_000..]).unwrap();
    assert_eq!(incoming.finish().unwrap().bytes(), bytes);
}

#[test]
fn dropped_unfinished_it_can_be_gone_on_with_at_the_byte() {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let objects = disk.objects();
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    incoming.write_at(0, &bytes[..123_457]).unwrap();
    drop(incoming);
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..123_457]);
    incoming.discard();
    assert_eq!(disk.files(), [""; 0]);
}

#[test]
fn a_complete_model_is_found_again_when_the_process_was_killed_before_the_fold() {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let receive = |objects: &Objects| {
        let incoming = objects.incoming(&update("site-1"), len).unwrap();
        if incoming.received_len() < len {
            incoming.write_at(0, &bytes).unwrap();
        }
        incoming.finish().unwrap()
    };
    killed(receive(&disk.objects()));
    let objects = disk.objects();
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..len]);
    let object = incoming.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    assert_eq!(
        object.path().unwrap().metadata().unwrap().mode() & 0o7777,
        0o400
    );
    // One that ends in peace and wants to find it again says so.
    objects.keep_received();
    drop(object);
    drop(objects);
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..len]);
}

#[test]
fn a_process_killed_between_rename_and_cut_has_a_whole_file() {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    incoming.write_at(0, &bytes).unwrap();
    std::fs::rename(disk.path("part"), disk.path("whole")).unwrap();
    killed(incoming);
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..len]);
    assert_eq!(incoming.finish().unwrap().bytes(), bytes);
}

/// Leaves a half-received file, has `damage` done to it, and checks how going on
/// with it is refused, and that a fresh transfer then works.
#[track_caller]
fn check_refused(len: usize, damage: impl FnOnce(&Disk), says: &str) {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let incoming = disk
        .objects()
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    incoming.write_at(0, &bytes[..100_000]).unwrap();
    incoming.save(b"").unwrap();
    killed(incoming);
    damage(&disk);
    let bytes = model(len, 8);
    let objects = disk.objects();
    let incoming = objects
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    let Found::Refused(problem) = incoming.found() else {
        panic!("it was not refused: {:?}", incoming.found());
    };
    let text = problem.to_string();
    assert!(text.contains(says), "{text:?} does not say {says:?}");
    assert!(text.contains("update-000003-000001-site-1."), "{text}");
    assert_eq!(incoming.received(), []);
    incoming.write_at(0, &bytes).unwrap();
    assert_eq!(incoming.finish().unwrap().bytes(), bytes);
}

#[test]
fn a_truncated_spool_file_is_refused_by_name() {
    for cut in [0, 5000, 299_000, 300_100] {
        check_refused(
            LARGE,
            |disk| {
                let path = disk.path("part");
                std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(cut)
                    .unwrap();
            },
            &format!("was cut to {cut} of its "),
        );
    }
    // One that was complete.
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let incoming = disk
        .objects()
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    incoming.write_at(0, &bytes).unwrap();
    let object = incoming.finish().unwrap();
    let path = disk.path("whole");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    // While it is held: before anybody walks through the mapping.
    let error = object.check_intact().unwrap_err();
    assert!(
        matches!(error, ObjectError::Truncated { length: 4096, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    let error = object
        .reader()
        .unwrap()
        .read_at(10, &mut [0; 10])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("changed while it was being sent"),
        "{error}"
    );
    killed(object);
    let incoming = disk
        .objects()
        .incoming(&update("site-1"), bytes.len() as u64)
        .unwrap();
    assert!(
        matches!(
            incoming.found(),
            Found::Refused(PartProblem::Truncated { .. })
        ),
        "{:?}",
        incoming.found()
    );
}

#[test]
fn a_file_that_is_not_what_was_left_is_refused() {
    check_refused(LARGE + 1, |_| (), "of another length");
    check_refused(200_000, |_| (), "of another length");
    check_refused(
        LARGE,
        |disk| {
            // Both slots, as a power cut may leave them.
            let path = disk.path("part");
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let end = path.metadata().unwrap().len();
            file.write_all_at(&[0xff; 8192], end - 8192).unwrap();
        },
        "was not written down in full",
    );
    check_refused(
        LARGE,
        |disk| {
            std::fs::remove_file(disk.path("part")).unwrap();
            symlink("/etc/passwd", disk.path("part")).unwrap();
        },
        "cannot be opened",
    );
    check_refused(
        LARGE,
        |disk| {
            std::fs::remove_file(disk.path("part")).unwrap();
            std::fs::create_dir(disk.path("part")).unwrap();
        },
        "not a regular file",
    );
    check_refused(
        LARGE,
        |disk| std::fs::hard_link(disk.path("part"), disk.0.path().join("again")).unwrap(),
        "further names",
    );
}

#[test]
fn one_damaged_slot_costs_only_what_came_last() {
    let disk = Disk::new();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    incoming.write_at(0, &bytes[..1000]).unwrap();
    incoming.save(b"one").unwrap(); // into the second slot
    incoming.write_at(1000, &bytes[1000..2000]).unwrap();
    incoming.save(b"two").unwrap(); // into the first
    let Some(Room::File { file, .. }) = &incoming.room else {
        panic!("it is in memory");
    };
    file.write_all_at(b"half", len.next_multiple_of(SLOT) + 20)
        .unwrap();
    killed(incoming);
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..1000]);
    assert_eq!(incoming.note(), b"one");
}

#[test]
fn it_is_written_down_by_itself() {
    let disk = Disk::new();
    let len = limits::PART_SAVE * 2;
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    let chunk = vec![1; 4 * 1024 * 1024];
    for at in (0..limits::PART_SAVE + 1).step_by(chunk.len()) {
        incoming.write_at(at, &chunk).unwrap();
    }
    killed(incoming);
    let incoming = disk.objects().incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..limits::PART_SAVE]);
}

#[test]
fn a_name_is_received_once_at_a_time() {
    let disk = Disk::new();
    let objects = disk.objects();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let name = update("site-1");
    let busy = |objects: &Objects| {
        matches!(
            objects.incoming(&name, len),
            Err(IncomingError::Busy { .. })
        )
    };
    let incoming = objects.incoming(&name, len).unwrap();
    assert!(busy(&objects));
    assert_eq!(objects.parts().unwrap(), [], "it is nobody's leftover");
    objects.discard_parts(|_| false).unwrap();
    incoming.write_at(0, &bytes).unwrap();
    let object = incoming.finish().unwrap();
    // Its file may be mapped, so nobody may write to it.
    assert!(busy(&objects));
    drop(object);
    assert!(!busy(&objects));
}

#[test]
fn the_next_rounds_update_goes_into_the_last_ones_file() {
    let disk = Disk::new();
    let objects = disk.objects();
    let receive = |name: &PartName, fill: u8| {
        let bytes = model(LARGE, fill);
        let incoming = objects.incoming(name, bytes.len() as u64).unwrap();
        assert_eq!(incoming.received(), []);
        incoming.write_at(0, &bytes).unwrap();
        incoming.finish().unwrap()
    };
    let first = receive(&update("site-1"), 1);
    let was = first.path().unwrap().metadata().unwrap().ino();
    drop(first);
    let second = receive(&update("site-2"), 2);
    assert_eq!(second.path().unwrap().metadata().unwrap().ino(), was);
    assert_eq!(second.bytes(), model(LARGE, 2));
    drop(second);
    // And so does the model that is made of them.
    let mut output = objects.output(LARGE as u64 / 2).unwrap();
    let bytes = model(LARGE / 2 - 100, 3);
    drop(std::mem::replace(
        &mut output,
        objects.output(bytes.len() as u64).unwrap(),
    ));
    output.bytes_mut().copy_from_slice(&bytes);
    assert_eq!(output.finish().unwrap().bytes(), bytes);
    // Killed in between: what the file said of its last life is gone.
    drop(receive(&update("site-1"), 4));
    killed(
        objects
            .incoming(&update("site-3"), model(LARGE, 4).len() as u64)
            .unwrap(),
    );
    let incoming = disk
        .objects()
        .incoming(&update("site-3"), model(LARGE, 4).len() as u64)
        .unwrap();
    assert_eq!(incoming.received(), []);
}

#[test]
fn incomplete_and_malformed_models_are_not_finished() {
    let disk = Disk::new();
    let objects = disk.objects();
    let bytes = model(LARGE, 7);
    let len = bytes.len() as u64;
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    incoming.write_at(0, &bytes[..LARGE]).unwrap();
    let error = incoming.finish().unwrap_err();
    let missing = len - LARGE as u64;
    assert_eq!(
        error.to_string(),
        format!(
            "`update-000003-000001-site-1` is not complete: {missing} of {len} bytes are missing"
        )
    );
    // What has arrived is still there.
    let incoming = objects.incoming(&update("site-1"), len).unwrap();
    assert_eq!(incoming.received(), vec![0..LARGE as u64]);
    incoming.write_at(0, &[0xff; 64]).unwrap();
    incoming.write_at(LARGE as u64, &bytes[LARGE..]).unwrap();
    assert!(matches!(
        incoming.finish(),
        Err(ObjectError::Malformed { .. })
    ));
    assert_eq!(disk.files(), [""; 0]);
}

#[test]
fn bytes_beyond_the_end_and_absurd_lengths_are_refused() {
    let disk = Disk::new();
    let objects = disk.objects();
    for len in [1000, LARGE as u64] {
        let incoming = objects.incoming(&update("site-1"), len).unwrap();
        for (offset, count) in [(len, 1), (len - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4)] {
            let error = incoming.write_at(offset, &vec![0; count]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(incoming.read_at(offset, &mut vec![0; count]).is_err());
        }
        assert_eq!(incoming.received(), []);
        incoming.discard();
    }
    for len in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let error = objects.incoming(&update("site-1"), len).unwrap_err();
        assert!(matches!(error, IncomingError::TooLong { .. }), "{error}");
    }
    let error = objects.incoming(&update("site-1"), 1 << 60).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("the disk is full: could not make room to receive `")
            && text.contains("incoming/update-000003-000001-site-1.part` (1.0 EiB needed, "),
        "{text}"
    );
    assert_eq!(disk.files(), [""; 0]);
}

#[test]
fn what_nobody_asks_for_again_is_discarded() {
    let disk = Disk::new();
    let objects = disk.objects();
    for site in ["site-1", "site-2", "site-3"] {
        drop(objects.incoming(&update(site), LARGE as u64).unwrap());
    }
    std::fs::write(disk.path("part").with_file_name("README"), "x").unwrap();
    assert_eq!(objects.parts().unwrap().len(), 3);
    let held = objects.incoming(&update("site-1"), LARGE as u64).unwrap();
    objects
        .discard_parts(|name| *name == update("site-2"))
        .unwrap();
    let names: Vec<_> = objects
        .parts()
        .unwrap()
        .into_iter()
        .map(|part| part.name)
        .collect();
    assert_eq!(names, [update("site-2")]);
    drop(held);
    assert_eq!(objects.parts().unwrap().len(), 2);
}

#[test]
fn a_plain_file_is_received_too() {
    let disk = Disk::new();
    let objects = disk.objects();
    for len in [10, LARGE] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let incoming = objects.incoming(&update("site-1"), len as u64).unwrap();
        incoming.write_at(0, &bytes).unwrap();
        let file = incoming.finish_file().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
        assert_eq!(file.path().metadata().unwrap().mode() & 0o7777, 0o400);
        let mut read = [0; 4];
        file.read_at(3, &mut read).unwrap();
        assert_eq!(read, [3, 4, 5, 6]);
        assert!(file.open_shared().is_ok());
        let kept = disk.0.path().join("kept");
        file.keep_as(&kept).unwrap();
        drop(file);
        assert_eq!(std::fs::read(&kept).unwrap(), bytes);
        assert_eq!(disk.files(), [""; 0]);
    }
}

#[test]
fn digests_and_updates_have_names_that_are_safe_in_a_path() {
    let digest = PartName::of_digest(&[0xab; 32]);
    assert_eq!(digest.as_str(), format!("digest-{}", "ab".repeat(32)));
    assert_eq!(update("site.1_x").as_str(), "update-000003-000001-site.1_x");
    let file = PathBuf::from(format!("/x/{}.part", update("site.part")));
    assert_eq!(
        PartName::of_file(&file),
        Some((update("site.part"), "part"))
    );
}

proptest! {
    /// Nobody's bytes make a slot speak of what is not there.
    #[test]
    fn slots_of_any_bytes_are_read_or_refused(
        mut slot in prop::collection::vec(any::<u8>(), 0..200),
        fix in any::<bool>(),
    ) {
        if fix && slot.len() > 16 {
            let crc = crc32c::crc32c(&slot[16..]).to_le_bytes();
            let body_len = (slot.len() as u32 - 16).to_le_bytes();
            slot[..8].copy_from_slice(&MAGIC);
            slot[8..12].copy_from_slice(&body_len);
            slot[12..16].copy_from_slice(&crc);
        }
        if let Some((state, len)) = decode(&slot) {
            prop_assert!(state.ranges.iter().all(|range| range.end <= len));
        }
    }
}
