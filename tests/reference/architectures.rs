//! Every architecture, and what its files may say, with exact weights.

use super::plain::{self, Plain};
use super::tiny::{self, Tiny};
use super::{at_once, distance, executor};
use crate::support::subjects::{self, F32_TOLERANCE, NATIVE_TOLERANCE};

/// Models by what is particular about them.
#[rustfmt::skip]
fn models() -> Vec<(&'static str, Tiny)> {
    let (llama, qwen2, gemma3) = (Tiny::llama, Tiny::qwen2, Tiny::gemma3);
    vec![
        ("llama", llama()),
        ("llama, tied", Tiny { tied: true, ..llama() }),
        ("llama, a key head per query head", Tiny { kv_heads: 4, ..llama() }),
        ("llama, one key head", Tiny { kv_heads: 1, ..llama() }),
        ("llama, narrow heads", Tiny { head_dim: 10, ..llama() }),
        ("llama, wide heads", Tiny { head_dim: 28, ..llama() }),
        ("llama, biases", Tiny { biases: true, ..llama() }),
        ("llama, linear scaling", Tiny { rope_linear: Some(4.0), ..llama() }),
        ("llama, half the dimensions rotate", Tiny { rope_dims: Some(8), ..llama() }),
        ("llama, frequency factors", Tiny { rope_factors: true, ..llama() }),
        ("qwen2", qwen2()),
        ("qwen2, tied", Tiny { tied: true, ..qwen2() }),
        ("qwen2, half the dimensions rotate", Tiny { rope_dims: Some(8), ..qwen2() }),
        ("gemma3", gemma3()),
        ("gemma3, linear scaling", Tiny { rope_linear: Some(8.0), ..gemma3() }),
        ("gemma3, a window of one", Tiny { window: 1, ..gemma3() }),
        ("gemma3, a window beyond the text", Tiny { window: 64, ..gemma3() }),
        ("gemma3, a head of its own", Tiny { tied: false, ..gemma3() }),
        ("gemma3, 62 layers", Tiny { layers: 62, feed_forward: 32, ..gemma3() }),
    ]
}

#[test]
fn logits_are_the_oracles() {
    let tokens = tiny::tokens(7, 40);
    for (name, model) in models() {
        are_the_oracles(name, &model, &tokens);
    }
}

#[test]
fn logits_are_the_oracles_far_into_a_text() {
    let tokens = tiny::tokens(8, 400);
    for model in [Tiny::llama(), Tiny::gemma3()] {
        are_the_oracles(model.architecture, &model, &tokens);
    }
}

fn are_the_oracles(name: &str, model: &Tiny, tokens: &[u32]) {
    let tensors = model.tensors();
    let expected = Plain::new(model, &tensors).logits(tokens);
    for subject in subjects::all() {
        let mut executor = executor(model, &tensors, subject);
        let error = distance(&at_once(executor.as_mut(), tokens), &expected);
        eprintln!("{subject}, {name}: {error:.1e}");
        assert!(error <= subject.tolerance, "{subject}, {name}: {error:.2e}");
    }
}

/// A mistake that somebody has made, or could make.
type Mistake = fn(&mut Plain);

