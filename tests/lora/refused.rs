//! Adapters that are refused, each with one line that gives the reason.

use std::path::Path;

use incant::lora::Lora;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::fixtures::Fixture;
use crate::build::{Builder, Item};

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

/// One tensor of an adapter.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// Creates a modified copy of an adapter.
fn changed(
    fixture: &Fixture,
    config: impl FnOnce(&mut Value),
    tensors: impl FnOnce(&mut Vec<Tensor>),
) -> Result<Lora, String> {
    let source = fixture.path("plain");
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read(source.join("adapter_config.json")).expect("a fixture");
    let mut settings: Value = serde_json::from_slice(&text).expect("JSON");
    config(&mut settings);
    let settings = settings.to_string();
    std::fs::write(folder.path().join("adapter_config.json"), settings).expect("written");

    let bytes = std::fs::read(source.join("adapter_model.safetensors")).expect("a fixture");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut all: Vec<Tensor> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors(&mut all);
    let views = all.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.expect("bytes for the shape"))
    });
    let bytes = safetensors::serialize(views, None).expect("serializes");
    std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).expect("written");
    read(fixture, folder.path())
}

fn read(fixture: &Fixture, path: &Path) -> Result<Lora, String> {
    Lora::read(path, &fixture.spec()).map_err(|error| {
        let error = error.to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        error
    })
}

fn with_tensors(fixture: &Fixture, change: impl FnOnce(&mut Vec<Tensor>)) -> String {
    changed(fixture, |_| {}, change).expect_err("it is refused")
}

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    let found = tensors.iter_mut().find(|tensor| tensor.0 == name);
    found.expect("is there")
}

#[test]
fn an_adapter_that_was_not_changed_is_read() {
    let fixture = Fixture::new("llama");
    assert!(changed(&fixture, |_| {}, |_| {}).is_ok());
}

