//! The storage formats of packed matrices.
//!
//! Every quantized type of GGUF (Q4_0 to Q8_0, k-quants) reduces to unsigned codes of 4, 5, 6
//! or 8 bits in groups of 16 or 32 that share a scale and, for some types, a minimum:
//! `weight = scale · (code − zero) + minimum`.

use incant_gguf::TensorType;

/// Output rows that are packed together: the lanes of the kernels.
pub const LANES: usize = 16;
/// Columns per block.
pub const COLUMNS_PER_BLOCK: usize = 32;

/// The storage format of the elements of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Quantized codes with scales.
    Codes(Codes),
    /// Floating-point elements, one column of 16 rows after the other.
    Dense(Dense),
}

/// The type of floating-point weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dense {
    /// f16 (IEEE half precision).
    F16,
    /// bf16 (the upper 16 bits of an `f32`).
    BF16,
    /// f32 (single precision).
    F32,
}

/// Quantized codes with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Bits per code.
    pub bits: Bits,
    /// The code that stands for 0, before the minimum is added.
    pub zero: i16,
    /// Columns that share a scale: 16 or 32.
    pub group: usize,
    /// The storage of the scales.
    pub scales: Scales,
}

/// Bits per code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Two codes per byte.
    Four,
    /// A plane of four bits and a plane of one bit.
    Five,
    /// A plane of four bits and a plane of two bits.
    Six,
    /// One code per byte.
    Eight,
}

/// The storage of the scales of a row's groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// An f16 scale for each group of 32 columns.
    F16,
    /// An f16 scale and an f16 minimum for each group of 32 columns.
    F16WithMinimum,
    /// An f16 super-scale for 256 columns, and an i8 factor for each group.
    Super,
    /// An f16 super-scale and an f16 super-minimum for 256 columns, and two u8 factors for each
    /// group.
    SuperWithMinimum,
}

impl Format {
    /// Returns the format that holds weights of this type exactly, if one does.
    pub fn of(kind: TensorType) -> Option<Format> {
        use Bits::{Eight, Five, Four, Six};
        use Scales::{F16, F16WithMinimum, Super, SuperWithMinimum};
        let codes = |bits, zero, group, scales| {
            Some(Format::Codes(Codes {
                bits,
                zero,
                group,
                scales,
            }))
        };
        match kind {
            TensorType::F32 => Some(Format::Dense(Dense::F32)),
            TensorType::F16 => Some(Format::Dense(Dense::F16)),
            TensorType::BF16 => Some(Format::Dense(Dense::BF16)),
            TensorType::Q4_0 => codes(Four, 8, 32, F16),
            TensorType::Q4_1 => codes(Four, 0, 32, F16WithMinimum),
            TensorType::Q5_0 => codes(Five, 16, 32, F16),
            TensorType::Q5_1 => codes(Five, 0, 32, F16WithMinimum),
            TensorType::Q8_0 => codes(Eight, 128, 32, F16),
            // Two-bit and three-bit types are rare, so they are stored in four bits.
            TensorType::Q2_K => codes(Four, 0, 16, SuperWithMinimum),
            TensorType::Q3_K => codes(Four, 4, 16, Super),
            TensorType::Q4_K => codes(Four, 0, 32, SuperWithMinimum),
            TensorType::Q5_K => codes(Five, 0, 32, SuperWithMinimum),
            TensorType::Q6_K => codes(Six, 32, 16, Super),
            _ => None,
        }
    }

    /// Columns are padded with zeros to a multiple of this number.
    pub fn unit(self) -> usize {
        match self {
            Format::Codes(codes) => codes.unit(),
            Format::Dense(_) => COLUMNS_PER_BLOCK,
        }
    }

    /// The size of a panel in bytes: 16 rows of `columns` (padded) columns.
    pub fn panel_bytes(self, columns: usize) -> usize {
        match self {
            Format::Codes(codes) => {
                codes.codes_at(columns) + codes.code_bytes() * columns / COLUMNS_PER_BLOCK
            }
            Format::Dense(dense) => dense.width() * LANES * columns,
        }
    }
}

impl Dense {
    /// The size of an element in bytes.
    pub fn width(self) -> usize {
        match self {
            Dense::F16 | Dense::BF16 => 2,
            Dense::F32 => 4,
        }
    }
}

impl Codes {
    /// Columns that share a header of scales.
    pub fn unit(self) -> usize {
        match self.scales {
            Scales::F16 | Scales::F16WithMinimum => COLUMNS_PER_BLOCK,
            Scales::Super | Scales::SuperWithMinimum => 256,
        }
    }

    /// Whether groups have a minimum.
    pub fn has_minimum(self) -> bool {
        matches!(
            self.scales,
            Scales::F16WithMinimum | Scales::SuperWithMinimum
        )
    }

    /// Groups per unit.
    pub fn groups(self) -> usize {
        self.unit() / self.group
    }

    /// The size in bytes of the scales of 16 rows of one unit.
    pub fn header_bytes(self) -> usize {
        match self.scales {
            Scales::F16 => 2 * LANES,
            Scales::F16WithMinimum => 4 * LANES,
            Scales::Super => (2 + self.groups()) * LANES,
            Scales::SuperWithMinimum => (4 + 2 * self.groups()) * LANES,
        }
    }

    /// The size in bytes of the codes of 16 rows of one block.
    pub fn code_bytes(self) -> usize {
        let bits = match self.bits {
            Bits::Four => 4,
            Bits::Five => 5,
            Bits::Six => 6,
            Bits::Eight => 8,
        };
        LANES * COLUMNS_PER_BLOCK * bits / 8
    }

    /// The offset of the codes in a panel: after all headers, aligned to a cache line.
    pub fn codes_at(self, columns: usize) -> usize {
        (columns / self.unit() * self.header_bytes()).next_multiple_of(64)
    }
}
