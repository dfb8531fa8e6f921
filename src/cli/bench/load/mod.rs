//! `incant bench --url`: a load test of servers with OpenAI's REST API, under a chat workload. Many
//! clients send the same long prompt followed by a short question each, over HTTP, as programs do
//! that know nothing of profiles.
//!
//! Two servers are never loaded at the same time. They get the same texts in the same rounds, and
//! take turns at being the first of a round, so that other load on the machine affects both alike.

mod client;
mod prompt;
mod report;
mod workload;

use std::num::NonZeroUsize;

use anyhow::Context;

use self::client::Server;
use self::report::{Report, Rounds};
use self::workload::{Phase, Workload};
use crate::cli::output::{self, grouped};

/// The salt of the final count of tokens on both servers; smaller ones are used to find the length.
const COUNT_SALT: u64 = 8;

/// The servers, and the workload.
#[derive(clap::Args)]
pub(super) struct LoadArgs {
    /// A running server of OpenAI's REST API, which is measured over HTTP under
    /// many chats that share one long prompt
    #[arg(
        long,
        conflicts_with_all = ["models", "device", "threads", "prefill", "batch", "depth", "repeat"]
    )]
    pub(super) url: Option<String>,
    /// A second server, with which the first is compared
    #[arg(long, value_name = "URL", requires = "url")]
    against: Option<String>,
    /// The model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "ID", requires = "url")]
    model_id: Option<String>,
    /// Numbers of concurrent clients
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "8",
        requires = "url"
    )]
    clients: Vec<NonZeroUsize>,
    /// Requests that a client sends one after another
    #[arg(long, value_name = "N", default_value = "4", requires = "url")]
    requests: NonZeroUsize,
    /// Approximate number of tokens in the shared prompt
    #[arg(long, value_name = "N", default_value = "1100", requires = "url")]
    prompt_tokens: NonZeroUsize,
    /// Number of tokens in each answer
    #[arg(long, value_name = "N", default_value = "64", requires = "url")]
    max_tokens: NonZeroUsize,
    /// Number of rounds, of which the median is taken
    #[arg(long, value_name = "N", default_value = "3", requires = "url")]
    rounds: NonZeroUsize,
    /// Sent to the servers as a bearer token; the first one, if commas separate several
    #[arg(
        long,
        value_name = "KEY",
        env = "INCANT_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
}

impl LoadArgs {
    /// Measures the server at `url`, and the one to compare it with.
    pub(super) fn run(&self, url: &str, json: bool) -> anyhow::Result<()> {
        // The environment variable may hold a server's own list of keys.
        let keys = self.api_key.as_deref().unwrap_or_default();
        let mut keys = keys.split([',', '\n']).map(str::trim);
        let key = keys.find(|key| !key.is_empty());
        let servers = [Some(url), self.against.as_deref()]
            .into_iter()
            .flatten()
            .map(|url| Server::open(url, self.model_id.as_deref(), key))
            .collect::<anyhow::Result<Vec<Server>>>()?;
        let mut workload = Workload {
            run: rand::random(),
            length: 0,
            tokens: self.max_tokens.get(),
            clients: self.clients.iter().map(|clients| clients.get()).collect(),
            requests: self.requests.get(),
        };
        workload.fit(&servers[0], self.prompt_tokens.get())?;
        let mut results = Vec::new();
        for server in &servers {
            results.push(Rounds {
                url: server.url.clone(),
                model: server.model.clone(),
                // For the second server this is also its first request, which may take longer than
                // later ones.
                shared_tokens: workload.count(server, COUNT_SALT)?,
                rounds: Vec::new(),
            });
        }
        let rounds = self.rounds.get();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..servers.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let server = &servers[at];
                let watch = |phase: Phase, clients: usize| {
                    let (name, round) = (phase.name(), round + 1);
                    let clients = match clients {
                        1 => String::new(),
                        _ => format!(", {} clients", grouped(clients as u64)),
                    };
                    eprintln!("round {round} of {rounds}, {}: {name}{clients}", server.url);
                };
                let measured = workload.round(server, round, watch)?;
                results[at].rounds.push(measured);
            }
        }
        let report = Report::new(results, self.max_tokens.get());
        let text = if json {
            output::json(&report).context("the report")?
        } else {
            report.table()
        };
        Ok(output::print(&text)?)
    }
}
