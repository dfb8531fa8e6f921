//! Ministral 3 and Mistral Small 3.1: Llama; Ministral adds YaRN and attention scores that grow
//! with the position.

use super::{DecoderSpec, Fields, ModelError, RopeStyle};
use crate::Temperature;

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let slope = fields.get_float("attention.temperature_scale")?;
    let temperature = match slope.filter(|&slope| slope != 0.0) {
        None => None,
        Some(slope) => Some(Temperature {
            slope,
            length: fields.original_context()?,
        }),
    };
    Ok(DecoderSpec {
        temperature,
        ..fields.decoder(RopeStyle::Pairs)?
    })
}
