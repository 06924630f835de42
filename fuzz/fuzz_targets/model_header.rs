//! The header of a model file: refused, or its parts agree with each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firesteel_tensor::fuzz_model_header(bytes));
