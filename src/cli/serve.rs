//! `incant serve`: the server, with graceful shutdown, SIGHUP and a greeting.

use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use incant::engine::{
    AdapterMemory, DEFAULT_ADAPTER_MEMORY, EngineOptions, MAX_DRAFT, Origin, Speculation,
};
use incant::runtime::{EngineFailure, Model, Runtime};
use incant::server::{ServeOptions, listen, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::client_args::{self, ClientArgs, seconds};
use super::model_args::{Loading, ModelArgs};
use super::output::eprint_safe;
use super::signals::{ShutdownSignals, Sighups, TERMINATED, Terminal};
use super::{log, reload};

/// Serve models over OpenAI's REST API
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 takes a free one
    #[arg(long, short, default_value_t = 8080)]
    port: u16,
    /// Answers computed at once, per model
    #[arg(long, value_name = "N", default_value_t = 32)]
    parallel: usize,
    /// Maximum number of further requests in the queue; beyond that the answer is 429
    #[arg(long, value_name = "N", default_value_t = 128)]
    queue: usize,
    /// Prompt tokens computed in one step (chunked prefill): the longest delay of running answers
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    chunk: usize,
    /// Speculative decoding: how many tokens are drafted at once for an answer, from text that
    /// occurred before (`auto` as many as save time, `off` none, or a maximum); it changes no
    /// answer, and a request can set it with its field `speculate`
    #[arg(long, value_name = "auto|off|N", value_parser = speculation, default_value = "auto")]
    speculate: Speculation,
    /// Refuse requests with unknown fields instead of logging a warning
    #[arg(long)]
    strict: bool,
    /// Answer 408 to requests that take longer than this, including the queue [default: no limit];
    /// a request can set a shorter limit with its field `timeout`
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    request_timeout: Option<Duration>,
    /// Answer 503 to new requests and to /health when one step of a model takes longer than this:
    /// the engine is stuck
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    stall_timeout: Duration,
    /// After SIGTERM, keep accepting requests for this long while /health answers 503, so that a
    /// load balancer takes the server out of rotation before it closes its port
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    shutdown_delay: u64,
    /// After SIGTERM or Ctrl-C, let running answers continue for this long (graceful shutdown)
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// The format of the log on the standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// Let clients load adapters from this folder (`POST /v1/adapters`)
    #[arg(long, value_name = "DIR")]
    adapter_dir: Option<PathBuf>,
    /// The maximum memory of all adapters together; the same one under several names counts once
    #[arg(long, value_name = "SIZE", default_value_t = bytesize::ByteSize::b(DEFAULT_ADAPTER_MEMORY as u64))]
    adapter_memory: bytesize::ByteSize,
    #[command(flatten, next_help_heading = "Clients")]
    clients: ClientArgs,
}

/// Parses the value of `--speculate`.
fn speculation(text: &str) -> Result<Speculation, String> {
    match text {
        "auto" => Ok(Speculation::Auto),
        "off" => Ok(Speculation::OFF),
        number => match number.parse() {
            Ok(number) if number <= MAX_DRAFT => Ok(Speculation::UpTo(number)),
            _ => Err(format!(
                "expected auto, off, or a number from 0 to {MAX_DRAFT}"
            )),
        },
    }
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        log::to_stderr(self.log_format);
        if self.parallel == 0 || self.chunk == 0 {
            bail!("--parallel and --chunk must be at least 1");
        }
        let mut options = self.clients.resolve(ServeOptions {
            strict: self.strict,
            // An IP address may fail to parse here, but is always allowed.
            hosts: self.host.parse().into_iter().collect(),
            adapter_folder: self.adapter_dir,
            request_timeout: self.request_timeout,
            drain_timeout: Duration::from_secs(self.drain),
            ..ServeOptions::default()
        })?;
        options.max_connections = client_args::allow_connections(options.max_connections);
        let engine = EngineOptions {
            slots: self.parallel,
            queue: self.queue,
            chunk: self.chunk,
            stall_timeout: self.stall_timeout,
            adapter_memory: AdapterMemory::new(self.adapter_memory.as_u64() as usize),
            speculation: self.speculate,
            #[cfg(debug_assertions)]
            fault: fault()?,
            ..EngineOptions::default()
        };
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let served = tokio.block_on(async {
            // Bound before any download, so that a port in use is reported at once.
            let listener = listen(&self.host, self.port)
                .await
                .with_context(|| format!("cannot listen on {}:{}", self.host, self.port))?;
            let address = listener.local_addr()?;
            if is_open(&options, address) {
                tracing::warn!(%address, "{OPEN}");
            }
            // From now on other processes may know of the server: SIGHUP must not end it.
            let sighups = Sighups::listen()?;
            match &options.tls {
                Some(tls) => {
                    let sighups = Sighups::listen()?;
                    tokio::spawn(client_args::reload_on_sighup(Arc::clone(tls), sighups));
                }
                None if !self.models.follows_profiles() => {
                    tokio::spawn(reload::log_nothing_to_reload(Sighups::listen()?));
                }
                None => {}
            }
            #[cfg(unix)]
            ignore_sigxfsz()?;
            let loading = tokio::task::spawn_blocking(|| self.models.resolve(engine)).await??;
            run(
                listener,
                address,
                loading,
                sighups,
                options,
                Duration::from_secs(self.shutdown_delay),
                self.log_format,
            )
            .await
        });
        // A load that a signal interrupted is no longer needed.
        tokio.shutdown_background();
        served
    }
}

