//! A small disk is small, and only this process sees it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::io::{ErrorKind, Write};
use std::path::Path;

use firesteel_rig::{SmallDisk, own_space, small_files};

const MIB: u64 = 1024 * 1024;

fn fills_up(disk: &SmallDisk) {
    assert!(disk.free() > MIB / 2 && disk.free() <= MIB * 16);
    std::fs::write(disk.path().join("small"), [1; 1000]).unwrap();
    let filler = disk.fill_but(32 * 1024).unwrap();
    assert!(disk.free() <= 32 * 1024);
    let error = std::fs::write(disk.path().join("large"), vec![1; 100_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(std::fs::read(disk.path().join("small")).unwrap(), [1; 1000]);
    std::fs::remove_file(filler).unwrap();
    std::fs::write(disk.path().join("large"), vec![1; 100_000]).unwrap();
}

/// Whether the mounts of a process have this path among them.
fn mounted(pid: &str, path: &Path) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/mounts"))
        .unwrap()
        .contains(path.to_str().unwrap())
}

#[test]
fn a_tmpfs_fills_up_and_goes() {
    let Some(space) = own_space!() else { return };
    let disk = space.need(SmallDisk::tmpfs(&space, MIB));
    fills_up(&disk);
    let path = disk.path().to_owned();
    assert!(mounted("self", &path));
    let parent = std::os::unix::process::parent_id().to_string();
    assert!(!mounted(&parent, &path));
    drop(disk);
    assert!(!mounted("self", &path));
    assert!(!path.exists());
}

#[test]
fn an_ext4_fills_up_and_goes() {
    let Some(space) = own_space!() else { return };
    let disk = space.need(SmallDisk::ext4(&space, 8 * MIB));
    fills_up(&disk);
    let path = disk.path().to_owned();
    drop(disk);
    assert!(!mounted("self", &path));
}

#[test]
fn a_file_stops_growing_in_the_middle_of_a_write() {
    if !small_files!(10_000) {
        return;
    }
    let mut file = tempfile::tempfile().unwrap();
    let error = file.write_all(&[1; 20_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    assert_eq!(file.metadata().unwrap().len(), 10_000);
}
