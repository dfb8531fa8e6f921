//! Compute kernels of the native (CPU) executor.
//!
//! [`Matrix`] holds packed weights, [`Activations`] the rows they are multiplied with;
//! [`product`] multiplies them. [`math`] and [`attention`] compute the rest of a transformer.
//! Every kernel exists for every [`Isa`] (scalar, AVX2, AVX-512 with VNNI, AMX), and all of
//! them give the same bits: the order of each sum is part of a kernel's specification. (The
//! bf16 tiles of AMX are the exception.)
//!
//! [`pool`] has the threads that kernels run on. This crate knows the element types of GGUF. It
//! knows no architecture, no sequence and no KV cache.
#![expect(unsafe_code)]

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
pub use matrix::{Bits, COLUMNS_PER_BLOCK, Codes, Dense, Format, LANES, Matrix, Scales};
pub use memory::{Allocation, Arena};
pub use product::{ActivationForms, Activations};
