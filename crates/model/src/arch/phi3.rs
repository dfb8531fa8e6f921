//! Phi 3, 3.5 and 4: fused q, k and v, fused gate and up; LongRoPE in models with a context of
//! 128k tokens; sliding-window attention in every layer of some models.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.windowed(DecoderSpec {
        fused_gate: true,
        ..fields.decoder(RopeStyle::Halves)?
    })
}
