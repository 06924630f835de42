//! Whatever a network does to the frames, what arrives is the file.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::collections::VecDeque;
use std::sync::Arc;

use common::{Frame, IDLE, Source, Target, manifest, model, noise, transfer};
use firesteel_base::limits;
use firesteel_transfer::{Digest, Layout, Manifest, ManifestBuilder, ObjectRef, Receiver};
use proptest::prelude::*;

/// What happens to the next frame from the sender.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    /// Comes after as many others.
    Late(usize),
    /// The stream is cut within it, after so many thousandths of its bytes.
    Cut(usize),
    /// The stream is cut and the sender starts anew, with nothing remembered.
    SenderRestarts,
    /// The stream is cut and the receiver starts anew, with the file as it is.
    ReceiverRestarts,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        2 => (1usize..6).prop_map(Fate::Late),
        1 => (0usize..1000).prop_map(Fate::Cut),
        1 => Just(Fate::SenderRestarts),
        1 => Just(Fate::ReceiverRestarts),
    ]
}

/// Runs a transfer through these fates, then through a perfect network, and checks
/// what arrived.
fn check(lengths: &[(usize, u64)], payload: usize, window: u64, fates: &[Fate]) {
    let (bytes, header) = model(lengths);
    let manifest = manifest(&bytes, Layout::of_model(&header));
    let mut source = Source::new(bytes.clone(), manifest.clone());
    let mut target = Target::new(bytes.len() as u64);
    let mut fates = fates.iter().copied();
    let mut wire: VecDeque<Frame> = VecDeque::new();
    let mut held: Vec<(usize, Frame)> = Vec::new();
    let open = target.open();
    wire.extend(source.handle(&open).unwrap());
    let mut steps = 0;
    while !target.receiver.is_complete() {
        steps += 1;
        assert!(steps < 200_000, "it does not end: {:?}", target.receiver);
        let room = window.saturating_sub(target.receiver.asked());
        let (wishes, taken) = target.receiver.wants(room, target.now);
        assert!(taken <= room && target.receiver.asked() <= window);
        for head in &wishes {
            wire.extend(source.handle(head).unwrap());
        }
        // Several frames are on the way at a time, so that they can change places.
        while wire.len() < 8 {
            let Some(frame) = source.next(payload) else {
                break;
            };
            wire.push_back(frame);
        }
        let mut cut = false;
        if let Some(frame) = wire.pop_front() {
            let whole = frame.payload.len();
            match fates.next().unwrap_or(Fate::Arrives) {
                Fate::Arrives => target.handle(&frame, whole).unwrap(),
                Fate::Lost => {}
                Fate::Twice => {
                    target.handle(&frame, whole).unwrap();
                    // A second offer breaks the protocol; anything else is dropped.
                    if frame.head.kind != firesteel_transfer::frame::Kind::Offer {
                        target.handle(&frame, whole).unwrap();
                    }
                }
                Fate::Late(after) => held.push((after, frame)),
                Fate::Cut(thousandths) => {
                    target.handle(&frame, whole * thousandths / 1000).unwrap();
                    cut = true;
                }
                Fate::SenderRestarts => {
                    source = Source::new(bytes.clone(), manifest.clone());
                    cut = true;
                }
                Fate::ReceiverRestarts => {
                    let (old, transfer) = (target.bytes, target.next_transfer);
                    target = Target::new(bytes.len() as u64);
                    (target.bytes, target.next_transfer) = (old, transfer);
                    cut = true;
                }
            }
            for (after, _) in &mut held {
                *after = after.saturating_sub(1);
            }
            for at in (0..held.len()).rev() {
                if held[at].0 == 0 {
                    wire.push_front(held.swap_remove(at).1);
                }
            }
        } else if let Some((_, frame)) = held.pop() {
            wire.push_back(frame);
        } else {
            // Something was lost: nothing comes for the duration `idle`.
            target.now = target.receiver.next_wakeup().unwrap();
            target.receiver.check_idle(target.now).unwrap_err();
            cut = true;
        }
        if cut {
            // What was on the way may still come, and is then late.
            let open = target.open();
            wire.extend(source.handle(&open).unwrap());
        }
    }
    assert!(target.bytes == bytes, "other bytes arrived");
    assert!(target.receiver.counters().bad_blocks == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn loss_reorder_duplication_and_restart_change_no_byte(
        lengths in proptest::collection::vec((0usize..60_000, 0u64..4), 0..12),
        payload in 1_000usize..40_000,
        window in 20_000u64..200_000,
        fates in proptest::collection::vec(fate(), 0..80),
    ) {
        check(&lengths, payload, window, &fates);
    }

    #[test]
    fn a_manifest_does_not_depend_on_how_the_file_is_fed(
        lengths in proptest::collection::vec((0usize..30_000, 0u64..4), 0..10),
        cuts in proptest::collection::vec(1usize..50_000, 1..20),
    ) {
        let (bytes, header) = model(&lengths);
        let whole = manifest(&bytes, Layout::of_model(&header));
        let mut builder = ManifestBuilder::new(Layout::of_model(&header));
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            builder.feed(piece);
            rest = after;
        }
        prop_assert_eq!(&builder.finish().unwrap(), &*whole);
        whole.fits(&header).unwrap();
    }
}

