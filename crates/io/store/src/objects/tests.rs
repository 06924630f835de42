use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use firesteel_tensor::{DType, HeaderBuilder};
use tempfile::TempDir;

use super::*;
use crate::kept::KeptModels;
use firesteel_base::Round;

/// A model file of one tensor of `len` bytes, each of them `fill`.
pub(crate) fn model(len: usize, fill: u8) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[len as u64]);
    let (mut bytes, header) = builder.encode().unwrap();
    bytes.resize(usize::try_from(header.total_len()).unwrap(), fill);
    bytes
}

const LARGE: usize = 200_000;

struct Place {
    dir: TempDir,
    objects: Objects,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    Place { dir, objects }
}

impl Place {
    fn files(&self) -> usize {
        std::fs::read_dir(self.objects.dir()).unwrap().count()
    }

    fn outbox(&self) -> Outbox {
        Outbox::create(&self.dir.path().join("outbox")).unwrap()
    }

    /// As the aggregator makes one.
    fn output(&self, fill: u8) -> ModelObject {
        let bytes = model(LARGE, fill);
        let mut output = self.objects.output(bytes.len() as u64).unwrap();
        output.bytes_mut().copy_from_slice(&bytes);
        output.finish().unwrap()
    }
}

fn inode(object: &ModelObject) -> u64 {
    object.path().unwrap().metadata().unwrap().ino()
}

#[test]
fn a_small_object_never_touches_the_disk() {
    let place = place();
    let bytes = model(1000, 7);
    let object = place.objects.from_bytes(bytes.clone()).unwrap();
    assert_eq!(object.bytes(), bytes);
    assert_eq!(object.len(), bytes.len() as u64);
    assert_eq!(object.header().tensors().len(), 1);
    assert!(object.path().is_none());
    assert!(object.open_shared().unwrap().is_none());
    let mut output = place.objects.output(bytes.len() as u64).unwrap();
    output.bytes_mut().copy_from_slice(&bytes);
    let written = output.finish().unwrap();
    assert_eq!(written.bytes(), bytes);
    assert_eq!(place.files(), 0);
}

#[test]
fn a_large_object_is_a_read_only_file_that_goes_with_its_last_handle() {
    let place = place();
    let bytes = model(LARGE, 7);
    let object = place.objects.from_bytes(bytes.clone()).unwrap();
    assert_eq!(object.bytes(), bytes);
    let path = object.path().unwrap().to_owned();
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o400);
    assert_eq!(place.files(), 1, "nothing is left aside");
    let id = object.id();
    let other = place.objects.get(id).unwrap();
    drop(object);
    assert_eq!(other.bytes(), bytes);
    drop(other);
    assert!(place.objects.get(id).is_none());
    let objects = place.objects.dir().to_owned();
    let Place { dir, objects: last } = place;
    drop(last);
    // The pool keeps a file for the next output as long as the run lasts.
    assert_eq!(std::fs::read_dir(objects).unwrap().count(), 0);
    drop(dir);
}

#[test]
fn an_unfinished_output_leaves_nothing() {
    let place = place();
    let output = place.objects.output(LARGE as u64).unwrap();
    assert_eq!(place.files(), 1);
    drop(output);
    assert_eq!(place.files(), 0);
    let mut output = place.objects.output(LARGE as u64).unwrap();
    output.bytes_mut().fill(0xff);
    assert!(matches!(
        output.finish(),
        Err(ObjectError::Malformed { .. })
    ));
    assert_eq!(place.files(), 0);
}

#[test]
fn a_file_nobody_needs_is_written_again() {
    let place = place();
    let first = place.output(1);
    let was = inode(&first);
    drop(first);
    let second = place.output(2);
    assert_eq!(inode(&second), was);
    assert_eq!(second.bytes(), model(LARGE, 2));
    assert_eq!(
        second.path().unwrap().metadata().unwrap().mode() & 0o7777,
        0o400
    );
    // A smaller one fits in it as well, a larger one does not.
    drop(second);
    let bytes = model(LARGE - 4096, 3);
    let mut output = place.objects.output(bytes.len() as u64).unwrap();
    output.bytes_mut().copy_from_slice(&bytes);
    let third = output.finish().unwrap();
    assert_eq!(inode(&third), was);
    assert_eq!(std::fs::read(third.path().unwrap()).unwrap(), bytes);
    drop(third);
    let larger = place.output(4);
    assert_ne!(inode(&larger), was);
}

