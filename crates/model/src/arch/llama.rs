//! Llama 1 to 3.2 and what is built like them: SmolLM2, TinyLlama, Yi, and most
//! Mistrals, of which the first have a sliding window in every layer.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.windowed(fields.decoder(RopeStyle::Pairs)?)
}
