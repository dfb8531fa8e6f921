//! `incant inspect`: shows a GGUF file's contents and memory needs.

mod machine;
mod report;
mod show;

use incant::catalog;
use incant::gguf::Gguf;

use super::output;
use report::Report;

/// Show the contents of a GGUF file: metadata, tensors, tokenizer, memory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model, by name or file
    #[arg(value_name = "NAME|FILE.gguf")]
    model: String,
    /// Print JSON, with every tensor
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let located = catalog::locate(&self.model)?;
        let gguf = Gguf::open(&located.path)?;
        let report = Report::of(&gguf);
        let shown = if self.json {
            output::json(&report)?
        } else {
            show::text(&report)
        };
        Ok(output::print(&shown)?)
    }
}
