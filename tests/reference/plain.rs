//! The oracle: decoders written from their definitions, as plainly as possible, in f64.
//!
//! It processes a whole sequence at once and stores nothing. It is created from the description
//! of a tiny model, not from its file, and shares no code with the program. Sources: "LLaMA"
//! (arXiv:2302.13971) and "RoFormer" (arXiv:2104.09864), the reports on Qwen2
//! (arXiv:2407.10671), Qwen3 (arXiv:2505.09388), Gemma 2 (arXiv:2408.00118), Gemma 3
//! (arXiv:2503.19786), Phi-3 (arXiv:2404.14219) and OLMo 2 (arXiv:2501.00656), YaRN
//! (arXiv:2309.00071) and LongRoPE (arXiv:2402.13753), together with the code of Hugging Face's
//! transformers for each, and the conventions of llama.cpp's converter: q and k rows of Llama
//! and similar models are permuted so that neighbouring dimensions rotate together, Gemma's
//! norm weights include the added 1, Llama 3's RoPE scaling is stored as divisors of
//! frequencies.

mod ropes;

use std::collections::BTreeMap;

use super::tiny::{Scales, Tiny, VOCAB, Weight};

/// One vector per position.
type Rows = Vec<Vec<f64>>;

#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) weights: BTreeMap<String, Vec<f64>>,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) eps: f64,
    /// The factor of scores before the softmax.
    pub(crate) score_scale: f64,
    /// The growth of scores with the logarithm of the position, in units of `original` tokens.
    pub(crate) growth: f64,
    pub(crate) original: usize,
    /// The factor of embeddings.
    pub(crate) embedding_scale: f64,
    /// The factor of additions to the residual stream.
    pub(crate) residual_scale: f64,
    /// The divisor of logits.
    pub(crate) logit_divisor: f64,
    /// Soft caps; infinite without one.
    pub(crate) score_cap: f64,
    pub(crate) logit_cap: f64,
    pub(crate) activation: fn(f64) -> f64,
    /// The two dimensions of a rotating pair, given its index and the number of pairs.
    pub(crate) pair: fn(usize, usize) -> (usize, usize),
    pub(crate) layers: Vec<PlainLayer>,
}

/// The properties that differ between the layers of a model.
#[derive(Clone)]
pub(crate) struct PlainLayer {
    /// The number of positions that attention sees, including its own.
    pub(crate) window: usize,
    /// Radians per position, for each pair.
    pub(crate) frequencies: Vec<f64>,
    /// The factor of rotated pairs.
    pub(crate) magnitude: f64,
}

impl Plain {
    /// Creates the decoder that `model` describes, with the weights `tensors`.
    pub(crate) fn new(model: &Tiny, tensors: &BTreeMap<String, Weight>) -> Plain {
        let mut weights: BTreeMap<String, Vec<f64>> = tensors
            .iter()
            .map(|(name, weight)| {
                let values = weight.values.iter().map(|&value| f64::from(value));
                (name.clone(), values.collect())
            })
            .collect();
        for layer in 0..model.layers {
            take_apart(model, layer, &mut weights);
        }
        let gemma = model.architecture.starts_with("gemma");
        // The 27B models, identified by their number of layers, have another scale.
        let score_width = match (model.architecture, model.layers) {
            ("gemma2", 46) | ("gemma3", 62) => model.hidden / model.heads,
            _ => model.head_dim,
        };
        let scales = model.scales;
        let scale = |of: fn(Scales) -> f32, other: f64| {
            let scale = scales.map_or(0.0, |scales| f64::from(of(scales)));
            if scale == 0.0 { other } else { scale }
        };
        let width_scale = 1.0 / (score_width as f64).sqrt();
        let gemma_scale = if gemma {
            (model.hidden as f64).sqrt()
        } else {
            1.0
        };
        // 0 means no cap.
        let cap = |cap: Option<f32>| {
            let cap = cap.filter(|&cap| cap != 0.0);
            cap.map_or(f64::INFINITY, f64::from)
        };
        Plain {
            hidden: model.hidden,
            feed_forward: model.feed_forward,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            eps: f64::from(model.eps),
            score_scale: scale(|s| s.attention, width_scale),
            growth: model.temperature.map_or(0.0, f64::from),
            original: model.rope_yarn.map_or(1, |yarn| yarn.original),
            embedding_scale: scale(|s| s.embedding, gemma_scale),
            residual_scale: scale(|s| s.residual, 1.0),
            logit_divisor: scale(|s| s.logit, 1.0),
            score_cap: cap(model.attention_cap),
            logit_cap: cap(model.logit_cap),
            activation: if gemma { gelu_tanh } else { silu },
            pair: match model.architecture {
                "llama" | "mistral3" | "granite" => neighbours,
                _ => halves,
            },
            layers: ropes::layers(model, &weights),
            weights,
        }
    }

