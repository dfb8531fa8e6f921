//! Compute kernels of the native (CPU) executor.
//!
//! [`Matrix`] holds packed weights, [`Activations`] the rows they are multiplied with;
//! [`product`] multiplies them. [`math`] and [`attention`] compute the rest of a transformer.
//! Every kernel exists for every [`Isa`] (scalar, AVX2, AVX-512 with VNNI, AMX), and all of
//! them give the same bits: the order of each sum is part of a kernel's specification. (The
//! bf16 tiles of AMX are the exception.)
#![allow(unsafe_code)]

pub mod attention;
pub(crate) mod exp;
pub mod gemm;
pub mod gradients;
mod isa;
mod low_rank;
pub mod math;
mod matrix;
mod memory;
pub mod product;
pub mod roofline;
pub mod softmax;

pub use isa::{Isa, IsaError, Tier};
pub use low_rank::LowRank;
pub use matrix::{BLOCK, Bits, Codes, Dense, Format, LANES, Matrix, Packing, Scales};
pub use memory::{Arena, Pages};
pub use product::{Activations, Kind};
