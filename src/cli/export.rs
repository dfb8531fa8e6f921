//! `incant export`: adapters in forms that other programs read.

use std::path::PathBuf;

use anyhow::Context;
use incant::catalog;
use incant::gguf::Gguf;
use incant::lora::Lora;
use incant::model::arch;

use super::pull;

/// Write a LoRA adapter as a GGUF file, which llama.cpp reads too
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The adapter: a PEFT directory or a GGUF file
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    gguf: PathBuf,
    /// The model that the adapter is for, by name or file [default: the default model]
    #[arg(long, short, value_name = "NAME|FILE.gguf")]
    model: Option<String>,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let name = self
            .model
            .unwrap_or_else(|| catalog::default_model().name.clone());
        let model = pull::ensure(&name)?;
        let gguf = Gguf::open(&model.path)?;
        let spec = arch::read(&gguf).with_context(|| model.path.display().to_string())?;
        let lora = Lora::read(&self.adapter, &spec)?;
        lora.export(&spec, &self.gguf)
            .with_context(|| self.gguf.display().to_string())?;
        let parameters = lora.parts().map(|(_, _, part)| part.a.len() + part.b.len());
        println!(
            "{}: {} numbers for {}",
            self.gguf.display(),
            super::output::grouped(parameters.sum::<usize>() as u64),
            model.name
        );
        Ok(())
    }
}