#[test]
fn a_file_that_a_trainer_has_mapped_is_never_written_again() {
    let place = place();
    let first = place.output(1);
    let was = inode(&first);
    let len = first.len();
    let fd = first.open_shared().unwrap().unwrap();
    let mapped = Mapping::read_only(&File::from(fd.try_clone().unwrap()), len).unwrap();
    drop(fd); // the descriptor is closed; the mapping alone holds the file
    drop(first);
    let second = place.output(2);
    assert_ne!(inode(&second), was);
    assert_eq!(
        mapped.bytes(),
        model(LARGE, 1),
        "a held mapping was changed"
    );
    // Once it is unmapped, the file is used again.
    drop(mapped);
    let third = place.output(3);
    assert_eq!(inode(&third), was);
    assert_eq!(second.bytes(), model(LARGE, 2));
}

#[test]
fn a_descriptor_alone_holds_a_file_too() {
    let place = place();
    let first = place.output(1);
    let was = inode(&first);
    let fd = first.open_shared().unwrap().unwrap();
    drop(first);
    let second = place.output(2);
    assert_ne!(inode(&second), was);
    let mut seen = Vec::new();
    File::from(fd).read_to_end(&mut seen).unwrap();
    assert_eq!(seen, model(LARGE, 1));
}

#[test]
fn few_files_wait_to_be_used_again() {
    let place = place();
    let many: Vec<_> = (0..5).map(|fill| place.output(fill)).collect();
    assert_eq!(place.files(), 5);
    drop(many);
    assert_eq!(place.files(), limits::SPARE_FILES);
}

#[test]
fn a_kept_model_is_never_written_again() {
    let place = place();
    let models = place.dir.path().join("models");
    let mut kept = KeptModels::open(&models, 1).unwrap();
    let first = place.output(1);
    let was = inode(&first);
    kept.save_best(Round(0), &first).unwrap();
    drop(first);
    assert_eq!(place.files(), 0, "its name in flight is gone");
    let second = place.output(2);
    assert_ne!(inode(&second), was);
    let best = models.join("best.safetensors");
    assert_eq!(std::fs::read(best).unwrap(), model(LARGE, 1));
}

#[test]
fn the_files_of_pruned_models_are_used_again() {
    let place = place();
    let mut kept = KeptModels::open(&place.dir.path().join("models"), 2).unwrap();
    let mut inodes = Vec::new();
    for round in 0..6 {
        let model = place.output(u8::try_from(round).unwrap());
        inodes.push(inode(&model));
        kept.save_last(Round(round), &model).unwrap();
        kept.prune().unwrap();
    }
    // Two are kept and one is written: three files serve all rounds.
    assert_eq!(inodes[3..], inodes[..3]);
}

#[test]
fn an_outbox_file_is_taken_without_a_copy() {
    let place = place();
    let outbox = place.outbox();
    let written = outbox.path().join("result.safetensors");
    let bytes = model(LARGE, 9);
    std::fs::write(&written, &bytes).unwrap();
    let was = written.metadata().unwrap().ino();
    let object = place
        .objects
        .adopt(&outbox, written.to_str().unwrap())
        .unwrap();
    assert_eq!(object.bytes(), bytes);
    assert_eq!(inode(&object), was);
    assert!(!written.exists());
    let path = object.path().unwrap().to_owned();
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o400);
    drop(object);
    assert!(path.exists(), "a trainer may write it again");
    let dir = place.objects.dir().to_owned();
    drop(place.objects);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn a_small_outbox_file_ends_in_memory() {
    let place = place();
    let outbox = place.outbox();
    let bytes = model(100, 9);
    std::fs::write(outbox.path().join("r"), &bytes).unwrap();
    let object = place.objects.adopt(&outbox, "r").unwrap();
    assert_eq!(object.bytes(), bytes);
    assert!(object.path().is_none());
    assert_eq!(place.files(), 0);
    assert_eq!(std::fs::read_dir(outbox.path()).unwrap().count(), 0);
}

/// Puts something into an outbox and checks how taking `name` is refused.
fn check_refused(name: &str, put: impl FnOnce(&Path), says: &str) {
    let place = place();
    let outbox = place.outbox();
    put(outbox.path());
    let error = place.objects.adopt(&outbox, name).unwrap_err();
    let mut text = error.to_string();
    let source = std::error::Error::source(&error);
    if let Some(source) = source {
        text = format!("{text}: {source}");
    }
    assert!(text.contains(says), "{name:?}: {text}");
    assert_eq!(place.files(), 0, "{name:?}: something was left");
}

