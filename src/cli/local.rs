//! A server in this process, for the command itself and no other client.

use incant::server::{ApiKeys, ServeOptions};
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;

/// The resources to serve on a port of this machine.
pub(super) struct Local {
    pub(super) tokio: tokio::runtime::Runtime,
    pub(super) listener: TcpListener,
    pub(super) url: String,
    /// The API key, which protects the port from other users of this machine.
    pub(super) key: String,
    pub(super) options: ServeOptions,
}

impl Local {
    /// Binds a free port and generates a key.
    pub(super) fn bind() -> anyhow::Result<Local> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = tokio.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let key = Alphanumeric.sample_string(&mut rand::rng(), 32);
        let mut keys = ApiKeys::default();
        keys.add(&key)?;
        let options = ServeOptions {
            keys,
            ..ServeOptions::default()
        };
        Ok(Local {
            tokio,
            listener,
            url,
            key,
            options,
        })
    }
}
