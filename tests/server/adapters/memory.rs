//! The memory of adapters, and adapters with which the model cannot compute.

use std::fs;

use incant::engine::{AdapterMemory, EngineOptions};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::{Served, copy};

fn with_memory(bytes: usize) -> Served {
    Served::with(EngineOptions {
        adapter_memory: AdapterMemory::new(bytes),
        ..EngineOptions::default()
    })
}

fn message(error: &Value) -> &str {
    error["message"].as_str().expect("a text")
}

#[test]
fn adapters_have_a_memory_of_their_own_and_the_same_weights_take_it_once() {
    let roomy = with_memory(1 << 20);
    let mut sizes = ["plain", "patterns"].map(|path| {
        let loaded = roomy.load("mine", path).expect(200);
        loaded["bytes"].as_u64().expect("a number") as usize
    });
    sizes.sort_unstable();
    let served = with_memory(sizes[1] + sizes[0] / 2);
    served.load("one", "plain").expect(200);
    let before = served.answer("tiny+one");
    let error = served.load("two", "patterns").error(400);
    assert_eq!(error["code"], "adapter_memory_exceeded");
    assert_eq!(error["param"], "path");
    let told = message(&error);
    assert!(told.contains("--adapter-memory"), "{told}");
    assert!(told.ends_with("Loaded are tiny+one."), "{told}");

    // A copy of the files is the same adapter.
    let root = served.folder.path();
    copy(&root.join("plain"), &root.join("again"));
    for name in ["two", "three"] {
        served.load(name, "again").expect(200);
        assert_eq!(served.answer(&format!("tiny+{name}")), before);
    }
    // The weights stay loaded as long as one name is left.
    served.unload("tiny+one").expect(200);
    served.unload("tiny+two").expect(200);
    served.load("other", "patterns").error(400);
    assert_eq!(served.answer("tiny+three"), before);
    served.unload("tiny+three").expect(200);
    served.load("other", "patterns").expect(200);
}

/// The adapter is refused by its file header, before its elements are loaded.
#[test]
fn an_adapter_that_never_fits_is_refused() {
    let served = with_memory(100);
    let error = served.load("mine", "plain").error(400);
    assert_eq!(error["code"], "adapter_memory_exceeded");
    assert!(message(&error).contains("--adapter-memory"), "{error}");
}

/// Multiplies the elements of the tensors whose names contain `part` and end with `end`.
fn multiply(served: &Served, folder: &str, [part, end]: [&str; 2], factor: f32) {
    let root = served.folder.path();
    copy(&root.join("plain"), &root.join(folder));
    let path = root.join(folder).join("adapter_model.safetensors");
    let bytes = fs::read(&path).expect("a fixture");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F32);
            let is_meant = name.contains(part) && name.ends_with(end);
            let factor = if is_meant { factor } else { 1.0 };
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers = numbers.flat_map(|n| (f32::from_le_bytes(*n) * factor).to_le_bytes());
            (name, view.shape().to_vec(), numbers.collect::<Vec<u8>>())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (*name, view.expect("as long as before"))
    });
    let bytes = safetensors::serialize(views, None).expect("serializes");
    fs::write(&path, bytes).expect("written");
}

#[test]
fn an_adapter_of_numbers_too_large_to_compute_with_is_refused_by_its_module() {
    let served = Served::new();
    let before = served.answer("tiny@base");
    // Three adapters: a product of A and B overflows; each product is finite, but a result of
    // several overflows; large elements do no harm.
    let b = "lora_B.weight";
    let value = "layers.1.self_attn.v_proj";
    multiply(&served, "overflows", [value, "lora_A.weight"], 1e38);
    multiply(&served, "large", [".mlp.", b], 1e25);
    multiply(&served, "harmless", [value, b], 4.0);
    for (folder, named) in [("overflows", value), ("large", ".mlp.")] {
        let error = served.load("mine", folder).error(400);
        assert!(message(&error).contains(named), "{error}");
    }
    // An adapter that was loaded can be used.
    multiply(&served, "keys", ["k_proj", b], 1e20);
    if served.load("mine", "keys").status == 200 {
        served.ask("tiny@base+mine").expect(200);
    }
    served.load("mine", "harmless").expect(200);
    assert_ne!(served.answer("tiny@base+mine"), before);
    let listed = served.server.get("/v1/adapters").expect(200);
    assert_eq!(
        listed["data"].as_array().map(Vec::len),
        Some(1),
        "{}",
        json!(listed)
    );
}
