//! The names of a decoder's linear layers in PEFT and in GGUF adapters.

use super::error::Cause;
use crate::{DecoderSpec, Part, RopeStyle};

/// A linear layer of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Linear {
    /// The query projection.
    Query,
    /// The key projection.
    Key,
    /// The value projection.
    Value,
    /// The output projection of attention.
    Output,
    /// The gate projection.
    Gate,
    /// The up projection.
    Up,
    /// The down projection.
    Down,
}

impl Linear {
    /// All linear layers.
    pub const ALL: [Linear; 7] = [
        Linear::Query,
        Linear::Key,
        Linear::Value,
        Linear::Output,
        Linear::Gate,
        Linear::Up,
        Linear::Down,
    ];

    /// The part of a layer that holds its weights.
    pub fn part(self) -> Part {
        match self {
            Linear::Query => Part::Query,
            Linear::Key => Part::Key,
            Linear::Value => Part::Value,
            Linear::Output => Part::Output,
            Linear::Gate => Part::Gate,
            Linear::Up => Part::Up,
            Linear::Down => Part::Down,
        }
    }

    /// Returns all linear layers that share its input, including itself.
    pub fn sharing_input(self) -> &'static [Linear] {
        match self {
            Linear::Query | Linear::Key | Linear::Value => {
                &[Linear::Query, Linear::Key, Linear::Value]
            }
            Linear::Output => &[Linear::Output],
            Linear::Gate | Linear::Up => &[Linear::Gate, Linear::Up],
            Linear::Down => &[Linear::Down],
        }
    }

    /// The shape, `[outputs, inputs]`.
    pub fn shape(self, spec: &DecoderSpec) -> [usize; 2] {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            Linear::Query => [q, spec.hidden],
            Linear::Key | Linear::Value => [kv, spec.hidden],
            Linear::Output => [spec.hidden, q],
            Linear::Gate | Linear::Up => [spec.feed_forward, spec.hidden],
            Linear::Down => [spec.hidden, spec.feed_forward],
        }
    }

    /// Returns the linear layers of a PEFT module such as `self_attn.q_proj`; several if
    /// checkpoints fuse them in one matrix, one after the other.
    pub(super) fn of_module(module: &str) -> Option<&'static [Linear]> {
        Some(match module {
            "self_attn.q_proj" => &[Linear::Query],
            "self_attn.k_proj" => &[Linear::Key],
            "self_attn.v_proj" => &[Linear::Value],
            "self_attn.qkv_proj" => &[Linear::Query, Linear::Key, Linear::Value],
            "self_attn.o_proj" => &[Linear::Output],
            "mlp.gate_proj" => &[Linear::Gate],
            "mlp.up_proj" => &[Linear::Up],
            "mlp.gate_up_proj" => &[Linear::Gate, Linear::Up],
            "mlp.down_proj" => &[Linear::Down],
            _ => return None,
        })
    }

    /// The name of its module in PEFT, within a layer.
    pub fn module(self) -> &'static str {
        match self {
            Linear::Query => "self_attn.q_proj",
            Linear::Key => "self_attn.k_proj",
            Linear::Value => "self_attn.v_proj",
            Linear::Output => "self_attn.o_proj",
            Linear::Gate => "mlp.gate_proj",
            Linear::Up => "mlp.up_proj",
            Linear::Down => "mlp.down_proj",
        }
    }

    /// The last component of its module's name, by which PEFT selects targets.
    pub fn target(self) -> &'static str {
        let module = self.module();
        module.rsplit_once('.').map_or(module, |(_, last)| last)
    }

    /// All module names, within a layer.
    pub(super) const MODULES: [&'static str; 9] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ];

    /// Returns the linear layers of a tensor of a GGUF adapter, such as `attn_q.weight`, to
    /// which it adds `outputs` rows.
    pub(super) fn of_tensor(
        tensor: &str,
        outputs: usize,
        spec: &DecoderSpec,
    ) -> Option<&'static [Linear]> {
        Some(match tensor {
            "attn_q.weight" => &[Linear::Query],
            "attn_k.weight" => &[Linear::Key],
            "attn_v.weight" => &[Linear::Value],
            "attn_qkv.weight" => &[Linear::Query, Linear::Key, Linear::Value],
            "attn_output.weight" => &[Linear::Output],
            "ffn_gate.weight" => &[Linear::Gate],
            // Phi 3 stores both under this name.
            "ffn_up.weight" if outputs == 2 * spec.feed_forward => &[Linear::Gate, Linear::Up],
            "ffn_up.weight" => &[Linear::Up],
            "ffn_down.weight" => &[Linear::Down],
            _ => return None,
        })
    }

    /// The name of its tensor in GGUF, within a layer.
    pub(super) fn tensor(self) -> &'static str {
        match self {
            Linear::Query => "attn_q.weight",
            Linear::Key => "attn_k.weight",
            Linear::Value => "attn_v.weight",
            Linear::Output => "attn_output.weight",
            Linear::Gate => "ffn_gate.weight",
            Linear::Up => "ffn_up.weight",
            Linear::Down => "ffn_down.weight",
        }
    }

    /// Returns the head size if GGUF stores the rows of each head in another order than PEFT:
    /// with the two dimensions of each RoPE pair next to each other.
    pub(super) fn permuted_heads(self, spec: &DecoderSpec) -> Option<usize> {
        let pairs = spec.ropes.iter().any(|r| r.style == RopeStyle::Pairs);
        (pairs && matches!(self, Linear::Query | Linear::Key)).then_some(spec.head_dim)
    }
}

