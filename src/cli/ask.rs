//! `incant ask`.

/// Answer one question in the terminal
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
