//! What fuzzers reach: decoders of strangers' bytes that are private otherwise.

use bytes::Bytes;

use crate::driver::grpc;
use crate::front::proxy_protocol;

/// A hello, welcome or message of a session's own stream.
pub fn session_message(bytes: &[u8]) {
    crate::session::decode_all(bytes);
}

/// The header of the PROXY protocol.
pub fn proxy_header(bytes: &[u8]) {
    let _ = proxy_protocol::parse(bytes);
}

/// Messages of the gRPC link, cut into pieces of at most `piece` bytes. The data
/// in them, as far as they are valid.
pub fn grpc_messages(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut decoder = grpc::Decoder::default();
    let mut data = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            match decoder.next(&mut piece) {
                Ok(some) => data.extend(some),
                Err(_) => return data,
            }
        }
    }
    data
}
