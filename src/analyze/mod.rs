//! What comes of a comparison of arms: how often, and how far, one arm would have
//! gone on otherwise than another did.
//!
//! Each answer of an arm is scored, token by token, by every other arm of the same
//! tokenizer, each after its own rendering of the same prompt. A token is
//! *unshifted* where the other arm ranks it first, *marginal* where second or
//! third, and *shifted* below that (Lin et al. 2023, arXiv 2312.01552). Beside the
//! rank stand its probability and the divergence between the two distributions over
//! the whole vocabulary, in both directions.
//!
//! A [`Report`] holds all of it in the form that is written as JSON. The numbers of a token come
//! from two rows of logits ([`divergence`](incant_sample::divergence)), [`summary()`] makes the shares and
//! means of many tokens, [`sampling()`] says how answers scatter, [`page`] shows it all in a
//! browser. Nothing here runs a model, reads a file or knows HTTP.

mod bootstrap;
pub mod page;
mod report;
mod sampling;
mod summary;
pub mod token_json;

pub use report::{
    Alternative, Answer, Class, FORMAT, Finish, Prompt, PromptTokens, Report, ReportArm, Samplers,
    Score, Settings, Token, Usage,
};
pub use sampling::{SamplingRow, sampling};
pub use summary::{Interval, MostShifted, Pair, Position, Removed, Shares, Summary, summary};
