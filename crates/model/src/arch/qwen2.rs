//! Qwen 2 and 2.5: Llama with q, k and v biases and RoPE over halves (NeoX style).

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    Ok(DecoderSpec {
        qkv_bias: true,
        ..fields.decoder(RopeStyle::Halves)?
    })
}
