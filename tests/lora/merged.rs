//! A model with a merged adapter gives the same answers as the model with the separate adapter.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use incant::gguf::{Gguf, TensorType};
use incant::lora::{Linear, Lora, LowRank};
use incant::model::{Part, arch};
use incant::quantize::{Rewrite, Target};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use serde_json::json;
use tempfile::TempDir;

use super::computed::{flat, furthest, step};
use super::fixtures::{self, ADAPTERS};
use crate::reference::tiny::{self, Tiny};
use crate::support::subjects;

/// The rank of the random adapters.
const RANK: usize = 4;

/// Merges the adapter into the model, as a file of its own.
fn merged(gguf: &Gguf, lora: &Lora, target: Target) -> (TempDir, Gguf) {
    rewritten(gguf, target, Some(lora))
}

fn rewritten(gguf: &Gguf, target: Target, lora: Option<&Lora>) -> (TempDir, Gguf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rewritten.gguf");
    let spec = arch::read(gguf).expect("a supported model");
    let rewrite = Rewrite::new(gguf, &spec, target, lora).expect("all there");
    rewrite.write(&path, |_, _| {}).expect("written");
    let rewritten = Gguf::open(&path).expect("a good file");
    (folder, rewritten)
}

/// Computes the logits of some tokens with the reference executor.
fn logits(gguf: &Gguf, lora: Option<&Lora>, tokens: &[u32]) -> Vec<f32> {
    let mut executor = subjects::reference().load(gguf);
    let adapter = lora.map(|lora| executor.add_adapter(lora).expect("taken in"));
    let sequence = executor.begin_with_adapter(adapter).expect("begins");
    flat(&step(executor.as_mut(), &[(sequence, tokens)]))
}

/// Writes a random adapter for the modules of all layers of a model, in PEFT's format.
fn drawn(model: &Tiny, folder: &Path) {
    let (q, kv) = (
        model.heads * model.head_dim,
        model.kv_heads * model.head_dim,
    );
    let (hidden, feed_forward) = (model.hidden, model.feed_forward);
    let projections = match model.fused_qkv {
        true => vec![("self_attn.qkv_proj", hidden, q + 2 * kv)],
        false => vec![
            ("self_attn.q_proj", hidden, q),
            ("self_attn.k_proj", hidden, kv),
            ("self_attn.v_proj", hidden, kv),
        ],
    };
    let gates = match model.architecture {
        "phi3" => vec![("mlp.gate_up_proj", hidden, 2 * feed_forward)],
        _ => vec![
            ("mlp.gate_proj", hidden, feed_forward),
            ("mlp.up_proj", hidden, feed_forward),
        ],
    };
    let rest = [
        ("self_attn.o_proj", q, hidden),
        ("mlp.down_proj", feed_forward, hidden),
    ];
    let modules = projections.into_iter().chain(gates).chain(rest);
    let mut random = ChaCha8Rng::seed_from_u64(model.seed);
    let mut draw = |shape: [usize; 2], limit: f32| -> (Vec<usize>, Vec<u8>) {
        let numbers = (0..shape[0] * shape[1]).map(|_| random.random_range(-limit..limit));
        (shape.to_vec(), numbers.flat_map(f32::to_le_bytes).collect())
    };
    let mut tensors = Vec::new();
    for (module, inputs, outputs) in modules {
        for layer in 0..model.layers {
            let module = format!("base_model.model.model.layers.{layer}.{module}");
            let limit = 1.0 / (inputs as f32).sqrt();
            tensors.push((
                format!("{module}.lora_A.weight"),
                draw([RANK, inputs], limit),
            ));
            tensors.push((
                format!("{module}.lora_B.weight"),
                draw([outputs, RANK], 0.5),
            ));
        }
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.expect("bytes for the shape"))
    });
    let bytes = safetensors::serialize(views, None).expect("serializes");
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).expect("written");
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
}

#[test]
fn a_merged_model_computes_what_peft_computes() {
    for fixture in fixtures::all() {
        let (gguf, tokens) = (fixture.gguf(), fixture.tokens());
        for adapter in ADAPTERS {
            for target in [Target::Same, Target::Type(TensorType::F32)] {
                let (_folder, merged) = merged(&gguf, &fixture.lora(adapter), target);
                let found = logits(&merged, None, &tokens);
                let distance = furthest(&found, &fixture.expected(Some(adapter)));
                let tolerance = subjects::reference().tolerance;
                assert!(distance < tolerance, "{adapter}, {target}: {distance}");
            }
        }
    }
}

