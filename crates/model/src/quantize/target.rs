//! Chooses the target type of each tensor.

use std::fmt;
use std::str::FromStr;

use super::mix::{Mix, Model};
use crate::candle_dtype;
use incant_gguf::nearest::nearest;
use incant_gguf::{TensorInfo, TensorType};

/// The target type of the matrices of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Each matrix keeps its type; but if an adapter adds to it and the type has fewer than 8
    /// bits, in which most of the addition would be lost, it becomes Q8_0.
    #[default]
    Auto,
    /// Each matrix keeps its type.
    Same,
    /// All matrices get the same type. With a k-quant the embedding and the LM head, which
    /// suffer most from few bits, become Q6_K.
    Type(TensorType),
    /// One of llama.cpp's mixtures.
    Mix(Mix),
}

impl Target {
    /// Returns the type that a tensor should have, with or without an addition by an adapter.
    pub(super) fn wanted(self, tensor: &TensorInfo, is_adapted: bool, model: Model) -> TensorType {
        match self {
            // Norms and biases are small, and keep their type for precision.
            _ if tensor.shape.len() < 2 => tensor.kind,
            Target::Auto if is_adapted && tensor.kind.bits_per_weight() < 8.0 => TensorType::Q8_0,
            Target::Auto | Target::Same => tensor.kind,
            Target::Type(kind) if is_k_quant(kind) && is_outer(&tensor.name) => TensorType::Q6_K,
            Target::Type(kind) => kind,
            Target::Mix(mix) => mix.wanted(tensor, model),
        }
    }

    /// Iterates over all targets that can be named.
    fn all() -> impl Iterator<Item = Target> {
        let kinds = TensorType::all().filter(|kind| candle_dtype(*kind).is_some());
        let mixes = Mix::ALL.into_iter().map(Target::Mix);
        [Target::Auto, Target::Same]
            .into_iter()
            .chain(kinds.map(Target::Type))
            .chain(mixes)
    }
}

/// The error of a text that names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no weights are written in it; the nearest is {nearest}, and all are {all}")]
pub struct UnknownTarget {
    /// The target with the most similar name.
    nearest: String,
    /// The names of all targets.
    all: String,
}

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Target, UnknownTarget> {
        let named = |target: &Target| target.to_string().eq_ignore_ascii_case(text);
        if let Some(target) = Target::all().find(named) {
            return Ok(target);
        }
        let names: Vec<String> = Target::all().map(|target| target.to_string()).collect();
        let all = names.join(", ");
        let nearest = nearest(&text.to_uppercase(), names).swap_remove(0);
        Err(UnknownTarget { nearest, all })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Auto => f.write_str("auto"),
            Target::Same => f.write_str("same"),
            Target::Type(kind) => kind.fmt(f),
            Target::Mix(mix) => f.write_str(mix.name()),
        }
    }
}

fn is_k_quant(kind: TensorType) -> bool {
    kind.block_size() == 256
}

/// Whether the tensor is the embedding or the LM head.
fn is_outer(name: &str) -> bool {
    ["token_embd.weight", "output.weight"].contains(&name)
}

/// Returns `kind`, or llama.cpp's replacement if the tensor's rows are not a multiple of its
/// block size.
pub(super) fn fitting(kind: TensorType, tensor: &TensorInfo) -> TensorType {
    use TensorType::{F16, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    let row = tensor.shape.last().copied().unwrap_or(1);
    let smaller = match kind {
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    let fits = |kind: &TensorType| row.is_multiple_of(kind.block_size());
    let kinds = [kind, smaller, F16].into_iter();
    kinds.clone().find(fits).unwrap_or(F16)
}

/// The `general.file_type` of a file whose matrices have this type: llama.cpp's `llama_ftype`,
/// for k-quants the smallest mixture.
pub(super) fn file_type(kind: TensorType) -> u32 {
    match kind {
        TensorType::Q3_K => 11,
        TensorType::Q4_K => 14,
        TensorType::Q5_K => 16,
        TensorType::Q6_K => 18,
        TensorType::Q5_0 => 8,
        TensorType::Q5_1 => 9,
        TensorType::Q8_0 => 7,
        TensorType::BF16 => 32,
        // The two numbers of the other types are equal.
        kind => kind.id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_known_by_its_name_in_any_case() {
        assert_eq!("q4_k".parse(), Ok(Target::Type(TensorType::Q4_K)));
        assert_eq!("Same".parse(), Ok(Target::Same));
        assert_eq!("auto".parse(), Ok(Target::Auto));
        assert_eq!("q4_k_m".parse(), Ok(Target::Mix(Mix::Q4KM)));
        for (text, near) in [("Q4_KM", "Q4_K_M"), ("iq4_xs", "Q4_K_S"), ("Q8", "Q8_0")] {
            let told = text.parse::<Target>().unwrap_err().to_string();
            let expected = format!("no weights are written in it; the nearest is {near}, and all");
            assert!(told.starts_with(&expected), "{told}");
            assert!(told.ends_with("Q5_K_S, Q5_K_M"), "{told}");
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_get_the_next_larger_type() {
        let fitting = |kind, row| {
            let tensor = TensorInfo {
                name: "blk.0.ffn_down.weight".to_owned(),
                shape: vec![4, row],
                kind: TensorType::F32,
                offset: 0,
                len: 16 * row,
            };
            super::fitting(kind, &tensor)
        };
        use TensorType::{F16, F32, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        for (kind, at_640, at_650) in [
            (F32, F32, F32),
            (Q8_0, Q8_0, F16),
            (Q3_K, Q4_0, F16),
            (Q4_K, Q5_0, F16),
            (Q5_K, Q5_1, F16),
            (Q6_K, Q8_0, F16),
        ] {
            assert_eq!(fitting(kind, 768), kind);
            assert_eq!(fitting(kind, 640), at_640);
            assert_eq!(fitting(kind, 650), at_650);
        }
    }
}
