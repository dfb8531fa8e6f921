//! The one integration-test binary: one module per behaviour.
mod build;
mod server_support;
mod support;

mod bench;
mod catalog;
mod cli;
mod engine;
mod gguf;
mod golden;
mod hostile;
mod inspect;
mod profile;
mod reference;
mod server_answers;
mod server_clients;
mod server_deadlines;
mod server_lifecycle;
mod server_lm_eval;
mod server_log;
mod server_metrics;
mod server_refusals;
mod server_wire;
mod tokenizer;
mod tokenizer_oracle;
