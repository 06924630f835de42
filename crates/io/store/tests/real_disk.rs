//! What a full disk does to a spool, on a file system that lies on one.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;

use firesteel_rig::SmallDisk;
use firesteel_store::{
    Admitted, InMemory, Incoming, LiveReason, ObjectError, Objects, PartName, Spool, SpoolBudget,
};
use firesteel_tensor::{DType, HeaderBuilder};

const MIB: u64 = 1 << 20;

fn model(len: u64) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[len]);
    let (mut bytes, header) = builder.encode().unwrap();
    bytes.resize(usize::try_from(header.total_len()).unwrap(), 1);
    bytes
}

fn admit(spool: &Spool, number: u8, len: u64) -> Result<Incoming, LiveReason> {
    let name = PartName::of_digest(&[number; 32]);
    match spool.admit(&name, len).unwrap() {
        Admitted::Spooled(incoming) => Ok(incoming),
        Admitted::Live(reason) => Err(reason),
    }
}

#[test]
fn a_full_disk_makes_the_spool_smaller_and_fails_nothing() {
    let Some(space) = firesteel_rig::own_space!() else {
        return;
    };
    let disk = space.need(SmallDisk::ext4(&space, 32 * MIB));
    let objects = Objects::open(&disk.path().join("objects")).unwrap();
    let half = Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Refuse).unwrap();
    let budget = half.budget();
    assert!(
        budget <= disk.free() / 2 + MIB && budget > disk.free() / 3,
        "{budget}"
    );
    assert!(admit(&half, 1, budget + 1).is_err());

    let spool = Spool::open(&objects, SpoolBudget::Bytes(1 << 40), InMemory::Refuse).unwrap();
    let bytes = model(8 * MIB);
    let len = bytes.len() as u64;
    let first = admit(&spool, 1, len).unwrap();
    disk.fill_but(MIB).unwrap();
    let reason = admit(&spool, 2, len).unwrap_err();
    assert!(matches!(reason, LiveReason::DiskFull { .. }), "{reason}");
    assert_eq!(spool.used(), len);
    // What was promised is there, to the last byte.
    first.write_at(0, &bytes).unwrap();
    first.save(b"").unwrap();
    let object = first.finish().unwrap();
    assert_eq!(object.bytes(), bytes);
    // The next round's update goes into its file.
    drop(object);
    let second = admit(&spool, 2, len).unwrap();
    second.write_at(0, &bytes).unwrap();
    drop(second.finish().unwrap());
    // One for which that file is too small: it makes way.
    let larger = admit(&spool, 3, len + MIB / 2).unwrap();
    larger.write_at(len, &[1; 1000]).unwrap();
    // And what an interrupted transfer left does as well.
    drop(larger);
    admit(&spool, 4, len).unwrap().discard();
}

#[test]
fn a_file_that_was_cut_under_its_mapping_is_refused_before_it_is_read() {
    let Some(space) = firesteel_rig::own_space!() else {
        return;
    };
    let disk = space.need(SmallDisk::ext4(&space, 16 * MIB));
    let objects = Objects::open(&disk.path().join("objects")).unwrap();
    let bytes = model(4 * MIB);
    let mut output = objects.output(bytes.len() as u64).unwrap();
    output.bytes_mut().copy_from_slice(&bytes);
    let object = output.finish().unwrap();
    object.check_intact().unwrap();
    // Whole rounds of writing back do not change what it is.
    rustix::fs::sync();
    object.check_intact().unwrap();
    let path = object.path().unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(MIB).unwrap();
    let error = object.check_intact().unwrap_err();
    assert!(
        matches!(error, ObjectError::Truncated { length: MIB, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}
