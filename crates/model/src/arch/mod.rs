//! Reads model architectures: one file per architecture converts metadata to a [`DecoderSpec`].

mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral3;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use std::collections::HashSet;

use super::{Activation, DecoderSpec, LayerSpec, ModelError, Part, RopeStyle};
use incant_gguf::{Gguf, Value};

type Reader = fn(&Fields<'_>) -> Result<DecoderSpec, ModelError>;

/// All supported architectures, by their name in `general.architecture`.
const ARCHITECTURES: &[(&str, Reader)] = &[
    ("gemma2", gemma2::read),
    ("gemma3", gemma3::read),
    ("granite", granite::read),
    ("llama", llama::read),
    ("mistral3", mistral3::read),
    ("olmo2", olmo2::read),
    ("phi3", phi3::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
];

/// Reads the [`DecoderSpec`] of a GGUF file.
///
/// # Errors
/// The architecture is unsupported, or its metadata is missing or invalid.
pub fn read(gguf: &Gguf) -> Result<DecoderSpec, ModelError> {
    // The first part of a split model may hold all metadata, the other parts none.
    gguf.check_whole()?;
    let name = gguf.metadata().str("general.architecture")?;
    let Some(&(name, reader)) = ARCHITECTURES.iter().find(|(known, _)| *known == name) else {
        return Err(ModelError::Architecture {
            name: name.to_owned(),
            supported: names().collect::<Vec<_>>().join(", "),
        });
    };
    let spec = reader(&Fields { gguf, name })?;
    check(&spec)?;
    check_tensors(gguf, &spec)?;
    Ok(spec)
}

/// The names of the supported architectures.
pub fn names() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

/// The metadata of one model; keys are prefixed with the architecture.
struct Fields<'a> {
    gguf: &'a Gguf,
    name: &'static str,
}

impl Fields<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        Ok(self.gguf.metadata().u32(&self.key(key))? as usize)
    }

    fn get_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let size = self.gguf.metadata().get_u32(&self.key(key))?;
        Ok(size.map(|size| size as usize))
    }

    fn float(&self, key: &str) -> Result<f32, ModelError> {
        Ok(self.gguf.metadata().f32(&self.key(key))?)
    }

    fn get_float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.gguf.metadata().get_f32(&self.key(key))?)
    }

    fn get_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        Ok(self.gguf.metadata().get_bool(&self.key(key))?)
    }

    fn get_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        Ok(self.gguf.metadata().get_str(&self.key(key))?)
    }

    fn unsupported(&self, feature: impl Into<String>) -> ModelError {
        ModelError::Feature {
            architecture: self.name.to_owned(),
            feature: feature.into(),
        }
    }

    fn senseless(&self, key: &str, value: impl ToString, why: &'static str) -> ModelError {
        ModelError::Value {
            key: self.key(key),
            value: value.to_string(),
            why,
        }
    }

    /// Reads the keys that all architectures share: the result describes Llama, with the given
    /// RoPE style. Each architecture then changes the fields that differ.
    fn decoder(&self, style: RopeStyle) -> Result<DecoderSpec, ModelError> {
        if self
            .get_size("expert_count")?
            .is_some_and(|count| count > 0)
        {
            return Err(self.unsupported("a mixture of experts"));
        }
        let hidden = self.size("embedding_length")?;
        let (heads, kv_heads, head_dim) = self.heads(hidden)?;
        let layer = LayerSpec {
            window: None,
            rope: 0,
        };
        Ok(DecoderSpec {
            architecture: self.name,
            vocab: self.vocab(hidden)?,
            hidden,
            feed_forward: self.size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            context: self.size("context_length")?,
            served_context: self.size("context_length")?,
            norm_eps: self.float("attention.layer_norm_rms_epsilon")?,
            attention_scale: (head_dim as f32).powf(-0.5),
            temperature: None,
            attention_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            activation: Activation::Silu,
            qkv_bias: self.has_tensor("blk.0.attn_q.bias"),
            qk_norm: None,
            pre_norms: true,
            post_norms: false,
            fused_qkv: self.has_tensor("blk.0.attn_qkv.weight"),
            fused_gate: false,
            tied_embeddings: !self.has_tensor("output.weight"),
            ropes: vec![self.rope(head_dim, style)?],
            layers: vec![layer; self.layer_count()?],
        })
    }

    fn layer_count(&self) -> Result<usize, ModelError> {
        let layers = self.size("block_count")?;
        // Far beyond any model; protects against huge allocations for a hostile file.
        if layers == 0 || layers > 4096 {
            return Err(self.senseless("block_count", layers, "a model has 1 to 4096 layers"));
        }
        Ok(layers)
    }

    /// Returns the number of query heads, the number of key-value heads, and the width of a
    /// head.
    fn heads(&self, hidden: usize) -> Result<(usize, usize, usize), ModelError> {
        let heads = self.size("attention.head_count")?;
        let kv_heads = self.get_size("attention.head_count_kv")?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(self.senseless(
                "attention.head_count_kv",
                kv_heads,
                "it must divide head_count",
            ));
        }
        let head_dim = self
            .get_size("attention.key_length")?
            .unwrap_or(hidden / heads);
        // Far beyond any model, as above.
        if head_dim > 1 << 16 {
            return Err(self.senseless("attention.key_length", head_dim, "it is out of range"));
        }
        let value_length = self.get_size("attention.value_length")?.unwrap_or(head_dim);
        if value_length != head_dim {
            return Err(self.unsupported("value heads that are not as wide as key heads"));
        }
        Ok((heads, kv_heads, head_dim))
    }

    /// Returns the soft cap under `key`: `default` if the key is absent, `None` if the value is
    /// 0.
    fn soft_cap(&self, key: &str, default: Option<f32>) -> Result<Option<f32>, ModelError> {
        let cap = self.get_float(key)?.or(default);
        Ok(cap.filter(|&cap| cap != 0.0))
    }

    /// Returns the size of the sliding window in tokens; 0 in the file means no window.
    fn window(&self) -> Result<Option<usize>, ModelError> {
        let window = self.get_size("attention.sliding_window")?;
        Ok(window.filter(|&window| window > 0))
    }

    /// Adds a sliding window to every layer if the file defines one that is shorter than the
    /// context.
    fn windowed(&self, spec: DecoderSpec) -> Result<DecoderSpec, ModelError> {
        let window = self.window()?.filter(|&window| window < spec.context);
        let layers = spec.layers.into_iter();
        Ok(DecoderSpec {
            layers: layers.map(|layer| LayerSpec { window, ..layer }).collect(),
            ..spec
        })
    }

    /// Tells which layers have a sliding window: all except each `period`th, unless the file
    /// has another period or a list.
    fn sliding(&self, layers: usize, period: usize) -> Result<Vec<bool>, ModelError> {
        let key = "attention.sliding_window_pattern";
        let metadata = self.gguf.metadata();
        if let Some(Value::Array(_)) = metadata.get(&self.key(key)) {
            let listed = metadata.bools(&self.key(key))?;
            return if listed.len() == layers {
                Ok(listed)
            } else {
                let found = format!("a list of {}", listed.len());
                Err(self.senseless(key, found, "it must have an entry for each layer"))
            };
        }
        let period = self.get_size(key)?.unwrap_or(period);
        // A period of 0 means that no layer is global.
        let global = |layer: usize| period > 0 && (layer + 1).is_multiple_of(period);
        Ok((0..layers).map(|layer| !global(layer)).collect())
    }

    /// Returns the vocabulary size: the number of tokens, limited by the number of embedding
    /// rows of width `hidden`. (Loading the tokenizer fails if it has more tokens.) Without a
    /// tokenizer in the file, it is the number of rows.
    fn vocab(&self, hidden: usize) -> Result<usize, ModelError> {
        let tokens = self.gguf.metadata().get_strs("tokenizer.ggml.tokens")?;
        let tokens = tokens.map_or(0, |tokens| tokens.len());
        let info = self.gguf.tensor("token_embd.weight")?.info;
        match info.shape[..] {
            [rows, width] if width == hidden && tokens == 0 => Ok(rows),
            [rows, width] if width == hidden => Ok(rows.min(tokens)),
            _ => Err(ModelError::Shape {
                name: info.name.clone(),
                found: info.shape.clone(),
                expected: vec![info.elements() / hidden.max(1), hidden],
            }),
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.gguf.find(name).is_some()
    }
}

