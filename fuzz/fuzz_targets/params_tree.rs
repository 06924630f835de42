//! The params tree: refused, or the same after being written and read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firesteel_tensor::fuzz_params_tree(bytes));
