//! Tensors as bytes: dtypes, the layout of a model file, the params tree.
//!
//! Never: opens a file or a socket, reads a clock, or holds a tensor's data. It
//! says where the bytes lie and what they mean; somebody else owns them.
//!
//! Start at [`ModelHeader`]; what a file may hold is in `docs/specs/model.md`.

#![forbid(unsafe_code)]

pub mod dtype;
pub mod facts;
pub mod finite;
pub mod float;
pub mod header;
pub mod text;
pub mod tree;

pub use dtype::DType;
pub use facts::{Facts, FactsBuilder};
pub use finite::check_finite;
pub use header::{HeaderBuilder, HeaderError, ModelHeader, TensorInfo};
pub use tree::{Tree, TreeError};

// Model files are little-endian and are read in place, without a swap.
#[cfg(target_endian = "big")]
compile_error!("firesteel reads model files in place and needs a little-endian machine");

/// What the fuzzer calls: any bytes either are a model file's header, and then
/// its parts agree with each other, or are refused with an error.
///
/// # Panics
/// When a header that was accepted does not survive being written and read
/// again: a bug.
pub fn fuzz_model_header(bytes: &[u8]) {
    let Ok(header) = ModelHeader::parse(bytes, bytes.len() as u64) else {
        return;
    };
    for tensor in header.tensors() {
        assert!(header.bytes_of(tensor, bytes).is_some(), "{tensor:?}");
    }
    let (written, again) = header
        .to_builder()
        .encode()
        .expect("an accepted header can be written");
    let length = again.total_len();
    let read = ModelHeader::parse(&written, length).expect("a written header can be read");
    assert_eq!(read, again);
}

/// What the fuzzer calls: any text either is a params tree, and then it is
/// written and read to the same tree, or is refused with an error.
///
/// # Panics
/// When a tree that was accepted changes on the way: a bug.
pub fn fuzz_params_tree(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(tree) = Tree::parse(text) {
        let canonical = tree.to_json();
        let again = Tree::parse(&canonical).expect("canonical text can be read");
        assert_eq!(again.to_json(), canonical);
    }
}
