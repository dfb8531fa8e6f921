//! A server in this process, for runs without `--url`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use incant::catalog;
use incant::engine::EngineOptions;
use incant::exec::Backend;
use incant::profile;
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::{ApiKeys, ServeOptions, serve};
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;

/// The model, adapters and profiles of the server.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// Without --url: the model, by its name in the catalogue or its GGUF file [default:
    /// the catalogue's]
    #[arg(long, value_name = "NAME|FILE.gguf", conflicts_with = "url")]
    model: Option<String>,
    /// Without --url: a LoRA adapter to serve; repeatable
    #[arg(long = "adapter", value_name = "NAME=PATH", value_parser = adapter, conflicts_with = "url")]
    adapters: Vec<(String, PathBuf)>,
    /// Without --url: a folder of custom profiles
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    profile_dir: Option<PathBuf>,
}

fn adapter(text: &str) -> Result<(String, PathBuf), &'static str> {
    let (name, path) = text.split_once('=').ok_or("it is not NAME=PATH")?;
    Ok((name.to_owned(), path.into()))
}

/// A server that ends when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    /// Protects the port from other users of this machine.
    pub(crate) key: String,
    _threads: tokio::runtime::Runtime,
}

impl ServerArgs {
    /// Loads the model, which must be on this machine, and serves it on a free port.
    pub(crate) fn start(&self, parallel: usize) -> anyhow::Result<Server> {
        let runtime = Arc::new(Runtime::new());
        runtime.loaded(vec![Arc::new(self.load(parallel)?)]);
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = threads.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let key = Alphanumeric.sample_string(&mut rand::rng(), 32);
        let mut keys = ApiKeys::default();
        keys.add(&key)?;
        let options = ServeOptions {
            keys,
            ..ServeOptions::default()
        };
        threads.spawn(serve(listener, runtime, std::future::pending(), options));
        Ok(Server {
            url,
            key,
            _threads: threads,
        })
    }

    fn load(&self, parallel: usize) -> anyhow::Result<Model> {
        let default = &catalog::default_model().name;
        let name = self.model.as_ref().unwrap_or(default);
        let located = catalog::locate(name)?;
        let manifest = located.manifest.as_ref();
        let options = LoadOptions {
            backend: Backend::open(None, None)?,
            kv_memory: None,
            engine: EngineOptions {
                slots: parallel,
                ..EngineOptions::default()
            },
            context: None,
            profiles: profile::load(self.profile_dir.as_deref())?,
            default_profile: manifest.and_then(|it| it.default_profile.clone()),
            sampling: manifest.map_or_else(Default::default, |it| it.sampling.clone()),
            prefix_folder: None,
        };
        let model = Model::load(&located.name, &located.path, &options)?;
        for (name, path) in &self.adapters {
            model
                .load_adapter(name, path)
                .with_context(|| format!("--adapter {name}"))?;
        }
        Ok(model)
    }
}
