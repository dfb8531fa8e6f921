//! The element types of GGUF tensors (ggml's quantization types).

/// The storage type of a tensor's elements: one of ggml's types.
///
/// Elements come in blocks of [`block_size`](TensorType::block_size) along the innermost
/// dimension; each block takes [`type_size`](TensorType::type_size) bytes. The ids and sizes
/// are those of ggml's `ggml_type` and `ggml-common.h`.
#[expect(missing_docs, reason = "the names are ggml's; name() spells them")]
#[expect(non_camel_case_types, reason = "ggml's spelling is the one users know")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// The id in the file, type, name, elements per block and bytes per block of each type.
const TYPES: &[(u32, TensorType, &str, usize, usize)] = &[
    (0, TensorType::F32, "F32", 1, 4),
    (1, TensorType::F16, "F16", 1, 2),
    (2, TensorType::Q4_0, "Q4_0", 32, 18),
    (3, TensorType::Q4_1, "Q4_1", 32, 20),
    (6, TensorType::Q5_0, "Q5_0", 32, 22),
    (7, TensorType::Q5_1, "Q5_1", 32, 24),
    (8, TensorType::Q8_0, "Q8_0", 32, 34),
    (9, TensorType::Q8_1, "Q8_1", 32, 36),
    (10, TensorType::Q2_K, "Q2_K", 256, 84),
    (11, TensorType::Q3_K, "Q3_K", 256, 110),
    (12, TensorType::Q4_K, "Q4_K", 256, 144),
    (13, TensorType::Q5_K, "Q5_K", 256, 176),
    (14, TensorType::Q6_K, "Q6_K", 256, 210),
    (15, TensorType::Q8_K, "Q8_K", 256, 292),
    (16, TensorType::IQ2_XXS, "IQ2_XXS", 256, 66),
    (17, TensorType::IQ2_XS, "IQ2_XS", 256, 74),
    (18, TensorType::IQ3_XXS, "IQ3_XXS", 256, 98),
    (19, TensorType::IQ1_S, "IQ1_S", 256, 50),
    (20, TensorType::IQ4_NL, "IQ4_NL", 32, 18),
    (21, TensorType::IQ3_S, "IQ3_S", 256, 110),
    (22, TensorType::IQ2_S, "IQ2_S", 256, 82),
    (23, TensorType::IQ4_XS, "IQ4_XS", 256, 136),
    (24, TensorType::I8, "I8", 1, 1),
    (25, TensorType::I16, "I16", 1, 2),
    (26, TensorType::I32, "I32", 1, 4),
    (27, TensorType::I64, "I64", 1, 8),
    (28, TensorType::F64, "F64", 1, 8),
    (29, TensorType::IQ1_M, "IQ1_M", 256, 56),
    (30, TensorType::BF16, "BF16", 1, 2),
    (34, TensorType::TQ1_0, "TQ1_0", 256, 54),
    (35, TensorType::TQ2_0, "TQ2_0", 256, 66),
    (39, TensorType::MXFP4, "MXFP4", 32, 17),
    (40, TensorType::NVFP4, "NVFP4", 64, 36),
    (41, TensorType::Q1_0, "Q1_0", 128, 18),
    (42, TensorType::Q2_0, "Q2_0", 64, 18),
];

impl TensorType {
    /// Returns the type with this id, or `None` for an id that ggml does not use (it has
    /// retired 4, 5, 31 to 33 and 36 to 38).
    pub fn from_id(id: u32) -> Option<TensorType> {
        TYPES
            .iter()
            .find(|entry| entry.0 == id)
            .map(|entry| entry.1)
    }

    /// Iterates over all types in the order of their ids.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TYPES.iter().map(|entry| entry.1)
    }

    /// The id of the type in the file.
    pub fn id(self) -> u32 {
        self.row().0
    }

    /// The name in ggml, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// The number of elements per block.
    pub fn block_size(self) -> usize {
        self.row().3
    }

    /// The number of bytes per block.
    pub fn type_size(self) -> usize {
        self.row().4
    }

    /// The number of bits per element, including the scales of the block.
    pub fn bits_per_weight(self) -> f64 {
        self.type_size() as f64 * 8.0 / self.block_size() as f64
    }

    fn row(self) -> &'static (u32, TensorType, &'static str, usize, usize) {
        // The table lists the variants in the order the enum declares them
        // (a unit test compares the two).
        &TYPES[self as usize]
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_enum() {
        for (at, row) in TYPES.iter().enumerate() {
            assert_eq!(row.1 as usize, at, "{}", row.2);
            assert_eq!(format!("{:?}", row.1), row.2);
            assert_eq!(TensorType::from_id(row.0), Some(row.1));
        }
        assert_eq!(TYPES.last().unwrap().1, TensorType::Q2_0);
    }

    #[test]
    fn ids_that_were_given_up_are_unknown() {
        for id in [4, 5, 31, 33, 36, 38, 43, u32::MAX] {
            assert_eq!(TensorType::from_id(id), None);
        }
    }
}