#[test]
fn what_is_no_file_of_ours_is_refused() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), model(LARGE, 1)).unwrap();
    check_refused(
        "r",
        |outbox| symlink(secret.path(), outbox.join("r")).unwrap(),
        "symbolic link",
    );
    assert!(secret.path().exists());
    check_refused(
        "r",
        |outbox| std::fs::create_dir(outbox.join("r")).unwrap(),
        "not a regular file",
    );
    check_refused(
        "r",
        |outbox| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, outbox.join("r"), fifo, mode, 0).unwrap();
        },
        "not a regular file",
    );
    check_refused(
        "r",
        |outbox| {
            std::os::unix::net::UnixListener::bind(outbox.join("r")).unwrap();
        },
        "socket",
    );
    check_refused(
        "r",
        |outbox| {
            std::fs::write(outbox.join("r"), model(LARGE, 1)).unwrap();
            std::fs::hard_link(outbox.join("r"), outbox.join("again")).unwrap();
        },
        "further names",
    );
    check_refused("r", |_| {}, "there is no file \"r\"");
}

#[test]
fn a_file_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a file away; the rule itself is what is checked.
        let mut stat = rustix::fs::stat("/").unwrap();
        stat.st_mode = 0o100_600;
        stat.st_nlink = 1;
        assert_ne!(stat.st_uid, rustix::process::geteuid().as_raw());
        assert!(crate::outbox::not_ours(&stat).is_some());
        return;
    }
    check_refused(
        "r",
        |outbox| {
            let path = outbox.join("r");
            std::fs::write(&path, model(LARGE, 1)).unwrap();
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        },
        "another user",
    );
}

#[test]
fn a_name_cannot_leave_the_outbox() {
    for name in [
        "",
        ".",
        "..",
        "../r",
        "/etc/passwd",
        "a/b",
        "a\0b",
        &"x".repeat(256),
    ] {
        check_refused(name, |_| {}, "is not the name of a file in the outbox");
    }
}

#[test]
fn bytes_that_are_no_model_are_refused_and_removed() {
    for bytes in [
        vec![],
        vec![0xff; LARGE],
        model(LARGE, 1)[..LARGE - 1].to_vec(),
    ] {
        check_refused(
            "r",
            |outbox| std::fs::write(outbox.join("r"), bytes).unwrap(),
            "not a model file",
        );
    }
}

#[test]
fn a_file_that_grows_meanwhile_is_refused() {
    use std::io::Write;
    let place = place();
    let outbox = place.outbox();
    let path = outbox.path().join("r");
    std::fs::write(&path, model(LARGE, 1)).unwrap();
    let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
    let offered = outbox.offered("r").unwrap();
    let taken = offered.take(&place.objects.dir().join("x")).unwrap();
    taken.check_unchanged(taken.len).unwrap();
    writer.write_all(b"more").unwrap();
    assert!(matches!(
        taken.check_unchanged(taken.len),
        Err(ObjectError::Changed { .. })
    ));
}

#[test]
fn a_file_exchanged_before_it_is_renamed_is_refused() {
    let place = place();
    let outbox = place.outbox();
    let path = outbox.path().join("r");
    std::fs::write(&path, model(LARGE, 1)).unwrap();
    let offered = outbox.offered("r").unwrap();
    // Both exist at once, or the second could get the first one's number.
    std::fs::write(outbox.path().join("s"), model(LARGE, 2)).unwrap();
    std::fs::rename(outbox.path().join("s"), &path).unwrap();
    let target = place.objects.dir().join("x");
    assert!(matches!(
        offered.take(&target),
        Err(ObjectError::Changed { .. })
    ));
    assert!(!target.exists());
}

#[test]
fn an_outbox_that_is_a_link_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    symlink(&real, dir.path().join("link")).unwrap();
    assert!(Outbox::create(&dir.path().join("link")).is_err());
}

#[test]
fn clearing_an_outbox_follows_no_links() {
    let place = place();
    let outbox = place.outbox();
    let outside = place.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), b"x").unwrap();
    symlink(&outside, outbox.path().join("link")).unwrap();
    std::fs::create_dir(outbox.path().join("dir")).unwrap();
    symlink(&outside, outbox.path().join("dir/link")).unwrap();
    std::fs::write(outbox.path().join("half"), b"x").unwrap();
    outbox.clear().unwrap();
    assert_eq!(std::fs::read_dir(outbox.path()).unwrap().count(), 0);
    assert!(outside.join("precious").exists());
}