#[test]
fn what_would_change_the_numbers_and_is_not_supported_is_refused() {
    let fixture = Fixture::new("llama");
    let cases = [
        ("use_dora", json!(true), "DoRA"),
        ("bias", json!("lora_only"), "biases"),
        ("modules_to_save", json!(["lm_head"]), "as a whole"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("layer_replication", json!([[0, 1]]), "repeated"),
        ("trainable_token_indices", json!([1]), "embeddings"),
        ("alora_invocation_tokens", json!([1]), "activated"),
        ("init_lora_weights", json!("pissa_niter_4"), "pissa_niter_4"),
        ("peft_type", json!("LOHA"), "'LOHA'"),
        (
            "rank_pattern",
            json!({"q_proj": 7}),
            "rank 4, but the configuration says 7",
        ),
        ("alpha_pattern", json!({"q_proj(": 7}), "q_proj("),
        ("lora_alpha", json!(1e300), "makes no sense"),
        ("r", json!("four"), "adapter_config.json"),
    ];
    for (key, value, said) in cases {
        let set = |config: &mut Value| config[key] = value;
        let error = changed(&fixture, set, |_| {}).expect_err(key);
        assert!(error.contains(said), "{key}: {error}");
    }
}

#[test]
fn a_tensor_that_does_not_fit_is_named() {
    let fixture = Fixture::new("llama");
    let renamed =
        |to: &'static str| move |tensors: &mut Vec<Tensor>| to.clone_into(&mut find(tensors, Q).0);
    let cases: Vec<(String, &str)> = vec![
        (
            with_tensors(&fixture, |tensors| find(tensors, Q).1 = vec![2, 64]),
            "q_proj.lora_A.weight' has shape [2, 64], expected",
        ),
        (
            with_tensors(&fixture, |tensors| {
                let tensor = find(tensors, Q_B);
                tensor.1 = vec![64, 2];
            }),
            "q_proj.lora_B.weight' has shape [64, 2], expected [32, 4]",
        ),
        (
            with_tensors(&fixture, |tensors| {
                find(tensors, Q).2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            "q_proj.lora_A.weight' holds a number that is not finite",
        ),
        (
            with_tensors(&fixture, |tensors| tensors.retain(|tensor| tensor.0 != Q_B)),
            "q_proj.lora_B.weight' is missing",
        ),
        (
            with_tensors(&fixture, |tensors| {
                tensors.retain(|tensor| !tensor.0.contains("layers.0.self_attn.q_proj"));
            }),
            "layers.0.self_attn.q_proj.lora_A.weight' is missing",
        ),
        (
            with_tensors(&fixture, |tensors| {
                for name in [Q, Q_B] {
                    find(tensors, name).0 = name.replace("layers.0", "layers.9");
                }
            }),
            "is for layer 9, the model has 2",
        ),
        (
            with_tensors(&fixture, renamed("base_model.model.lm_head.lora_A.weight")),
            "lm_head.lora_A.weight' is for the head",
        ),
        (
            with_tensors(
                &fixture,
                renamed("base_model.model.model.embed_tokens.lora_embedding_A"),
            ),
            "is for the embedding",
        ),
        (
            with_tensors(&fixture, renamed("model.layers.0.q.lora_A.weight")),
            "'model.layers.0.q.lora_A.weight' belongs to no linear layer",
        ),
        (
            with_tensors(
                &fixture,
                renamed("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
            ),
            "DoRA",
        ),
        (
            with_tensors(&fixture, |tensors| {
                for name in [Q, Q_B] {
                    let encoder = name.replace("model.layers", "model.vision_tower.encoder.layers");
                    find(tensors, name).0 = encoder;
                }
            }),
            "belongs to no linear layer of the model",
        ),
        (
            with_tensors(&fixture, |tensors| {
                for name in [Q, Q_B] {
                    let again = find(tensors, name).clone();
                    let other = again
                        .0
                        .replace("model.layers", "model.language_model.layers");
                    tensors.push((other, again.1, again.2));
                }
            }),
            "adds to a linear layer twice (Query of layer 0)",
        ),
        (with_tensors(&fixture, Vec::clear), "it holds no tensors"),
    ];
    for (error, said) in cases {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let (llama, gemma) = (Fixture::new("llama"), Fixture::new("gemma3"));
    let mut smaller = llama.spec();
    smaller.hidden = 16;
    let error = Lora::read(&llama.path("plain"), &smaller).expect_err("it does not fit");
    let error = error.to_string();
    assert!(
        error.contains("lora_B.weight' has shape [32, 4], expected [16, 4]"),
        "{error}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    llama
        .lora("plain")
        .export(&llama.spec(), &path)
        .expect("written");
    let error = read(&gemma, &path).expect_err("another architecture");
    assert!(
        error.contains("the architecture 'llama', the model is gemma3"),
        "{error}"
    );
}

#[test]
fn what_is_no_adapter_is_refused() {
    let fixture = Fixture::new("llama");
    let folder = tempfile::tempdir().expect("a folder");
    let error = read(&fixture, folder.path()).expect_err("it is empty");
    assert!(error.contains("adapter_config.json: "), "{error}");

    let missing = folder.path().join("missing");
    let error = read(&fixture, &missing).expect_err("nothing is there");
    let named = missing.to_str().expect("a plain path");
    assert_eq!(error.matches(named).count(), 1, "{error}");
    assert!(error.contains("No such file"), "{error}");

    let source = fixture.path("plain").join("adapter_config.json");
    std::fs::copy(source, folder.path().join("adapter_config.json")).expect("copied");
    let error = read(&fixture, folder.path()).expect_err("the tensors are missing");
    assert!(error.contains("adapter_model.safetensors: "), "{error}");
    std::fs::write(folder.path().join("adapter_model.bin"), "pickle").expect("written");
    let error = read(&fixture, folder.path()).expect_err("the tensors are pickled");
    assert!(error.contains("save the adapter as safetensors"), "{error}");
    let cut = folder.path().join("adapter_model.safetensors");
    std::fs::write(cut, [255; 20]).expect("written");
    let error = read(&fixture, folder.path()).expect_err("the file is cut");
    assert!(error.contains("adapter_model.safetensors: "), "{error}");

    let gguf = |builder: Builder| {
        let path = folder.path().join("adapter.gguf");
        std::fs::write(&path, builder.bytes()).expect("written");
        read(&fixture, &path).expect_err("it is refused")
    };
    let model = Builder::new().with("general.type", Item::Str("model"));
    assert!(gguf(model).contains("general.type is 'model'"));
    let adapter = || {
        Builder::new()
            .with("general.type", Item::Str("adapter"))
            .with("adapter.type", Item::Str("lora"))
            .with("general.architecture", Item::Str("llama"))
            .with("adapter.lora.alpha", Item::F32(8.0))
    };
    assert!(gguf(adapter()).contains("no tensors"));
    let zeros = |count: usize| vec![0; 4 * count];
    let name = "blk.0.attn_q.weight.lora_a";
    let lone = adapter().tensor(name, &[32, 4], 0, zeros(128));
    assert!(gguf(lone).contains("'blk.0.attn_q.weight.lora_b' is missing"));
    let odd = adapter().tensor("blk.0.attn_q.weight.lora_c", &[32, 4], 0, zeros(128));
    assert!(gguf(odd).contains("belongs to no linear layer"));
    let head = adapter().tensor("output.weight.lora_a", &[32, 4], 0, zeros(128));
    assert!(gguf(head).contains("for the head"));
}
