//! What a peer says in a transfer: a manifest, or frames to a receiver or to a
//! sender. Refused, or taken without a panic and without more memory than asked for.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use firesteel_base::Time;
use firesteel_transfer::frame::{HEAD, Head};
use firesteel_transfer::{
    Admit, Checker, Digest, Event, Layout, Manifest, ManifestBuilder, ObjectRef, Receiver, Sender,
    SenderEvent,
};

const LENGTH: u64 = 5000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => manifest(bytes),
        1 => receiver(bytes, None),
        2 => receiver(bytes, Some(known())),
        _ => sender(bytes),
    }
});

fn known() -> Arc<Manifest> {
    let mut builder = ManifestBuilder::new(Layout::of_file(LENGTH).expect("short enough"));
    builder.feed(&[7; LENGTH as usize]);
    Arc::new(builder.finish().expect("all was fed"))
}

fn manifest(bytes: &[u8]) {
    let root = Digest::of(bytes);
    let Ok(manifest) = Manifest::decode(bytes.into(), &root) else {
        return;
    };
    let mut reached = 0;
    for part in manifest.parts() {
        assert_eq!(part.offset, reached);
        reached += part.length;
        let _ = manifest.digest(part);
    }
    assert_eq!(reached, manifest.total());
    reached = 0;
    for (index, block) in manifest.blocks_from(0).enumerate() {
        assert_eq!(manifest.block(index), Some(block));
        assert_eq!(manifest.block_at(block.offset), Some(index));
        assert_eq!(manifest.block_at(block.range().end - 1), Some(index));
        assert_eq!(block.offset, reached);
        reached = block.range().end;
    }
    assert_eq!(reached, manifest.total());
    let again = Manifest::decode(manifest.encoded().clone(), &root).expect("it was one before");
    assert_eq!(again, manifest);
}

/// Heads and payloads, cut out of the input.
fn frames<'a>(mut bytes: &'a [u8]) -> impl Iterator<Item = (Head, &'a [u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let head = Head::decode(head).ok()?;
        let (payload, rest) = rest.split_at_checked(head.payload as usize)?;
        bytes = rest;
        Some((head, payload))
    })
}

fn receiver(bytes: &[u8], manifest: Option<Arc<Manifest>>) {
    let object = ObjectRef::new(1, LENGTH).expect("short enough");
    let mut receiver = Receiver::new(object, Duration::from_secs(60)).expect("short enough");
    if let Some(manifest) = manifest {
        receiver = receiver.with_manifest(manifest);
    }
    receiver.open(1, Time::ZERO);
    let mut checker = None;
    for (head, payload) in frames(bytes) {
        let _ = receiver.wants(2000, Time::ZERO);
        let Ok(admit) = receiver.admit(&head) else {
            return;
        };
        match admit {
            Admit::Drop => {}
            Admit::Message => match receiver.message(&head, payload, Time::ZERO) {
                Ok(Event::Nothing) => {}
                Ok(Event::Planning) => {
                    receiver.plan(|_, _| false);
                    checker = receiver.manifest().cloned().map(Checker::new);
                }
                Err(_) => return,
            },
            Admit::Data { offset } => {
                assert!(offset + payload.len() as u64 <= LENGTH);
                receiver.came(offset, payload.len() as u64, Time::ZERO);
                let mut found = Vec::new();
                if let Some(checker) = &mut checker {
                    checker.feed(offset, payload, &mut found);
                }
                for checked in found {
                    if receiver.checked(checked).is_err() {
                        return;
                    }
                }
            }
        }
        assert!(receiver.counters().manifest <= Manifest::longest(LENGTH));
        assert!(receiver.counters().pulled <= 3 * LENGTH);
    }
}

fn sender(bytes: &[u8]) {
    let manifest = known();
    let mut sender = Sender::new();
    for (head, _) in frames(bytes) {
        match sender.handle(&head) {
            Ok(SenderEvent::Open(_)) => {
                sender.offer(manifest.clone());
            }
            Ok(_) => {}
            Err(_) => return,
        }
        if let Some(work) = sender.next(700) {
            let end = work.head.offset + u64::from(work.head.payload);
            assert!(end <= LENGTH.max(manifest.encoded().len() as u64) && work.head.payload > 0);
        }
    }
}
