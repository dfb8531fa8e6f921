//! The endpoints: one file each, with its wire types.

pub(super) mod adapters;
pub(super) mod chat;
pub(super) mod compare;
pub(super) mod completions;
pub(super) mod health;
pub(super) mod metrics;
pub(super) mod models;
pub(super) mod page;
pub(super) mod profiles;
pub(super) mod template;
pub(super) mod tokenize;
pub(super) mod tokenizer;
