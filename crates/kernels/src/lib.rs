//! What the native executor computes with.
//!
//! [`Matrix`] holds packed weights, [`Activations`] the rows they are multiplied
//! with; [`product`] multiplies. [`math`] and [`attention`] do the rest of a
//! transformer. Every kernel exists for every [`Isa`], and all of them give the
//! same bits: the order of each sum is part of a kernel's meaning. (The bf16
//! tiles of AMX are the exception.)
#![allow(unsafe_code)]

pub mod attention;
pub mod exp;
pub mod gemm;
pub mod gradients;
mod isa;
mod low_rank;
pub mod math;
mod matrix;
mod memory;
pub mod pool;
pub mod product;
pub mod roofline;
pub mod shared;
pub mod softmax;

pub use isa::{Isa, IsaError, Tier};
pub use low_rank::LowRank;
pub use math::{Activation, RopeStyle};
pub use matrix::{BLOCK, Bits, Codes, Dense, Format, LANES, Matrix, Scales};
pub use memory::{Arena, Pages};
pub use product::{Activations, Kind};
