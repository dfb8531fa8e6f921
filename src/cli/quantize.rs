//! `incant quantize`: writes a model's weights in another type.

use std::path::PathBuf;

use anyhow::Context;
use incant::catalog;
use incant::gguf::Gguf;
use incant::model::arch;
use incant::quantize::{Rewrite, Target};

use super::{files, rewrite};

/// Write a model with its matrices in another type, best from F16, BF16 or F32
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model, by name or file
    #[arg(value_name = "NAME|IN.gguf")]
    model: String,
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    file: PathBuf,
    /// The matrices' type: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to
    /// Q6_K; or one of llama.cpp's mixtures of them, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S,
    /// Q4_K_M, Q5_K_S or Q5_K_M
    #[arg(long = "type", value_name = "TYPE")]
    target: Target,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let located = catalog::locate(&self.model)?;
        let path = files::writable(&self.file, &[&located.path], self.force)?;
        let gguf = Gguf::open(&located.path)?;
        let named = || located.path.display().to_string();
        let spec = arch::read(&gguf).with_context(named)?;
        let rewrite = Rewrite::new(&gguf, &spec, self.target, None).with_context(named)?;
        rewrite::write(&rewrite, &path)
    }
}
