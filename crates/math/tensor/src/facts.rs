//! What is told of a tensor beside its bytes: whether every value is finite, and
//! how long it is as a vector.

use fearless_simd::{Level, Simd, dispatch};

use crate::{DType, check_finite, float};

/// What is known of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// No value is NaN or infinite. Integers and bools always are finite.
    pub finite: bool,
    /// The L2 norm, in f64; 0 for integers and bools, and where a value is not
    /// finite. The norm of doubles that outgrows a double is the largest one.
    pub norm: f64,
}

/// Elements summed in lanes before the lanes are added up, a fixed number so
/// that the bits do not depend on how the bytes come in.
const BLOCK: usize = 2048;

/// Sums that go on side by side: two of the widest vectors.
const LANES: usize = 16;

/// Values added to each sum before the next sum's turn; it changes no bits.
const ROWS: usize = 8;

/// Finds the [`Facts`] of one tensor from its bytes, which come in order, in
/// pieces of any size. The bits do not depend on the pieces or the CPU.
#[derive(Debug, Clone)]
pub struct FactsBuilder {
    dtype: DType,
    /// Bytes of a block that is not full yet.
    begun: Vec<u8>,
    squares: f64,
    finite: bool,
}

impl FactsBuilder {
    /// Nothing seen yet.
    pub fn new(dtype: DType) -> Self {
        Self {
            dtype,
            begun: Vec::new(),
            squares: 0.0,
            finite: true,
        }
    }

    /// The next bytes of the tensor.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if !self.dtype.is_float() {
            return;
        }
        let block = BLOCK * self.dtype.size();
        if !self.begun.is_empty() {
            let (fill, rest) = bytes.split_at(bytes.len().min(block - self.begun.len()));
            self.begun.extend_from_slice(fill);
            bytes = rest;
            if self.begun.len() < block {
                return;
            }
            let full = std::mem::take(&mut self.begun);
            self.add(&full);
        }
        let (whole, rest) = bytes.split_at(bytes.len() / block * block);
        for block in whole.chunks_exact(block) {
            self.add(block);
        }
        self.begun.extend_from_slice(rest);
    }

    /// What came of it. A last part of an element is not looked at.
    pub fn finish(mut self) -> Facts {
        let last = std::mem::take(&mut self.begun);
        if !last.is_empty() {
            self.add(&last);
        }
        let norm = match self.finite {
            true => self.squares.sqrt().min(f64::MAX),
            false => 0.0,
        };
        Facts {
            finite: self.finite,
            norm,
        }
    }

    fn add(&mut self, block: &[u8]) {
        let level = Level::new();
        let dtype = self.dtype;
        let squares = dispatch!(level, simd => sum(simd, dtype, block));
        // Any value that is not finite makes the sum so; the squares of doubles
        // may do that by themselves.
        if !squares.is_finite() && (dtype != DType::F64 || check_finite(dtype, block) > 0) {
            self.finite = false;
        }
        self.squares += squares;
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, dtype: DType, block: &[u8]) -> f64 {
    simd.vectorize(
        #[inline(always)]
        || match dtype {
            DType::F64 => squares(block.as_chunks().0, |e| f64::from_le_bytes(*e)),
            DType::F32 => squares(block.as_chunks().0, |e| f64::from(f32::from_le_bytes(*e))),
            _ => {
                let mut values = [0f32; BLOCK];
                let count = (block.len() / dtype.size()).min(BLOCK);
                let values = &mut values[..count];
                float::decode(dtype, block, values);
                squares(values, |value| f64::from(*value))
            }
        },
    )
}

/// The squares, in lanes; then the lanes, in a tree.
#[inline(always)]
fn squares<T>(values: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (tables, rest) = values.as_chunks::<{ LANES * ROWS }>();
    for table in tables {
        // A column at a time, so that the sums stay in registers.
        for (at, lane) in lanes.iter_mut().enumerate() {
            let mut sum = *lane;
            for row in 0..ROWS {
                let value = of(&table[row * LANES + at]);
                sum += value * value;
            }
            *lane = sum;
        }
    }
    let (rows, rest) = rest.as_chunks::<LANES>();
    for row in rows {
        for (lane, value) in lanes.iter_mut().zip(row) {
            let value = of(value);
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        let value = of(value);
        *lane += value * value;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(dtype: DType, pieces: &[&[u8]]) -> Facts {
        let mut builder = FactsBuilder::new(dtype);
        for piece in pieces {
            builder.push(piece);
        }
        builder.finish()
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn norms_are_those_of_plain_arithmetic() {
        let three_four = bytes(&[3.0, 4.0]);
        let expected = Facts {
            finite: true,
            norm: 5.0,
        };
        assert_eq!(facts(DType::F32, &[&three_four]), expected);
        // The largest floats do not outgrow a double, the largest doubles do.
        let large = bytes(&[f32::MAX; 4]);
        let norm = f64::from(f32::MAX) * 2.0;
        assert_eq!(facts(DType::F32, &[&large]).norm, norm);
        let huge: Vec<u8> = [f64::MAX; 2].iter().flat_map(|v| v.to_le_bytes()).collect();
        let expected = Facts {
            finite: true,
            norm: f64::MAX,
        };
        assert_eq!(facts(DType::F64, &[&huge]), expected);
        // 1.0 and 2.0 as bf16, 0.5 as e4m3.
        assert_eq!(
            facts(DType::BF16, &[&[0x80, 0x3f, 0x00, 0x40]]).norm,
            5f64.sqrt()
        );
        assert_eq!(facts(DType::F8E4M3, &[&[0x30; 4]]).norm, 1.0);
        for dtype in [DType::I32, DType::Bool, DType::U8] {
            let none = Facts {
                finite: true,
                norm: 0.0,
            };
            assert_eq!(facts(dtype, &[&[0xff; 4096]]), none);
        }
        assert_eq!(facts(DType::F32, &[]).norm, 0.0);
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 2047, 2048, 5000] {
                let mut values = vec![1.0; 5001];
                values[at] = bad;
                let found = facts(DType::F32, &[&bytes(&values)]);
                let expected = Facts {
                    finite: false,
                    norm: 0.0,
                };
                assert_eq!(found, expected, "{bad} at {at}");
            }
        }
        let wide: Vec<u8> = [1.0, f64::NAN]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        assert!(!facts(DType::F64, &[&wide]).finite);
        assert!(!facts(DType::F16, &[&[0x00, 0x7c]]).finite);
        assert!(!facts(DType::F8E5M2, &[&[0xfe]]).finite);
    }

    proptest! {
        /// However the bytes are cut, the bits are the same, and finite is what
        /// counting says.
        #[test]
        fn cuts_change_no_bit(
            data in prop::collection::vec(any::<u8>(), 0..60_000),
            cuts in prop::collection::vec(0usize..60_000, 0..8),
            dtype in prop::sample::select(DType::ALL),
        ) {
            let data = &data[..data.len() / dtype.size() * dtype.size()];
            let whole = facts(dtype, &[data]);
            prop_assert_eq!(whole.finite, check_finite(dtype, data) == 0);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
            cuts.sort_unstable();
            cuts.push(data.len());
            let mut from = 0;
            let mut pieces = Vec::new();
            for cut in cuts {
                pieces.push(&data[from..cut]);
                from = cut;
            }
            let cut = facts(dtype, &pieces);
            prop_assert_eq!(cut.norm.to_bits(), whole.norm.to_bits());
            prop_assert_eq!(cut.finite, whole.finite);
        }
    }
}
