//! The server, over HTTP: one module for each part of its behaviour.

pub(crate) mod program;
pub(crate) mod support;

mod adapters;
mod answers;
mod banned_words;
mod browsers;
mod clients;
mod compare;
mod deadlines;
mod defaults;
mod fair;
#[cfg(debug_assertions)]
mod faults;
mod fields;
mod guidance;
mod keys;
mod large;
mod lifecycle;
mod lm_eval;
mod log;
mod metrics;
mod overload;
mod refusals;
#[cfg(unix)]
mod signals;
mod slow_clients;
mod tls;
mod wire;
