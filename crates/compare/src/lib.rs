//! Comparison of arms by token distribution shift: how often, and how far, one arm's next-token
//! distribution differs from another's.
//!
//! Each answer of an arm is scored, token by token, by every other arm of the same tokenizer,
//! each after its own rendering of the same prompt. A token is *unshifted* if the other arm
//! ranks it first, *marginal* if second or third, and *shifted* below that (Lin et al. 2023,
//! arXiv 2312.01552). Besides the rank, a score has the token's probability and the KL
//! divergence between the two distributions over the whole vocabulary, in both directions.
//!
//! A [`Report`] holds all of it in the form that is written as JSON. [`summary()`] computes the
//! shares and means over many tokens, [`sampling()`] the diversity of answers, and [`page`]
//! shows it all in a browser.
//!
//! This crate takes the engine's results as data. It runs no model, reads no file and knows
//! neither arms' ids nor HTTP.
#![forbid(unsafe_code)]

mod bootstrap;
pub mod page;
mod report;
mod sampling;
mod summary;
pub mod token_json;

pub use incant_api::{FinishReason, Usage};
pub use report::{
    Alternative, Answer, FORMAT, Prompt, Report, ReportArm, Samplers, Score, Settings, ShiftClass,
    Token,
};
pub use sampling::{SamplingRow, sampling};
pub use summary::{Interval, MostShifted, Pair, Position, Removed, Shares, Summary, summary};
