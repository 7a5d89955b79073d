//! Data types and how they promote: the array API standard's lattice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The data types of the array API standard, 2024.12, and objects.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum DType {
    /// `bool`
    Bool,
    /// `int8`
    Int8,
    /// `int16`
    Int16,
    /// `int32`
    Int32,
    /// `int64`
    Int64,
    /// `uint8`
    UInt8,
    /// `uint16`
    UInt16,
    /// `uint32`
    UInt32,
    /// `uint64`
    UInt64,
    /// `float32`
    Float32,
    /// `float64`
    Float64,
    /// `complex64`
    Complex64,
    /// `complex128`
    Complex128,
    /// A value of a Python function, pickled. Not of the standard, and nothing computes with it.
    Object,
}

/// What the values of a data type are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// True or false.
    Bool,
    /// Signed integers.
    Signed,
    /// Unsigned integers.
    Unsigned,
    /// Real floating point.
    Float,
    /// Complex floating point.
    Complex,
    /// Anything.
    Object,
}

const ALL: [(DType, &str, Kind, u8); 14] = [
    (DType::Bool, "bool", Kind::Bool, 1),
    (DType::Int8, "int8", Kind::Signed, 1),
    (DType::Int16, "int16", Kind::Signed, 2),
    (DType::Int32, "int32", Kind::Signed, 4),
    (DType::Int64, "int64", Kind::Signed, 8),
    (DType::UInt8, "uint8", Kind::Unsigned, 1),
    (DType::UInt16, "uint16", Kind::Unsigned, 2),
    (DType::UInt32, "uint32", Kind::Unsigned, 4),
    (DType::UInt64, "uint64", Kind::Unsigned, 8),
    (DType::Float32, "float32", Kind::Float, 4),
    (DType::Float64, "float64", Kind::Float, 8),
    (DType::Complex64, "complex64", Kind::Complex, 8),
    (DType::Complex128, "complex128", Kind::Complex, 16),
    (DType::Object, "object", Kind::Object, 0),
];

impl DType {
    /// Every data type.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.into_iter().map(|(dtype, ..)| dtype)
    }

    /// The standard's name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// What its values are.
    pub fn kind(self) -> Kind {
        self.row().2
    }

    /// Size of one element, in bytes; 0 for objects, which have any size.
    pub fn item_bytes(self) -> u64 {
        u64::from(self.row().3)
    }

    /// Whether kernels for this data type exist.
    pub fn has_kernels(self) -> bool {
        matches!(self, Self::Bool | Self::Int64 | Self::Float64)
    }

    /// The type of the result where both meet, or none where the standard leaves it undefined:
    /// `bool` with a number, integers with floating point, `uint64` with signed integers.
    pub fn promote(self, other: Self) -> Option<Self> {
        let (low, high) = if self <= other { (self, other) } else { (other, self) };
        if low == high {
            return Some(low);
        }
        match (low.kind(), high.kind()) {
            (a, b) if a == b => Some(if low.item_bytes() < high.item_bytes() { high } else { low }),
            (Kind::Signed, Kind::Unsigned) => {
                let bytes = low.item_bytes().max(2 * high.item_bytes());
                Self::all().find(|it| it.kind() == Kind::Signed && it.item_bytes() == bytes)
            }
            (Kind::Float, Kind::Complex) => {
                let bytes = high.item_bytes().max(2 * low.item_bytes());
                Self::all().find(|it| it.kind() == Kind::Complex && it.item_bytes() == bytes)
            }
            _ => None,
        }
    }

    fn row(self) -> (Self, &'static str, Kind, u8) {
        ALL[self as usize]
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::all().find(|it| it.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(Self::name).collect();
            format!("unknown dtype {name:?}; expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn every_dtype_reads_back_its_name() {
        for dtype in DType::all() {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
    }

    #[test]
    fn promotion_follows_the_standards_tables() {
        for (left, right, result) in [
            ("int8", "int16", Some("int16")),
            ("uint8", "int8", Some("int16")),
            ("uint32", "int8", Some("int64")),
            ("uint8", "int64", Some("int64")),
            ("uint64", "int8", None),
            ("float32", "float64", Some("float64")),
            ("float64", "complex64", Some("complex128")),
            ("float32", "complex64", Some("complex64")),
            ("int64", "float64", None),
            ("bool", "int8", None),
            ("bool", "bool", Some("bool")),
        ] {
            let (left, right): (DType, DType) = (left.parse().unwrap(), right.parse().unwrap());
            let result = result.map(|name| name.parse().unwrap());
            assert_eq!(left.promote(right), result, "{left} {right}");
            assert_eq!(right.promote(left), result, "{right} {left}");
        }
    }
}