/// The warning of a server that other machines can reach and that requires no key.
const OPEN: &str = "anyone who can reach this address can use the server, as it asks for no key: set \
     INCANT_API_KEY or --api-key-file FILE, or leave out --host to serve this machine only";

/// Returns whether other machines can use the server without a key.
fn is_open(options: &ServeOptions, address: SocketAddr) -> bool {
    options.keys.is_empty() && !address.ip().to_canonical().is_loopback()
}

/// Serves while the models load, until a signal arrives.
async fn run(
    listener: TcpListener,
    address: SocketAddr,
    loading: Loading,
    sighups: Sighups,
    options: ServeOptions,
    shutdown_delay: Duration,
    format: log::Format,
) -> anyhow::Result<()> {
    let runtime = Arc::new(Runtime::new());
    let (failed, failure) = oneshot::channel();
    let loaded = Arc::clone(&runtime);
    let greeting = Greeting {
        address,
        secure: options.tls.is_some(),
        keyed: !options.keys.is_empty(),
        open: is_open(&options, address),
    };
    let loading = tokio::task::spawn_blocking(move || {
        let models = load(&loading)?;
        loaded.loaded(models);
        reload::follow(loading.into_library(), Arc::clone(&loaded), Some(sighups));
        match format {
            log::Format::Text => greeting.print(loaded.models()),
            log::Format::Json => announce(loaded.models()),
        }
        anyhow::Ok(())
    });
    let watched = Arc::clone(&runtime);
    tokio::spawn(async move {
        let error = match loading.await {
            // A supervisor restarts the program; in this process nothing could restore the engine.
            Ok(Ok(())) => anyhow!("the engine of {} has panicked", watched.engine_died().await),
            Ok(Err(error)) => error,
            Err(error) => anyhow!(error).context("loading"),
        };
        // The receiver exists until the server has ended.
        _ = failed.send(error);
    });
    let mut signals = ShutdownSignals::listen().context("cannot listen for Ctrl-C")?;
    let mut terminal = Terminal::new()?;
    let limit = options.drain_timeout;
    let mut error = None;
    let shutdown_signal = async {
        let Ok(signal) = signals.next().await else {
            return pending().await;
        };
        tokio::spawn(exit_at_next_signal(signals));
        if signal == TERMINATED && !shutdown_delay.is_zero() {
            runtime.announce_shutdown();
            tracing::info!(
                "new requests are taken for {} s more, while /health answers 503",
                shutdown_delay.as_secs()
            );
            tokio::time::sleep(shutdown_delay).await;
        }
        tracing::info!(
            "running answers may take {} s more; press Ctrl-C again to stop at once",
            limit.as_secs()
        );
    };
    let shutdown = async {
        tokio::select! {
            () = shutdown_signal => {}
            () = terminal.closed() => {}
            Ok(why) = failure => error = Some(why),
        }
        runtime.drain();
    };
    serve(listener, Arc::clone(&runtime), shutdown, options).await?;
    error.map_or(Ok(()), Err)
}

