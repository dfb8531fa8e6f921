//! The oracle's sliding windows and RoPEs, layer by layer.

use std::collections::BTreeMap;

use super::PlainLayer;
use crate::reference::tiny::{CONTEXT, LONG_MAGNITUDE, Tiny, Yarn};

/// The properties that differ between a model's layers.
pub(super) fn layers(model: &Tiny, weights: &BTreeMap<String, Vec<f64>>) -> Vec<PlainLayer> {
    let window = match model.window {
        0 => usize::MAX,
        window => window,
    };
    let base = f64::from(model.rope_base);
    let whole = PlainLayer {
        window: usize::MAX,
        ..scaled(model, weights)
    };
    let unscaled = |base| PlainLayer {
        window,
        frequencies: frequencies(model, base),
        magnitude: 1.0,
    };
    let windowed = PlainLayer {
        window,
        ..whole.clone()
    };
    let pattern = |period: usize, sliding: PlainLayer| {
        let numbers = 1..=model.layers;
        let layer = |number| match number % period {
            0 => whole.clone(),
            _ => sliding.clone(),
        };
        numbers.map(layer).collect()
    };
    match model.architecture {
        "gemma2" => pattern(2, windowed),
        "gemma3" => pattern(6, unscaled(10_000.0)),
        "olmo2" => pattern(4, unscaled(base)),
        _ => vec![windowed; model.layers],
    }
}

fn frequencies(model: &Tiny, base: f64) -> Vec<f64> {
    let dims = model.rotating();
    let pairs = 0..dims / 2;
    pairs
        .map(|pair| base.powf(-2.0 * pair as f64 / dims as f64))
        .collect()
}

/// The RoPE of a layer without a window.
fn scaled(model: &Tiny, weights: &BTreeMap<String, Vec<f64>>) -> PlainLayer {
    let mut layer = PlainLayer {
        window: usize::MAX,
        frequencies: frequencies(model, f64::from(model.rope_base)),
        magnitude: 1.0,
    };
    let mut divide = |divisors: &dyn Fn(usize) -> f64| {
        for (pair, frequency) in layer.frequencies.iter_mut().enumerate() {
            *frequency /= divisors(pair);
        }
    };
    if let Some(factor) = model.rope_linear {
        divide(&|_| f64::from(factor));
    }
    if let Some(factors) = weights.get("rope_freqs.weight") {
        divide(&|pair| factors[pair]);
    }
    if let Some(original) = model.rope_long {
        let which = if CONTEXT > original { "long" } else { "short" };
        let factors = &weights[&format!("rope_factors_{which}.weight")];
        divide(&|pair| factors[pair]);
        layer.magnitude = f64::from(LONG_MAGNITUDE);
    }
    if let Some(yarn) = model.rope_yarn {
        stretch(&mut layer, model, yarn);
    }
    layer
}

/// YaRN: a mixture of the original frequencies (extrapolation) and of those divided by the
/// factor (interpolation).
fn stretch(layer: &mut PlainLayer, model: &Tiny, yarn: Yarn) {
    let factor = f64::from(yarn.factor);
    let dims = model.rotating() as f64;
    // The dimension whose pair rotates `turns` times within the original context.
    let dimension = |turns: f32| {
        let wavelength = yarn.original as f64 / f64::from(turns);
        let base = f64::from(model.rope_base);
        dims * (wavelength / std::f64::consts::TAU).ln() / (2.0 * base.ln())
    };
    let low = dimension(yarn.fast).floor().max(0.0);
    let high = dimension(yarn.slow).ceil().min(dims - 1.0);
    assert!(low < high, "the tiny model's range is not empty");
    for (pair, frequency) in layer.frequencies.iter_mut().enumerate() {
        let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let (extrapolated, interpolated) = (*frequency, *frequency / factor);
        *frequency = interpolated * ramp + extrapolated * (1.0 - ramp);
    }
    let scale = |weight: f64| 0.1 * weight * factor.ln() + 1.0;
    layer.magnitude = match yarn.log_multiplier {
        Some(all_dimensions) => scale(1.0) / scale(f64::from(all_dimensions)),
        None => scale(1.0),
    };
}
