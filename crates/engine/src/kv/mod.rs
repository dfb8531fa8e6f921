//! KV reuse: the prefix cache, a radix tree of the token sequences whose KV is kept ([`Tree`]),
//! and prefixes saved to disk ([`PrefixStore`]).

mod store;
mod tree;

pub use store::PrefixStore;
pub use tree::{Found, Handle, Tree};
