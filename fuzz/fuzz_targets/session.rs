//! What strangers say before a session is made: hellos and link messages, headers
//! of the PROXY protocol, messages of the gRPC link. The first byte says which.
#![no_main]

use firesteel_net::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => fuzzing::session_message(rest),
        1 => fuzzing::proxy_header(rest),
        _ => {
            // However the messages are cut, the data is the same.
            let whole = fuzzing::grpc_messages(rest, usize::MAX);
            let piece = usize::from(kind / 3) % 16 + 1;
            assert!(fuzzing::grpc_messages(rest, piece) == whole);
        }
    }
});