/// These tests are worth what they notice: every one of these mistakes moves
/// some logit by ten times the tolerance or more. That of the native executor
/// is too wide for one, which its kernels' own tests must notice.
#[test]
#[rustfmt::skip]
fn each_mistake_would_be_noticed() {
    let llama: &[(&str, Mistake)] = &[
        ("halves instead of neighbours", |p| p.pair = plain::halves),
        ("another epsilon", |p| p.eps *= 10.0),
        ("scores scaled by the hidden width", |p| p.score_scale = (p.hidden as f64).powf(-0.5)),
        ("GELU", |p| p.activation = plain::gelu_tanh),
        ("no frequency factors", |p| unscaled(p, 10_000.0)),
        ("positions off by one in the scale", |p| scale(p, 0..3, 40.0 / 41.0)),
        ("no query bias", |p| without(p, "attn_q.bias")),
        ("no key bias", |p| without(p, "attn_k.bias")),
        ("no value bias", |p| without(p, "attn_v.bias")),
    ];
    let qwen2: &[(&str, Mistake)] = &[
        ("neighbours instead of halves", |p| p.pair = plain::neighbours),
        ("another base", |p| unscaled(p, 10_000.0)),
    ];
    let gemma3: &[(&str, Mistake)] = &[
        ("a window too wide", |p| for_sliding(p, |window| window + 1)),
        ("a window too narrow", |p| for_sliding(p, |window| window - 1)),
        ("no window", |p| for_sliding(p, |_| usize::MAX)),
        ("the first layer global", |p| p.layers.rotate_left(5)),
        ("the seventh layer global", |p| p.layers.rotate_right(1)),
        ("linear scaling in sliding layers", |p| scale(p, 0..5, 1.0 / 8.0)),
        ("no linear scaling", |p| scale(p, 5..6, 8.0)),
        ("one base for all", |p| unscaled(p, 1_000_000.0)),
        ("SiLU", |p| p.activation = plain::silu),
        ("exact GELU", |p| p.activation = plain::gelu_exact),
        ("embeddings as they are", |p| p.embedding_scale = 1.0),
        ("another epsilon", |p| p.eps *= 10.0),
        ("no query norm", |p| without(p, "attn_q_norm.weight")),
        ("no key norm", |p| without(p, "attn_k_norm.weight")),
        ("no norm after attention", |p| without(p, "post_attention_norm.weight")),
        ("no norm after feed-forward", |p| without(p, "post_ffw_norm.weight")),
        ("scores scaled by the hidden width per head", |p| p.score_scale = 0.25),
    ];
    let models = [
        (Tiny { rope_factors: true, biases: true, ..Tiny::llama() }, llama),
        (Tiny::qwen2(), qwen2),
        (Tiny { rope_linear: Some(8.0), ..Tiny::gemma3() }, gemma3),
    ];
    let tokens = tiny::tokens(7, 40);
    for (model, mistakes) in models {
        let right = Plain::new(&model, &model.tensors());
        let expected = right.logits(&tokens);
        for (mistake, make) in mistakes {
            let mut wrong = right.clone();
            make(&mut wrong);
            let wrong = wrong.logits(&tokens);
            let pairs = wrong.iter().flatten().zip(expected.iter().flatten());
            let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            eprintln!("{}, {mistake}: {most:.1e}", model.architecture);
            let tolerance = match *mistake {
                "exact GELU" => F32_TOLERANCE,
                _ => NATIVE_TOLERANCE,
            };
            assert!(most > 10.0 * tolerance, "{}, {mistake}: {most:.1e}", model.architecture);
        }
    }
}

/// Gives every layer the frequencies of `base` alone.
fn unscaled(plain: &mut Plain, base: f64) {
    for layer in &mut plain.layers {
        let pairs = layer.frequencies.len() as f64;
        for (pair, frequency) in layer.frequencies.iter_mut().enumerate() {
            *frequency = base.powf(-(pair as f64) / pairs);
        }
    }
}

/// Multiplies the frequencies of some layers.
fn scale(plain: &mut Plain, layers: std::ops::Range<usize>, by: f64) {
    for layer in &mut plain.layers[layers] {
        layer.frequencies.iter_mut().for_each(|f| *f *= by);
    }
}

fn for_sliding(plain: &mut Plain, change: fn(usize) -> usize) {
    for layer in &mut plain.layers {
        if layer.window != usize::MAX {
            layer.window = change(layer.window);
        }
    }
}

/// Takes a part out of every layer.
fn without(plain: &mut Plain, part: &str) {
    let before = plain.weights.len();
    plain.weights.retain(|name, _| !name.ends_with(part));
    assert!(plain.weights.len() < before, "there is no {part}");
}
