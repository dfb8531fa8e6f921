//! What is loaded and how it is named: models, their profiles, and the arms
//! `MODEL[@PROFILE][+ADAPTER]` that requests choose between.
//!
//! Stand-in: one scripted model `toy` with the profiles `urial` and `turn`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::engine::{Event, FinishReason, GenerateRequest, Generation, Prefix, SubmitError};
use crate::profile::{Message, Role};
use crate::sample::TokenLogprobs;
use crate::text::{BOS, EOS, Special, Tokenizer};

/// Everything loaded, shared by all requests.
#[derive(Debug)]
pub struct Runtime {
    tokenizer: Arc<Tokenizer>,
    ready: AtomicBool,
    running: Arc<AtomicUsize>,
}

/// A resolved arm.
#[derive(Clone, Debug)]
pub struct Arm {
    id: String,
    profile: Option<String>,
    tokenizer: Arc<Tokenizer>,
    defaults: SamplingDefaults,
    running: Arc<AtomicUsize>,
}

/// A prompt that is ready to run.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The profile's constant tokens, if the arm has any.
    pub prefix: Option<Arc<Prefix>>,
    /// The client's tokens that follow it.
    pub ids: Vec<u32>,
    /// The text of `ids` as rendered (and of the prefix before it).
    pub text: String,
    /// Role markers that end an answer at the start of a line.
    pub markers: Vec<String>,
}

/// A completion's prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// Text.
    Text(String),
    /// Ids.
    Tokens(Vec<u32>),
}

/// Why there is no such arm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// No such model.
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    /// No such profile.
    #[error("the profile `{0}` does not exist")]
    UnknownProfile(String),
}

/// Why a conversation cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PromptError(String);

/// An arm.
#[derive(Clone, Debug)]
pub struct ArmInfo {
    /// Its id.
    pub id: String,
    /// Its model.
    pub model: String,
    /// Its profile.
    pub profile: Option<String>,
    /// What it is made from.
    pub parent: Option<String>,
}

/// A profile.
#[derive(Clone, Debug)]
pub struct ProfileInfo {
    /// Its name.
    pub name: String,
    /// Its title.
    pub title: String,
    /// Its description.
    pub description: String,
    /// Its language.
    pub language: String,
    /// Its examples.
    pub shots: usize,
    /// Its version.
    pub version: String,
    /// Its markers.
    pub markers: Vec<String>,
    /// Its text.
    pub prefix_text: Option<String>,
    /// Models.
    pub default_for: Vec<String>,
    /// Tokens per model.
    pub prefix_tokens: BTreeMap<String, usize>,
}

/// A profile's defaults.
#[derive(Clone, Debug, Default)]
pub struct SamplingDefaults {
    /// See sampling.
    pub temperature: Option<f32>,
    /// See sampling.
    pub top_p: Option<f32>,
    /// See sampling.
    pub top_k: Option<usize>,
    /// See sampling.
    pub min_p: Option<f32>,
    /// See sampling.
    pub repetition_penalty: Option<f32>,
    /// Length.
    pub max_tokens: Option<usize>,
}

const PREFIX: &str = "# Query:\nhi\n\n# Answer:\nHello.\n\n";

impl Runtime {
    /// Stand-in.
    pub fn stand_in() -> Runtime {
        Runtime {
            tokenizer: Arc::new(Tokenizer::stand_in()),
            ready: AtomicBool::new(true),
            running: Arc::default(),
        }
    }

    /// Stand-in.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::SeqCst);
    }

    /// Stand-in: sequences that run.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// An arm.
    pub fn arm(&self, id: &str) -> Result<Arm, ArmError> {
        let (model, profile) = id
            .split_once('@')
            .map_or((id, None), |(model, profile)| (model, Some(profile)));
        if model != "toy" {
            return Err(ArmError::UnknownModel(id.into()));
        }
        if profile.is_some_and(|profile| !["urial", "base"].contains(&profile)) {
            return Err(ArmError::UnknownProfile(profile.unwrap_or_default().into()));
        }
        Ok(Arm {
            id: id.into(),
            profile: profile.map(str::to_owned),
            tokenizer: self.tokenizer.clone(),
            defaults: SamplingDefaults::default(),
            running: self.running.clone(),
        })
    }

    /// All.
    pub fn arms(&self) -> Vec<ArmInfo> {
        let arm = |id: &str, profile: Option<&str>, parent: Option<&str>| ArmInfo {
            id: id.into(),
            model: "toy".into(),
            profile: profile.map(str::to_owned),
            parent: parent.map(str::to_owned),
        };
        vec![
            arm("toy", None, None),
            arm("toy@base", Some("base"), Some("toy")),
            arm("toy@urial", Some("urial"), Some("toy")),
        ]
    }

    /// All.
    pub fn profiles(&self) -> Vec<ProfileInfo> {
        vec![ProfileInfo {
            name: "urial".into(),
            title: "URIAL".into(),
            description: "A stand-in.".into(),
            language: "en".into(),
            shots: 1,
            version: "1".into(),
            markers: vec!["# Query:".into()],
            prefix_text: Some(PREFIX.into()),
            default_for: vec!["toy".into()],
            prefix_tokens: BTreeMap::from([(
                "toy".into(),
                self.tokenizer.encode(PREFIX, Special::Plain).len() + 1,
            )]),
        }]
    }

    /// Seconds.
    pub fn created(&self) -> u64 {
        1_700_000_000
    }

    /// Loaded.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }
}

