//! The one integration-test binary: one module per behaviour.

mod catalog;
mod cli;
mod support;
