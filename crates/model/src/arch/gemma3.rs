//! Gemma 3 (text): five sliding-window layers per global one, which use another RoPE base; q
//! and k norms; norms after attention and feed-forward; scaled embeddings. The norm weights in
//! GGUF files already include the "+ 1".

use super::{DecoderSpec, Fields, ModelError, RopeStyle, rope};
use crate::{Activation, LayerSpec, QkNorm, RopeSpec};

/// One layer in six is global.
const PERIOD: usize = 6;
/// The RoPE base of sliding-window layers.
const LOCAL_BASE: f32 = 10_000.0;
/// Only Gemma 3 27B scales queries by its hidden width per head; no other size has this number
/// of layers.
const LAYERS_27B: usize = 62;

const GLOBAL_ROPE: usize = 0;
const LOCAL_ROPE: usize = 1;

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let base = fields.decoder(RopeStyle::Halves)?;
    let window = fields.size("attention.sliding_window")?;
    let global = RopeSpec {
        base: fields.get_float("rope.freq_base")?.unwrap_or(1_000_000.0),
        ..base.ropes[0].clone()
    };
    // RoPE scaling in the file applies only to the global layers.
    let local = RopeSpec {
        base: fields
            .get_float("rope.freq_base_swa")?
            .unwrap_or(LOCAL_BASE),
        ..rope::unscaled(&global)
    };
    let query_width = if base.layers.len() == LAYERS_27B {
        base.hidden / base.heads
    } else {
        base.head_dim
    };
    let layers = fields.sliding(base.layers.len(), PERIOD)?;
    let layers = layers.into_iter().map(|sliding| LayerSpec {
        window: sliding.then_some(window),
        rope: if sliding { LOCAL_ROPE } else { GLOBAL_ROPE },
    });
    Ok(DecoderSpec {
        attention_scale: (query_width as f32).powf(-0.5),
        embedding_scale: (base.hidden as f32).sqrt(),
        logit_cap: fields.soft_cap("final_logit_softcapping", None)?,
        activation: Activation::GeluTanh,
        qk_norm: Some(QkNorm::Head),
        post_norms: true,
        ropes: vec![global, local],
        layers: layers.collect(),
        ..base
    })
}
