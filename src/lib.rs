//! incant serves a *base* language model as a good assistant, in context.
//!
//! The library contains everything but the command line. Its modules follow the path of a request:
//! [`server`] reads HTTP, [`runtime`] resolves the arm, [`profile`] renders, [`text`] tokenizes,
//! [`engine`] schedules, [`exec`] computes, [`sample`] chooses, and the token returns the same way.
//! `ARCHITECTURE.md` defines which parts may depend on which.

pub mod analyze;
pub mod catalog;
mod digests;
pub mod engine;
pub mod exec;
pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod lora;
pub mod mmap;
pub mod model;
mod nearest;
pub mod open;
pub mod printable;
pub mod profile;
pub mod quantize;
pub mod runtime;
pub mod sample;
pub mod server;
mod shown;
pub mod text;
pub mod train;
