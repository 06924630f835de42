use super::*;

/// Every record of an event file, its CRCs checked.
fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = file;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>().unwrap();
        let (crc, after) = after.split_first_chunk::<4>().unwrap();
        assert_eq!(u32::from_le_bytes(*crc), masked_crc(length));
        let len = usize::try_from(u64::from_le_bytes(*length)).unwrap();
        let (data, after) = after.split_at(len);
        let (crc, after) = after.split_first_chunk::<4>().unwrap();
        assert_eq!(u32::from_le_bytes(*crc), masked_crc(data));
        found.push(data.to_vec());
        rest = after;
    }
    found
}

fn only_file(dir: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(dir).unwrap();
    let path = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    path
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 500)
}

#[test]
fn the_crc_is_castagnolis_masked_as_tfrecord_does() {
    // CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4, and every list of
    // CRCs); of 32 zero bytes 0x8a9136aa.
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    // The mask as TFRecord documents it, ((crc >> 15) | (crc << 17)) + 0xa282ead8,
    // worked out by hand: 0x2507c60d + 0xa282ead8.
    let masked = 0xc78a_b0e5;
    assert_eq!(masked_crc(b"123456789"), masked);
}

#[test]
fn a_record_has_these_bytes() {
    // Event { wall_time: 1.5, step: 3, summary { value { tag: "a", simple_value: 0.5 } } },
    // written out by hand from event.proto and summary.proto.
    let expected: &[u8] = &[
        0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, // 1: double 1.5
        0x10, 0x03, // 2: int64 3
        0x2a, 0x0a, // 5: message of 10 bytes
        0x0a, 0x08, // 1: message of 8 bytes
        0x0a, 0x01, b'a', // 1: string "a"
        0x15, 0, 0, 0, 0x3f, // 2: float 0.5
    ];
    let event = proto::Event {
        wall_time: 1.5,
        step: 3,
        file_version: None,
        summary: Some(proto::Summary {
            value: vec![proto::scalar("a", 0.5)],
        }),
    };
    assert_eq!(event.encode_to_vec(), expected);
}

#[test]
fn what_is_added_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = TbWriter::new(&dir.path().join("tb_events/site-1"));
    writer.add_scalar("loss", 0.25, 0, at(10)).unwrap();
    writer
        .add_scalars(
            "acc",
            &[("train".into(), 0.5), ("val".into(), 0.75)],
            1,
            at(11),
        )
        .unwrap();
    writer.add_text("note", "**bold**", 2, at(12)).unwrap();
    writer.add_scalar("nan", f64::NAN, -1, at(13)).unwrap();
    writer.flush().unwrap();
    let path = only_file(&dir.path().join("tb_events/site-1"));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with("events.out.tfevents.0000000010."),
        "{name}"
    );
    let events: Vec<_> = records(&std::fs::read(&path).unwrap())
        .iter()
        .map(|data| proto::Event::decode(&data[..]).unwrap())
        .collect();
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    let values = |at: usize| &events[at].summary.as_ref().unwrap().value;
    assert_eq!(events[1].wall_time, 10.5);
    assert_eq!(values(1)[0], proto::scalar("loss", 0.25));
    assert_eq!(events[2].step, 1);
    assert_eq!(values(2)[0].tag, "acc/train");
    assert_eq!(values(2)[1], proto::scalar("acc/val", 0.75));
    let text = &values(3)[0];
    assert_eq!(
        text.metadata
            .as_ref()
            .unwrap()
            .plugin
            .as_ref()
            .unwrap()
            .name,
        "text"
    );
    assert_eq!(text.tensor.as_ref().unwrap().string_val, [b"**bold**"]);
    assert_eq!(events[4].step, -1);
    assert!(values(4)[0].simple_value.unwrap().is_nan());
    assert_eq!(events.len(), 5);
}

#[test]
fn no_file_without_an_event_and_two_writers_never_share_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site-1");
    drop(TbWriter::new(&path));
    assert!(!path.exists());
    for _ in 0..2 {
        let mut writer = TbWriter::new(&path);
        writer.add_scalar("x", 1.0, 0, at(7)).unwrap();
    }
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert_eq!(records(&bytes).len(), 2, "dropping a writer flushes it");
    }
}

#[test]
fn many_events_are_written_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = TbWriter::new(dir.path());
    for step in 0..5000 {
        writer.add_scalar("x", step as f64, step, at(1)).unwrap();
    }
    let path = only_file(dir.path());
    let before = std::fs::read(&path).unwrap();
    assert!(before.len() >= BUFFER);
    assert!(
        records(&before).len() > 1000,
        "what is there is whole events"
    );
    drop(writer);
    assert_eq!(records(&std::fs::read(&path).unwrap()).len(), 5001);
}
