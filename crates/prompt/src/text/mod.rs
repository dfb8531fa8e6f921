//! Tokenization: byte-pair encoding (BPE), UTF-8 streaming decoding, and stop strings.
//!
//! [`Tokenizer`] is built from a GGUF's metadata alone and gives the same ids as llama.cpp for
//! the same file. Two families cover the supported models: SentencePiece-BPE (`llama`), which
//! merges by score and has byte fallback, and byte-level BPE (`gpt2`), which splits the text
//! into words first (pre-tokenization) and merges by rank. Both use one merge loop. No text is
//! normalized.
//!
//! Tokens other than ordinary text (control tokens such as `<|im_end|>`, and pieces that a
//! vocabulary defines beside its merges) are found before either family sees the text. At this
//! point a user's text is also kept from becoming a control token: see
//! [`Tokenizer::guard_controls`].

pub mod decode;
pub mod stop;

mod adjacent_pairs;
mod bpe;
mod limits;
mod load;
mod markup;
mod merge;
mod occurrences;
mod pre_tokenizer;
mod special_tokens;
mod spm;
mod tokenizer;
mod vocabulary;

pub use limits::{Cancel, EncodeError, EncodeLimits};
pub use load::{TokenizerError, VocabularyError};
pub use occurrences::Occurrence;
pub use tokenizer::{Special, Tokenizer};
pub use vocabulary::TokenKind;
