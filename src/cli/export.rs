//! `incant export`: writes adapters, or models with merged adapters, for other programs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use incant::catalog::{self, Located};
use incant::gguf::Gguf;
use incant::lora::{Lora, PEFT_FILES};
use incant::model::{DecoderSpec, arch};
use incant::profile::{self, CHAT_TEMPLATE_KEY, Rendering};
use incant::quantize::{Rewrite, Target};
use incant::runtime::DEFAULT_PROFILE;
use incant::text::Tokenizer;

use super::{files, output, pull, rewrite};

/// Write a LoRA adapter as a GGUF file, or a model with the adapter merged into it; llama.cpp reads
/// both
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
    /// The type of the merged model's matrices, such as F16, Q8_0 or Q4_K; `same` keeps the type of
    /// each; `auto` does too, but uses Q8_0 where the adapter changes matrices of fewer bits, in
    /// which most of the change would be lost
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
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: pull::Consent,
    /// A folder of custom profiles, of which the adapter may name one
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// The profile that an adapter made for `turn` takes its turns from [default: the model's, or
    /// assistant]
    #[arg(long, value_name = "NAME")]
    default_profile: Option<String>,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let path = self.gguf.as_ref().or(self.merge.as_ref());
        let path = path.expect("one of the two is required");
        // Checked before a download.
        let adapter = PEFT_FILES.map(|name| self.adapter.join(name));
        let [config, weights] = &adapter;
        files::writable(path, &[&self.adapter, config, weights], self.force)?;
        let name = self.model.as_ref();
        let name = name.unwrap_or_else(|| &catalog::default_model().name);
        let model = pull::ensure(name, self.consent)?;
        let needed = [&self.adapter, config, weights, &model.path].map(PathBuf::as_path);
        let path = files::writable(path, &needed, self.force)?;
        let gguf = Gguf::open(&model.path)?;
        let spec = arch::read(&gguf).with_context(|| model.path.display().to_string())?;
        let lora = Lora::read(&self.adapter, &spec)?;
        match self.merge {
            Some(_) => self.merge(&gguf, &spec, &lora, &path, &model),
            None => export_adapter(&lora, &spec, &path, &model),
        }
    }

    fn merge(
        &self,
        gguf: &Gguf,
        spec: &DecoderSpec,
        lora: &Lora,
        path: &Path,
        model: &Located,
    ) -> anyhow::Result<()> {
        let form = match lora.profile() {
            Some(profile) => Some(self.form(profile, model)?),
            None => None,
        };
        let mut rewrite = Rewrite::new(gguf, spec, self.target, Some(lora))
            .with_context(|| gguf.path().display().to_string())?;
        let kept = if gguf.metadata().contains(CHAT_TEMPLATE_KEY) {
            "the file keeps its model's chat template"
        } else {
            "the file has no chat template, so programs that serve it choose a form of their own"
        };
        let mut notes = match (&form, lora.profile()) {
            (Some(_), Some(profile)) => {
                format!("the chat template is that of the adapter's form, {profile}\n")
            }
            _ => format!("note: the adapter does not name its form of turns: {kept}\n"),
        };
        if let Some(form) = form {
            let tokenizer = Tokenizer::from_gguf(gguf)?;
            match form.portable(tokenizer.bos().is_some() && tokenizer.adds_bos()) {
                Ok(chat) => {
                    notes += &stops(&chat.markers);
                    rewrite = rewrite.with_chat(chat.source, chat.markers);
                }
                Err(error) => {
                    notes.clear();
                    output::eprint_safe(&format!("warning: {error}: {kept}"));
                }
            }
        }
        rewrite::write(&rewrite, path)?;
        Ok(output::print(&notes)?)
    }

    /// Returns the form of turns that an adapter for `profile` was trained on.
    fn form(&self, profile: &str, model: &Located) -> anyhow::Result<Rendering> {
        let mut profiles = profile::load(self.profile_dir.as_deref())?;
        let mut known = |name: &str| {
            profiles.remove(name).with_context(|| {
                format!(
                    "the adapter is for the profile '{}', which is unknown; --profile-dir names \
                     its folder",
                    name.escape_debug()
                )
            })
        };
        let manifest = model.manifest.as_ref();
        let default = manifest.and_then(|manifest| manifest.default_profile.as_deref());
        let default = self.default_profile.as_deref().or(default);
        Ok(match profile {
            "base" => Rendering::Base,
            "turn" => Rendering::Turn(known(default.unwrap_or(DEFAULT_PROFILE))?),
            name => Rendering::Profile(known(name)?),
        })
    }
}

/// Returns a note for programs that do not know where answers end (stop strings).
fn stops(markers: &[String]) -> String {
    if markers.is_empty() {
        return String::new();
    }
    let markers = markers.iter().map(|marker| format!("{marker:?}"));
    let markers = markers.collect::<Vec<_>>().join(", ");
    format!(
        "note: its answers end at a line that begins with {markers}: incant ends them there, and \
         other programs have to be told (as \"stop\" in requests, in Ollama's Modelfile as \
         PARAMETER stop)\n"
    )
}

fn export_adapter(
    lora: &Lora,
    spec: &DecoderSpec,
    path: &Path,
    model: &Located,
) -> anyhow::Result<()> {
    lora.export(spec, path)
        .with_context(|| path.display().to_string())?;
    let parameters = lora
        .additions()
        .map(|(_, _, part)| part.a.len() + part.b.len());
    Ok(output::print(&format!(
        "{}: {} parameters for {}\n",
        path.display(),
        output::grouped(parameters.sum::<usize>() as u64),
        model.name
    ))?)
}
