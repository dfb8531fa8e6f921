//! Phi 3, 3.5 and 4: q, k and v in one tensor, gate and up in another; LongRoPE in
//! those with a context of 128k tokens; a sliding window in every layer of some.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.windowed(DecoderSpec {
        fused_gate: true,
        ..fields.decoder(RopeStyle::Halves)?
    })
}