/// The injected fault of a test, which only builds with debug assertions support.
#[cfg(debug_assertions)]
fn fault() -> anyhow::Result<Option<incant::engine::Fault>> {
    match std::env::var("INCANT_FAULT") {
        Ok(fault) => fault.parse().map(Some).map_err(anyhow::Error::msg),
        Err(_) => Ok(None),
    }
}

/// Loads the models, and computes the prefixes of their chats (warm-up).
pub(super) fn load(loading: &Loading) -> anyhow::Result<Vec<Arc<Model>>> {
    let began = Instant::now();
    let models = loading.load()?;
    tracing::info!(took = ?began.elapsed(), "loaded");
    for model in &models {
        warm(model)?;
    }
    Ok(models)
}

/// Makes sure that the prefix of a model's chats is in memory (warm-up).
pub(super) fn warm(model: &Model) -> Result<(), EngineFailure> {
    let Some(warmed) = model.warm()? else {
        return Ok(());
    };
    let origin = match warmed.origin {
        Origin::Memory => "was in memory",
        Origin::Disk => "read from disk",
        Origin::Computed => "computed",
    };
    tracing::info!(
        model = model.id(),
        tokens = warmed.tokens,
        took = ?warmed.took,
        "prefix {origin}"
    );
    Ok(())
}

/// Logs the served models.
fn announce(models: &[Arc<Model>]) {
    for model in models {
        tracing::info!(
            model = model.id(),
            context = model.context(),
            weights_bytes = model.footprint().resident,
            chat_profile = model.chat_profile(),
            "serving"
        );
    }
}

/// The greeting for a person who started a server in a terminal.
struct Greeting {
    address: SocketAddr,
    /// Whether the server uses TLS.
    secure: bool,
    /// Whether clients must send a key.
    keyed: bool,
    /// Whether other machines can use it without a key.
    open: bool,
}

impl Greeting {
    /// Prints the served models, and how to try them.
    fn print(&self, models: &[Arc<Model>]) {
        for model in models {
            eprint_safe(&describe(model));
        }
        // A server that listens on every interface can be reached here.
        let host = match self.address.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        let scheme = if self.secure { "https" } else { "http" };
        let base = format!("{scheme}://{host}:{}", self.address.port());
        let key = if self.keyed {
            " -H \"Authorization: Bearer $INCANT_API_KEY\""
        } else {
            ""
        };
        let model = models.first().map_or("", |model| model.id());
        eprint_safe(&format!(
            "listening on {base}\n\
             in a browser: {base}/\n\
             in a terminal: incant chat --url {base}\n\n\
             try:\n  curl {base}/v1/chat/completions{key} -H 'Content-Type: \
             application/json' -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\
             \"content\":\"What is the capital of France?\"}}],\"max_tokens\":128}}'\n"
        ));
        if self.open {
            eprint_safe(&format!("warning: {OPEN}\n"));
        }
    }
}

/// Describes one model in a line.
fn describe(model: &Model) -> String {
    let footprint = model.footprint();
    let mut line = format!(
        "{}: {} context, {} of weights in memory",
        model.id(),
        model.context(),
        megabytes(footprint.resident),
    );
    if footprint.dequantized > 0 {
        line += &format!(
            " ({} of them expanded to f32 from {} in the file)",
            megabytes(footprint.dequantized),
            megabytes(footprint.dequantized_from)
        );
    }
    match model.chat_profile() {
        Some(profile) => line += &format!("; chats with @{profile}"),
        None if model.template().is_some() => line += "; chats with its own template",
        None => {}
    }
    line
}

fn megabytes(bytes: usize) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// Ends the process at the next signal.
async fn exit_at_next_signal(mut signals: ShutdownSignals) {
    if let Ok(code) = signals.next().await {
        tracing::warn!("stopped at once; running answers were cut off");
        std::process::exit(code);
    }
}

/// Turns a write beyond the limit of file sizes into an error for the writer, as on a full disk,
/// instead of a signal (SIGXFSZ) that ends the process.
#[cfg(unix)]
fn ignore_sigxfsz() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // The handler stays installed after the signal is dropped.
    signal(SignalKind::from_raw(libc::SIGXFSZ)).map(drop)
}
