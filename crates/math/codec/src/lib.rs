//! Makes models smaller for the wire, and restores them: quantized, thinned out,
//! compressed. What comes out is a model file like any other.
//!
//! Never: opens a file, reads a clock, draws a random number that does not follow
//! from its seed, or holds more of a model than a few windows of
//! `limits::CODEC_WINDOW` elements. The bits do not depend on the CPU, the SIMD
//! width or how a tensor is cut into windows.
//!
//! Start at [`chain::encode`] and [`chain::decode`]; the files are described in
//! `docs/specs/codec.md`.

#![forbid(unsafe_code)]

mod bytes;
pub mod chain;
mod error;
mod feedback;
mod kernel;
mod layer;
mod pick;
mod scheme;
mod sparse;
mod step;
mod view;
mod zip;

pub use bytes::{Draft, ReadAt, WriteAt};
pub use chain::{Chain, Context, Encoded, Filter, Kind, Loss, Model, Residual, Rounding};
pub use error::{DecodeError, EncodeError};
pub use pick::{PatternError, Pick};
pub use scheme::Scheme;
pub use view::View;

/// What the fuzzer calls: any bytes either are an encoded model that can be read
/// to its end, or are refused with an error.
///
/// # Panics
/// When a model that was accepted reads differently in parts than as a whole: a
/// bug.
pub fn fuzz_encoded_model(bytes: &[u8]) {
    use firesteel_tensor::ModelHeader;

    let Ok(header) = ModelHeader::parse(bytes, bytes.len() as u64) else {
        return;
    };
    let Ok(Some(view)) = chain::decode(&header, &bytes) else {
        return;
    };
    // Small bytes may stand for a large model; the fuzzer reads none of those.
    if view.size() > 1 << 20 {
        return;
    }
    let mut whole = Vec::new();
    let written = view.write(&mut whole);
    let mut at = 0;
    while at < view.size() {
        let length = (view.size() - at).min(777);
        let mut part = vec![0; length as usize];
        let read = view.read_at(at, &mut part);
        if written.is_ok() {
            assert!(read.is_ok(), "{read:?}");
            let range = at as usize..(at + length) as usize;
            assert_eq!(whole.get(range), Some(&part[..]));
        }
        at += length;
    }
    if written.is_ok() {
        let again = ModelHeader::parse(&whole, view.size());
        assert_eq!(again.as_ref(), Ok(view.header()));
    }
}
