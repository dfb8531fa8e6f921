//! The one integration-test binary: one module per behaviour.
mod build;
mod gguf;

mod catalog;
mod cli;
mod support;

mod profile;
