//! Tiny random models, as complete GGUF files: a few layers, 300 tokens, and a byte-level
//! tokenizer, so that they can be loaded like any model.

mod kinds;

use std::collections::BTreeMap;
use std::io::Write as _;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::NamedTempFile;

use crate::build::{Builder, Item};

/// The vocabulary size of the tiny models.
pub(crate) const VOCAB: usize = 300;

/// The longest context of the tiny models.
pub(crate) const CONTEXT: usize = 4096;

/// The description of a tiny model, which determines its weights.
#[derive(Clone, Debug)]
pub(crate) struct Tiny {
    /// The `general.architecture` of the file.
    pub(crate) architecture: &'static str,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Written as `attention.key_length` if it differs from `hidden / heads`.
    pub(crate) head_dim: usize,
    pub(crate) layers: usize,
    /// Whether the LM head shares the weights of the embedding.
    pub(crate) tied: bool,
    /// Whether q, k and v have biases.
    pub(crate) biases: bool,
    pub(crate) eps: f32,
    pub(crate) rope_base: f32,
    /// The number of dimensions of a head that rotate; `None` for all.
    pub(crate) rope_dims: Option<usize>,
    /// The factor of linear RoPE scaling.
    pub(crate) rope_linear: Option<f32>,
    /// Whether the file has Llama 3's `rope_freqs.weight`.
    pub(crate) rope_factors: bool,
    /// Extends the context by YaRN.
    pub(crate) rope_yarn: Option<Yarn>,
    /// The context length of LongRoPE's short factors; the file also has long ones.
    pub(crate) rope_long: Option<usize>,
    /// The window of sliding-window layers.
    pub(crate) window: usize,
    /// The growth of attention scores beyond the original context.
    pub(crate) temperature: Option<f32>,
    /// The soft cap of attention scores.
    pub(crate) attention_cap: Option<f32>,
    /// The soft cap of logits.
    pub(crate) logit_cap: Option<f32>,
    /// Granite's scales.
    pub(crate) scales: Option<Scales>,
    /// Whether q, k and v are fused in one tensor.
    pub(crate) fused_qkv: bool,
    /// The type of every matrix; vectors are F32 as in real files.
    pub(crate) weights: GgmlDType,
    pub(crate) seed: u64,
}

/// The parameters of YaRN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yarn {
    pub(crate) factor: f32,
    pub(crate) original: usize,
    pub(crate) fast: f32,
    pub(crate) slow: f32,
    /// `mscale_all_dim`, if the file has it.
    pub(crate) log_multiplier: Option<f32>,
}

/// Granite's scales, as stored in its files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scales {
    pub(crate) attention: f32,
    pub(crate) embedding: f32,
    pub(crate) residual: f32,
    /// The divisor of logits.
    pub(crate) logit: f32,
}

/// The magnitude of LongRoPE's sines and cosines.
pub(crate) const LONG_MAGNITUDE: f32 = 1.2;

impl Tiny {
    /// The same model, wide enough for k-quants, whose blocks hold 256 weights.
    pub(crate) fn wide(self) -> Tiny {
        Tiny {
            hidden: 256,
            feed_forward: 256,
            head_dim: 64,
            ..self
        }
    }

    /// The number of dimensions of a head that rotate.
    pub(crate) fn rotating(&self) -> usize {
        self.rope_dims.unwrap_or(self.head_dim)
    }