    /// Computes the logits after each of `tokens`.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Rows {
        let embedding = &self.weights["token_embd.weight"];
        let mut x: Rows = tokens
            .iter()
            .map(|&token| {
                let row = &embedding[token as usize * self.hidden..][..self.hidden];
                row.iter().map(|v| v * self.embedding_scale).collect()
            })
            .collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| format!("blk.{index}.{part}");

            let h = self.normed(&x, &name("attn_norm.weight"));
            let attended = self.attention(&h, layer, &name);
            let out = self.linear(&attended, &name("attn_output"), self.hidden);
            let out = self.normed(&out, &name("post_attention_norm.weight"));
            x = add(x, out, self.residual_scale);

            let h = self.normed(&x, &name("ffn_norm.weight"));
            let gate = self.linear(&h, &name("ffn_gate"), self.feed_forward);
            let up = self.linear(&h, &name("ffn_up"), self.feed_forward);
            let gated = gate
                .iter()
                .zip(&up)
                .map(|(gate, up)| {
                    let pairs = gate.iter().zip(up);
                    pairs.map(|(&g, u)| (self.activation)(g) * u).collect()
                })
                .collect::<Rows>();
            let out = self.linear(&gated, &name("ffn_down"), self.hidden);
            let out = self.normed(&out, &name("post_ffw_norm.weight"));
            x = add(x, out, self.residual_scale);
        }
        let x = self.normed(&x, "output_norm.weight");
        let tied = !self.weights.contains_key("output.weight");
        let head = if tied { "token_embd" } else { "output" };
        let mut logits = self.linear(&x, head, VOCAB);
        for logit in logits.iter_mut().flatten() {
            *logit = capped(*logit / self.logit_divisor, self.logit_cap);
        }
        logits
    }

    /// Computes the concatenated outputs of the heads, before the output projection.
    fn attention(&self, h: &Rows, layer: &PlainLayer, name: &dyn Fn(&str) -> String) -> Rows {
        let width = self.head_dim;
        let split = |rows: Rows| -> Vec<Rows> {
            let heads = |row: Vec<f64>| row.chunks(width).map(<[f64]>::to_vec).collect();
            rows.into_iter().map(heads).collect()
        };
        let project = |part: &str, heads: usize| self.linear(h, &name(part), heads * width);
        let turned = |part: &str, heads: usize| -> Vec<Rows> {
            let norm = name(&format!("{part}_norm.weight"));
            let whole = self.weights.get(&norm).is_some_and(|w| w.len() != width);
            let rows = project(part, heads);
            let heads = match whole {
                true => split(self.normed(&rows, &norm)),
                false => split(rows).iter().map(|h| self.normed(h, &norm)).collect(),
            };
            let positions = heads.into_iter().enumerate();
            positions
                .map(|(position, mut heads)| {
                    for head in &mut heads {
                        self.rotate(head, position, layer);
                    }
                    heads
                })
                .collect()
        };
        let q = turned("attn_q", self.heads);
        let k = turned("attn_k", self.kv_heads);
        let v = split(project("attn_v", self.kv_heads));

        (0..h.len())
            .map(|position| {
                let first = (position + 1).saturating_sub(layer.window);
                let lengths = (position / self.original + 1) as f64;
                let scale = self.score_scale * (1.0 + self.growth * lengths.ln());
                let mut out = Vec::new();
                for (head, query) in q[position].iter().enumerate() {
                    let shared = head / (self.heads / self.kv_heads);
                    let scores = (first..=position)
                        .map(|seen| capped(dot(query, &k[seen][shared]) * scale, self.score_cap));
                    let chances = softmax(scores.collect());
                    let mut sum = vec![0.0; width];
                    for (seen, chance) in (first..=position).zip(chances) {
                        for (sum, value) in sum.iter_mut().zip(&v[seen][shared]) {
                            *sum += chance * value;
                        }
                    }
                    out.extend(sum);
                }
                out
            })
            .collect()
    }

    fn rotate(&self, head: &mut [f64], position: usize, layer: &PlainLayer) {
        for (index, frequency) in layer.frequencies.iter().enumerate() {
            let (a, b) = (self.pair)(index, layer.frequencies.len());
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = (sin * layer.magnitude, cos * layer.magnitude);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }

    /// Computes `x·Wᵀ`, plus the bias if there is one.
    fn linear(&self, x: &Rows, name: &str, width: usize) -> Rows {
        let weight = &self.weights[&format!("{name}.weight")];
        let bias = self.weights.get(&format!("{name}.bias"));
        x.iter()
            .map(|x| {
                let bias = |out: usize| bias.map_or(0.0, |bias| bias[out]);
                let row = |out: usize| &weight[out * x.len()..][..x.len()];
                (0..width).map(|out| dot(row(out), x) + bias(out)).collect()
            })
            .collect()
    }

    /// Divides each row by its root mean square and multiplies it with the named weight;
    /// returns the rows unchanged if the model has no such norm.
    fn normed(&self, rows: &Rows, name: &str) -> Rows {
        let Some(weight) = self.weights.get(name) else {
            return rows.clone();
        };
        rows.iter()
            .map(|row| {
                let root = (dot(row, row) / row.len() as f64 + self.eps).sqrt();
                row.iter().zip(weight).map(|(v, w)| v / root * w).collect()
            })
            .collect()
    }
}

