//! Every architecture, and the variants of its files, with exact weights.

use incant::gguf::Gguf;
use incant::model::arch;

use super::plain::{self, Plain};
use super::tiny::{self, Scales, Tiny};
use super::{at_once, distance, executor};
use crate::support::subjects::{self, F32_TOLERANCE, NATIVE_TOLERANCE};

/// Models, by their special property.
#[rustfmt::skip]
fn models() -> Vec<(&'static str, Tiny)> {
    let (llama, qwen2, gemma3) = (Tiny::llama, Tiny::qwen2, Tiny::gemma3);
    let (qwen3, gemma2, phi3) = (Tiny::qwen3, Tiny::gemma2, Tiny::phi3);
    let (olmo2, mistral3, granite) = (Tiny::olmo2, Tiny::mistral3, Tiny::granite);
    let yarn = Tiny::olmo3().rope_yarn;
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
        ("gemma3, soft-capped logits", Tiny { logit_cap: Some(2.0), ..gemma3() }),
        ("mistral: llama with a window and wide heads", Tiny { window: 5, head_dim: 24, ..llama() }),
        ("llama, YaRN", Tiny { rope_yarn: yarn, ..llama() }),
        ("llama, YaRN and frequency factors", Tiny { rope_yarn: yarn, rope_factors: true, ..llama() }),
        ("llama, q, k and v in one", Tiny { fused_qkv: true, ..llama() }),
        ("qwen2, q, k and v in one, and biases", Tiny { fused_qkv: true, ..qwen2() }),
        ("qwen3", qwen3()),
        ("qwen3, tied", Tiny { tied: true, ..qwen3() }),
        ("qwen3, YaRN", Tiny { rope_yarn: yarn, ..qwen3() }),
        ("gemma2", gemma2()),
        ("gemma2, no caps", Tiny { attention_cap: Some(0.0), logit_cap: Some(0.0), ..gemma2() }),
        ("gemma2, 46 layers", Tiny { layers: 46, feed_forward: 32, ..gemma2() }),
        ("phi3", phi3()),
        ("phi3, long rope", Tiny { rope_long: Some(64), ..phi3() }),
        ("phi3, no window", Tiny { window: 0, ..phi3() }),
        ("phi3, a window as long as the context", Tiny { window: 4096, ..phi3() }),
        ("phi3, half the dimensions rotate, tied", Tiny { rope_dims: Some(8), tied: true, ..phi3() }),
        ("olmo2", olmo2()),
        ("olmo2, a key head per query head", Tiny { kv_heads: 4, ..olmo2() }),
        ("olmo3", Tiny::olmo3()),
        ("mistral3", mistral3()),
        ("mistral3, no temperature", Tiny { temperature: None, ..mistral3() }),
        ("mistral3, nothing but llama", Tiny { temperature: None, rope_yarn: None, ..mistral3() }),
        ("granite", granite()),
        ("granite, biases", Tiny { biases: true, ..granite() }),
        ("granite, no scales but the logits'", Tiny { scales: Some(Scales { attention: 0.0, embedding: 0.0, residual: 0.0, logit: 2.0 }), ..granite() }),
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
    let models = [Tiny::llama(), Tiny::gemma3(), Tiny::gemma2(), Tiny::olmo3()];
    for model in models {
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

/// As in llama.cpp, the served context length decides for whole sequences.
#[test]
fn a_shorter_context_takes_the_short_factors_and_has_other_kv() {
    let both = |rope_long| Tiny {
        rope_long: Some(rope_long),
        ..Tiny::phi3()
    };
    let model = both(64);
    let tensors = model.tensors();
    let expected = Plain::new(&both(4096), &tensors);
    let tokens = tiny::tokens(7, 40);
    let expected = expected.logits(&tokens);
    let file = model.written(&tensors);
    let gguf = Gguf::open(file.path()).expect("a good file");
    for subject in subjects::both() {
        let executor = |served_context| {
            let mut spec = arch::read(&gguf).expect("a supported model");
            spec.served_context = served_context;
            subject.backend.load(&gguf, &spec, None).expect("loads")
        };
        let mut short = executor(64);
        let error = distance(&at_once(short.as_mut(), &tokens), &expected);
        assert!(error <= subject.tolerance, "{subject}: {error:.2e}");
        assert_ne!(short.kv_format(), executor(65).kv_format());
    }
}

/// A mistake that was made once, or could be made.
type Mistake = fn(&mut Plain);

/// These tests are only as good as the mistakes they detect: every one of these moves some
/// logit by at least ten times the tolerance. The tolerance of the native executor is too wide
/// for one of them, which the tests of its kernels must detect.
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
    let qwen3: &[(&str, Mistake)] = &[
        ("no query norm", |p| without(p, "attn_q_norm.weight")),
        ("no key norm", |p| without(p, "attn_k_norm.weight")),
    ];
    let gemma2: &[(&str, Mistake)] = &[
        ("no cap of scores", |p| p.score_cap = f64::INFINITY),
        ("another cap of scores", |p| p.score_cap *= 2.0),
        ("scores capped before they are scaled", |p| {
            p.score_cap /= p.score_scale;
        }),
        ("no cap of logits", |p| p.logit_cap = f64::INFINITY),
        ("a window too wide", |p| for_sliding(p, |window| window + 1)),
        ("the first layer global", |p| p.layers.rotate_left(1)),
        ("embeddings as they are", |p| p.embedding_scale = 1.0),
        ("no norm after attention", |p| without(p, "post_attention_norm.weight")),
    ];
    let phi3: &[(&str, Mistake)] = &[
        ("neighbours instead of halves", |p| p.pair = plain::neighbours),
        ("up before gate", |p| swapped(p, "ffn_gate.weight", "ffn_up.weight")),
        ("value before key", |p| swapped(p, "attn_k.weight", "attn_v.weight")),
        ("the other factors", |p| {
            let [long, short] = ["long", "short"].map(|which| {
                p.weights[&format!("rope_factors_{which}.weight")].clone()
            });
            for layer in &mut p.layers {
                let factors = long.iter().zip(&short);
                for (frequency, (long, short)) in layer.frequencies.iter_mut().zip(factors) {
                    *frequency *= short / long;
                }
            }
        }),
        ("sines and cosines as they are", |p| magnitude(p, |_| 1.0)),
        ("a window too wide", |p| for_sliding(p, |window| window + 1)),
    ];
    let olmo2: &[(&str, Mistake)] = &[
        ("no query norm", |p| without(p, "attn_q_norm.weight")),
        ("no key norm", |p| without(p, "attn_k_norm.weight")),
        ("a norm for each head", |p| {
            let width = p.head_dim;
            for (name, weight) in &mut p.weights {
                if name.ends_with("attn_q_norm.weight") {
                    weight.truncate(width);
                }
            }
        }),
        ("a norm before attention", |p| with_norms(p, "attn_norm.weight")),
        ("a norm before feed-forward", |p| with_norms(p, "ffn_norm.weight")),
        ("no norm after feed-forward", |p| without(p, "post_ffw_norm.weight")),
        ("YaRN in sliding layers", |p| {
            let global = p.layers[3].clone();
            for layer in &mut p.layers {
                layer.frequencies.clone_from(&global.frequencies);
            }
        }),
        ("YaRN's magnitude left out", |p| magnitude(p, |_| 1.0)),
        ("no YaRN", |p| p.layers[3] = p.layers[0].clone()),
        ("the first layer global", |p| p.layers.rotate_left(3)),
    ];
    let mistral3: &[(&str, Mistake)] = &[
        ("halves instead of neighbours", |p| p.pair = plain::halves),
        ("no temperature", |p| p.growth = 0.0),
        ("temperature from the first position on", |p| p.original = 1),
        ("YaRN's magnitude", |p| magnitude(p, |m| m * (1.0 + 0.1 * 4f64.ln()))),
        ("no YaRN", |p| unscaled(p, 10_000.0)),
    ];
    let granite: &[(&str, Mistake)] = &[
        ("embeddings as they are", |p| p.embedding_scale = 1.0),
        ("scores scaled by the head's width", |p| p.score_scale = 0.25),
        ("outputs added as they are", |p| p.residual_scale = 1.0),
        ("logits as they are", |p| p.logit_divisor = 1.0),
        ("logits multiplied", |p| p.logit_divisor = 1.0 / p.logit_divisor),
        ("halves instead of neighbours", |p| p.pair = plain::halves),
    ];
    let models = [
        (Tiny { rope_factors: true, biases: true, ..Tiny::llama() }, llama),
        (Tiny::qwen2(), qwen2),
        (Tiny::qwen3(), qwen3),
        (Tiny::gemma2(), gemma2),
        (Tiny { rope_linear: Some(8.0), ..Tiny::gemma3() }, gemma3),
        (Tiny { rope_long: Some(64), ..Tiny::phi3() }, phi3),
        (Tiny::olmo3(), olmo2),
        (Tiny::mistral3(), mistral3),
        (Tiny::granite(), granite),
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

/// Gives every layer the unscaled frequencies of `base`.
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

/// Changes the magnitude of rotated pairs.
fn magnitude(plain: &mut Plain, change: fn(f64) -> f64) {
    for layer in &mut plain.layers {
        layer.magnitude = change(layer.magnitude);
    }
}

/// Swaps two parts of each layer.
fn swapped(plain: &mut Plain, one: &str, other: &str) {
    for index in 0..plain.layers.len() {
        let [a, b] = [one, other].map(|part| format!("blk.{index}.{part}"));
        let first = plain.weights.remove(&a).expect("is there");
        let second = plain.weights.insert(b, first).expect("is there");
        plain.weights.insert(a, second);
    }
}

/// Adds a norm to each layer that the model does not have.
fn with_norms(plain: &mut Plain, part: &str) {
    for index in 0..plain.layers.len() {
        let weight = (0..plain.hidden).map(|at| 0.5 + at as f64 % 3.0);
        let weight = weight.collect();
        let before = plain.weights.insert(format!("blk.{index}.{part}"), weight);
        assert!(before.is_none());
    }
}

/// Removes a part from every layer.
fn without(plain: &mut Plain, part: &str) {
    let before = plain.weights.len();
    plain.weights.retain(|name, _| !name.ends_with(part));
    assert!(plain.weights.len() < before, "there is no {part}");
}
