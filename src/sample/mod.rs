//! From logits to a token: the sampling chain and log-probabilities.

/// How a token is chosen. The defaults are OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token, always.
    pub temperature: f32,
    /// Nucleus mass in `[0, 1]`; 0 keeps only the top token.
    pub top_p: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this likely relative to the most likely one.
    pub min_p: f32,
    /// Subtracted once from each token that was generated before.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Whether `repetition_penalty` counts the prompt's tokens too.
    pub penalize_prompt: bool,
    /// Added to the logits of the named tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed of the random stream; `None` draws one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            penalize_prompt: false,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// Log-probabilities at one position: log-softmax of the raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// That of the chosen token.
    pub chosen: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}