/// Pair `index` consists of two neighbouring dimensions.
pub(crate) fn neighbours(index: usize, _pairs: usize) -> (usize, usize) {
    (2 * index, 2 * index + 1)
}

/// Pair `index` has one dimension in each half.
pub(crate) fn halves(index: usize, pairs: usize) -> (usize, usize) {
    (index, index + pairs)
}

/// SiLU: x · sigmoid(x) (arXiv:1702.03118).
pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The tanh approximation of GELU (arXiv:1606.08415).
pub(crate) fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// The exact GELU, x · Φ(x) with the normal distribution's Φ, which the models here do *not*
/// use. Φ is 1/2 + φ(x)·(x + x³/3 + x⁵/15 + …).
pub(crate) fn gelu_exact(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return x.max(0.0);
    }
    let (mut term, mut sum) = (x, x);
    for odd in (3..200).step_by(2) {
        term *= x * x / f64::from(odd);
        sum += term;
    }
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    x * (0.5 + density * sum)
}

fn softmax(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    scores
        .iter()
        .map(|score| (score - most).exp() / sum)
        .collect()
}

fn add(mut x: Rows, y: Rows, scale: f64) -> Rows {
    for (x, y) in x.iter_mut().flatten().zip(y.iter().flatten()) {
        *x += scale * y;
    }
    x
}

fn capped(x: f64, cap: f64) -> f64 {
    if cap.is_infinite() {
        return x;
    }
    cap * (x / cap).tanh()
}

/// Splits fused tensors into matrices, if the model has any.
fn take_apart(model: &Tiny, layer: usize, weights: &mut BTreeMap<String, Vec<f64>>) {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let mut cut = |from: &str, into: &[(&str, usize)]| {
        let whole = weights.remove(&name(from)).expect("is there");
        let mut rows = whole.chunks(model.hidden);
        for (part, count) in into {
            let part_rows = rows.by_ref().take(*count);
            weights.insert(name(part), part_rows.flatten().copied().collect());
        }
        assert!(rows.next().is_none());
    };
    if model.fused_qkv {
        let (q, kv) = (model.heads, model.kv_heads);
        let [q, kv] = [q, kv].map(|heads| heads * model.head_dim);
        cut("attn_qkv", &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)]);
    }
    if model.architecture == "phi3" {
        let height = model.feed_forward;
        cut("ffn_up", &[("ffn_gate", height), ("ffn_up", height)]);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
