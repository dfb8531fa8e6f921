//! Turns a client's messages or text into the tokens of a prompt.

use std::sync::Arc;

use super::Arm;
use incant_engine::Prefix;
use incant_prompt::profile::{Message, ProfileError, guard_for};
use incant_prompt::text::{Cancel, EncodeError, EncodeLimits, Special};

/// A prompt that is ready to run.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The profile's constant tokens, if the arm has any.
    pub prefix: Option<Arc<Prefix>>,
    /// The client's tokens that follow it.
    pub ids: Vec<u32>,
    /// The whole text of a conversation, including the prefix; empty for a completion.
    pub text: String,
    /// Role markers that end an answer at the start of a line; see [`Partners::markers`] for
    /// answers with guidance or a mix.
    ///
    /// [`Partners::markers`]: crate::Partners::markers
    pub markers: Vec<String>,
}

/// The input of a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// Text, in which special tokens are parsed, and which gets a BOS if the model expects it.
    Text(String),
    /// Token ids, taken verbatim.
    Tokens(Vec<u32>),
}

/// Bounds of the prompts that are worth encoding. By default there are none.
#[derive(Clone, Debug, Default)]
pub struct PromptBounds {
    /// Only prompts that fit the arm's context.
    pub must_fit: bool,
    /// No prompt at all, once this is cancelled.
    pub cancel: Cancel,
}

/// The reason why there is no prompt.
///
/// Its message is for the client: it names no folders.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The conversation cannot be rendered.
    #[error("{}", .0.for_clients())]
    Refused(#[from] ProfileError),
    /// The prompt does not fit the arm's context. It was not encoded to its end.
    #[error("the prompt has at least {at_least} tokens, and the context only {context}")]
    TooLong {
        /// The context, in tokens.
        context: usize,
        /// The prompt, including the profile's tokens, has at least this many.
        at_least: usize,
        /// The number of the profile's tokens.
        prefix: usize,
    },
    /// The caller has cancelled the prompt.
    #[error("the prompt was cancelled")]
    Cancelled,
}

impl PromptError {
    /// Returns whether the server is at fault, not the messages: it had no memory to render them.
    pub fn is_server_error(&self) -> bool {
        matches!(self, PromptError::Refused(ProfileError::NoStack(_)))
    }
}

impl Arm {
    /// Renders a conversation, left open at the assistant's turn. No message can contain a control
    /// token or open a turn of its own (prompt injection).
    ///
    /// # Errors
    /// A chat template refuses the messages.
    pub fn chat(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        self.chat_within(messages, &PromptBounds::default())
    }

    /// Renders a conversation within the bounds of `bounds`.
    ///
    /// # Errors
    /// A chat template refuses the messages, or the prompt is out of bounds.
    pub fn chat_within(
        &self,
        messages: &[Message],
        bounds: &PromptBounds,
    ) -> Result<Prompt, PromptError> {
        let tokenizer = self.tokenizer();
        let guard = guard_for(messages);
        let protect = |text: &str| {
            if bounds.cancel.is_cancelled() {
                // The rendering is discarded.
                String::new()
            } else {
                tokenizer.guard_controls(text, guard).into_owned()
            }
        };
        let rendered = self.rendering.render(messages, &protect)?;
        let open = format!("{}{rendered}", self.chat_tail);
        let tokens = self.token_bounds(self.chat_prefix.as_ref(), bounds);
        let turns = tokenizer.encode_guarded_within(&open, guard, &tokens);
        let turns = turns.map_err(|halt| self.bounds_error(halt, self.chat_prefix.as_ref()))?;
        let bos = self
            .bos()
            .filter(|_| self.chat_prefix.is_none() && !self.rendering.writes_bos());
        let mut text = self.rendering.prefix().to_owned();
        text.extend(rendered.chars().filter(|&c| c != guard));
        Ok(Prompt {
            prefix: self.chat_prefix.clone(),
            ids: bos.into_iter().chain(turns).collect(),
            text,
            markers: self.rendering.markers().to_vec(),
        })
    }

