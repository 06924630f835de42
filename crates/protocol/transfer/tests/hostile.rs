//! What a peer must not be able to do. Each is refused with a sentence, and costs
//! no memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::time::Duration;

use common::{Frame, IDLE, Source, Target, manifest, model, noise, transfer};
use firesteel_base::{Hint, Time, limits};
use firesteel_transfer::frame::{Head, Kind};
use firesteel_transfer::{
    Digest, Layout, Manifest, ManifestError, ObjectRef, Receiver, RefusalCode, Sender,
    TransferError,
};

fn file(length: usize) -> (Source, Target) {
    let bytes = noise(length, 1);
    let layout = Layout::of_file(length as u64).unwrap();
    let source = Source::new(bytes.clone(), manifest(&bytes, layout));
    (source, Target::new(length as u64))
}

/// A sender that has offered its file, and the number of the transfer.
fn offering(length: usize) -> (Source, u64) {
    let (mut source, mut target) = file(length);
    let open = target.open();
    source.handle(&open).unwrap();
    (source, open.transfer)
}

/// A receiver that has its manifest and has asked for everything.
fn asking(length: usize) -> (Source, Target) {
    let (mut source, mut target) = file(length);
    let open = target.open();
    let offer = source.handle(&open).unwrap().unwrap();
    target.handle(&offer, 32).unwrap();
    for head in target.receiver.wants(u64::MAX, target.now).0 {
        source.handle(&head).unwrap();
    }
    let manifest = source.next(usize::MAX).unwrap();
    target.handle(&manifest, manifest.payload.len()).unwrap();
    for head in target.receiver.wants(u64::MAX, target.now).0 {
        source.handle(&head).unwrap();
    }
    (source, target)
}

fn data(transfer: u64, offset: u64, length: usize) -> Frame {
    let mut head = Head::new(Kind::Data, transfer, offset, 0);
    head.payload = length as u32;
    Frame {
        head,
        payload: vec![0; length],
    }
}

/// An offer of a manifest made by hand, and the manifest.
fn lying(length: u64, bytes: Vec<u8>) -> Result<(), TransferError> {
    let mut target = Target::new(length);
    let open = target.open();
    let mut head = Head::new(Kind::Offer, open.transfer, bytes.len() as u64, length);
    head.payload = 32;
    let payload = Digest::of(&bytes).0.to_vec();
    target.handle(&Frame { head, payload }, 32)?;
    let wishes = target.receiver.wants(u64::MAX, target.now).0;
    assert_eq!(wishes.len(), 1);
    let mut head = Head::new(Kind::Manifest, open.transfer, 0, 0);
    head.payload = bytes.len() as u32;
    let whole = bytes.len();
    let frame = Frame {
        head,
        payload: bytes,
    };
    target.handle(&frame, whole)
}

/// A manifest of one plain part, with `change` applied to its bytes.
fn changed_manifest(length: usize, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let layout = Layout::of_file(length as u64).unwrap();
    let mut bytes = manifest(&noise(length, 1), layout).encoded().to_vec();
    change(&mut bytes);
    bytes
}

#[test]
fn lengths_of_two_to_the_63_are_refused() {
    for length in [1 << 63, u64::MAX] {
        assert!(ObjectRef::new(1, length).is_err());
        assert!(Receiver::new(ObjectRef { id: 1, length }, IDLE).is_err());
        assert!(Layout::of_file(length).is_err());
        let open = Head::new(Kind::Open, 1, 1, length);
        let error = Sender::new().handle(&open).unwrap_err();
        assert!(matches!(error, TransferError::Length { .. }), "{error}");

        let (mut source, transfer) = offering(1000);
        for (offset, value) in [(0, length), (length, 1), (1, length), (length, length)] {
            for kind in [Kind::Want, Kind::WantManifest] {
                let error = source.handle(&Head::new(kind, transfer, offset, value));
                let error = error.map(|_| ()).unwrap_err();
                assert!(matches!(error, TransferError::Range { .. }), "{error}");
            }
        }

        let (_, mut target) = asking(1000);
        let frame = data(target.next_transfer, length, 10);
        let error = target.handle(&frame, 10).unwrap_err();
        assert!(matches!(error, TransferError::Range { .. }), "{error}");
    }
}