#[test]
fn an_imported_copy_is_safe_from_its_owner() {
    let place = place();
    for len in [100, LARGE] {
        let path = place.dir.path().join("initial.safetensors");
        let bytes = model(len, 5);
        std::fs::write(&path, &bytes).unwrap();
        let object = place.objects.import_copy(&path).unwrap();
        std::fs::write(&path, model(len, 6)).unwrap();
        assert_eq!(object.bytes(), bytes);
    }
    let missing = place.objects.import_copy(Path::new("/no/such/file"));
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .contains("could not read `/no/such/file`")
    );
}

#[test]
fn a_kept_model_comes_back_without_a_copy() {
    let place = place();
    let models = place.dir.path().join("models");
    let mut kept = KeptModels::open(&models, 2).unwrap();
    let path = kept.save_last(Round(3), &place.output(3)).unwrap();
    drop(kept);
    let object = place.objects.import_kept(&path).unwrap();
    assert_eq!(inode(&object), path.metadata().unwrap().ino());
    assert_eq!(object.bytes(), model(LARGE, 3));
    drop(object);
    assert_eq!(std::fs::read(&path).unwrap(), model(LARGE, 3));
}

#[test]
fn what_an_earlier_process_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("000001.safetensors"), b"x").unwrap();
    let left = dir.path().join(".000002.safetensors.part");
    std::fs::write(&left, b"x").unwrap();
    std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o400)).unwrap();
    let objects = Objects::open(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let object = objects.from_bytes(model(LARGE, 1)).unwrap();
    assert_eq!(
        object.path().unwrap().file_name(),
        Some(OsStr::new("000001.safetensors"))
    );
}

#[test]
fn a_reader_needs_no_mapping() {
    let place = place();
    for len in [1000, LARGE] {
        let bytes = model(len, 5);
        let object = place.objects.from_bytes(bytes.clone()).unwrap();
        let reader = object.reader().unwrap();
        drop(object); // the reader holds it
        let mut read = vec![0; 300];
        reader.read_at(100, &mut read).unwrap();
        assert_eq!(read, bytes[100..400]);
        assert_eq!(reader.len(), bytes.len() as u64);
        let error = reader.read_at(reader.len() - 1, &mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(reader.read_at(u64::MAX, &mut [0; 2]).is_err());
        reader.object().check_intact().unwrap();
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_refused() {
    let place = place();
    let path = place.dir.path().join("data.bin");
    let check = |change: &dyn Fn()| {
        std::fs::write(&path, vec![1; 10_000]).unwrap();
        let file = PlainFile::open(&path).unwrap();
        assert_eq!((file.len(), file.is_empty()), (10_000, false));
        file.read_at(0, &mut [0; 100]).unwrap();
        let at_the_end = file.read_at(9_999, &mut [0; 2]).unwrap_err();
        assert_eq!(at_the_end.kind(), std::io::ErrorKind::UnexpectedEof);
        change();
        let error = file.read_at(9_000, &mut [0; 100]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("data.bin` changed while it was being sent"),
            "{text}"
        );
        let inner = error.into_inner().unwrap();
        assert!(inner.downcast_ref::<crate::ChangedError>().is_some());
    };
    // The clock of a file system ticks in milliseconds: a time of its own makes
    // sure that it ticked.
    let written_again = |len: u64| {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        let hour_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        file.set_modified(hour_ago).unwrap();
    };
    check(&|| written_again(10_000));
    check(&|| written_again(20_000));
    check(&|| written_again(10));
    // What another file under the name does to a sender: nothing.
    let file = PlainFile::open(&path).unwrap();
    std::fs::rename(&path, place.dir.path().join("old")).unwrap();
    std::fs::write(&path, b"another").unwrap();
    file.read_at(0, &mut [0; 5]).unwrap();
    for bad in ["", "none"] {
        assert!(PlainFile::open(&place.dir.path().join(bad)).is_err());
    }
}

#[test]
fn an_update_that_its_trainer_still_writes_to_is_noticed() {
    let place = place();
    let outbox = place.outbox();
    let path = outbox.path().join("r");
    std::fs::write(&path, model(LARGE, 1)).unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let object = place.objects.adopt(&outbox, "r").unwrap();
    object.check_intact().unwrap();
    let reader = object.reader().unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    writer.set_modified(later).unwrap();
    assert!(matches!(
        object.check_intact(),
        Err(ObjectError::Altered { .. })
    ));
    assert!(reader.read_at(0, &mut [0; 10]).is_err());
}