proptest! {
    // Some 10 MB each.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn blocks_of_large_tensors_survive_the_same(
        extra in 0usize..3_000_000,
        fates in proptest::collection::vec(fate(), 0..60),
    ) {
        let block = limits::TRANSFER_BLOCK as usize;
        check(&[(block + extra, 1), (500, 2), (block + extra, 1)], 256 * 1024, 2 << 20, &fates);
    }
}

#[test]
fn after_a_cut_it_goes_on_at_the_byte() {
    let bytes = noise(3_000_000, 1);
    let layout = Layout::of_file(bytes.len() as u64).unwrap();
    let mut source = Source::new(bytes.clone(), manifest(&bytes, layout));
    let mut target = Target::new(bytes.len() as u64);
    for cut in 0..20 {
        let open = target.open();
        let offer = source.handle(&open).unwrap().unwrap();
        target.handle(&offer, 32).unwrap();
        loop {
            let (wishes, _) = target.receiver.wants(400_000, target.now);
            for head in &wishes {
                source.handle(head).unwrap();
            }
            let Some(frame) = source.next(100_000) else {
                break;
            };
            let is_data = frame.head.kind == firesteel_transfer::frame::Kind::Data;
            if is_data && cut < 19 {
                // Within the frame, and not at its start.
                target.handle(&frame, 12_345 + cut).unwrap();
                break;
            }
            target.handle(&frame, frame.payload.len()).unwrap();
        }
    }
    assert!(target.receiver.is_complete());
    assert!(target.bytes == bytes);
    assert_eq!(target.receiver.counters().pulled, bytes.len() as u64);
}

#[test]
fn equal_tensors_travel_once() {
    let (bytes, header) = model(&[(100_000, 1), (100_000, 1), (70_000, 2), (100_000, 1)]);
    let mut source = Source::new(bytes.clone(), manifest(&bytes, Layout::of_model(&header)));
    let mut target = Target::new(bytes.len() as u64);
    transfer(&mut source, &mut target).unwrap();
    assert!(target.bytes == bytes);
    let counters = target.receiver.counters();
    assert_eq!(counters.skipped, 200_000);
    assert_eq!(counters.pulled, bytes.len() as u64 - 200_000);
}

#[test]
fn a_tensor_of_six_gigabytes_is_one_part_of_many_blocks() {
    // Made by hand: nobody has to hash 6 GiB for it.
    let (head, length) = (128u64, 6u64 << 30);
    let blocks = length / limits::TRANSFER_BLOCK;
    let mut bytes = b"FSMF\x01\x01".to_vec();
    let number = |bytes: &mut Vec<u8>, mut number: u64| {
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    };
    number(&mut bytes, head + length);
    number(&mut bytes, 2);
    number(&mut bytes, head);
    bytes.push(1);
    bytes.extend([7; 32]);
    number(&mut bytes, length);
    bytes.push(1);
    for block in 0..blocks {
        bytes.extend([block as u8; 32]);
    }
    assert!(bytes.len() < 64 * 1024);
    let root = Digest::of(&bytes);
    let manifest = Manifest::decode(bytes.into(), &root).unwrap();
    assert_eq!(manifest.block_count() as u64, 1 + blocks);
    assert_eq!((manifest.head(), manifest.tensors().len()), (head, 1));
    let last = manifest.block(blocks as usize).unwrap();
    assert_eq!(
        last.range(),
        manifest.total() - limits::TRANSFER_BLOCK..manifest.total()
    );
    assert_eq!(
        manifest.block_at(manifest.total() - 1),
        Some(blocks as usize)
    );
    assert_eq!(manifest.block_at(manifest.total()), None);
    assert_eq!(manifest.blocks_from(3).next(), manifest.block(3));
    let mut receiver = Receiver::new(ObjectRef::new(1, manifest.total()).unwrap(), IDLE)
        .unwrap()
        .with_manifest(Arc::new(manifest));
    receiver.plan(|_, _| false);
    assert!(receiver.has_wishes());
}
