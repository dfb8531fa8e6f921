//! The student: the model with the adapter to train.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use incant::exec::Backend;
use incant::gguf::Gguf;
use incant::kernels::Isa;
use incant::kernels::pool::Pool;
use incant::lora::{Linear, Lora};
use incant::train::Student;
use incant::train::model::{self, AdapterSettings, Model};
use serde_json::json;

use super::Origin;
use super::prepare::short;

/// The options of a student.
pub(super) struct StudentOptions {
    /// The name of the model.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The backend that computes.
    pub(super) backend: Backend,
    /// The adapter at the beginning.
    pub(super) form: Form,
    /// The profile that the adapter's files record.
    pub(super) profile: Option<String>,
    /// The seed of A's initial values.
    pub(super) seed: u64,
    /// Recompute each layer's activations in the backward pass.
    pub(super) recompute: bool,
}

/// The initial adapter.
pub(super) enum Form {
    /// A copy of another adapter.
    Of(Lora),
    /// A new adapter, with random A and zero B.
    New {
        /// The number of rows of A and of columns of B.
        rank: usize,
        /// The factor of the product.
        scale: f64,
        /// The linear layers of each transformer layer that are adapted.
        targets: Vec<Linear>,
    },
}

impl Form {
    /// Returns the settings that a resumed run must have in common with its beginning.
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

/// Returns the parts of the only backend that trains.
pub(super) fn on_cpu(backend: &Backend) -> anyhow::Result<(Isa, &Arc<Pool>)> {
    match backend {
        Backend::Native { isa, pool } => Ok((*isa, pool)),
        Backend::Device(_) => bail!("training computes on the CPU; leave out --device"),
    }
}

/// Opens the model with the adapter to train.
pub(super) fn open_student(options: &StudentOptions) -> anyhow::Result<Box<dyn Student>> {
    let (isa, pool) = on_cpu(&options.backend)?;
    let form = match &options.form {
        Form::Of(lora) => model::AdapterInit::Existing(lora.clone()),
        Form::New {
            rank,
            scale,
            targets,
        } => model::AdapterInit::New {
            rank: *rank,
            scale: *scale as f32,
            targets: targets.clone(),
            seed: options.seed,
        },
    };
    let gguf = Gguf::open(&options.path)?;
    let settings = AdapterSettings {
        init: form,
        base_model: options.name.clone(),
        profile: options.profile.clone(),
    };
    let model = Model::load(&gguf, isa, pool, settings, options.recompute)?;
    Ok(Box::new(model))
}