#[test]
fn an_offer_of_another_length_is_refused() {
    let mut target = Target::new(1000);
    let open = target.open();
    let mut head = Head::new(Kind::Offer, open.transfer, 50, 1001);
    head.payload = 32;
    let offer = Frame {
        head,
        payload: vec![0; 32],
    };
    let error = target.handle(&offer, 32).unwrap_err().to_string();
    assert_eq!(error, "1000 bytes were announced, the peer offers 1001");
}

#[test]
fn a_manifest_longer_than_its_file_could_need_is_refused_before_it_is_pulled() {
    for length in [u64::MAX, 1 << 40, 64 * 1024 + 1001, 0] {
        let mut target = Target::new(1000);
        let open = target.open();
        let mut head = Head::new(Kind::Offer, open.transfer, length, 1000);
        head.payload = 32;
        let offer = Frame {
            head,
            payload: vec![0; 32],
        };
        let error = target.handle(&offer, 32).unwrap_err();
        assert!(matches!(error, TransferError::TooMuch { .. }), "{error}");
    }
}

#[test]
fn overlapping_wishes_are_refused() {
    let (mut source, transfer) = offering(10_000);
    let want = |offset, value| Head::new(Kind::Want, transfer, offset, value);
    source.handle(&want(1000, 1000)).unwrap();
    for (offset, value) in [(1000, 1000), (999, 2), (1999, 1), (0, 10_000), (1500, 10)] {
        let error = source.handle(&want(offset, value)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("waits for already"), "{error}");
    }
    // What lies beside it is no overlap, at whatever byte it starts.
    source.handle(&want(999, 1)).unwrap();
    source.handle(&want(2000, 3)).unwrap();
}

#[test]
fn wishes_out_of_range_are_refused() {
    let (mut source, transfer) = offering(10_000);
    for (offset, value) in [(10_000, 1), (0, 10_001), (9_999, 2), (5, 0), (u64::MAX, 1)] {
        let want = Head::new(Kind::Want, transfer, offset, value);
        let error = source.handle(&want).map(|_| ()).unwrap_err();
        assert!(matches!(error, TransferError::Range { .. }), "{error}");
    }
}

#[test]
fn more_wishes_than_the_limit_are_refused() {
    let (mut source, transfer) = offering(1_000_000);
    let mut refused = None;
    for at in 0..=limits::TRANSFER_RANGES as u64 {
        let want = Head::new(Kind::Want, transfer, at * 2, 1);
        if let Err(error) = source.handle(&want) {
            refused = Some((at, error.to_string()));
            break;
        }
    }
    let (at, error) = refused.unwrap();
    assert_eq!(at, limits::TRANSFER_RANGES as u64);
    assert!(
        error.contains("1025 ranges at a time, the limit is 1024"),
        "{error}"
    );
}

#[test]
fn a_wish_before_an_offer_is_refused() {
    let mut sender = Sender::new();
    sender.handle(&Head::new(Kind::Open, 5, 1, 100)).unwrap();
    let error = sender.handle(&Head::new(Kind::Want, 5, 0, 1)).unwrap_err();
    assert!(
        error.to_string().contains("before it was offered"),
        "{error}"
    );
}

#[test]
fn overlapping_or_misaligned_data_is_dropped_and_counted() {
    let (mut source, mut target) = asking(100_000);
    let transfer = target.next_transfer;
    let first = source.next(50_000).unwrap();
    target.handle(&first, first.payload.len()).unwrap();
    // Wholly and partly of what came already.
    for (offset, length) in [(0, 50_000), (49_999, 2), (25_000, 50_000)] {
        target
            .handle(&data(transfer, offset, length), length)
            .unwrap();
    }
    assert_eq!(target.receiver.counters().surplus, 100_002);
    while let Some(frame) = source.next(30_000) {
        target.handle(&frame, frame.payload.len()).unwrap();
    }
    assert!(target.receiver.is_complete());
    assert!(target.bytes == source.bytes);
}