/// Tells which of the two matrices a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// Parses the name of a tensor of a PEFT adapter: returns the full name of the module, and
/// which of its matrices it is.
pub(super) fn of_peft(name: &str) -> Result<(&str, Side), Cause> {
    let tensor = |what| Cause::Tensor {
        name: name.to_owned(),
        what,
    };
    if name.contains("lora_magnitude_vector") {
        return Err(tensor("a part of DoRA"));
    }
    if name.contains("lora_embedding_") || name.contains("embed_tokens") {
        return Err(tensor("for the embedding"));
    }
    if name.contains("lm_head") {
        return Err(tensor("for the head"));
    }
    let unknown = || Cause::Unknown {
        name: name.to_owned(),
    };
    let rest = name.strip_prefix("base_model.model.").ok_or_else(unknown)?;
    for (mark, side) in [(".lora_A", Side::A), (".lora_B", Side::B)] {
        if let Some((module, after)) = rest.rsplit_once(mark) {
            // Some versions insert the adapter's name here.
            return if after.ends_with(".weight") {
                Ok((module, side))
            } else if after.ends_with(".bias") {
                Err(tensor("a bias of LoRA"))
            } else {
                Err(unknown())
            };
        }
    }
    Err(unknown())
}

/// The prefixes of decoder layers in checkpoints. (An image encoder has layers too.)
const ROOTS: &[&str] = &[
    "",
    "model.",
    "model.language_model.",
    "language_model.model.",
];

/// Returns the layer index of a module, and its name within the layer.
pub(super) fn in_layer(module: &str) -> Option<(usize, &str)> {
    let (root, rest) = module.split_once("layers.")?;
    if !ROOTS.contains(&root) {
        return None;
    }
    let (layer, module) = rest.split_once('.')?;
    Some((layer.parse().ok()?, module))
}

/// Parses the name of a tensor of a GGUF adapter: layer, tensor, matrix.
pub(super) fn of_gguf(name: &str) -> Result<(usize, &str, Side), Cause> {
    let unknown = || Cause::Unknown {
        name: name.to_owned(),
    };
    let (tensor, side) = match name.strip_suffix(".lora_a") {
        Some(tensor) => (tensor, Side::A),
        None => (name.strip_suffix(".lora_b").ok_or_else(unknown)?, Side::B),
    };
    let refused = |what| Cause::Tensor {
        name: name.to_owned(),
        what,
    };
    match tensor {
        "token_embd.weight" => return Err(refused("for the embedding")),
        "output.weight" => return Err(refused("for the head")),
        _ => {}
    }
    let rest = tensor.strip_prefix("blk.").ok_or_else(unknown)?;
    let (layer, tensor) = rest.split_once('.').ok_or_else(unknown)?;
    Ok((layer.parse().map_err(|_| unknown())?, tensor, side))
}