/// Refuses a file with a tensor that the decoder would not use: it is a variant of the
/// architecture, and without the tensor its results would be wrong.
fn check_tensors(gguf: &Gguf, spec: &DecoderSpec) -> Result<(), ModelError> {
    let mut used: HashSet<String> = ["token_embd", "output_norm", "output"]
        .map(|name| format!("{name}.weight"))
        .into();
    for layer in 0..spec.layers.len() {
        used.extend(Part::of(spec).map(|part| part.tensor(spec, layer)));
        // Some old files hold precomputed RoPE angles.
        used.insert(format!("blk.{layer}.attn_rot_embd.weight"));
    }
    // A file may hold an image encoder in addition to the decoder.
    let ours = |name: &str| {
        ["blk.", "output", "token_embd"]
            .iter()
            .any(|s| name.starts_with(s))
    };
    match gguf
        .tensors()
        .find(|t| ours(&t.name) && !used.contains(&t.name))
    {
        Some(tensor) => Err(ModelError::Feature {
            architecture: spec.architecture.to_owned(),
            feature: format!("the tensor '{}'", tensor.name.escape_debug()),
        }),
        None => Ok(()),
    }
}

/// Checks the invariants of every architecture, on which executors rely.
fn check(spec: &DecoderSpec) -> Result<(), ModelError> {
    let senseless = |key: &str, value: String, why| ModelError::Value {
        key: format!("{}.{key}", spec.architecture),
        value,
        why,
    };
    let positive = [
        ("embedding_length", spec.hidden),
        ("feed_forward_length", spec.feed_forward),
        ("attention.key_length", spec.head_dim),
        ("context_length", spec.context),
        ("vocab_size", spec.vocab),
    ];
    for (key, value) in positive {
        if value == 0 || value > 1 << 28 {
            return Err(senseless(key, value.to_string(), "it is out of range"));
        }
    }
    if !(spec.norm_eps.is_finite() && spec.norm_eps > 0.0) {
        let value = spec.norm_eps.to_string();
        return Err(senseless(
            "attention.layer_norm_rms_epsilon",
            value,
            "it must be positive",
        ));
    }
    for rope in &spec.ropes {
        if !(rope.base.is_finite() && rope.base > 0.0) {
            return Err(senseless(
                "rope.freq_base",
                rope.base.to_string(),
                "it must be positive",
            ));
        }
        if !(rope.magnitude.is_finite() && rope.magnitude > 0.0) {
            return Err(senseless(
                "rope.scaling.attn_factor",
                rope.magnitude.to_string(),
                "it must be positive",
            ));
        }
        if !(rope.scale.is_finite() && rope.scale > 0.0) {
            return Err(senseless(
                "rope.scaling.factor",
                rope.scale.to_string(),
                "it must be positive",
            ));
        }
    }
    let scales = [
        ("attention.scale", spec.attention_scale),
        ("attn_logit_softcapping", spec.attention_cap.unwrap_or(1.0)),
        ("embedding_scale", spec.embedding_scale),
        ("residual_scale", spec.residual_scale),
        ("logit_scale", spec.logit_scale),
        ("final_logit_softcapping", spec.logit_cap.unwrap_or(1.0)),
    ];
    for (key, scale) in scales {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(senseless(key, scale.to_string(), "it must be positive"));
        }
    }
    if spec.layers.iter().any(|layer| layer.window == Some(0)) {
        return Err(senseless(
            "attention.sliding_window",
            "0".to_owned(),
            "a window holds at least the position itself",
        ));
    }
    Ok(())
}
