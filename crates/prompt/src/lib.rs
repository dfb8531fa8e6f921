//! From a conversation to token ids, and from token ids back to text.
//!
//! [`profile`] renders conversations with minijinja templates: URIAL-style alignment prompts,
//! the built-in `@base` and `@turn`, and chat templates out of models' files. [`text`]
//! tokenizes exactly as each model's own tokenizer does, guards control tokens against
//! users' text, decodes streams, and matches stop strings.
//!
//! This crate knows GGUF metadata and sampling parameters. It knows no model's weights, no
//! engine and no wire format.
#![forbid(unsafe_code)]

pub mod profile;
pub mod text;
