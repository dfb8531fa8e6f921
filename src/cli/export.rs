//! `incant export`: adapters in forms that other programs read.

use std::path::{Path, PathBuf};

use anyhow::Context;
use incant::catalog::{self, Located};
use incant::gguf::Gguf;
use incant::lora::Lora;
use incant::model::{DecoderSpec, arch};
use incant::quantize::{Rewrite, Target};

use super::{files, output, pull, rewrite};

/// Write a LoRA adapter as a GGUF file, or a model with the adapter in it; llama.cpp
/// reads both too
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("form").required(true))]
pub(crate) struct Args {
    /// The adapter: a PEFT directory or a GGUF file
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// Write the adapter by itself to this file
    #[arg(long, value_name = "FILE.gguf", group = "form")]
    gguf: Option<PathBuf>,
    /// Write the model with the adapter merged into its weights to this file
    #[arg(long, value_name = "FILE.gguf", group = "form")]
    merge: Option<PathBuf>,
    /// The type of the merged model's matrices, such as F16, Q8_0 or Q4_K; `same` is
    /// the one that each has; `auto` is that too, but Q8_0 where the adapter adds to
    /// fewer bits, in which most of it would be lost
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value_t,
        conflicts_with = "gguf"
    )]
    target: Target,
    /// The model that the adapter is for, by name or file [default: the default model]
    #[arg(long, short, value_name = "NAME|FILE.gguf")]
    model: Option<String>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: pull::Consent,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let path = self.gguf.as_ref().or(self.merge.as_ref());
        let path = path.expect("one of the two is required");
        // Before a download.
        files::writable(path, &[&self.adapter], self.force)?;
        let name = self.model.as_ref();
        let name = name.unwrap_or_else(|| &catalog::default_model().name);
        let model = pull::ensure(name, self.consent)?;
        let path = files::writable(path, &[&self.adapter, &model.path], self.force)?;
        let gguf = Gguf::open(&model.path)?;
        let spec = arch::read(&gguf).with_context(|| model.path.display().to_string())?;
        let lora = Lora::read(&self.adapter, &spec)?;
        match self.merge {
            Some(_) => self.merge(&gguf, &spec, &lora, &path),
            None => by_itself(&lora, &spec, &path, &model),
        }
    }

    fn merge(
        &self,
        gguf: &Gguf,
        spec: &DecoderSpec,
        lora: &Lora,
        path: &Path,
    ) -> anyhow::Result<()> {
        let rewrite = Rewrite::new(gguf, spec, self.target, Some(lora))
            .with_context(|| gguf.path().display().to_string())?;
        rewrite::write(&rewrite, path)?;
        if let Some(profile) = lora.profile() {
            output::print(&format!(
                "The adapter is for use with the profile {profile:?}.\n"
            ))?;
        }
        Ok(())
    }
}

fn by_itself(lora: &Lora, spec: &DecoderSpec, path: &Path, model: &Located) -> anyhow::Result<()> {
    lora.export(spec, path)
        .with_context(|| path.display().to_string())?;
    let parameters = lora.parts().map(|(_, _, part)| part.a.len() + part.b.len());
    Ok(output::print(&format!(
        "{}: {} numbers for {}\n",
        path.display(),
        output::grouped(parameters.sum::<usize>() as u64),
        model.name
    ))?)
}
