//! Gemma 2: sliding-window attention in every other layer; soft caps on attention scores and
//! logits; norms before and after attention and feed-forward; scaled embeddings. The norm
//! weights in GGUF files already include the "+ 1".

use super::{DecoderSpec, Fields, ModelError, RopeStyle};
use crate::{Activation, LayerSpec};

/// Every second layer is global.
const PERIOD: usize = 2;
/// The defaults for files without these keys.
const WINDOW: usize = 4096;
const ATTENTION_CAP: f32 = 50.0;
const LOGIT_CAP: f32 = 30.0;
/// Only Gemma 2 27B scales queries by its hidden width per head; no other size has this number
/// of layers.
const LAYERS_27B: usize = 46;

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let base = fields.decoder(RopeStyle::Halves)?;
    let window = fields
        .get_size("attention.sliding_window")?
        .unwrap_or(WINDOW);
    let layers = fields.sliding(base.layers.len(), PERIOD)?;
    let layers = layers.into_iter().map(|sliding| LayerSpec {
        window: sliding.then_some(window),
        rope: 0,
    });
    let query_width = if base.layers.len() == LAYERS_27B {
        base.hidden / base.heads
    } else {
        base.head_dim
    };
    Ok(DecoderSpec {
        attention_scale: (query_width as f32).powf(-0.5),
        attention_cap: fields.soft_cap("attn_logit_softcapping", Some(ATTENTION_CAP))?,
        embedding_scale: (base.hidden as f32).sqrt(),
        logit_cap: fields.soft_cap("final_logit_softcapping", Some(LOGIT_CAP))?,
        activation: Activation::GeluTanh,
        post_norms: true,
        layers: layers.collect(),
        ..base
    })
}
