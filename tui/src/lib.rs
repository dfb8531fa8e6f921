//! `incant chat`: a terminal program to chat with arms and to compare them.
//!
//! It knows servers only by OpenAI's REST API, so it works with every server that implements
//! it. [`app`] is a state machine without any IO; `view` draws its state; `driver` owns the
//! terminal, the network and the disk, and performs the state machine's effects.
#![forbid(unsafe_code)]

pub mod app;
mod driver;
mod failure;
pub mod http;
pub mod keymap;
pub mod markdown;
mod owner_only;
pub mod sampling;
pub mod session;
pub mod view;
pub mod wire;
pub mod wrap;

pub use driver::{Error, Inbox, Options, Remote, ReportPage, run};
