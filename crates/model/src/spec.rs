//! [`DecoderSpec`]: everything an executor needs to know about a decoder.

use incant_kernels::{Activation, RopeStyle};

/// A decoder-only transformer.
///
/// A layer is, with every optional part in brackets:
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
    /// `general.architecture`.
    pub architecture: &'static str,
    /// How many tokens the vocabulary has, and logits a row. The embedding and the head
    /// may have more rows in the file (makers pad them to a round number): an id without
    /// a token has no logit, so that it is in no distribution and nothing can choose it.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Key and value heads per layer; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest context the model was made for, in tokens.
    pub context: usize,
    /// Longest context that is served, in tokens: some ropes depend on it. It is
    /// the model's own unless whoever loads the model says less.
    pub served_context: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// What attention scores are multiplied by before the softmax.
    pub attention_scale: f32,
    /// Makes the scores of late positions larger.
    pub temperature: Option<Temperature>,
    /// Soft cap of the scaled attention scores.
    pub attention_cap: Option<f32>,
    /// What embeddings are multiplied by on the way in.
    pub embedding_scale: f32,
    /// What the outputs of attention and feed-forward are multiplied by before
    /// they are added.
    pub residual_scale: f32,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// Soft cap of the scaled logits.
    pub logit_cap: Option<f32>,
    /// The gate's activation.
    pub activation: Activation,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// How q and k are normalised before rope, where they are.
    pub qk_norm: Option<QkNorm>,
    /// Whether the inputs of attention and feed-forward are normalised.
    pub pre_norms: bool,
    /// Whether the outputs of attention and feed-forward are normalised before
    /// they are added.
    pub post_norms: bool,
    /// Whether the file has q, k and v as the rows of one tensor, in this order.
    pub fused_qkv: bool,
    /// Whether the file has gate and up as the rows of one tensor, in this order.
    pub fused_gate: bool,
    /// Whether the head shares the embedding's weights.
    pub tied_head: bool,
    /// The rotary embeddings that layers choose from.
    pub ropes: Vec<RopeSpec>,
    /// What differs from layer to layer.
    pub layers: Vec<LayerSpec>,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// A position sees itself and the `window − 1` before it; `None` sees all.
    pub window: Option<usize>,
    /// Index into [`DecoderSpec::ropes`].
    pub rope: usize,
}

/// What q and k are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself; all heads have the same weights.
    Head,
    /// All heads together.
    Whole,
}

/// Attention scores at position `p` are multiplied by
/// `1 + slope · ln(1 + ⌊p / length⌋)` (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// How fast the factor grows.
    pub slope: f32,
    /// The first position whose factor is not 1.
    pub length: usize,
}

/// A rotary position embedding: the angle of pair `i` at position `p` is
/// `p · base^(−2i/dims) / (scale · factors[i])`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The frequency base θ.
    pub base: f32,
    /// How many of a head's dimensions rotate, from the first.
    pub dims: usize,
    /// Positions are divided by this (linear scaling); 1 is off.
    pub scale: f32,
    /// Divisor of each pair's frequency (`dims / 2` of them): the scaling of
    /// Llama 3, YaRN and LongRoPE comes as such.
    pub factors: Option<Vec<f32>>,
    /// What takes the place of `factors` where a long context is served.
    pub long: Option<LongRope>,
    /// What sines and cosines are multiplied by.
    pub magnitude: f32,
    /// Which dimensions make a pair.
    pub style: RopeStyle,
}

/// The other factors of a rope that has two sets (LongRoPE).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// They count where more tokens than so many are served.
    pub beyond: usize,
    /// See [`RopeSpec::factors`].
    pub factors: Vec<f32>,
}

impl RopeSpec {
    /// What it takes to rotate, where so many tokens are served.
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

/// The numbers of a rope.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Radians per position, of each pair.
    frequencies: Vec<f32>,
    magnitude: f32,
}

impl Rotation {
    /// Cosines and sines at these positions, `[position][pair]` each.
    pub fn angles(&self, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let magnitude = f64::from(self.magnitude);
        // In f64: at position 30,000 an f32 angle is off by a thousandth.
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
    /// What the query at a position is multiplied by.
    pub fn query_scale(&self, position: usize) -> f32 {
        let factor = self.temperature.map_or(1.0, |temperature| {
            let lengths = (position / temperature.length) as f32;
            1.0 + temperature.slope * lengths.ln_1p()
        });
        self.attention_scale * factor
    }

    /// What a KV format's name ends with: the same tokens have other keys where
    /// some rope takes its factors for long contexts.
    pub fn kv_variant(&self) -> &'static str {
        let mut long = self.ropes.iter().filter_map(|rope| rope.long.as_ref());
        match long.any(|long| self.served_context > long.beyond) {
            true => "-long-rope",
            false => "",
        }
    }

    /// Bytes of keys and values that `tokens` tokens take at `width` bytes per
    /// number. Layers with a window hold no more than it. Metadata that no weights
    /// were held against can ask for more than there are numbers for: then it is the
    /// largest number.
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
