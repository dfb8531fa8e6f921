//! To come.

pub mod decode;
pub mod stop;
