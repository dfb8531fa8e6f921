//! incant serves a *base* language model as a good assistant, in context.
//!
//! The library contains everything but the command line. Its modules follow the path of a request:
//! [`server`] reads HTTP, [`runtime`] resolves the arm, [`profile`] renders, [`text`] tokenizes,
//! [`engine`] schedules, [`exec`] computes, [`sample`] chooses, and the token returns the same way.
//! `ARCHITECTURE.md` defines which parts may depend on which.
#![forbid(unsafe_code)]

pub mod catalog;

pub use incant_compare as analyze;
pub use incant_engine::{self as engine, exec, kv};
pub use incant_gguf::{self as gguf, mmap, open, printable};
pub use incant_kernels as kernels;
pub use incant_model::{self as model, lora, quantize};
pub use incant_prompt::{profile, text};
pub use incant_runtime as runtime;
pub use incant_sample as sample;
pub use incant_server as server;
pub use incant_train as train;
