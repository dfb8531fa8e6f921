//! `incant serve`.

/// Serve models over OpenAI's REST API
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
