//! [`DecoderSpec`]: everything that an executor must know about a decoder.

use incant_kernels::{Activation, RopeStyle};

/// A decoder-only transformer.
///
/// A layer computes the following; optional parts are in brackets:
///
/// ```text
/// h = [norm](x);  q, k, v = h·Wq [+bq], h·Wk [+bk], h·Wv [+bv]
/// q, k = rope([norm](q)), rope([norm](k))
/// x = x + residual_scale · [norm](attention(q, k, v)·Wo)
/// h = [norm](x)
/// x = x + residual_scale · [norm]((activation(h·Wgate) ⊙ h·Wup)·Wdown)
/// ```
///
/// The logits are `[cap](logit_scale · norm(x)·Whead)`, and a soft cap is
/// `cap · tanh(x / cap)`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The `general.architecture` of the file.
    pub architecture: &'static str,
    /// The number of tokens in the vocabulary, and of logits per row. The embedding and the LM
    /// head may have more rows in the file (makers pad them to a round number): an id without a
    /// token has no logit, so it is part of no distribution and cannot be sampled.
    pub vocab: usize,
    /// The width of the residual stream.
    pub hidden: usize,
    /// The inner width of the feed-forward part.
    pub feed_forward: usize,
    /// The number of query heads per layer.
    pub heads: usize,
    /// The number of key and value heads per layer (grouped-query attention); each serves
    /// `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// The longest context that the model was trained for, in tokens.
    pub context: usize,
    /// The longest context that is served, in tokens; some RoPE scalings depend on it. It is
    /// the model's own context unless the caller sets a shorter one.
    pub served_context: usize,
    /// The epsilon of every RMS norm.
    pub norm_eps: f32,
    /// The factor of attention scores before the softmax.
    pub attention_scale: f32,
    /// The scaling of attention scores at late positions, if any.
    pub temperature: Option<Temperature>,
    /// The soft cap of the scaled attention scores.
    pub attention_cap: Option<f32>,
    /// The factor of the token embeddings.
    pub embedding_scale: f32,
    /// The factor of the outputs of attention and feed-forward before they are added to the
    /// residual stream.
    pub residual_scale: f32,
    /// The factor of the logits.
    pub logit_scale: f32,
    /// The soft cap of the scaled logits.
    pub logit_cap: Option<f32>,
    /// The activation of the gate.
    pub activation: Activation,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The normalisation of q and k before RoPE, if any.
    pub qk_norm: Option<QkNorm>,
    /// Whether the inputs of attention and feed-forward are normalised.
    pub pre_norms: bool,
    /// Whether the outputs of attention and feed-forward are normalised before they are added
    /// to the residual stream.
    pub post_norms: bool,
    /// Whether the file holds q, k and v as the rows of one tensor, in this order.
    pub fused_qkv: bool,
    /// Whether the file holds gate and up as the rows of one tensor, in this order.
    pub fused_gate: bool,
    /// Whether the LM head shares the weights of the embedding (tied embeddings).
    pub tied_embeddings: bool,
    /// The rotary position embeddings (RoPE) that layers choose from.
    pub ropes: Vec<RopeSpec>,
    /// The properties of each layer.
    pub layers: Vec<LayerSpec>,
}

/// The properties that differ between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The sliding window: a position sees itself and the `window − 1` positions before it;
    /// `None` sees all.
    pub window: Option<usize>,
    /// The index into [`DecoderSpec::ropes`].
    pub rope: usize,
}

/// The scope of the q and k norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head is normalised by itself; all heads share the same weights.
    Head,
    /// All heads are normalised together.
    Whole,
}

/// The scaling of attention scores by position: at position `p` they are multiplied by
/// `1 + slope · ln(1 + ⌊p / length⌋)` (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// The growth rate of the factor.
    pub slope: f32,
    /// The first position whose factor is not 1.
    pub length: usize,
}

