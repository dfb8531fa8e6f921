//! The one integration-test binary: one module per behaviour.

mod server_answers;
mod server_openai_client;
mod server_support;
mod server_wire;
