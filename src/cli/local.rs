//! A server in this process, which nobody else can ask.

use incant::server::{ApiKeys, ServeOptions};
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;

/// What is needed to serve on a port of this machine.
pub(super) struct Local {
    pub(super) tokio: tokio::runtime::Runtime,
    pub(super) listener: TcpListener,
    /// Where it listens.
    pub(super) url: String,
    /// Without it the server refuses: other users of this machine reach the port as well.
    pub(super) key: String,
    pub(super) options: ServeOptions,
}

impl Local {
    /// Takes a free port and makes a key up.
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
