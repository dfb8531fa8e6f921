//! What is loaded and how it is named: models, their profiles, and the arms
//! `MODEL[@PROFILE][+ADAPTER]` that requests choose between.
//!
//! The types here are the seam between the server and everything below it: an
//! [`Arm`] turns a client's messages or text into a [`Prompt`] of token ids.

use std::sync::Arc;

use crate::engine::Prefix;
use crate::profile::Message;

/// Everything loaded, shared by all requests.
pub struct Runtime;

/// One model with its tokenizer, engine and profiles.
pub struct Model;

/// A resolved arm.
#[derive(Clone)]
pub struct Arm;

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

impl Arm {
    /// Renders a conversation, left open at the assistant's turn.
    pub fn chat(&self, _messages: &[Message]) -> Prompt {
        unreachable!()
    }
}
