//! Rotary position embeddings (RoPE) from metadata: the standard keys, linear scaling, Llama 3
//! factors, YaRN, and LongRoPE.

use super::Fields;
use crate::{LongRope, ModelError, RopeSpec, RopeStyle};
use incant_gguf::TensorType;

impl Fields<'_> {
    /// Reads the RoPE that the standard keys describe.
    pub(super) fn rope(&self, head_dim: usize, style: RopeStyle) -> Result<RopeSpec, ModelError> {
        let key = "rope.dimension_count";
        let dims = self.get_size(key)?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let why = "it must be even and at most a head's width";
            return Err(self.senseless(key, dims, why));
        }
        // The frequency factors of Llama 3.
        let factors = if self.has_tensor("rope_freqs.weight") {
            Some(self.rope_factors("rope_freqs.weight", dims)?)
        } else {
            None
        };
        let plain = RopeSpec {
            base: self.get_float("rope.freq_base")?.unwrap_or(10_000.0),
            dims,
            scale: 1.0,
            factors,
            long: None,
            magnitude: self.get_float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            style,
        };
        // The factor also has an older key; 0 means no scaling.
        let old = self.get_float("rope.scale_linear")?;
        let factor = self.get_float("rope.scaling.factor")?.or(old);
        let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
        let rope = match self.get_str("rope.scaling.type")? {
            Some("none") => plain,
            // A factor without a type means linear scaling. LongRoPE has a factor for each
            // pair.
            None | Some("linear" | "longrope") => RopeSpec {
                scale: factor,
                ..plain
            },
            Some("yarn") => self.yarn(plain, factor)?,
            Some(other) => {
                let other = other.escape_debug();
                return Err(self.unsupported(format!("rope scaling of type '{other}'")));
            }
        };
        self.longrope(rope)
    }

    /// Returns the context length of the model before it was extended.
    pub(super) fn original_context(&self) -> Result<usize, ModelError> {
        let key = "rope.scaling.original_context_length";
        match self.get_size(key)? {
            Some(0) => Err(self.senseless(key, 0, "it must be positive")),
            Some(length) => Ok(length),
            None => self.size("context_length"),
        }
    }

    /// Applies YaRN (arXiv:2309.00071): pairs that rotate many times within the original
    /// context keep their frequency, pairs that rotate rarely are slowed down by `factor`, with
    /// a linear ramp in between.
    fn yarn(&self, rope: RopeSpec, factor: f32) -> Result<RopeSpec, ModelError> {
        let key = "rope.scaling.factor";
        if !(factor.is_finite() && factor >= 1.0) {
            return Err(self.senseless(key, factor, "YaRN makes a context longer"));
        }
        let or = |key, default| {
            let value = self.get_float(key)?;
            Ok::<_, ModelError>(value.unwrap_or(default))
        };
        let fast = or("rope.scaling.yarn_beta_fast", 32.0)?;
        let slow = or("rope.scaling.yarn_beta_slow", 1.0)?;
        let (dims, context) = (rope.dims as f32, self.original_context()? as f32);
        // The index of the pair that rotates `turns` times within the original context.
        let pair = |turns: f32| {
            dims * (context / (turns * std::f32::consts::TAU)).ln() / (2.0 * rope.base.ln())
        };
        let first = pair(fast).floor().max(0.0);
        let last = pair(slow).ceil().min(dims - 1.0);
        let factors = (0..rope.dims / 2).map(|index| {
            let slowed = (index as f32 - first) / (last - first).max(0.001);
            let slowed = slowed.clamp(0.0, 1.0);
            let other = rope.factors.as_ref().map_or(1.0, |factors| factors[index]);
            other / (1.0 - slowed + slowed / factor)
        });
        // Scores are spread over more positions, so they are scaled up.
        let magnitude = |weight: f32| 0.1 * weight * factor.ln() + 1.0;
        let weight = or("rope.scaling.yarn_log_multiplier", 0.0)?;
        Ok(RopeSpec {
            factors: Some(factors.collect()),
            magnitude: rope.magnitude * magnitude(1.0) / magnitude(weight),
            ..rope
        })
    }

    /// Applies LongRoPE (arXiv:2402.13753): one set of factors for contexts up to the original
    /// length, and another for longer ones. A sequence must use one set for all its positions,
    /// so the served context length decides, as in llama.cpp.
    fn longrope(&self, rope: RopeSpec) -> Result<RopeSpec, ModelError> {
        let (short, long) = ("rope_factors_short.weight", "rope_factors_long.weight");
        if !self.has_tensor(short) && !self.has_tensor(long) {
            return Ok(rope);
        }
        if rope.factors.is_some() {
            return Err(self.unsupported("two kinds of rope factors"));
        }
        Ok(RopeSpec {
            factors: Some(self.rope_factors(short, rope.dims)?),
            long: Some(LongRope {
                beyond: self.original_context()?,
                factors: self.rope_factors(long, rope.dims)?,
            }),
            ..rope
        })
    }

    /// Reads the frequency factors that a file holds as a tensor.
    fn rope_factors(&self, name: &str, dims: usize) -> Result<Vec<f32>, ModelError> {
        let view = self.gguf.tensor(name)?;
        if view.info.kind != TensorType::F32 {
            let kind = view.info.kind;
            return Err(self.unsupported(format!("rope frequencies of type {kind}")));
        }
        if view.info.shape != [dims / 2] {
            return Err(ModelError::Shape {
                name: view.info.name.clone(),
                found: view.info.shape.clone(),
                expected: vec![dims / 2],
            });
        }
        let numbers = view.data.as_chunks::<4>().0.iter();
        Ok(numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// Returns a RoPE with the same base, but without scaling.
pub(super) fn unscaled(rope: &RopeSpec) -> RopeSpec {
    RopeSpec {
        scale: 1.0,
        factors: None,
        long: None,
        magnitude: 1.0,
        ..rope.clone()
    }
}
