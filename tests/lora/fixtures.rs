//! The tiny models and adapters that `tests/fixtures/peft/make.py` created with PEFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use half::bf16;
use incant::gguf::Gguf;
use incant::lora::Lora;
use incant::model::{DecoderSpec, arch};
use safetensors::{Dtype, SafeTensors};
use tempfile::NamedTempFile;

use crate::reference::tiny::{Tiny, Weight};

/// All adapters of each model.
pub(crate) const ADAPTERS: [&str; 3] = ["plain", "stabilized", "patterns"];

/// A model, and the expected results of its adapters.
pub(crate) struct Fixture {
    folder: PathBuf,
    file: NamedTempFile,
}

/// Returns both models.
pub(crate) fn all() -> impl Iterator<Item = Fixture> {
    ["llama", "gemma3"].into_iter().map(Fixture::new)
}

impl Fixture {
    pub(crate) fn new(architecture: &str) -> Fixture {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft");
        let folder = root.join(architecture);
        let tiny = match architecture {
            "llama" => Tiny::llama(),
            _ => Tiny::gemma3(),
        };
        let tiny = Tiny {
            hidden: 32,
            feed_forward: 48,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            layers: 2,
            eps: 1e-5,
            ..tiny
        };
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("a fixture");
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let weights: BTreeMap<String, Weight> = tensors
            .iter()
            .map(|(name, view)| {
                assert_eq!(view.dtype(), Dtype::BF16);
                let halves = view.data().as_chunks::<2>().0.iter();
                let values = halves
                    .map(|half| bf16::from_le_bytes(*half).to_f32())
                    .collect();
                let name = gguf_name(architecture, name);
                let values = stored(&tiny, &name, values);
                let weight = Weight::new(view.shape(), GgmlDType::F32, values);
                (name, weight)
            })
            .collect();
        Fixture {
            folder,
            file: tiny.written(&weights),
        }
    }

    pub(crate) fn gguf(&self) -> Gguf {
        Gguf::open(self.file.path()).expect("a good file")
    }

    pub(crate) fn spec(&self) -> DecoderSpec {
        arch::read(&self.gguf()).expect("a supported model")
    }

    pub(crate) fn file(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn path(&self, adapter: &str) -> PathBuf {
        self.folder.join(adapter)
    }

    pub(crate) fn lora(&self, adapter: &str) -> Lora {
        Lora::read(&self.path(adapter), &self.spec()).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn tokens(&self) -> Vec<u32> {
        let bytes = std::fs::read(self.folder.join("tokens.safetensors")).expect("a fixture");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tokens = file.tensor("tokens").expect("is there");
        let tokens = tokens.data().as_chunks::<4>().0.iter();
        tokens.map(|token| u32::from_le_bytes(*token)).collect()
    }

    /// The logits of each token with an adapter, or without one, as computed by PEFT.
    pub(crate) fn expected(&self, adapter: Option<&str>) -> Vec<f32> {
        let folder = adapter.map_or(self.folder.clone(), |adapter| self.path(adapter));
        let bytes = std::fs::read(folder.join("expected.safetensors")).expect("a fixture");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let logits = file.tensor("logits").expect("is there");
        let logits = logits.data().as_chunks::<4>().0.iter();
        logits.map(|logit| f32::from_le_bytes(*logit)).collect()
    }
}

/// Returns llama.cpp's name for a tensor of transformers.
fn gguf_name(architecture: &str, name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let rest = name.strip_prefix("model.layers.").expect("a layer's");
    let (layer, part) = rest.split_once('.').expect("a part");
    let part = match part.strip_suffix(".weight").expect("a weight") {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if architecture == "llama" => "ffn_norm",
        "post_attention_layernorm" => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("no name for {other}"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// Converts the elements of a tensor to their form in a GGUF file: llama's query and key rows
/// are permuted, and gemma's norms include the 1 that its code adds.
fn stored(tiny: &Tiny, name: &str, values: Vec<f32>) -> Vec<f32> {
    match tiny.architecture {
        "llama" if name.contains("attn_q.") || name.contains("attn_k.") => {
            let half = tiny.head_dim / 2;
            let rows: Vec<&[f32]> = values.chunks_exact(tiny.hidden).collect();
            let source = |row: usize| {
                let (head, place) = (row / tiny.head_dim, row % tiny.head_dim);
                head * tiny.head_dim + place % 2 * half + place / 2
            };
            let rows = (0..rows.len()).flat_map(|row| rows[source(row)]);
            rows.copied().collect()
        }
        "gemma3" if name.contains("norm") => values.into_iter().map(|x| x + 1.0).collect(),
        _ => values,
    }
}
