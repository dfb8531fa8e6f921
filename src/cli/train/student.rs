//! The model with the adapter that learns.

use std::path::PathBuf;

use anyhow::bail;
use incant::exec::Backend;
use incant::gguf::Gguf;
use incant::lora::{Linear, Lora};
use incant::train::Student;
use incant::train::model::{self, AdapterSettings, Model};
use serde_json::json;

use super::Origin;
use super::prepare::short;

/// Who is to learn.
pub(super) struct StudentOptions {
    /// What the model is called.
    pub(super) name: String,
    /// Its file.
    pub(super) path: PathBuf,
    /// Where to compute.
    pub(super) backend: Backend,
    /// The adapter as it is at the beginning.
    pub(super) form: Form,
    /// The profile that the adapter's files name.
    pub(super) profile: Option<String>,
    /// What A's first values follow from.
    pub(super) seed: u64,
    /// Compute each layer's inside again on the way back.
    pub(super) recompute: bool,
}

/// How an adapter begins.
pub(super) enum Form {
    /// As another one is.
    Of(Lora),
    /// With random A and no B.
    New {
        /// Rows of A, columns of B.
        rank: usize,
        /// What the product is multiplied by.
        scale: f64,
        /// The linear layers of every layer that are adapted.
        targets: Vec<Linear>,
    },
}

impl Form {
    /// What a run that goes on must have in common with its beginning.
    pub(super) fn origin(&self) -> Origin {
        let named = match self {
            Form::Of(lora) => {
                vec![("from", json!(short(lora.fingerprint())))]
            }
            Form::New {
                rank,
                scale,
                targets,
            } => {
                let targets: Vec<&str> = targets.iter().map(|linear| linear.target()).collect();
                vec![
                    ("rank", json!(rank)),
                    ("scale", json!(scale)),
                    ("targets", json!(targets.join(","))),
                ]
            }
        };
        let named = named.into_iter();
        named
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

/// Opens the model with the adapter that learns.
pub(super) fn open_student(options: &StudentOptions) -> anyhow::Result<Box<dyn Student>> {
    let Backend::Native { isa, pool } = &options.backend else {
        bail!("training computes on the CPU; leave out --device");
    };
    let form = match &options.form {
        Form::Of(lora) => model::Form::Of(lora.clone()),
        Form::New {
            rank,
            scale,
            targets,
        } => model::Form::New {
            rank: *rank,
            scale: *scale as f32,
            targets: targets.clone(),
            seed: options.seed,
        },
    };
    let gguf = Gguf::open(&options.path)?;
    let settings = AdapterSettings {
        form,
        base_model: options.name.clone(),
        profile: options.profile.clone(),
    };
    let model = Model::load(&gguf, *isa, pool, settings, options.recompute)?;
    Ok(Box::new(model))
}
