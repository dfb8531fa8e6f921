//! An answer that is generated in this process, as text: for the command line and for training.

use std::sync::Arc;

use incant_engine::{Event, FinishReason, GenerateRequest, Generation, SubmitError};
use incant_prompt::text::Tokenizer;
use incant_sample::{SamplingParams, TokenLogprobs};

use super::choice::Choice;
use super::{Arm, EngineFailure, Partners, Prompt};

/// How an answer is generated.
#[derive(Clone, Debug, Default)]
pub struct AnswerOptions {
    /// The maximum number of tokens; `None` for as many as fit the context.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Report log-probabilities, with this number of alternatives.
    pub logprobs: Option<usize>,
}

/// Why there is no answer, or not all of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// The prompt, or a partner's, is as long as the context.
    #[error("the question has {tokens} tokens, the context {context}")]
    PromptTooLong {
        /// The length of the prompt in tokens, including the profile's.
        tokens: usize,
        /// The length of the context in tokens.
        context: usize,
    },
    /// The engine does not accept the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Generation failed.
    #[error(transparent)]
    Failed(#[from] EngineFailure),
}

/// One step of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerStep {
    /// The token that was generated; `None` at the end that the engine reports.
    pub token: Option<u32>,
    /// Its log-probabilities, if requested.
    pub logprobs: Option<TokenLogprobs>,
    /// The text that nothing can change any more. It does not include role markers.
    pub text: String,
    /// The reason why the answer ends, in its last step.
    pub finish: Option<FinishReason>,
}

/// A running answer. Dropping it ends its generation.
pub struct TextAnswer {
    generation: Generation,
    choice: Choice<Tokenizer>,
    is_done: bool,
}

impl TextAnswer {
    /// Starts an answer of `arm` to `prompt`, which `partners` help to shape.
    ///
    /// # Errors
    /// The prompt is as long as the context, or the engine does not accept the request.
    pub fn start(
        arm: &Arm,
        prompt: Prompt,
        partners: &Partners,
        options: AnswerOptions,
    ) -> Result<TextAnswer, AnswerError> {
        let fitting = arm.max_answer_tokens(&prompt);
        let fitting = fitting.min(partners.max_answer_tokens());
        if fitting == 0 {
            return Err(AnswerError::PromptTooLong {
                tokens: prompt.token_count(),
                context: arm.context(),
            });
        }
        let end_tokens = arm.end_tokens();
        let choice = Choice::new(
            0,
            Arc::clone(arm.tokenizer()),
            Arc::clone(&end_tokens),
            &[],
            &partners.markers(&prompt),
            None,
        )
        .trim_start();
        let request = GenerateRequest {
            adapter: arm.adapter(),
            prefix: prompt.prefix,
            prompt: prompt.ids,
            max_tokens: options.max_tokens.unwrap_or(usize::MAX).min(fitting),
            end_tokens,
            sampling: options.sampling,
            index: 0,
            logprobs: options.logprobs,
            prompt_logprobs: None,
            feeds: Vec::new(),
            together: None,
            isolated: false,
            speculation: None,
            prediction: Vec::new(),
        };
        Ok(TextAnswer {
            generation: partners.submit(arm, request)?,
            choice,
            is_done: false,
        })
    }

    /// Returns the next step, or `None` after the last one.
    ///
    /// # Errors
    /// Generation failed.
    pub async fn next(&mut self) -> Result<Option<AnswerStep>, AnswerError> {
        while !self.is_done {
            let event = self.generation.next().await;
            if let Some(step) = self.step(event)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    /// Returns the next step as [`next`](TextAnswer::next) does, and blocks until there is one.
    ///
    /// # Errors
    /// Generation failed.
    pub fn blocking_next(&mut self) -> Result<Option<AnswerStep>, AnswerError> {
        while !self.is_done {
            let event = self.generation.blocking_next();
            if let Some(step) = self.step(event)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    /// Handles one event of the engine; `None` is the end of its channel.
    fn step(&mut self, event: Option<Event>) -> Result<Option<AnswerStep>, AnswerError> {
        let event = event.ok_or_else(|| EngineFailure("the engine has died".to_owned()))?;
        let (event, token, logprobs) = match event {
            Event::Token { id, logprobs } => {
                let event = Event::Token { id, logprobs: None };
                (event, Some(id), logprobs)
            }
            event => (event, None, None),
        };
        let piece = self.choice.advance(event)?;
        if token.is_none() && piece.is_none() {
            return Ok(None);
        }
        let (text, finish) =
            piece.map_or_else(Default::default, |piece| (piece.text, piece.finish));
        self.is_done = finish.is_some();
        Ok(Some(AnswerStep {
            token,
            logprobs,
            text,
            finish,
        }))
    }
}
