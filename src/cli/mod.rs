//! The command line: one file per command, with its arguments and implementation.

mod arg_errors;
mod ask;
mod bench;
mod chat;
mod client_args;
mod compare;
mod export;
mod files;
mod http;
mod inspect;
mod local;
pub(crate) mod log;
mod model_args;
pub(crate) mod output;
mod profile;
pub(crate) mod pull;
mod quantize;
mod reload;
mod rewrite;
mod samplers;
mod serve;
mod signals;
mod tokenize;
mod train;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Serve a base language model as a good assistant, in context.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Ask(ask::Args),
    Chat(chat::Args),
    Compare(compare::Args),
    Pull(pull::Args),
    Tokenize(tokenize::Args),
    Inspect(inspect::Args),
    Profile(profile::Args),
    Train(train::Args),
    Bench(bench::Args),
    Export(export::Args),
    Quantize(quantize::Args),
}

impl Cli {
    /// Parses the command line.
    ///
    /// # Errors
    ///
    /// Fails on invalid arguments, and if help or the version is requested.
    pub(crate) fn parse_args() -> Result<Cli, clap::Error> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let mut command = Cli::command();
        command.build();
        let matches = command.clone().try_get_matches_from(&words);
        let typed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
        typed.map_err(|error| arg_errors::explain(error, &command, &words))
    }

    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => args.run(),
            Command::Ask(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Pull(args) => args.run(),
            Command::Tokenize(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Profile(args) => args.run(),
            Command::Train(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Quantize(args) => args.run(),
        }
    }
}
