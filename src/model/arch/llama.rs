//! Llama 1 to 3.2 and what is built like them: Mistral, SmolLM2, TinyLlama, Yi…

use super::{DecoderSpec, Fields, ModelError, RopeStyle};
use crate::model::{Activation, LayerSpec};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    if fields
        .get_size("expert_count")
        .is_some_and(|count| count > 0)
    {
        return Err(fields.unsupported("a mixture of experts"));
    }
    let hidden = fields.size("embedding_length")?;
    let (heads, kv_heads, head_dim) = fields.heads(hidden)?;
    Ok(DecoderSpec {
        architecture: fields.name,
        vocab: fields.vocab(hidden)?,
        hidden,
        feed_forward: fields.size("feed_forward_length")?,
        heads,
        kv_heads,
        head_dim,
        context: fields.size("context_length")?,
        norm_eps: fields.float("attention.layer_norm_rms_epsilon")?,
        attention_scale: (head_dim as f32).powf(-0.5),
        embedding_scale: 1.0,
        activation: Activation::Silu,
        qkv_bias: fields.has_tensor("blk.0.attn_q.bias"),
        qk_norm: false,
        post_norms: false,
        tied_head: !fields.has_tensor("output.weight"),
        ropes: vec![fields.rope(head_dim, RopeStyle::Pairs)?],
        layers: vec![
            LayerSpec {
                window: None,
                rope: 0
            };
            fields.layer_count()?
        ],
    })
}
