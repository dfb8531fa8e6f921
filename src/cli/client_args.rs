//! Client arguments of `incant serve`: who may send requests, and their limits; as typed, and as
//! the server's options.

use std::env::{self, VarError};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use incant::open;
use incant::server::{
    ApiKeys, HostName, Origin, SPARE_PLACES, ServeOptions, TimeLimitError, Tls, time_limit,
};

use super::signals::Sighups;

/// The environment variable that holds keys.
const KEY_VARIABLE: &str = "INCANT_API_KEY";

/// A generous number of files that are open besides connections: models, prefixes, swap files.
const OTHER_FILES: usize = 256;

/// Access and limits of clients.
#[derive(clap::Args)]
pub(crate) struct ClientArgs {
    /// A key that clients must send as `Authorization: Bearer KEY`, for all requests but /health;
    /// repeatable. Others can see it in the list of processes: --api-key-file and the environment
    /// variable INCANT_API_KEY are safer. The keys of all three are accepted, and may be separated
    /// by commas
    #[arg(long = "api-key", value_name = "KEY")]
    api_keys: Vec<String>,
    /// A file with one key per line; repeatable
    #[arg(long = "api-key-file", value_name = "FILE")]
    api_key_files: Vec<PathBuf>,
    /// Allow web pages of this origin (CORS), such as https://example.org, or of all with `*`;
    /// repeatable
    #[arg(long = "cors", value_name = "ORIGIN")]
    origins: Vec<Origin>,
    /// Accept this name in `Host` too, such as box.lan, or all with `*`; repeatable. IP addresses,
    /// localhost, and the name given to --host are always accepted: a web page could point any
    /// other name at this server (DNS rebinding)
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<HostName>,
    /// The address of a proxy in front of the server, whose X-Forwarded-For is trusted; repeatable.
    /// Without keys, clients are told apart by address and have even shares of the server; all
    /// requests of a proxy that is not trusted count as one client's
    #[arg(long = "trusted-proxy", value_name = "ADDRESS")]
    trusted_proxies: Vec<IpAddr>,
    /// Serve over TLS with this certificate chain (PEM); SIGHUP reloads it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The maximum size of a request body; a larger one is answered with 413. All bodies above 64
    /// KiB together hold at most eight times as much until they are turned into prompts, and those
    /// of one client about half of that; one that waits in vain is answered with 503
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    max_body: ByteSize,
    /// The connection limit; beyond it, /health is still answered, and all other requests with 503
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_connections: usize,
    /// Close connections of clients that take longer than this to send a request's head, to send
    /// its body, or to read any of the answer, and connections that idle longer
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    client_timeout: Duration,
}

/// Reads a limit in seconds, fractions allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, TimeLimitError> {
    // Text that is not a number becomes NaN, which is out of range too.
    time_limit(text.parse().unwrap_or(f64::NAN))
}

impl ClientArgs {
    /// Returns the server's options with these arguments, and the rest as in `others`.
    pub(crate) fn resolve(self, others: ServeOptions) -> anyhow::Result<ServeOptions> {
        if self.max_connections == 0 {
            bail!("--max-connections must be at least 1");
        }
        let tls = match self.tls_cert.as_deref().zip(self.tls_key.as_deref()) {
            Some((certificate, key)) => Some(Arc::new(Tls::open(certificate, key)?)),
            None => None,
        };
        Ok(ServeOptions {
            keys: self.keys()?,
            origins: self.origins,
            hosts: [self.hosts, others.hosts].concat(),
            trusted_proxies: self.trusted_proxies,
            tls,
            max_body: usize::try_from(self.max_body.as_u64()).context("--max-body")?,
            max_connections: self.max_connections,
            client_timeout: self.client_timeout,
            ..others
        })
    }

    /// Collects the keys of the flags, the files and the environment. A source without a key is an
    /// error: giving it shows that the server must not be open.
    fn keys(&self) -> anyhow::Result<ApiKeys> {
        let mut keys = ApiKeys::default();
        for text in &self.api_keys {
            keys.add(text).context("--api-key")?;
        }
        for path in &self.api_key_files {
            let name = || format!("--api-key-file {}", path.display());
            let text = open::read_text(path, open::Kind::KEYS).with_context(name)?;
            keys.add(&text).with_context(name)?;
        }
        match env::var(KEY_VARIABLE) {
            Ok(text) => keys.add(&text).context(KEY_VARIABLE)?,
            Err(VarError::NotPresent) => {}
            // The variable's own error would show its value.
            Err(VarError::NotUnicode(_)) => bail!("{KEY_VARIABLE} is not UTF-8"),
        }
        Ok(keys)
    }
}

/// Raises the limit of open files for `wanted` connections, as far as the system allows; returns
/// the number of connections that are possible.
pub(crate) fn allow_connections(wanted: usize) -> usize {
    let others = SPARE_PLACES + OTHER_FILES;
    let files = wanted.saturating_add(others);
    match rlimit::increase_nofile_limit(files as u64) {
        Ok(allowed) if allowed < files as u64 => {
            let possible = (allowed as usize).saturating_sub(others).max(1);
            tracing::warn!(
                "--max-connections {wanted} takes {files} open files, but the system allows \
                 {allowed}: there will be {possible}"
            );
            possible
        }
        Ok(_) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files");
            wanted
        }
    }
}

/// Reloads the certificate at each SIGHUP.
pub(crate) async fn reload_on_sighup(tls: Arc<Tls>, mut sighups: Sighups) {
    loop {
        sighups.next().await;
        match tls.reload() {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => tracing::error!("the certificate stays as it was: {error}"),
        }
    }
}
