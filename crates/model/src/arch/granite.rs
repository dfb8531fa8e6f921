//! Granite 3 and 4 (dense): Llama with its own scales (multipliers) for embeddings, attention,
//! residual additions and logits.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    // Granite's files use this key to tell whether the model uses RoPE at all.
    if fields.get_bool("rope.scaling.finetuned")? == Some(false) {
        return Err(fields.unsupported("attention without a rope"));
    }
    let base = fields.decoder(RopeStyle::Pairs)?;
    // 0 means the default.
    let scale = |key| {
        let scale = fields.get_float(key)?;
        Ok::<_, ModelError>(scale.filter(|&scale| scale != 0.0))
    };
    Ok(DecoderSpec {
        attention_scale: scale("attention.scale")?.unwrap_or(base.attention_scale),
        embedding_scale: scale("embedding_scale")?.unwrap_or(1.0),
        residual_scale: scale("residual_scale")?.unwrap_or(1.0),
        // The logits are divided by the value in the file.
        logit_scale: 1.0 / fields.float("logit_scale")?,
        ..base
    })
}
