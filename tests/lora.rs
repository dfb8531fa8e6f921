//! Adapters: the executors compute the same as PEFT; KV computed with one adapter is never
//! reused for another; adapters that do not match are refused.

mod cached;
mod computed;
pub(crate) mod fixtures;
mod merged;
mod refused;
