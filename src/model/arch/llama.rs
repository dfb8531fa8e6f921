//! Llama 1 to 3.2 and what is built like them: Mistral, SmolLM2, TinyLlama, Yi…

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    if fields
        .get_size("expert_count")
        .is_some_and(|count| count > 0)
    {
        return Err(fields.unsupported("a mixture of experts"));
    }
    Ok(DecoderSpec {
        qkv_bias: fields.has_tensor("blk.0.attn_q.bias"),
        ..fields.decoder(RopeStyle::Pairs)?
    })
}