/// Includes architectures whose files fuse several linear layers in one matrix.
#[test]
fn every_architecture_answers_merged_as_with_the_adapter_beside_it() {
    for model in Tiny::all() {
        let architecture = model.architecture;
        let file = model.written(&model.tensors());
        let gguf = Gguf::open(file.path()).expect("a good file");
        let folder = tempfile::tempdir().expect("a folder");
        drawn(&model, folder.path());
        let spec = arch::read(&gguf).expect("a supported model");
        let lora = Lora::read(folder.path(), &spec).expect("it fits");
        let tokens = tiny::tokens(3, 20);
        let beside = logits(&gguf, Some(&lora), &tokens);
        let shift = furthest(&beside, &logits(&gguf, None, &tokens));
        assert!(
            shift > 0.5,
            "{architecture}: the adapter does something: {shift}"
        );
        let (_folder, exact) = merged(&gguf, &lora, Target::Type(TensorType::F32));
        let distance = furthest(&logits(&exact, None, &tokens), &beside);
        let tolerance = subjects::reference().tolerance;
        assert!(distance < tolerance, "{architecture}: {distance}");

        // In other types the result is these elements, rounded once.
        let half = Target::Type(TensorType::F16);
        let (_folder, at_once) = merged(&gguf, &lora, half);
        let (_folder, afterwards) = rewritten(&exact, half, None);
        for tensor in at_once.tensors() {
            let [one, two] = [&at_once, &afterwards].map(|gguf| gguf.find(&tensor.name).unwrap());
            assert!(one.data == two.data, "{architecture}: {}", tensor.name);
        }
    }
}

/// Computes `weight + scale · B·A`, in f64.
fn sum(weight: &[f32], part: &LowRank) -> Vec<f32> {
    let at = |index: usize| {
        let (row, column) = (index / part.inputs, index % part.inputs);
        let rank = 0..part.rank;
        let products = rank.map(|rank| {
            let (a, b) = (
                part.a[rank * part.inputs + column],
                part.b[row * part.rank + rank],
            );
            f64::from(a) * f64::from(b)
        });
        (f64::from(weight[index]) + f64::from(part.scale) * products.sum::<f64>()) as f32
    };
    (0..weight.len()).map(at).collect()
}

/// Also in matrices of more than a million elements, which are written in pieces.
#[test]
fn the_type_stays_and_what_is_not_adapted_stays_byte_for_byte() {
    let model = Tiny {
        layers: 1,
        feed_forward: 5120,
        weights: GgmlDType::Q4K,
        ..Tiny::phi3().wide()
    };
    let tensors = model.tensors();
    let file = model.written(&tensors);
    let gguf = Gguf::open(file.path()).expect("a good file");
    let spec = arch::read(&gguf).expect("a supported model");
    let folder = tempfile::tempdir().expect("a folder");
    drawn(&model, folder.path());
    let lora = Lora::read(folder.path(), &spec).expect("it fits");
    let (_folder, merged) = merged(&gguf, &lora, Target::Same);

    let adapted = ["attn_qkv", "attn_output", "ffn_up", "ffn_down"];
    let adapted = adapted.map(|name| format!("blk.0.{name}.weight"));
    let named = |gguf: &Gguf| -> Vec<_> {
        let tensors = gguf.tensors();
        tensors
            .map(|t| (t.name.clone(), t.shape.clone(), t.kind))
            .collect()
    };
    assert_eq!(named(&merged), named(&gguf));
    for tensor in gguf.tensors() {
        let [before, after] = [&gguf, &merged].map(|gguf| gguf.find(&tensor.name).unwrap().data);
        assert_eq!(
            before != after,
            adapted.contains(&tensor.name),
            "{}",
            tensor.name
        );
    }

    // Gate precedes up in the fused matrix: 10,240 rows of 256.
    let layer = lora.layer(0);
    let [gate, up] = [Linear::Gate, Linear::Up].map(|linear| layer.get(linear).unwrap());
    let name = Part::Up.tensor(&spec, 0);
    let (upper, lower) = tensors[&name].values.split_at(5120 * 256);
    let exact = [sum(upper, gate), sum(lower, up)].concat();
    let weight = tiny::Weight::new(&[2 * 5120, 256], GgmlDType::Q4K, exact);
    let found = merged.find(&name).unwrap().data;
    // If rounding in f32 changes a block's scale, all of its bytes can differ.
    let blocks = found.chunks(144).zip(weight.bytes.chunks(144));
    let differing = blocks.filter(|(found, expected)| found != expected).count();
    assert!(differing < 100, "{differing} of 10,240 blocks differ");
}
