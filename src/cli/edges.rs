//! What `incant serve` asks of its clients and grants them: flags as typed, and
//! as the server's options.

use std::env::{self, VarError};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use incant::open;
use incant::server::{ApiKeys, HostName, Origin, SPARE_PLACES, ServeOptions, Tls, time_limit};

use super::signals::Hangups;

/// Keys from the environment.
const KEY_VARIABLE: &str = "INCANT_API_KEY";

/// Files that are open beside connections, amply: models, prefixes, what was swapped out.
const OTHER_FILES: usize = 256;

/// Who may ask, how much, and how slowly.
#[derive(clap::Args)]
pub(crate) struct EdgeArgs {
    /// A key that clients must send as `Authorization: Bearer KEY`, for all but
    /// /health; repeatable. Others see it in the list of processes: better are
    /// --api-key-file or the environment's INCANT_API_KEY. The keys of all three
    /// count, and may be separated by commas
    #[arg(long = "api-key", value_name = "KEY")]
    api_keys: Vec<String>,
    /// A file with one key on each line; repeatable
    #[arg(long = "api-key-file", value_name = "FILE")]
    api_key_files: Vec<PathBuf>,
    /// Let web pages of this origin ask, such as https://example.org, or of all
    /// with `*`; repeatable
    #[arg(long = "cors", value_name = "ORIGIN")]
    origins: Vec<Origin>,
    /// Answer to this name too, such as box.lan, or to all with `*`; repeatable. Known
    /// by itself are IP addresses, localhost, and the name given to --host: a web page
    /// could have any other name lead here
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<HostName>,
    /// The address of a proxy in front, which is believed whom it asks for by
    /// X-Forwarded-For; repeatable. Without keys, clients have even shares of the server,
    /// and all that a proxy asks for counts as one client's otherwise
    #[arg(long = "trusted-proxy", value_name = "ADDRESS")]
    trusted_proxies: Vec<IpAddr>,
    /// Serve over TLS with this chain of certificates (PEM); SIGHUP reads it again
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The largest body of a request; beyond that the answer is 413. All bodies above
    /// 64 KiB hold eight times as much at most until they are prompts, and one client's
    /// about half of that; where one waits in vain for room the answer is 503
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    max_body: ByteSize,
    /// Connections served at once; beyond that /health answers as ever, and all
    /// else is 503
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_connections: usize,
    /// Close connections of clients that take longer than this to send a
    /// request's head, to send its body, or to take any of the answer, and those
    /// that idle longer
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    client_timeout: Duration,
}

/// Reads a limit in seconds, fractions allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    // What is no number is out of range too.
    time_limit(text.parse().unwrap_or(f64::NAN))
}

impl EdgeArgs {
    /// The server's options with what was typed, and the rest as in `others`.
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

    /// The keys of the flags, the files and the environment. One of these without
    /// a key is an error: whoever gave it wants no open server.
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
            // The variable's own error would show it.
            Err(VarError::NotUnicode(_)) => bail!("{KEY_VARIABLE} is not UTF-8"),
        }
        Ok(keys)
    }
}

/// Lets this process have a file for each of `wanted` connections, as far as the
/// system does; how many connections there can be.
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

/// Reads the certificate again at each hangup, which tells of a new one.
pub(crate) async fn follow_hangups(tls: Arc<Tls>, mut hangups: Hangups) {
    loop {
        hangups.next().await;
        match tls.reload() {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => tracing::error!("the certificate stays as it was: {error}"),
        }
    }
}
