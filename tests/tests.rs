//! The one integration-test binary: one module per behaviour.

mod profile;
