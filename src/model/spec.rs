//! [`DecoderSpec`]: everything an executor needs to know about a decoder.

/// A pre-norm, decoder-only transformer.
///
/// A layer is, with every optional part in brackets:
///
/// ```text
/// h = norm(x);  q, k, v = h·Wq [+bq], h·Wk [+bk], h·Wv [+bv]
/// q, k = rope([norm](q)), rope([norm](k))
/// x = x + [norm](attention(q, k, v)·Wo)
/// h = norm(x);  x = x + [norm]((activation(h·Wgate) ⊙ h·Wup)·Wdown)
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// How many tokens the vocabulary has.
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
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// What attention scores are multiplied by before the softmax.
    pub attention_scale: f32,
    /// What embeddings are multiplied by on the way in.
    pub embedding_scale: f32,
    /// The gate's activation.
    pub activation: Activation,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether each head of q and k is normalised before rope.
    pub qk_norm: bool,
    /// Whether the outputs of attention and feed-forward are normalised before
    /// they are added.
    pub post_norms: bool,
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
    /// Divisor of each pair's frequency (`dims / 2` of them): Llama 3's scaling
    /// comes as such a tensor.
    pub factors: Option<Vec<f32>>,
    /// Which dimensions make a pair.
    pub style: RopeStyle,
}

impl RopeSpec {
    /// The frequencies of the `dims / 2` pairs, in radians per position.
    pub fn frequencies(&self) -> Vec<f32> {
        (0..self.dims / 2)
            .map(|pair| {
                let exponent = -2.0 * pair as f64 / self.dims as f64;
                let factor = self.factors.as_ref().map_or(1.0, |f| f[pair]);
                (f64::from(self.base).powf(exponent) / (f64::from(self.scale) * f64::from(factor)))
                    as f32
            })
            .collect()
    }
}

/// Which dimensions of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` with `i + dims/2` (GPT-NeoX).
    Halves,
    /// `2i` with `2i + 1` (the original; GGUF's llama files are permuted for it).
    Pairs,
}

/// The gate's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

impl DecoderSpec {
    /// Bytes of keys and values that `tokens` tokens take at `width` bytes per
    /// number. Layers with a window hold no more than it.
    pub fn kv_bytes(&self, tokens: usize, width: usize) -> usize {
        self.layers
            .iter()
            .map(|layer| {
                let held = layer.window.map_or(tokens, |window| tokens.min(window));
                2 * held * self.kv_heads * self.head_dim * width
            })
            .sum()
    }
}
