//! Small model files, and what is in them.

use std::io::{self, Write};

use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};

/// A model file with one tensor `w` of single precision.
pub fn model(values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    model_of(DType::F32, &[values.len() as u64], &data)
}

/// A model file with one tensor `w`.
pub fn model_of(dtype: DType, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", dtype, shape);
    let (mut bytes, _) = builder.encode().expect("one tensor makes a header");
    bytes.extend_from_slice(data);
    bytes
}

/// The values of `w`, which are of single precision.
pub fn values_in(bytes: &[u8]) -> Vec<f32> {
    let header = ModelHeader::parse(bytes, bytes.len() as u64).expect("a model file");
    let tensor = header.get("w").expect("a tensor `w`");
    assert_eq!(tensor.dtype, DType::F32);
    let data = header.bytes_of(tensor, bytes).expect("the tensor's data");
    data.as_chunks::<4>()
        .0
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect()
}

/// A model file whose tensors `layer.0` and so on have `each` bytes of noise that
/// follows from the seed: nothing in it is equal by chance, and nothing in it can
/// be compressed. Gives its bytes in all.
pub fn noise(to: &mut impl Write, tensors: u64, each: u64, seed: u64) -> io::Result<u64> {
    let mut builder = HeaderBuilder::new();
    for number in 0..tensors {
        builder.tensor(&format!("layer.{number}"), DType::U8, &[each]);
    }
    let (head, header) = builder.encode().expect("tensors make a header");
    to.write_all(&head)?;
    let mut left = header.total_len() - head.len() as u64;
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut piece = [0; 64 * 1024];
    while left > 0 {
        for eight in piece.as_chunks_mut::<8>().0 {
            // Xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *eight = state.to_le_bytes();
        }
        let some = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        to.write_all(piece.split_at(some).0)?;
        left -= some as u64;
    }
    Ok(header.total_len())
}
