//! The commands. Each is one file: its arguments, and what it does.

mod ask;
mod bench;
mod chat;
mod compare;
mod edges;
mod export;
mod files;
mod hangup;
mod inspect;
pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod pull;
mod quantize;
mod reload;
mod rewrite;
mod samplers;
mod serve;
mod tokenize;
mod train;

use clap::{Parser, Subcommand};

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
    Train(train::Args),
    Bench(bench::Args),
    Export(export::Args),
    Quantize(quantize::Args),
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => args.run(),
            Command::Ask(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Pull(args) => args.run(),
            Command::Tokenize(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Train(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Quantize(args) => args.run(),
        }
    }
}
