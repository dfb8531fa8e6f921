//! Llama 1 to 3.2 and models of the same architecture: SmolLM2, TinyLlama, Yi, and most
//! Mistrals, the first of which use sliding-window attention in every layer.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.windowed(fields.decoder(RopeStyle::Pairs)?)
}