/// A rotary position embedding (RoPE): the angle of pair `i` at position `p` is
/// `p · base^(−2i/dims) / (scale · factors[i])`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The frequency base θ.
    pub base: f32,
    /// The number of dimensions of a head that rotate, from the first on.
    pub dims: usize,
    /// The divisor of positions (linear scaling); 1 means no scaling.
    pub scale: f32,
    /// The divisors of the frequencies of the `dims / 2` pairs, which express the scaling of
    /// Llama 3, YaRN and LongRoPE.
    pub factors: Option<Vec<f32>>,
    /// The factors that replace `factors` when a long context is served.
    pub long: Option<LongRope>,
    /// The factor of sines and cosines.
    pub magnitude: f32,
    /// The pairing of dimensions.
    pub style: RopeStyle,
}

/// The second set of factors of a RoPE that has two (LongRoPE).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// The factors apply if more than this number of tokens is served.
    pub beyond: usize,
    /// The factors, as in [`RopeSpec::factors`].
    pub factors: Vec<f32>,
}

impl RopeSpec {
    /// Returns the frequencies and the magnitude for a served context of this length.
    pub fn rotation(&self, served_context: usize) -> Rotation {
        let long = self.long.as_ref();
        let long = long.filter(|long| served_context > long.beyond);
        let factors = long.map(|long| &long.factors).or(self.factors.as_ref());
        let frequency = |pair: usize| {
            let exponent = -2.0 * pair as f64 / self.dims as f64;
            let factor = factors.map_or(1.0, |factors| factors[pair]);
            (f64::from(self.base).powf(exponent) / (f64::from(self.scale) * f64::from(factor)))
                as f32
        };
        Rotation {
            frequencies: (0..self.dims / 2).map(frequency).collect(),
            magnitude: self.magnitude,
        }
    }
}

/// The frequencies and the magnitude of a RoPE.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Radians per position, for each pair.
    frequencies: Vec<f32>,
    magnitude: f32,
}

impl Rotation {
    /// Computes the cosines and sines at these positions, `[position][pair]` each.
    pub fn angles(&self, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let magnitude = f64::from(self.magnitude);
        // In f64, because at position 30,000 an f32 angle is off by a thousandth.
        let angles = positions.iter().flat_map(|&position| {
            let frequencies = self.frequencies.iter();
            frequencies.map(move |&frequency| position as f64 * f64::from(frequency))
        });
        angles
            .map(|angle| {
                let (sin, cos) = (angle.sin(), angle.cos());
                ((cos * magnitude) as f32, (sin * magnitude) as f32)
            })
            .unzip()
    }
}

impl DecoderSpec {
    /// Returns the factor of the query at a position.
    pub fn query_scale(&self, position: usize) -> f32 {
        let factor = self.temperature.map_or(1.0, |temperature| {
            let lengths = (position / temperature.length) as f32;
            1.0 + temperature.slope * lengths.ln_1p()
        });
        self.attention_scale * factor
    }

    /// Returns the suffix of a KV format's name: the same tokens have different keys if a RoPE
    /// uses its factors for long contexts.
    pub fn kv_variant(&self) -> &'static str {
        let mut long = self.ropes.iter().filter_map(|rope| rope.long.as_ref());
        if long.any(|long| self.served_context > long.beyond) {
            "-long-rope"
        } else {
            ""
        }
    }

    /// Returns the size in bytes of the keys and values of `tokens` tokens, with `width` bytes
    /// per element. Layers with a sliding window hold no more than the window. Saturates at
    /// `usize::MAX`, because metadata that was not yet checked against the weights may describe
    /// a size beyond it.
    pub fn kv_bytes(&self, tokens: usize, width: usize) -> usize {
        let token = [2, self.kv_heads, self.head_dim, width]
            .into_iter()
            .fold(1, usize::saturating_mul);
        let layers = self.layers.iter().map(|layer| {
            let held = layer.window.map_or(tokens, |window| tokens.min(window));
            held.saturating_mul(token)
        });
        layers.fold(0, usize::saturating_add)
    }
}
