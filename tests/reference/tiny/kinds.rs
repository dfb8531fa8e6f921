//! One tiny model of each architecture.

use candle_core::quantized::GgmlDType;

use super::{Scales, Tiny, Yarn};

impl Tiny {
    /// Returns one model of each architecture.
    pub(crate) fn all() -> [Tiny; 9] {
        [
            Tiny::llama(),
            Tiny::qwen2(),
            Tiny::qwen3(),
            Tiny::gemma2(),
            Tiny::gemma3(),
            Tiny::phi3(),
            Tiny::olmo2(),
            Tiny::mistral3(),
            Tiny::granite(),
        ]
    }

    pub(crate) fn llama() -> Tiny {
        Tiny {
            architecture: "llama",
            hidden: 64,
            feed_forward: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            layers: 3,
            tied: false,
            biases: false,
            eps: 1e-3,
            rope_base: 10_000.0,
            rope_dims: None,
            rope_linear: None,
            rope_factors: false,
            rope_yarn: None,
            rope_long: None,
            window: 0,
            temperature: None,
            attention_cap: None,
            logit_cap: None,
            scales: None,
            fused_qkv: false,
            weights: GgmlDType::F32,
            seed: 1,
        }
    }

    pub(crate) fn qwen2() -> Tiny {
        Tiny {
            architecture: "qwen2",
            biases: true,
            eps: 1e-4,
            rope_base: 1_000_000.0,
            seed: 2,
            ..Tiny::llama()
        }
    }

    /// Seven layers, so that the sixth is global; heads wider than `hidden / heads`.
    pub(crate) fn gemma3() -> Tiny {
        Tiny {
            architecture: "gemma3",
            head_dim: 24,
            layers: 7,
            tied: true,
            eps: 3e-2,
            rope_base: 1_000_000.0,
            window: 5,
            seed: 3,
            ..Tiny::llama()
        }
    }

    pub(crate) fn qwen3() -> Tiny {
        Tiny {
            architecture: "qwen3",
            head_dim: 24,
            biases: false,
            seed: 4,
            ..Tiny::qwen2()
        }
    }

    /// Layers with and without a window, and caps that a large share of values reaches.
    pub(crate) fn gemma2() -> Tiny {
        Tiny {
            architecture: "gemma2",
            layers: 4,
            rope_base: 10_000.0,
            attention_cap: Some(3.0),
            logit_cap: Some(2.0),
            seed: 5,
            ..Tiny::gemma3()
        }
    }

    /// A window in every layer, and LongRoPE with the short factors.
    pub(crate) fn phi3() -> Tiny {
        Tiny {
            architecture: "phi3",
            rope_long: Some(4096),
            window: 9,
            fused_qkv: true,
            seed: 6,
            ..Tiny::llama()
        }
    }

    pub(crate) fn olmo2() -> Tiny {
        Tiny {
            architecture: "olmo2",
            layers: 5,
            rope_base: 500_000.0,
            seed: 7,
            ..Tiny::llama()
        }
    }

    /// OLMo 3: windows, and YaRN in the layers without windows.
    pub(crate) fn olmo3() -> Tiny {
        Tiny {
            rope_yarn: Some(Yarn {
                factor: 8.0,
                original: 64,
                fast: 32.0,
                slow: 1.0,
                log_multiplier: None,
            }),
            window: 5,
            ..Tiny::olmo2()
        }
    }

    pub(crate) fn mistral3() -> Tiny {
        Tiny {
            architecture: "mistral3",
            head_dim: 24,
            rope_yarn: Some(Yarn {
                factor: 4.0,
                original: 16,
                fast: 1.0,
                slow: 0.25,
                log_multiplier: Some(1.0),
            }),
            temperature: Some(0.3),
            seed: 8,
            ..Tiny::llama()
        }
    }

    pub(crate) fn granite() -> Tiny {
        Tiny {
            architecture: "granite",
            scales: Some(Scales {
                attention: 0.125,
                embedding: 3.0,
                residual: 0.5,
                logit: 0.75,
            }),
            tied: true,
            seed: 9,
            ..Tiny::llama()
        }
    }
}
