//! Stands in for TLS in a build without the feature `tls`.

use std::io;
use std::path::Path;

/// A certificate with its key, which cannot exist in this build.
#[derive(Debug)]
pub enum Tls {}

/// The reason why TLS is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The program was built without it.
    #[error(
        "this incant was built without TLS; `cargo build --release --features tls` builds it in"
    )]
    Absent,
}

impl Tls {
    /// Would read a certificate and its key.
    ///
    /// # Errors
    /// Always: this build has no TLS.
    pub fn open(_: &Path, _: &Path) -> Result<Tls, TlsError> {
        Err(TlsError::Absent)
    }

    /// Would read them again.
    ///
    /// # Errors
    /// Never: there is no value to call it on.
    pub fn reload(&self) -> Result<(), TlsError> {
        match *self {}
    }

    /// Would do the TLS handshake.
    pub(crate) async fn accept<S>(&self, _: S) -> io::Result<S> {
        match *self {}
    }
}
