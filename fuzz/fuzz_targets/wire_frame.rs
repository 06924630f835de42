//! Every message that crosses a stream: refused, or equal bytes after a second
//! round through the codec. The first byte says which message is expected.
#![no_main]

use bytes::BytesMut;
use firesteel_base::{Failure, TaskKey};
use firesteel_wire::control::{ToServer, ToSite, to_server};
use firesteel_wire::{bridge, frame, stream as streams, supervise};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, stream)) = bytes.split_first() else {
        return;
    };
    match kind % 10 {
        0 => read_all::<ToServer>(stream),
        1 => read_all::<ToSite>(stream),
        2 => read_all::<bridge::FromTrainer>(stream),
        3 => read_all::<bridge::FromAgent>(stream),
        4 => read_all::<supervise::Order>(stream),
        5 => read_all::<supervise::Notice>(stream),
        6 => conversions(stream),
        8 => read_all::<streams::Ask>(stream),
        9 => read_all::<streams::Answer>(stream),
        _ => json(stream),
    }
});

/// Takes frames off the stream until it ends or is refused.
fn read_all<M: Message + Default>(stream: &[u8]) {
    let mut buffer = BytesMut::from(stream);
    while let Ok(Some(message)) = frame::decode::<M>(&mut buffer, "fuzzed") {
        let Ok(first) = frame::encode(&message) else {
            // Unpacked fields may be shorter than their canonical form.
            continue;
        };
        let mut again = BytesMut::from(&first[..]);
        let same = frame::decode::<M>(&mut again, "fuzzed")
            .expect("what was encoded can be decoded")
            .expect("a frame is encoded whole");
        // Bytes are compared, since a NaN is not equal to itself.
        assert_eq!(frame::encode(&same).expect("it fitted before"), first);
    }
}

/// What a role makes of a message that decoded.
fn conversions(stream: &[u8]) {
    let Ok(message) = ToServer::decode(stream) else {
        return;
    };
    match message.body {
        Some(to_server::Body::TaskAccepted(key)) => {
            let _ = TaskKey::try_from(&key);
        }
        Some(to_server::Body::TaskFailed(failed)) => {
            let _ = failed.failure.map(Failure::from);
        }
        _ => {}
    }
}

/// The messages that travel as JSON, between the supervisor and the warm parent.
fn json(stream: &[u8]) {
    if let Ok(report) = supervise::decode_json::<supervise::WarmReport>(stream) {
        let _ = supervise::encode_json(&report);
    }
    if let Ok(text) = std::str::from_utf8(stream)
        && let Ok(profile) = bridge::AttachProfile::from_json(text)
    {
        bridge::AttachProfile::from_json(&profile.to_json()).expect("what was written can be read");
    }
}