impl Arm {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tokens.
    pub fn context(&self) -> usize {
        4096
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    fn prefix(&self, chat: bool) -> Option<Arc<Prefix>> {
        let urial = self.profile.as_deref() == Some("urial") || (chat && self.profile.is_none());
        let ids = || {
            std::iter::once(BOS)
                .chain(self.tokenizer.encode(PREFIX, Special::Plain))
                .collect()
        };
        urial.then(|| Arc::new(Prefix { ids: ids() }))
    }

    /// Renders a conversation, left open at the assistant's turn.
    pub fn chat(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        if messages
            .last()
            .is_some_and(|last| last.role == Role::System)
        {
            return Err(PromptError(
                "the conversation must not end with a system message".into(),
            ));
        }
        let prefix = self.prefix(true);
        let mut text = String::new();
        for message in messages {
            let header = if message.role == Role::Assistant {
                "# Answer:"
            } else {
                "# Query:"
            };
            text += &format!("{header}\n{}\n\n", message.content);
        }
        text += "# Answer:\n";
        let mut ids = self.tokenizer.encode(&text, Special::Plain);
        if prefix.is_none() {
            ids.insert(0, BOS);
        }
        let markers = if prefix.is_some() {
            vec!["# Query:".into()]
        } else {
            Vec::new()
        };
        Ok(Prompt {
            text: format!("{}{text}", if prefix.is_some() { PREFIX } else { "" }),
            prefix,
            ids,
            markers,
        })
    }

    /// Takes a prompt verbatim.
    pub fn completion(&self, input: &PromptInput) -> Result<Prompt, PromptError> {
        let prefix = self.prefix(false);
        let (ids, text) = match input {
            PromptInput::Text(text) => {
                let bos = if prefix.is_none() { Some(BOS) } else { None };
                (
                    bos.into_iter()
                        .chain(self.tokenizer.encode(text, Special::Parse))
                        .collect(),
                    text.clone(),
                )
            }
            PromptInput::Tokens(ids) => (ids.clone(), self.tokenizer.decode(ids, true)),
        };
        Ok(Prompt {
            prefix,
            ids,
            text,
            markers: Vec::new(),
        })
    }

    /// Defaults.
    pub fn defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }

    /// Ends.
    pub fn end_tokens(&self) -> Arc<[u32]> {
        Arc::new([EOS])
    }

    /// Stand-in: says what was asked, byte by byte, in a loop.
    pub fn submit(&self, requests: Vec<GenerateRequest>) -> Result<Vec<Generation>, SubmitError> {
        if requests.len() > 64 {
            return Err(SubmitError::QueueFull { retry_after: 3 });
        }
        Ok(requests
            .into_iter()
            .map(|request| self.run(request))
            .collect())
    }

    fn run(&self, request: GenerateRequest) -> Generation {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let tokenizer = self.tokenizer.clone();
        let running = self.running.clone();
        running.fetch_add(1, Ordering::SeqCst);
        let logprobs = |id: u32, top: usize| TokenLogprobs {
            chosen: -0.1,
            top: (0..top as u32)
                .map(|rank| {
                    if rank == 0 {
                        (id, -0.1)
                    } else {
                        (96 + rank, -3.0 - rank as f32)
                    }
                })
                .collect(),
        };
        tokio::spawn(async move {
            let answer =
                "Well, naïve 😀 reader: this is the answer of a toy.\n\nIt has a second line.";
            let mut script = tokenizer.encode(answer, Special::Plain);
            script.push(EOS);
            if request.index % 2 == 1 {
                script.insert(0, u32::from(b'*'));
            }
            if let Some((forced, _)) = request
                .sampling
                .logit_bias
                .iter()
                .find(|(_, bias)| *bias >= 100.0)
            {
                script = vec![*forced];
            }
            let cached_tokens = request.prefix.as_ref().map_or(0, |prefix| prefix.ids.len());
            let mut events = vec![Event::Started { cached_tokens }];
            if let Some(top) = request.prompt_logprobs {
                let bare = request.prefix.is_none();
                let scored = request
                    .prompt
                    .iter()
                    .enumerate()
                    .map(|(at, id)| (at > 0 || !bare).then(|| logprobs(*id, top)));
                events.push(Event::Prompt(scored.collect()));
            }
            let mut reason = FinishReason::Length;
            for id in script.iter().cycle().take(request.max_tokens) {
                events.push(Event::Token {
                    id: *id,
                    logprobs: request.logprobs.map(|top| logprobs(*id, top)),
                });
                if request.end_tokens.contains(id) {
                    reason = FinishReason::Stop;
                    break;
                }
            }
            events.push(Event::Finished(reason));
            for event in events {
                tokio::time::sleep(Duration::from_micros(200)).await;
                if sender.send(event).is_err() {
                    break;
                }
            }
            running.fetch_sub(1, Ordering::SeqCst);
        });
        Generation::new(receiver)
    }
}
