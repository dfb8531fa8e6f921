//! `incant pull`.

/// Download a model
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