#[test]
fn data_beyond_the_file_or_without_bytes_is_refused() {
    for (offset, length) in [(99_999, 2), (100_000, 1), (u64::MAX, 1), (5, 0)] {
        let (_, mut target) = asking(100_000);
        let frame = data(target.next_transfer, offset, length);
        let error = target.handle(&frame, length).unwrap_err();
        assert!(matches!(error, TransferError::Range { .. }), "{error}");
    }
}

#[test]
fn a_peer_that_never_stops_sending_is_hung_up_on() {
    let (_, mut target) = asking(1000);
    // Of a transfer that was never opened, and of bytes that came before.
    for transfer in [999, target.next_transfer] {
        let (source, mut target2) = asking(1000);
        let whole = data(target2.next_transfer, 0, 1000);
        let right = Frame {
            payload: source.bytes.clone(),
            ..whole
        };
        target2.handle(&right, 1000).unwrap();
        let frame = data(transfer, 0, 1000);
        let mut bytes = 0;
        let error = loop {
            match target2.handle(&frame, 1000) {
                Ok(()) => bytes += 1000,
                Err(error) => break error,
            }
            assert!(bytes <= limits::TRANSFER_SURPLUS);
        };
        assert!(matches!(error, TransferError::Surplus { .. }), "{error}");
    }
    let offer = Frame {
        head: Head {
            payload: 32,
            ..Head::new(Kind::Offer, target.next_transfer, 50, 1000)
        },
        payload: vec![0; 32],
    };
    let error = target.handle(&offer, 32).unwrap_err().to_string();
    assert_eq!(error, "the peer sent a second offer");
}

#[test]
fn late_frames_are_dropped_and_counted() {
    let (mut source, mut target) = asking(100_000);
    let late = source.next(10_000).unwrap();
    target.receiver.close().unwrap();
    target.handle(&late, 10_000).unwrap();
    assert_eq!(target.receiver.counters().late_frames, 1);
    assert_eq!(target.receiver.counters().pulled, 0);
    // The same at the other end.
    let close = Head::new(Kind::Close, late.head.transfer, 0, 1);
    source.handle(&close).unwrap();
    source
        .handle(&Head::new(Kind::Want, late.head.transfer, 0, 1))
        .unwrap();
    assert_eq!(source.sender.late(), 1);
    assert!(source.sender.is_idle());
}

#[test]
fn a_manifest_that_lies_about_its_digest_is_refused() {
    let bytes = changed_manifest(1000, |_| {});
    let error = Manifest::decode(bytes.into(), &Digest([7; 32])).unwrap_err();
    assert!(matches!(error, ManifestError::Digest { .. }), "{error}");
}

#[test]
fn a_manifest_that_lies_about_its_lengths_is_refused() {
    // magic, version, kind, then total (1000 = e8 07), one part, its length.
    let total = 6..8;
    let part = 9..11;
    for (change, says) in [
        (
            (total.clone(), &[0xe9u8, 0x07][..]),
            "cover 1000 of the file's 1001",
        ),
        (
            (part.clone(), &[0xe9, 0x07]),
            "cover 1001 of the file's 1000",
        ),
        ((part.clone(), &[0xff; 10]), "a number of more than 64 bits"),
        (
            (
                total,
                &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
            ),
            "has a length of 9223372036854775808 bytes",
        ),
        ((8..9, &[2]), "a number of parts that no such file has"),
        ((8..9, &[0xff, 0xff, 0xff, 0x7f]), "more parts than bytes"),
        ((part, &[0x80, 0x00]), "more bytes than it needs"),
        ((4..5, &[9]), "a version that we do not speak"),
        ((5..6, &[2]), "a kind of file that we do not know"),
        ((0..1, b"x"), "no manifest"),
        ((11..12, &[0x80]), "flags that we do not know"),
        ((11..12, &[3]), "a norm that no tensor has"),
        ((43..44, &[]), "the end"),
        ((44..44, &[1]), "more than a manifest"),
    ] {
        let (range, with) = change;
        let bytes = changed_manifest(1000, |bytes| {
            bytes.splice(range.clone(), with.iter().copied());
        });
        let error = Manifest::decode(bytes.clone().into(), &Digest::of(&bytes)).unwrap_err();
        let text = error.to_string();
        let is_end = says == "the end" && text.contains("fewer digests");
        assert!(text.contains(says) || is_end, "{says}: {text}");
        // Over a stream the same ends the transfer.
        let error = lying(1000, bytes).unwrap_err();
        assert!(matches!(error, TransferError::Manifest(_)), "{error}");
    }
}