    /// Generates the model's weights.
    pub(crate) fn tensors(&self) -> BTreeMap<String, Weight> {
        let mut draw = Draw {
            random: ChaCha8Rng::seed_from_u64(self.seed),
            matrices: self.weights,
            drawn: BTreeMap::new(),
        };
        let (hidden, feed_forward) = (self.hidden, self.feed_forward);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        draw.matrix("token_embd.weight", VOCAB, hidden);
        draw.norm("output_norm.weight", hidden);
        if !self.tied {
            draw.matrix("output.weight", VOCAB, hidden);
        }
        if self.rope_factors {
            draw.vector("rope_freqs.weight", self.rotating() / 2, 1.0, 8.0);
        }
        if self.rope_long.is_some() {
            let pairs = self.rotating() / 2;
            draw.vector("rope_factors_short.weight", pairs, 1.0, 2.0);
            draw.vector("rope_factors_long.weight", pairs, 2.0, 8.0);
        }
        let pre_norms = self.architecture != "olmo2";
        let whole_norms = self.architecture == "olmo2";
        let head_norms = ["gemma3", "qwen3"].contains(&self.architecture);
        let post_norms = ["gemma2", "gemma3", "olmo2"].contains(&self.architecture);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            if pre_norms {
                draw.norm(&name("attn_norm.weight"), hidden);
            }
            if self.fused_qkv {
                draw.matrix(&name("attn_qkv.weight"), q + 2 * kv, hidden);
            } else {
                draw.matrix(&name("attn_q.weight"), q, hidden);
                draw.matrix(&name("attn_k.weight"), kv, hidden);
                draw.matrix(&name("attn_v.weight"), kv, hidden);
            }
            draw.matrix(&name("attn_output.weight"), hidden, q);
            if pre_norms {
                draw.norm(&name("ffn_norm.weight"), hidden);
            }
            if self.architecture == "phi3" {
                draw.matrix(&name("ffn_up.weight"), 2 * feed_forward, hidden);
            } else {
                draw.matrix(&name("ffn_gate.weight"), feed_forward, hidden);
                draw.matrix(&name("ffn_up.weight"), feed_forward, hidden);
            }
            draw.matrix(&name("ffn_down.weight"), hidden, feed_forward);
            if self.biases {
                draw.vector(&name("attn_q.bias"), q, -0.5, 0.5);
                draw.vector(&name("attn_k.bias"), kv, -0.5, 0.5);
                draw.vector(&name("attn_v.bias"), kv, -0.5, 0.5);
            }
            if head_norms || whole_norms {
                let width = |whole| if whole_norms { whole } else { self.head_dim };
                draw.norm(&name("attn_q_norm.weight"), width(q));
                draw.norm(&name("attn_k_norm.weight"), width(kv));
            }
            if post_norms {
                draw.norm(&name("post_attention_norm.weight"), hidden);
                draw.norm(&name("post_ffw_norm.weight"), hidden);
            }
        }
        draw.drawn
    }

    /// Builds the model's file with these weights.
    pub(crate) fn file(&self, tensors: &BTreeMap<String, Weight>) -> Builder {
        self.continued(Builder::new(), tensors)
    }

    /// Appends the model to a file that has been started.
    pub(crate) fn continued(&self, file: Builder, tensors: &BTreeMap<String, Weight>) -> Builder {
        let arch = self.architecture;
        let key = |key: &str| format!("{arch}.{key}");
        let size = |size: usize| Item::U32(size as u32);
        let mut file = tokenizer(file.with("general.architecture", Item::Str(arch)))
            .with(&key("context_length"), size(CONTEXT))
            .with(&key("embedding_length"), size(self.hidden))
            .with(&key("block_count"), size(self.layers))
            .with(&key("feed_forward_length"), size(self.feed_forward))
            .with(&key("attention.head_count"), size(self.heads))
            .with(&key("attention.head_count_kv"), size(self.kv_heads))
            .with(
                &key("attention.layer_norm_rms_epsilon"),
                Item::F32(self.eps),
            )
            .with(&key("rope.freq_base"), Item::F32(self.rope_base));
        if self.head_dim * self.heads != self.hidden {
            file = file
                .with(&key("attention.key_length"), size(self.head_dim))
                .with(&key("attention.value_length"), size(self.head_dim));
        }
        if let Some(dims) = self.rope_dims {
            file = file.with(&key("rope.dimension_count"), size(dims));
        }
        if let Some(factor) = self.rope_linear {
            file = file
                .with(&key("rope.scaling.type"), Item::Str("linear"))
                .with(&key("rope.scaling.factor"), Item::F32(factor));
        }
        if let Some(yarn) = self.rope_yarn {
            file = file
                .with(&key("rope.scaling.type"), Item::Str("yarn"))
                .with(&key("rope.scaling.factor"), Item::F32(yarn.factor))
                .with(
                    &key("rope.scaling.original_context_length"),
                    size(yarn.original),
                )
                .with(&key("rope.scaling.yarn_beta_fast"), Item::F32(yarn.fast))
                .with(&key("rope.scaling.yarn_beta_slow"), Item::F32(yarn.slow));
            if let Some(multiplier) = yarn.log_multiplier {
                let key = key("rope.scaling.yarn_log_multiplier");
                file = file.with(&key, Item::F32(multiplier));
            }
        }
        if let Some(original) = self.rope_long {
            file = file
                .with(&key("rope.scaling.original_context_length"), size(original))
                .with(&key("rope.scaling.attn_factor"), Item::F32(LONG_MAGNITUDE));
        }
        if let Some(slope) = self.temperature {
            file = file.with(&key("attention.temperature_scale"), Item::F32(slope));
        }
        if let Some(cap) = self.attention_cap {
            file = file.with(&key("attn_logit_softcapping"), Item::F32(cap));
        }
        if let Some(cap) = self.logit_cap {
            file = file.with(&key("final_logit_softcapping"), Item::F32(cap));
        }
        if let Some(scales) = self.scales {
            file = file
                .with(&key("attention.scale"), Item::F32(scales.attention))
                .with(&key("embedding_scale"), Item::F32(scales.embedding))
                .with(&key("residual_scale"), Item::F32(scales.residual))
                .with(&key("logit_scale"), Item::F32(scales.logit));
        }
        if self.window > 0 {
            file = file.with(&key("attention.sliding_window"), size(self.window));
        }
        for (name, weight) in tensors {
            let dims: Vec<u64> = weight.shape.iter().rev().map(|&dim| dim as u64).collect();
            file = file.tensor(name, &dims, id(weight.kind), weight.bytes.clone());
        }
        file
    }

    /// Writes the model's file to disk.
    pub(crate) fn written(&self, tensors: &BTreeMap<String, Weight>) -> NamedTempFile {
        written(&self.file(tensors))
    }
}

