//! llama.cpp's mixtures of k-quants (`llama_tensor_get_type` in `llama-quant.cpp`): some
//! tensors, and the tensors of some layers, get more bits.

use incant_gguf::{TensorInfo, TensorType};

/// A mixture, by llama.cpp's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Q3_K, except for the LM head.
    Q3KS,
    /// Q3_K with the values and both outputs in Q4_K or Q5_K.
    Q3KM,
    /// Q3_K with the values and both outputs in Q5_K.
    Q3KL,
    /// Q4_K with some value and down projections in Q5_K.
    Q4KS,
    /// Q4_K with half of the value and down projections in Q6_K.
    Q4KM,
    /// Q5_K, except for the LM head.
    Q5KS,
    /// Q5_K with half of the value and down projections in Q6_K.
    Q5KM,
}

/// The properties of a model on which a mixture depends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    pub(super) layers: usize,
    /// Whether the LM head is a tensor of its own.
    pub(super) has_head: bool,
}

impl Mix {
    /// All mixtures.
    pub const ALL: [Mix; 7] = [
        Mix::Q3KS,
        Mix::Q3KM,
        Mix::Q3KL,
        Mix::Q4KS,
        Mix::Q4KM,
        Mix::Q5KS,
        Mix::Q5KM,
    ];

    /// The name in llama.cpp.
    pub fn name(self) -> &'static str {
        match self {
            Mix::Q3KS => "Q3_K_S",
            Mix::Q3KM => "Q3_K_M",
            Mix::Q3KL => "Q3_K_L",
            Mix::Q4KS => "Q4_K_S",
            Mix::Q4KM => "Q4_K_M",
            Mix::Q5KS => "Q5_K_S",
            Mix::Q5KM => "Q5_K_M",
        }
    }

    /// The number in `general.file_type`: llama.cpp's `llama_ftype`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Mix::Q3KS => 11,
            Mix::Q3KM => 12,
            Mix::Q3KL => 13,
            Mix::Q4KS => 14,
            Mix::Q4KM => 15,
            Mix::Q5KS => 16,
            Mix::Q5KM => 17,
        }
    }

    /// The type of most matrices.
    fn base(self) -> TensorType {
        match self {
            Mix::Q3KS | Mix::Q3KM | Mix::Q3KL => TensorType::Q3_K,
            Mix::Q4KS | Mix::Q4KM => TensorType::Q4_K,
            Mix::Q5KS | Mix::Q5KM => TensorType::Q5_K,
        }
    }

    /// Returns the type that a matrix of `model` should have.
    pub(super) fn wanted(self, tensor: &TensorInfo, model: Model) -> TensorType {
        use TensorType::{Q4_K, Q5_K, Q6_K};
        let Model { layers, has_head } = model;
        let base = self.base();
        let name = tensor.name.as_str();
        if name == "output.weight" || name == "token_embd.weight" && !has_head {
            return Q6_K;
        }
        let part = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = part.and_then(|(layer, part)| Some((layer.parse().ok()?, part)))
        else {
            return base;
        };
        let layer: usize = layer;
        let more = takes_more_bits(layer, layers);
        match part {
            "attn_v.weight" => match self {
                Mix::Q3KM if layer < 2 => Q5_K,
                Mix::Q3KM => Q4_K,
                Mix::Q3KL => Q5_K,
                Mix::Q4KS if layer < 4 => Q5_K,
                Mix::Q4KM | Mix::Q5KM if more => Q6_K,
                _ => base,
            },
            "ffn_down.weight" => match self {
                Mix::Q3KM if layer < layers / 16 => Q5_K,
                Mix::Q3KM => Q4_K,
                Mix::Q3KL => Q5_K,
                Mix::Q4KS if layer < layers / 8 => Q5_K,
                Mix::Q4KM | Mix::Q5KM if more => Q6_K,
                _ => base,
            },
            "attn_output.weight" => match self {
                Mix::Q3KM => Q4_K,
                Mix::Q3KL => Q5_K,
                _ => base,
            },
            "attn_qkv.weight" => match self {
                Mix::Q3KM | Mix::Q3KL => Q4_K,
                Mix::Q4KM => Q5_K,
                Mix::Q5KM => Q6_K,
                _ => base,
            },
            _ => base,
        }
    }
}

/// Whether a layer is among the most sensitive: the first and the last eighth, and every third
/// layer between them.
fn takes_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
