//! The one integration-test binary: one module per behaviour.
mod build;
mod support;

mod catalog;
mod cli;
mod gguf;
mod profile;
mod reference;
mod tokenizer;
