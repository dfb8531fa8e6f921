//! What was computed, so that it need not be computed again: which tokens there
//! is KV of ([`Tree`]), and prefixes on disk ([`PrefixStore`]).

mod store;
mod tree;

pub use store::PrefixStore;
pub use tree::{Found, Handle, Tree};
