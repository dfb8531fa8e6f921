//! Qwen 3 (dense): Llama with q and k norms and RoPE over halves (NeoX style).

use super::{DecoderSpec, Fields, ModelError, RopeStyle};
use crate::QkNorm;

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    Ok(DecoderSpec {
        qk_norm: Some(QkNorm::Head),
        ..fields.decoder(RopeStyle::Halves)?
    })
}
