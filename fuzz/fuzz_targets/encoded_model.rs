//! An encoded model: refused, or it reads alike in parts and as a whole.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firesteel_codec::fuzz_encoded_model(bytes));
