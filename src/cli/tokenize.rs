//! `incant tokenize`.

/// Show how a text becomes tokens
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
