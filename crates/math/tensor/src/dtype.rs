//! What one element of a tensor is.

use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $size:literal, $kind:ident;)*) => {
        /// The type of a tensor's elements, named as safetensors names them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DType { $($(#[$doc])* $variant,)* }

        impl DType {
            /// Every dtype that travels.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Bytes of one element.
            pub const fn size(self) -> usize {
                match self { $(Self::$variant => $size,)* }
            }

            /// The name in a model file's header.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Which of the three kinds it is.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = "BOOL", 1, Bool;
    /// Unsigned, 8 bits.
    U8 = "U8", 1, Int;
    /// Signed, 8 bits.
    I8 = "I8", 1, Int;
    /// Unsigned, 16 bits.
    U16 = "U16", 2, Int;
    /// Signed, 16 bits.
    I16 = "I16", 2, Int;
    /// Unsigned, 32 bits.
    U32 = "U32", 4, Int;
    /// Signed, 32 bits.
    I32 = "I32", 4, Int;
    /// Unsigned, 64 bits.
    U64 = "U64", 8, Int;
    /// Signed, 64 bits.
    I64 = "I64", 8, Int;
    /// IEEE 754 half precision.
    F16 = "F16", 2, Float;
    /// The upper half of an `F32`.
    BF16 = "BF16", 2, Float;
    /// IEEE 754 single precision.
    F32 = "F32", 4, Float;
    /// IEEE 754 double precision.
    F64 = "F64", 8, Float;
    /// 8 bits, 4 of exponent, no infinity (`e4m3fn`).
    F8E4M3 = "F8_E4M3", 1, Float;
    /// 8 bits, 5 of exponent, with infinities.
    F8E5M2 = "F8_E5M2", 1, Float;
}

/// The three kinds of element, which are folded by different rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number.
    Int,
    /// A floating-point number.
    Float,
}

impl DType {
    /// The inverse of [`DType::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.as_str() == name)
    }

    /// Whether it is a floating-point number.
    pub const fn is_float(self) -> bool {
        matches!(self.kind(), Kind::Float)
    }

    /// Whether it is a whole number; a bool is not.
    pub const fn is_int(self) -> bool {
        matches!(self.kind(), Kind::Int)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sizes_and_kinds_agree_with_safetensors() {
        for &dtype in DType::ALL {
            assert_eq!(DType::parse(dtype.as_str()), Some(dtype));
            let theirs: safetensors::Dtype =
                serde_json::from_str(&format!("\"{dtype}\"")).expect("safetensors knows it");
            assert_eq!(theirs.bitsize(), dtype.size() * 8, "{dtype}");
        }
        assert_eq!(DType::parse("F4"), None);
        assert_eq!(DType::ALL.iter().filter(|d| d.is_float()).count(), 6);
        assert_eq!(DType::ALL.iter().filter(|d| d.is_int()).count(), 8);
    }
}