#[test]
fn a_manifest_of_another_file_is_refused() {
    let error = lying(1000, changed_manifest(999, |_| {})).unwrap_err();
    assert!(matches!(error, TransferError::Length { .. }), "{error}");
}

#[test]
fn a_manifest_of_another_model_does_not_fit_the_header() {
    let (bytes, header) = model(&[(100, 1), (200, 2)]);
    let (_, other) = model(&[(200, 1), (100, 2)]);
    let (_, fewer) = model(&[(300, 1)]);
    let own = manifest(&bytes, Layout::of_model(&header));
    own.fits(&header).unwrap();
    for header in [&other, &fewer] {
        let error = own.fits(header).unwrap_err();
        assert!(matches!(error, ManifestError::Misfit { .. }), "{error}");
    }
    let plain = manifest(&bytes, Layout::of_file(bytes.len() as u64).unwrap());
    assert!(plain.fits(&header).is_err());
}

#[test]
fn bytes_that_are_not_the_manifests_fail_by_the_name_of_their_tensor() {
    let (bytes, header) = model(&[(10_000, 1), (20_000, 2), (30_000, 3)]);
    let own = manifest(&bytes, Layout::of_model(&header));
    let mut wrong = bytes.clone();
    let at = header.data_start() as usize + 10_000 + 5;
    wrong[at] ^= 1;
    let mut source = Source::new(wrong, own);
    let mut target = Target::new(bytes.len() as u64);
    let error = transfer(&mut source, &mut target).unwrap_err();
    assert!(error.to_string().contains("(tensor 2 of 3)"), "{error}");
    assert!(error.to_string().contains("pulled 2 times"), "{error}");
    assert!(error.hint().is_some());
    assert!(!target.receiver.is_complete());
}

#[test]
fn another_file_under_the_same_number_is_noticed() {
    let (mut source, mut target) = asking(100_000);
    let first = source.next(10_000).unwrap();
    target.handle(&first, 10_000).unwrap();
    let bytes = noise(100_000, 99);
    let layout = Layout::of_file(100_000).unwrap();
    let mut other = Source::new(bytes.clone(), manifest(&bytes, layout));
    let open = target.open();
    let offer = other.handle(&open).unwrap().unwrap();
    let error = target.handle(&offer, 32).unwrap_err();
    assert!(matches!(error, TransferError::Replaced), "{error}");
}

#[test]
fn a_silent_peer_is_given_up_after_idle() {
    let (mut source, mut target) = asking(100_000);
    let at = target.receiver.next_wakeup().unwrap();
    assert_eq!(at, Time::ZERO + IDLE);
    target
        .receiver
        .check_idle(Time::ZERO + Duration::from_secs(59))
        .unwrap();
    // Progress is never timed out.
    target.now = Time::from_secs(59);
    let frame = source.next(1).unwrap();
    target.handle(&frame, 1).unwrap();
    target.receiver.check_idle(Time::from_secs(118)).unwrap();
    let error = target
        .receiver
        .check_idle(Time::from_secs(119))
        .unwrap_err();
    assert!(
        error.is_passing() && error.to_string().contains("60 s"),
        "{error}"
    );
}

#[test]
fn a_sender_that_only_says_wait_makes_no_progress() {
    let (_, mut target) = file(1000);
    let open = target.open();
    let wait = |read| Frame {
        head: Head::new(Kind::Wait, open.transfer, 0, read),
        payload: Vec::new(),
    };
    for (at, read) in [(30, 5), (50, 5), (80, 4)] {
        target.now = Time::from_secs(at);
        target.handle(&wait(read), 0).unwrap();
    }
    target.receiver.check_idle(Time::from_secs(89)).unwrap();
    target.receiver.check_idle(Time::from_secs(90)).unwrap_err();
}

