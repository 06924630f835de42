//! A full disk is an error that names it, and leaves nothing half-written.
//!
//! Each test runs itself again where the disk is small: on a tmpfs of its own
//! where mounting is allowed (root, or a user namespace), and with a limit on
//! the size of files everywhere.

#![allow(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use firesteel_base::{Attempt, Hint, Round};
use firesteel_store::{
    Admitted, InMemory, IncomingError, KeptModels, LiveReason, ObjectError, Objects, Outbox,
    PartName, SiteState, Snapshots, Spool, SpoolBudget, SpoolError, StoreError,
};
use firesteel_tensor::{DType, HeaderBuilder};

const DISK: &str = "FIRESTEEL_TEST_SMALL_DISK";

/// Runs this test once more, with `DISK` set, on a disk of 1 MiB.
fn again_on_a_small_disk(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m,mode=0700 tmpfs '{dir}' && exec \"$0\" --exact {test} --nocapture",
        dir = dir.path().display()
    );
    let exe = std::env::current_exe().unwrap();
    let unshare = |args: &[&str], script: &str| {
        Command::new("unshare")
            .args(args)
            .args(["sh", "-c", script])
            .arg(&exe)
            .env(DISK, dir.path())
            .output()
    };
    let args: &[&str] = if rustix::process::geteuid().is_root() {
        &["--mount"]
    } else {
        &["--user", "--map-root-user", "--mount"]
    };
    let probe = format!("mount -t tmpfs tmpfs '{}'", dir.path().display());
    let may_mount = unshare(args, &probe).is_ok_and(|output| output.status.success());
    if may_mount {
        let output = unshare(args, &script).unwrap();
        assert_passed(test, &output);
    } else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount a tmpfs, or the full disk goes untested"
        );
        eprintln!("no tmpfs can be mounted here; only the limit on file sizes is tested");
    }
}

/// The same where no file may be larger than 128 KiB: the limit gives another
/// error than a full disk, and it comes in the middle of a write.
fn again_with_small_files(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    // The signal that goes with the limit would end the process: it is ignored,
    // as Python does.
    let script = format!("trap '' XFSZ; ulimit -f 128; exec \"$0\" --exact {test} --nocapture");
    let output = Command::new("bash")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(DISK, dir.path())
        .output()
        .unwrap();
    assert_passed(test, &output);
}

fn assert_passed(test: &str, output: &std::process::Output) {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}\n{err}");
    assert!(
        out.contains("1 passed"),
        "`{test}` did not run again:\n{out}\n{err}"
    );
}

fn small_disk(test: &str) -> Option<PathBuf> {
    let disk = std::env::var_os(DISK).map(PathBuf::from);
    if disk.is_none() {
        again_on_a_small_disk(test);
        again_with_small_files(test);
    }
    disk
}

