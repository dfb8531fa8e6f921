//! Between text and token ids.
//!
//! [`Tokenizer`] is built from a GGUF's metadata alone and gives the ids that
//! llama.cpp gives for the same file. Two families cover the supported models:
//! SentencePiece-BPE (`llama`), which merges by score, and byte-level BPE
//! (`gpt2`), which cuts the text into words first and merges by rank. Both run
//! on one merge loop. No text is normalized.
//!
//! Tokens that are no ordinary text (controls such as `<|im_end|>`, and pieces
//! that a vocabulary defines beside its merges) are found before either family
//! sees the text. That is also where a user's text is kept from becoming a
//! control token: see [`Tokenizer::guard_controls`].

pub mod decode;
pub mod stop;

mod bpe;
mod demand;
mod joints;
mod load;
mod markup;
mod merge;
mod occurrences;
mod split;
mod spm;
mod tokenizer;
mod vocabulary;
mod words;

pub use demand::{Bounds, Cancel, Halt};
pub use load::{TokenizerError, VocabularyError};
pub use occurrences::Occurrence;
pub use tokenizer::{Special, Tokenizer};
pub use vocabulary::TokenKind;
