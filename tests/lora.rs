//! Adapters: what PEFT computes is what the executors compute; what was computed
//! under one adapter serves no other; what is not a fitting adapter is refused.

mod cached;
mod computed;
pub(crate) mod fixtures;
mod merged;
mod refused;