    /// Takes a prompt verbatim, right after the prefix of a profile that the arm names.
    pub fn completion(&self, input: &PromptInput) -> Prompt {
        let ids = match input {
            PromptInput::Text(text) => self.tokenizer().encode(text, Special::Parse),
            PromptInput::Tokens(ids) => ids.clone(),
        };
        self.continued(input, ids)
    }

    /// Takes a prompt verbatim within the bounds of `bounds`.
    ///
    /// # Errors
    /// The prompt is out of bounds.
    pub fn completion_within(
        &self,
        input: &PromptInput,
        bounds: &PromptBounds,
    ) -> Result<Prompt, PromptError> {
        let ids = match input {
            PromptInput::Text(text) => self.encode_within(text, bounds)?,
            PromptInput::Tokens(ids) => {
                let prefix = self.completion_prefix.as_ref();
                let tokens = self.token_bounds(prefix, bounds);
                let checked = tokens.check(ids.len());
                checked.map_err(|halt| self.bounds_error(halt, prefix))?;
                ids.clone()
            }
        };
        Ok(self.continued(input, ids))
    }

    /// Returns the ids of a text after the prefix of a profile that the arm names, without a BOS.
    ///
    /// # Errors
    /// The prompt with them is out of bounds.
    pub fn encode_within(
        &self,
        text: &str,
        bounds: &PromptBounds,
    ) -> Result<Vec<u32>, PromptError> {
        let prefix = self.completion_prefix.as_ref();
        let tokens = self.token_bounds(prefix, bounds);
        let ids = self
            .tokenizer()
            .encode_within(text, Special::Parse, &tokens);
        ids.map_err(|halt| self.bounds_error(halt, prefix))
    }

    /// Returns the ids of a text that an answer may repeat.
    ///
    /// # Errors
    /// It is longer than the context, or the work was cancelled.
    pub fn encode_prediction(&self, text: &str, cancel: &Cancel) -> Result<Vec<u32>, PromptError> {
        let bounds = PromptBounds {
            must_fit: true,
            cancel: cancel.clone(),
        };
        let limits = self.token_bounds(None, &bounds);
        let ids = self
            .tokenizer()
            .encode_within(text, Special::Plain, &limits);
        ids.map_err(|halt| self.bounds_error(halt, None))
    }

    /// Returns the prompt of `input`, which has these ids.
    fn continued(&self, input: &PromptInput, ids: Vec<u32>) -> Prompt {
        let prefix = self.completion_prefix.clone();
        let is_text = matches!(input, PromptInput::Text(_));
        let bos = self.bos().filter(|_| is_text && prefix.is_none());
        Prompt {
            prefix,
            ids: bos.into_iter().chain(ids).collect(),
            text: String::new(),
            markers: Vec::new(),
        }
    }

    /// Returns the bounds of the tokens after a prefix.
    fn token_bounds(&self, prefix: Option<&Arc<Prefix>>, bounds: &PromptBounds) -> EncodeLimits {
        let max_tokens = self.context().saturating_sub(length(prefix));
        EncodeLimits {
            max_tokens: bounds.must_fit.then_some(max_tokens),
            cancel: bounds.cancel.clone(),
        }
    }

    fn bounds_error(&self, halt: EncodeError, prefix: Option<&Arc<Prefix>>) -> PromptError {
        match halt {
            EncodeError::TooLong { at_least } => PromptError::TooLong {
                context: self.context(),
                at_least: length(prefix) + at_least,
                prefix: length(prefix),
            },
            EncodeError::Cancelled => PromptError::Cancelled,
        }
    }

    fn bos(&self) -> Option<u32> {
        let tokenizer = self.tokenizer();
        tokenizer.bos().filter(|_| tokenizer.adds_bos())
    }
}

/// Returns the number of a prefix's tokens.
fn length(prefix: Option<&Arc<Prefix>>) -> usize {
    prefix.map_or(0, |prefix| prefix.ids.len())
}

impl Prompt {
    /// Returns the number of its tokens, including the profile's.
    pub fn token_count(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.ids.len()) + self.ids.len()
    }

    /// Returns its tokens, including the profile's.
    pub fn all_ids(&self) -> Vec<u32> {
        let prefix = self.prefix.as_ref().map_or(&[][..], |prefix| &prefix.ids);
        [prefix, &self.ids].concat()
    }
}