/// Writes the file of `builder` to a temporary file.
pub(crate) fn written(builder: &Builder) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".gguf").expect("a temporary file");
    file.write_all(&builder.bytes()).expect("written");
    file
}

/// One tensor: the bytes in the file, and the elements they stand for.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: GgmlDType,
    pub(crate) bytes: Vec<u8>,
    /// Row-major.
    pub(crate) values: Vec<f32>,
}

impl Weight {
    pub(crate) fn new(shape: &[usize], kind: GgmlDType, values: Vec<f32>) -> Weight {
        let exact = Tensor::from_vec(values, shape, &Device::Cpu).expect("as many as the shape");
        let stored = QTensor::quantize(&exact, kind).expect("whole blocks");
        let values = stored
            .dequantize(&Device::Cpu)
            .and_then(|values| values.flatten_all()?.to_vec1())
            .expect("dequantizes");
        Weight {
            shape: shape.to_vec(),
            kind,
            bytes: stored.data().expect("on the CPU").into_owned(),
            values,
        }
    }
}

struct Draw {
    random: ChaCha8Rng,
    matrices: GgmlDType,
    drawn: BTreeMap<String, Weight>,
}

impl Draw {
    /// Generates weights that make outputs somewhat larger than inputs, so that attention is
    /// far from uniform and every layer matters.
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) {
        let limit = (6.0 / columns as f32).sqrt();
        self.draw(name, &[rows, columns], self.matrices, -limit, limit);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.vector(name, width, 0.5, 1.5);
    }

    fn vector(&mut self, name: &str, width: usize, low: f32, high: f32) {
        self.draw(name, &[width], GgmlDType::F32, low, high);
    }

    fn draw(&mut self, name: &str, shape: &[usize], kind: GgmlDType, low: f32, high: f32) {
        let values = (0..shape.iter().product())
            .map(|_| self.random.random_range(low..high))
            .collect();
        let weight = Weight::new(shape, kind, values);
        self.drawn.insert(name.to_owned(), weight);
    }
}

/// Adds a vocabulary of `<unk>`, `<s>`, `</s>`, the 256 bytes and single characters.
fn tokenizer(file: Builder) -> Builder {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend(
        "▁abcdefghijklmnopqrstuvwxyz,.?!:;'-0123456789"
            .chars()
            .map(String::from),
    );
    pieces.truncate(VOCAB);
    assert_eq!(pieces.len(), VOCAB);
    let mut kinds = vec![2, 3, 3];
    kinds.resize(3 + 256, 6);
    kinds.resize(VOCAB, 1);
    let texts: Vec<&str> = pieces.iter().map(String::as_str).collect();
    file.with("tokenizer.ggml.model", Item::Str("llama"))
        .with("tokenizer.ggml.tokens", Item::Strs(&texts))
        .with("tokenizer.ggml.scores", Item::F32s(&[0.0; VOCAB]))
        .with("tokenizer.ggml.token_type", Item::I32s(&kinds))
        .with("tokenizer.ggml.unknown_token_id", Item::U32(0))
        .with("tokenizer.ggml.bos_token_id", Item::U32(1))
        .with("tokenizer.ggml.eos_token_id", Item::U32(2))
}

/// The id of a type in ggml.
fn id(kind: GgmlDType) -> u32 {
    match kind {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => unreachable!("files have no weights of {other:?}"),
    }
}

/// Random tokens of the tiny vocabulary.
pub(crate) fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(0..VOCAB as u32))
        .collect()
}
