//! OLMo 2 and 3: norms after attention and feed-forward instead of before, and q and k norms
//! over all heads together. OLMo 3 has three sliding-window layers per global one.

use super::{DecoderSpec, Fields, ModelError, RopeStyle, rope};
use crate::{LayerSpec, QkNorm};

/// In models with sliding windows, every fourth layer is global.
const PERIOD: usize = 4;

const GLOBAL_ROPE: usize = 0;
const LOCAL_ROPE: usize = 1;

pub(super) fn read(fields: &Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let mut spec = DecoderSpec {
        qk_norm: Some(QkNorm::Whole),
        pre_norms: false,
        post_norms: true,
        ..fields.decoder(RopeStyle::Halves)?
    };
    if let Some(window) = fields.window()? {
        // YaRN applies only to the global layers.
        spec.ropes.push(rope::unscaled(&spec.ropes[GLOBAL_ROPE]));
        let sliding = fields.sliding(spec.layers.len(), PERIOD)?;
        for (layer, _) in spec.layers.iter_mut().zip(sliding).filter(|(_, on)| *on) {
            *layer = LayerSpec {
                window: Some(window),
                rope: LOCAL_ROPE,
            };
        }
    }
    Ok(spec)
}