fn model(len: u64) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[len]);
    let (mut bytes, header) = builder.encode().unwrap();
    bytes.resize(usize::try_from(header.total_len()).unwrap(), 1);
    bytes
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Fills the disk but for less than a page; where only files are limited there
/// is nothing to fill.
fn fill(disk: &Path) {
    let mut chunk = vec![0u8; 100_000];
    for number in 0.. {
        let path = disk.join(format!("fill-{number}"));
        if number > 40 {
            break; // not a small disk: the limit on file sizes holds
        }
        while std::fs::write(&path, &chunk).is_err() {
            if chunk.len() < 4096 {
                let _ = std::fs::remove_file(&path);
                return;
            }
            chunk.truncate(chunk.len() / 2);
        }
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_a_byte_is_written() {
    let Some(disk) = small_disk("a_model_that_does_not_fit_is_refused_before_a_byte_is_written")
    else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let small = objects.from_bytes(model(100_000)).unwrap();
    let before = files(&disk);
    let Err(error) = objects.output(8 * 1024 * 1024) else {
        panic!("8 MiB fit on a disk of 1 MiB");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("(8.0 MiB needed, "), "{error}");
    let Err(error) = objects.from_bytes(model(8 * 1024 * 1024)) else {
        panic!("8 MiB fit on a disk of 1 MiB");
    };
    assert!(
        matches!(&error, ObjectError::Store(error) if error.is_full()),
        "{error}"
    );
    assert_eq!(files(&disk), before, "something half-written was left");
    assert_eq!(small.bytes(), model(100_000));
}

#[test]
fn what_was_saved_before_survives_a_full_disk() {
    let Some(disk) = small_disk("what_was_saved_before_survives_a_full_disk") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let snapshots = Snapshots::open(&disk.join("state")).unwrap();
    let mut kept = KeptModels::open(&disk.join("models"), 2).unwrap();
    let first = objects.from_bytes(model(1000)).unwrap();
    kept.save_last(Round(0), &first).unwrap();
    snapshots.save(Round(0), b"round zero").unwrap();
    fill(&disk);
    let before = files(&disk);

    let error = snapshots.save(Round(1), &vec![7; 300_000]).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(files(&disk), before, "something half-written was left");
    let loaded = snapshots.load_latest().unwrap().unwrap();
    assert_eq!((loaded.round, loaded.warnings.len()), (Round(0), 0));
    assert_eq!(loaded.bytes, b"round zero");

    // A small model is written as a file only where it is kept.
    let full = std::fs::write(disk.join("probe"), vec![0; 60_000]).is_err();
    let _ = std::fs::remove_file(disk.join("probe"));
    let second = objects.from_bytes(model(60_000)).unwrap();
    let saved = kept.save_last(Round(1), &second);
    if full {
        assert!(saved.unwrap_err().is_full());
        drop(kept);
        let kept = KeptModels::open(&disk.join("models"), 2).unwrap();
        let (round, path) = kept.last().unwrap();
        assert_eq!(round, Round(0));
        assert_eq!(std::fs::read(path).unwrap(), model(1000));
    } else {
        saved.unwrap();
    }
}

#[test]
fn a_result_is_taken_even_when_the_disk_is_full() {
    let Some(disk) = small_disk("a_result_is_taken_even_when_the_disk_is_full") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let outbox = Outbox::create(&disk.join("outbox")).unwrap();
    let state = SiteState::open(&disk.join("site")).unwrap();
    let draft = state.draft(Round(0), Attempt(0));
    std::fs::write(&draft, b"state").unwrap();
    std::fs::write(outbox.path().join("r"), model(100_000)).unwrap();
    fill(&disk);
    let object = objects.adopt(&outbox, "r").unwrap();
    assert_eq!(object.bytes(), model(100_000));
    state.commit(&draft, Round(0)).unwrap();
    assert!(state.current(Round(0)).unwrap().is_some());
}

fn name(number: u8) -> PartName {
    PartName::of_digest(&[number; 32])
}

#[test]
fn a_full_disk_shows_before_a_byte_is_received() {
    let Some(disk) = small_disk("a_full_disk_shows_before_a_byte_is_received") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let kept = objects.incoming(&name(1), 100_000).unwrap();
    let before = files(&disk);
    let error = objects.incoming(&name(2), 8 * 1024 * 1024).unwrap_err();
    let IncomingError::Store(error) = error else {
        panic!("{error}");
    };
    assert!(error.is_full());
    let text = error.to_string();
    let path = disk.join(format!("objects/incoming/{}.part", name(2)));
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(
        text.contains("(8.0 MiB needed, ") && text.contains(" free)"),
        "{text}"
    );
    assert!(error.hint().is_some());
    assert_eq!(files(&disk), before, "something half-written was left");
    // With no room left at all, what was promised is there.
    fill(&disk);
    let bytes = model(99_000);
    let len = bytes.len() as u64;
    drop(kept);
    let late = objects.incoming(&name(1), 100_000).unwrap();
    late.write_at(0, &bytes).unwrap();
    late.save(b"note").unwrap();
    assert_eq!(late.received(), vec![0..len]);
}

#[test]
fn every_step_of_receiving_goes_on_when_the_disk_is_full() {
    let Some(disk) = small_disk("every_step_of_receiving_goes_on_when_the_disk_is_full") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let bytes = model(100_000);
    let len = bytes.len() as u64;
    let incoming = objects.incoming(&name(1), len).unwrap();
    fill(&disk);
    incoming.write_at(0, &bytes[..50_000]).unwrap();
    incoming.save(b"").unwrap();
    drop(incoming);
    let incoming = objects.incoming(&name(1), len).unwrap();
    assert_eq!(incoming.received(), vec![0..50_000]);
    incoming.write_at(50_000, &bytes[50_000..]).unwrap();
    let object = incoming.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    object.check_intact().unwrap();
    // Its file serves the next update of that size, on a disk as full.
    drop(object);
    let incoming = objects.incoming(&name(2), len).unwrap();
    incoming.write_at(0, &bytes).unwrap();
    assert_eq!(incoming.finish().unwrap().bytes(), bytes);
}

#[test]
fn a_full_disk_means_a_smaller_spool() {
    let Some(disk) = small_disk("a_full_disk_means_a_smaller_spool") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let spool = Spool::open(&objects, SpoolBudget::Bytes(1 << 40), InMemory::Allow).unwrap();
    let Admitted::Spooled(first) = spool.admit(&name(1), 110_000).unwrap() else {
        panic!("there is room");
    };
    let Admitted::Live(reason) = spool.admit(&name(2), 8 * 1024 * 1024).unwrap() else {
        panic!("8 MiB fit on a disk of 1 MiB");
    };
    assert!(
        matches!(reason, LiveReason::DiskFull { needed, free } if needed == 8 << 20 && free > 0),
        "{reason:?}"
    );
    assert!(
        reason
            .to_string()
            .contains("8.0 MiB do not fit on the spool's disk")
    );
    assert_eq!(spool.used(), 110_000, "what is not there does not count");
    // What an earlier transfer left is worth less than a new update.
    drop(first);
    fill(&disk);
    let Admitted::Spooled(second) = spool.admit(&name(2), 109_000).unwrap() else {
        panic!("the leftover did not make way");
    };
    second.discard();
}

#[test]
fn a_spool_in_memory_is_refused_unless_asked_for() {
    let Some(disk) = small_disk("a_spool_in_memory_is_refused_unless_asked_for") else {
        return;
    };
    let objects = Objects::open(&disk.join("objects")).unwrap();
    let opened = Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Refuse);
    if disk_is_tmpfs(&disk) {
        let error = opened.unwrap_err();
        assert!(
            matches!(error, SpoolError::InMemory { kind: "tmpfs", .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains(disk.to_str().unwrap()),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("on a disk"));
    } else {
        opened.unwrap();
    }
    Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Allow).unwrap();
}

fn disk_is_tmpfs(disk: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut kind = String::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if disk.starts_with(fields[1]) {
            kind = fields[2].to_owned();
        }
    }
    kind == "tmpfs"
}
