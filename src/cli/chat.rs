//! `incant chat`: the terminal chat, with a server in this process or a remote one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use etcetera::AppStrategy;
use incant::analyze;
use incant::engine::EngineOptions;
use incant::runtime::Runtime;
use incant::server::{ServeOptions, serve};
use incant_tui::{Inbox, Options, Remote, ReportPage};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::local::Local;
use super::model_args::{self, Loading, ModelArgs};
use super::serve::load;
use super::{log, reload};

/// Chat in the terminal, and compare arms side by side
///
/// F1 shows every key. Keys are bound anew in keys.toml in incant's configuration
/// folder; sessions are saved in its data folder.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A question to begin with
    question: Option<String>,
    /// The arm that answers: MODEL[@PROFILE][+ADAPTER], or another server's model id [default: the
    /// first that is served]
    #[arg(long, short)]
    arm: Option<String>,
    /// Talk to this server, of incant or any other with OpenAI's REST API, instead of
    /// loading a model
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["ModelArgs", "ComputeArgs", "FileArgs", "Consent"]
    )]
    url: Option<String>,
    /// The key of the server at --url
    #[arg(
        long,
        value_name = "KEY",
        env = "INCANT_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Without --url: the file for the server's log [default: no log]
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    log: Option<PathBuf>,
    #[command(flatten)]
    models: ModelArgs,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let folders = model_args::folders()?;
        let program = Program {
            arm: self.arm,
            question: self.question,
            data: folders.data_dir(),
            keys: folders.config_dir().join("keys.toml"),
        };
        if let Some(url) = self.url {
            return program.run(url, self.api_key, Inbox::default());
        }
        if let Some(path) = &self.log {
            log::to_file(path).with_context(|| path.display().to_string())?;
        }
        let models = self.models.or_of_arms(&program.arm);
        // This may download, with a progress bar on the terminal, before the chat takes it over.
        let loading = models.resolve(EngineOptions::default())?;
        program.run_with_server(loading)
    }
}

/// The terminal program, without the server that it uses.
struct Program {
    arm: Option<String>,
    question: Option<String>,
    data: PathBuf,
    keys: PathBuf,
}

impl Program {
    fn run(self, url: String, api_key: Option<String>, inbox: Inbox) -> anyhow::Result<()> {
        let options = Options {
            url,
            api_key,
            arm: self.arm,
            question: self.question,
            data: self.data,
            keys: self.keys,
            report: Box::new(Page),
        };
        Ok(incant_tui::run(options, inbox)?)
    }

    /// Runs with a server in this process, which accepts no other clients.
    fn run_with_server(self, loading: Loading) -> anyhow::Result<()> {
        let Local {
            tokio,
            listener,
            url,
            key,
            options,
        } = Local::bind()?;
        let inbox = Inbox::default();
        let (stop, stopped) = oneshot::channel();
        tokio.spawn(keep_serving(
            listener,
            loading,
            options,
            stopped,
            inbox.remote(),
        ));
        let ended = self.run(url, Some(key), inbox);
        // No client is left to wait for an answer.
        drop(stop);
        tokio.shutdown_background();
        ended
    }
}

/// Serves until `stopped`; ends the program if the models cannot be loaded.
async fn keep_serving(
    listener: TcpListener,
    loading: Loading,
    options: ServeOptions,
    stopped: oneshot::Receiver<()>,
    remote: Remote,
) {
    let runtime = Arc::new(Runtime::new());
    let loaded = Arc::clone(&runtime);
    let failed = remote.clone();
    tokio::task::spawn_blocking(move || match load(&loading) {
        Ok(models) => {
            loaded.loaded(models);
            // SIGHUP ends the program: its terminal is gone.
            reload::follow(loading.into_library(), loaded, None);
        }
        Err(error) => failed.fail(log::error_chain(&error)),
    });
    let shutdown = async {
        // A dropped sender means the same as a message: stop serving.
        _ = stopped.await;
        runtime.drain();
    };
    if let Err(error) = serve(listener, Arc::clone(&runtime), shutdown, options).await {
        remote.fail(format!("the server: {error}"));
    }
}

/// The self-contained page of a comparison.
struct Page;

impl ReportPage for Page {
    fn page(&self, report: &str) -> String {
        analyze::page::report(report)
    }
}