#[test]
fn a_refusal_says_why_and_cannot_write_to_a_terminal() {
    let (mut source, mut target) = file(1000);
    let open = target.open();
    source.handle(&open).unwrap();
    let long = format!("a\x1b[2J{}", "é".repeat(2000));
    let (head, payload) = source.sender.refuse(RefusalCode::Changed, &long);
    assert!(payload.len() <= limits::REFUSAL);
    let whole = payload.len();
    let error = target.handle(&Frame { head, payload }, whole).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("a [2Jé") && !text.contains('\x1b'),
        "{text}"
    );
    assert!(!error.is_passing() && error.hint().is_some());
    // A code of a later version is still a refusal.
    assert_eq!(RefusalCode::parse(77), RefusalCode::Other);
}

#[test]
fn a_frame_of_the_wrong_end_is_refused() {
    let (mut source, mut target) = asking(1000);
    for kind in [Kind::Open, Kind::Want, Kind::WantManifest, Kind::Close] {
        let head = Head::new(kind, target.next_transfer, 0, 0);
        assert!(target.receiver.admit(&head).is_err(), "{kind:?}");
    }
    for kind in [Kind::Offer, Kind::Data, Kind::Manifest, Kind::Refused] {
        let head = Head::new(kind, target.next_transfer, 0, 0);
        assert!(source.sender.handle(&head).is_err(), "{kind:?}");
    }
}

#[test]
fn a_known_manifest_of_another_length_is_refused() {
    let known = manifest(&noise(1000, 1), Layout::of_file(1000).unwrap());
    let mut target = Target::new(2000);
    target.receiver = target.receiver.with_manifest(known.clone());
    let open = target.open();
    let length = known.encoded().len() as u64;
    let mut head = Head::new(Kind::Offer, open.transfer, length, 2000);
    head.payload = 32;
    let payload = known.root().0.to_vec();
    let error = target.handle(&Frame { head, payload }, 32).unwrap_err();
    assert!(matches!(error, TransferError::Length { .. }), "{error}");
}

#[test]
fn a_manifest_of_more_parts_than_a_model_has_takes_no_memory_for_them() {
    let mut bytes = b"FSMF\x01\x01\x0a".to_vec();
    let mut count = limits::TREE_LEAVES + 2;
    while count >= 0x80 {
        bytes.push(count as u8 | 0x80);
        count >>= 7;
    }
    bytes.push(count as u8);
    bytes.extend([10, 1]);
    bytes.extend([0; 32]);
    bytes.extend([0, 1].repeat(limits::TREE_LEAVES + 1));
    let root = Digest::of(&bytes);
    // Not shown, should it be one: it is long.
    let decoded = Manifest::decode(bytes.into(), &root).map(|_| ());
    let error = decoded.unwrap_err();
    assert!(
        error.to_string().contains("more parts than a model"),
        "{error}"
    );
}

#[test]
fn a_receiver_of_many_ranges_never_asks_for_more_of_them_than_a_sender_takes() {
    let lengths: Vec<_> = (0..4000).map(|at| (40, at)).collect();
    let (bytes, header) = model(&lengths);
    let known = manifest(&bytes, Layout::of_model(&header));
    let mut target = Target::new(bytes.len() as u64);
    let tensors = known.tensors().iter();
    let ranges = tensors.map(|part| part.offset..part.offset + part.length);
    target.receiver = target
        .receiver
        .with_manifest(known.clone())
        .only(ranges.collect());
    let mut source = Source::new(bytes.clone(), known);
    let offer = source.handle(&target.open()).unwrap().unwrap();
    target.handle(&offer, 32).unwrap();
    while !target.receiver.is_complete() {
        for head in target.receiver.wants(1 << 20, target.now).0 {
            source.handle(&head).unwrap();
        }
        let data = source.next(usize::MAX).unwrap();
        target.handle(&data, data.payload.len()).unwrap();
    }
    let start = header.data_start() as usize;
    assert!(target.bytes[start..] == bytes[start..]);
}
