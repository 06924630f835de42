//! Arithmetic over windows of elements, the same bits on every CPU.
//!
//! The loops are plain Rust, compiled once per instruction set and picked at run
//! time. Rust neither reorders float operations nor fuses them, so each gives the
//! same bits as the scalar loop that the tests compare them with.

pub(crate) mod adaptive;
pub(crate) mod dice;
pub(crate) mod four;
pub(crate) mod half;
pub(crate) mod int8;
pub(crate) mod values;

#[cfg(test)]
mod oracle;

pub(crate) use dice::Dice;

/// The largest magnitude, as the bits of an f32: NaN is above infinity, so one
/// comparison with [`INFINITE`] finds both.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> u32 {
    let mut most = 0;
    for value in values {
        most = most.max(value.to_bits() & 0x7fff_ffff);
    }
    most
}

/// The bits of infinity.
pub(crate) const INFINITE: u32 = 0x7f80_0000;

/// How a block's values come between -1 and 1.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scale {
    /// By the inverse of the largest magnitude: as bitsandbytes does it, and a
    /// product is faster than a quotient.
    Times(f32),
    /// By the largest magnitude itself, where its inverse is infinite.
    Over(f32),
}

impl Scale {
    /// From the bits of the largest magnitude.
    #[inline(always)]
    pub(crate) fn new(largest: u32) -> Self {
        let absmax = f32::from_bits(largest);
        let scale = 1.0 / absmax;
        if scale.is_finite() {
            Self::Times(scale)
        } else {
            // A block of zeros stays one, whatever it is divided by.
            Self::Over(if largest == 0 { 1.0 } else { absmax })
        }
    }

    /// The values between -1 and 1.
    #[inline(always)]
    pub(crate) fn apply<const N: usize>(self, values: &[f32; N], into: &mut [f32; N]) {
        match self {
            Self::Times(scale) => {
                for (into, value) in into.iter_mut().zip(values) {
                    *into = value * scale;
                }
            }
            Self::Over(absmax) => {
                for (into, value) in into.iter_mut().zip(values) {
                    *into = value / absmax;
                }
            }
        }
    }
}
