//! The oracle: decoders written out from their definitions, as plainly as
//! possible, in f64.
//!
//! It takes a whole sequence at once and keeps nothing. It is made from what a
//! tiny model *is*, not from its file, and shares no code with the program.
//! Sources: "LLaMA" (arXiv:2302.13971) and "RoFormer" (arXiv:2104.09864), the
//! Qwen2 (arXiv:2407.10671) and Gemma 3 (arXiv:2503.19786) reports with their
//! published code, and the way llama.cpp's converter stores each: Llama's q and
//! k rows permuted so that neighbours rotate together, Gemma's norm weights
//! with the 1 already added, Llama 3's rope scaling as divisors of frequencies.

use std::collections::BTreeMap;

use super::tiny::{Tiny, VOCAB, Weight};

/// A vector per position.
type Rows = Vec<Vec<f64>>;

/// A decoder and its weights.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) weights: BTreeMap<String, Vec<f64>>,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) eps: f64,
    /// What scores are multiplied by before the softmax.
    pub(crate) score_scale: f64,
    /// What embeddings are multiplied by.
    pub(crate) embedding_scale: f64,
    pub(crate) activation: fn(f64) -> f64,
    /// The two dimensions of a rotating pair, given its index and their number.
    pub(crate) pair: fn(usize, usize) -> (usize, usize),
    pub(crate) layers: Vec<PlainLayer>,
}

/// What differs between the layers of one model.
#[derive(Clone)]
pub(crate) struct PlainLayer {
    /// How many positions attention sees, its own included.
    pub(crate) window: usize,
    /// Radians per position of each pair.
    pub(crate) frequencies: Vec<f64>,
}

impl Plain {
    /// The decoder that `model` describes, with weights `tensors`.
    pub(crate) fn new(model: &Tiny, tensors: &BTreeMap<String, Weight>) -> Plain {
        let weights: BTreeMap<String, Vec<f64>> = tensors
            .iter()
            .map(|(name, weight)| {
                let values = weight.values.iter().map(|&value| f64::from(value));
                (name.clone(), values.collect())
            })
            .collect();
        let dims = model.rotating();
        let frequencies = |base: f64, linear: f64| -> Vec<f64> {
            (0..dims / 2)
                .map(|pair| {
                    let plain = base.powf(-2.0 * pair as f64 / dims as f64);
                    let factor = weights.get("rope_freqs.weight").map_or(1.0, |f| f[pair]);
                    plain / factor / linear
                })
                .collect()
        };
        let linear = f64::from(model.rope_linear.unwrap_or(1.0));
        let everywhere = PlainLayer {
            window: usize::MAX,
            frequencies: frequencies(f64::from(model.rope_base), linear),
        };
        let nearby = PlainLayer {
            window: model.window,
            frequencies: frequencies(10_000.0, 1.0),
        };
        let gemma = model.architecture == "gemma3";
        let layers = (1..=model.layers)
            .map(|number| match gemma && number % 6 != 0 {
                true => nearby.clone(),
                false => everywhere.clone(),
            })
            .collect();
        // Gemma 3 27B, known by its 62 layers, is the one with a scale of its own.
        let score_width = match gemma && model.layers == 62 {
            true => model.hidden / model.heads,
            false => model.head_dim,
        };
        Plain {
            hidden: model.hidden,
            feed_forward: model.feed_forward,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            eps: f64::from(model.eps),
            score_scale: 1.0 / (score_width as f64).sqrt(),
            embedding_scale: if gemma {
                (model.hidden as f64).sqrt()
            } else {
                1.0
            },
            activation: if gemma { gelu_tanh } else { silu },
            pair: if model.architecture == "llama" {
                neighbours
            } else {
                halves
            },
            layers,
            weights,
        }
    }

    /// The logits after each of `tokens`.
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
            x = add(x, self.normed(&out, &name("post_attention_norm.weight")));

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
            x = add(x, self.normed(&out, &name("post_ffw_norm.weight")));
        }
        let x = self.normed(&x, "output_norm.weight");
        let tied = !self.weights.contains_key("output.weight");
        let head = if tied { "token_embd" } else { "output" };
        self.linear(&x, head, VOCAB)
    }

    /// The heads' outputs side by side, before the output projection.
    fn attention(&self, h: &Rows, layer: &PlainLayer, name: &dyn Fn(&str) -> String) -> Rows {
        let width = self.head_dim;
        let split = |rows: Rows| -> Vec<Rows> {
            let heads = |row: Vec<f64>| row.chunks(width).map(<[f64]>::to_vec).collect();
            rows.into_iter().map(heads).collect()
        };
        let project = |part: &str, heads: usize| split(self.linear(h, &name(part), heads * width));
        let turned = |heads: Vec<Rows>, norm: &str| -> Vec<Rows> {
            let normed = heads.iter().map(|heads| self.normed(heads, &name(norm)));
            normed
                .enumerate()
                .map(|(position, mut heads)| {
                    for head in &mut heads {
                        self.rotate(head, position, &layer.frequencies);
                    }
                    heads
                })
                .collect()
        };
        let q = turned(project("attn_q", self.heads), "attn_q_norm.weight");
        let k = turned(project("attn_k", self.kv_heads), "attn_k_norm.weight");
        let v = project("attn_v", self.kv_heads);

        (0..h.len())
            .map(|position| {
                let first = (position + 1).saturating_sub(layer.window);
                let mut out = Vec::new();
                for (head, query) in q[position].iter().enumerate() {
                    let shared = head / (self.heads / self.kv_heads);
                    let scores = (first..=position)
                        .map(|seen| dot(query, &k[seen][shared]) * self.score_scale);
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

    fn rotate(&self, head: &mut [f64], position: usize, frequencies: &[f64]) {
        for (index, frequency) in frequencies.iter().enumerate() {
            let (a, b) = (self.pair)(index, frequencies.len());
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }

    /// `x·Wᵀ`, plus the bias where there is one.
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

    /// Each row over its root mean square, times the weight of that name; the
    /// rows themselves where the model has no such norm.
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

/// Pair `index` is of two neighbours.
pub(crate) fn neighbours(index: usize, _pairs: usize) -> (usize, usize) {
    (2 * index, 2 * index + 1)
}

/// Pair `index` has one dimension in each half.
pub(crate) fn halves(index: usize, pairs: usize) -> (usize, usize) {
    (index, index + pairs)
}

/// x · sigmoid(x) (arXiv:1702.03118).
pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The tanh approximation of GELU (arXiv:1606.08415).
pub(crate) fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// GELU itself, x times the normal distribution's Φ(x): what the models here
/// do *not* use. Φ is 1/2 + φ(x)·(x + x³/3 + x⁵/15 + …).
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

fn add(mut x: Rows, y: Rows) -> Rows {
    for (x, y) in x.iter_mut().flatten().zip(y.iter().flatten()) {
        *x += y;
    }
    x
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
