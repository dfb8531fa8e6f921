//! TLS termination, for servers without a proxy in front.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fs, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// A certificate with its key, used for new connections.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

/// The reason why TLS is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates cannot be read.
    #[error("no certificate could be read from {}: {source}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// The private key cannot be read.
    #[error("no private key could be read from {}: {source}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// Key and certificate do not match, or are of an unsupported type.
    #[error("the certificate cannot be used with the key: {0}")]
    Pair(rustls::Error),
}

impl Tls {
    /// Reads a certificate chain, the server's own certificate first, and its private key from
    /// files in PEM format.
    ///
    /// # Errors
    /// The files cannot be read, or do not match.
    pub fn open(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        Ok(Tls {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            config: RwLock::new(read(certificate, key)?),
        })
    }

    /// Reads the files again; new connections use them.
    ///
    /// # Errors
    /// As for [`Tls::open`]; the old certificate and key stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = read(&self.certificate, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Does the TLS handshake.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = pem(certificate)
        .and_then(|text| CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>())
        .and_then(|chain| {
            if chain.is_empty() {
                Err(pem::Error::NoItemsFound)
            } else {
                Ok(chain)
            }
        })
        .map_err(|source| TlsError::Certificate {
            path: certificate.to_owned(),
            source,
        })?;
    let key = pem(key)
        .and_then(|text| PrivateKeyDer::from_pem_slice(&text))
        .map_err(|source| TlsError::Key {
            path: key.to_owned(),
            source,
        })?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Reads a file in PEM format, without the byte order mark that some editors write first.
fn pem(path: &Path) -> Result<Vec<u8>, pem::Error> {
    let mut text = fs::read(path).map_err(pem::Error::Io)?;
    if text.starts_with("\u{feff}".as_bytes()) {
        text.drain(.."\u{feff}".len());
    }
    Ok(text)
}
