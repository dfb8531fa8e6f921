//! The parts of OpenAI's REST API that servers and clients share: wire types, server-sent
//! events, errors, and addresses of servers.
//!
//! [`sse`] writes and reads event streams, [`Usage`] and [`FinishReason`] are part of every
//! answer, [`error_message`] reads errors, and [`base_url`] reads addresses as people type them.
//! This crate opens no connection. It knows nothing of incant's models, engine or server.
#![forbid(unsafe_code)]

mod address;
mod answer;
mod error;
pub mod sse;

pub use address::{base_url, is_local};
pub use answer::{
    CompletionTokensDetails, FinishReason, GuidanceTokensDetails, PromptTokensDetails, Usage,
};
pub use error::error_message;
