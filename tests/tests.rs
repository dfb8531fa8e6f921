//! The one integration-test binary: one module per behaviour.
mod build;
mod support;

mod catalog;
mod cli;
mod gguf;
mod golden;
mod inspect;
mod profile;
mod tokenizer;
