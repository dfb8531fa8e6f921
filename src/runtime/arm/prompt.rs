//! From what a client says to the tokens of a prompt.

use std::sync::Arc;

use super::Arm;
use incant_engine::Prefix;
use incant_prompt::profile::{Message, ProfileError, guard_for};
use incant_prompt::text::{Bounds, Cancel, Halt, Special};

/// A prompt that is ready to run.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The profile's constant tokens, if the arm has any.
    pub prefix: Option<Arc<Prefix>>,
    /// The client's tokens that follow it.
    pub ids: Vec<u32>,
    /// The whole text of a conversation, the prefix's included; empty where the client's own
    /// text is continued.
    pub text: String,
    /// Role markers that end an answer at the start of a line; see [`Partners::markers`]
    /// for those of an answer that others have a say in.
    ///
    /// [`Partners::markers`]: crate::runtime::Partners::markers
    pub markers: Vec<String>,
}

/// What a completion continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// Text, in which special tokens are parsed and to which BOS is added where
    /// the model asks for one.
    Text(String),
    /// Ids, taken as they are.
    Tokens(Vec<u32>),
}

/// Which prompts are of use. By default all are, however long they are.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only those that fit the arm's context.
    pub fitting: bool,
    /// None at all, once this is cancelled.
    pub cancel: Cancel,
}

/// There is no prompt.
///
/// Its text is for the client: it names no folders.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The conversation cannot be rendered.
    #[error("{}", .0.for_clients())]
    Refused(#[from] ProfileError),
    /// It would not fit the arm's context. It was not encoded to its end.
    #[error("the prompt has at least {at_least} tokens, and the context only {context}")]
    TooLong {
        /// The context, in tokens.
        context: usize,
        /// A number that the prompt's tokens, those of the profile included, are not below.
        at_least: usize,
        /// How many of them are the profile's.
        prefix: usize,
    },
    /// Nobody waits for it any more.
    #[error("nobody waits for the prompt")]
    Cancelled,
}

impl PromptError {
    /// Whether the messages are not at fault: the server had no memory to render them.
    pub fn is_servers(&self) -> bool {
        matches!(self, PromptError::Refused(ProfileError::NoStack(_)))
    }
}

impl Arm {
    /// Renders a conversation, left open at the assistant's turn. Nothing in a
    /// message becomes a control token or opens a turn of its own.
    ///
    /// # Errors
    /// A chat template turns the messages down.
    pub fn chat(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        self.chat_within(messages, &Wanted::default())
    }

    /// The same, where only some prompts are wanted.
    ///
    /// # Errors
    /// A chat template turns the messages down, or the prompt is not wanted.
    pub fn chat_within(
        &self,
        messages: &[Message],
        wanted: &Wanted,
    ) -> Result<Prompt, PromptError> {
        let tokenizer = self.tokenizer();
        let guard = guard_for(messages);
        let protect = |text: &str| match wanted.cancel.is_cancelled() {
            // What is rendered is thrown away.
            true => String::new(),
            false => tokenizer.guard_controls(text, guard).into_owned(),
        };
        let rendered = self.rendering.render(messages, &protect)?;
        let open = format!("{}{rendered}", self.chat_tail);
        let bounds = self.bounds(self.chat_prefix.as_ref(), wanted);
        let turns = tokenizer.encode_guarded_within(&open, guard, &bounds);
        let turns = turns.map_err(|halt| self.halted(halt, self.chat_prefix.as_ref()))?;
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

    /// Takes a prompt verbatim, right after the prefix of a profile that the
    /// arm names.
    pub fn completion(&self, input: &PromptInput) -> Prompt {
        let ids = match input {
            PromptInput::Text(text) => self.tokenizer().encode(text, Special::Parse),
            PromptInput::Tokens(ids) => ids.clone(),
        };
        self.continued(input, ids)
    }

    /// The same, where only some prompts are wanted.
    ///
    /// # Errors
    /// The prompt is not wanted.
    pub fn completion_within(
        &self,
        input: &PromptInput,
        wanted: &Wanted,
    ) -> Result<Prompt, PromptError> {
        let ids = match input {
            PromptInput::Text(text) => self.encode_within(text, wanted)?,
            PromptInput::Tokens(ids) => {
                let prefix = self.completion_prefix.as_ref();
                let bounds = self.bounds(prefix, wanted);
                let checked = bounds.check(ids.len());
                checked.map_err(|halt| self.halted(halt, prefix))?;
                ids.clone()
            }
        };
        Ok(self.continued(input, ids))
    }

    /// The ids of a text after the prefix of a profile that the arm names, without a BOS.
    ///
    /// # Errors
    /// A prompt that continues with them is not wanted.
    pub fn encode_within(&self, text: &str, wanted: &Wanted) -> Result<Vec<u32>, PromptError> {
        let prefix = self.completion_prefix.as_ref();
        let bounds = self.bounds(prefix, wanted);
        let ids = self
            .tokenizer()
            .encode_within(text, Special::Parse, &bounds);
        ids.map_err(|halt| self.halted(halt, prefix))
    }

    /// A prompt of `input`, whose own ids these are.
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

    /// How many tokens after a prefix are of use.
    fn bounds(&self, prefix: Option<&Arc<Prefix>>, wanted: &Wanted) -> Bounds {
        let room = self.context().saturating_sub(length(prefix));
        Bounds {
            most: wanted.fitting.then_some(room),
            cancel: wanted.cancel.clone(),
        }
    }

    fn halted(&self, halt: Halt, prefix: Option<&Arc<Prefix>>) -> PromptError {
        match halt {
            Halt::TooLong { at_least } => PromptError::TooLong {
                context: self.context(),
                at_least: length(prefix) + at_least,
                prefix: length(prefix),
            },
            Halt::Cancelled => PromptError::Cancelled,
        }
    }

    fn bos(&self) -> Option<u32> {
        let tokenizer = self.tokenizer();
        tokenizer.bos().filter(|_| tokenizer.adds_bos())
    }
}

/// How many tokens a prefix has.
fn length(prefix: Option<&Arc<Prefix>>) -> usize {
    prefix.map_or(0, |prefix| prefix.ids.len())
}

impl Prompt {
    /// All its tokens, those of the profile included.
    pub fn token_count(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.ids.len()) + self.ids.len()
    }

    /// The same, in order.
    pub(crate) fn all_ids(&self) -> Vec<u32> {
        let prefix = self.prefix.as_ref().map_or(&[][..], |prefix| &prefix.ids);
        [prefix, &self.ids].concat()
    }
}
