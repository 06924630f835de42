//! The schemes in which floats travel, and what each of them needs.

use std::fmt;

/// Elements of a block of [`Scheme::Int8`].
pub const INT8_BLOCK: usize = 4096;

/// Elements of a block of [`Scheme::Fp4`] and [`Scheme::Nf4`].
pub const FOUR_BIT_BLOCK: usize = 64;

/// How the elements of a float tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// IEEE 754 half precision; what is larger than 65504 becomes 65504.
    Fp16,
    /// The upper half of an f32; what is larger than the largest becomes that.
    Bf16,
    /// A byte per element, an index into bitsandbytes' dynamic map, and the
    /// largest magnitude of every 4096 elements.
    Int8,
    /// Half a byte per element, a float of 4 bits, and the largest magnitude of
    /// every 64 elements.
    Fp4,
    /// Half a byte per element, an index into the quantiles of the normal
    /// distribution, and the largest magnitude of every 64 elements (Dettmers et
    /// al., 2023).
    Nf4,
    /// As many levels between a tensor's least and greatest value as its range
    /// needs, in one or two bytes per element (arXiv 2208.05174).
    Adaptive,
}

impl Scheme {
    /// Every scheme.
    pub const ALL: [Self; 6] = [
        Self::Fp16,
        Self::Bf16,
        Self::Int8,
        Self::Fp4,
        Self::Nf4,
        Self::Adaptive,
    ];

    /// Its name in files and in job specs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fp4 => "fp4",
            Self::Nf4 => "nf4",
            Self::Adaptive => "adaptive",
        }
    }

    /// The inverse of [`Scheme::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// Elements that share a statistic; 1 where there is none.
    pub const fn block(self) -> usize {
        match self {
            Self::Int8 => INT8_BLOCK,
            Self::Fp4 | Self::Nf4 => FOUR_BIT_BLOCK,
            Self::Fp16 | Self::Bf16 | Self::Adaptive => 1,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
