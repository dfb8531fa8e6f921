//! The adapter that is trained.

use std::path::Path;

use candle_core::{Device, Result, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::lora::{Linear, Lora, LowRank};
use crate::model::DecoderSpec;
use crate::train::TrainError;

/// What an adapter is to be.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// How it begins.
    pub form: Form,
    /// What its files call the model.
    pub base_model: String,
    /// The profile that it is to be used with.
    pub profile: Option<String>,
}

/// How an adapter begins.
#[derive(Clone, Debug)]
pub enum Form {
    /// As another one is.
    Of(Lora),
    /// With random A and no B.
    New {
        /// Rows of A, columns of B.
        rank: usize,
        /// What the product is multiplied by.
        scale: f32,
        /// The linear layers of every layer that it adds to.
        targets: Vec<Linear>,
        /// What A's numbers follow from.
        seed: u64,
    },
}

/// A and B of all linear layers.
pub(super) struct Adapter {
    variables: Vec<(String, Var)>,
    /// Layer and linear layer of each pair of variables, and its scale.
    places: Vec<(usize, Linear, f32)>,
    base_model: String,
    profile: Option<String>,
}

/// What is added to the linear layers of a layer.
#[derive(Clone, Default)]
pub(super) struct Layer([Option<Added>; Linear::ALL.len()]);

/// What is added to a linear layer: `scale · (x·Aᵀ)·Bᵀ`.
#[derive(Clone)]
pub(super) struct Added {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f32,
}

impl Layer {
    pub(super) fn get(&self, linear: Linear) -> Option<&Added> {
        self.0[linear as usize].as_ref()
    }

    /// The same with each A and B replaced.
    fn map(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Layer> {
        let mut layer = self.clone();
        for added in layer.0.iter_mut().flatten() {
            (added.a, added.b) = (change(&added.a)?, change(&added.b)?);
        }
        Ok(layer)
    }

    /// The same, of which no gradients are wanted.
    pub(super) fn detached(&self) -> Layer {
        let mut layer = self.clone();
        for added in layer.0.iter_mut().flatten() {
            (added.a, added.b) = (added.a.detach(), added.b.detach());
        }
        layer
    }

    /// All numbers one after the other, if there are any.
    pub(super) fn flat(&self) -> Result<Option<Tensor>> {
        let pairs = self.0.iter().flatten();
        let all = pairs.flat_map(|added| [&added.a, &added.b]);
        let all: Vec<Tensor> = all.map(Tensor::flatten_all).collect::<Result<_>>()?;
        match all.is_empty() {
            true => Ok(None),
            false => Tensor::cat(&all, 0).map(Some),
        }
    }

    /// The same out of [`flat`](Layer::flat).
    pub(super) fn of_flat(&self, flat: &Tensor) -> Result<Layer> {
        let mut start = 0;
        self.map(|old| {
            let count = old.elem_count();
            let part = flat.narrow(0, start, count)?.reshape(old.shape());
            start += count;
            part
        })
    }
}

impl Adapter {
    pub(super) fn new(
        spec: &DecoderSpec,
        settings: AdapterSettings,
    ) -> std::result::Result<Adapter, TrainError> {
        let lora = match settings.form {
            Form::Of(from) if from.layers() == spec.layers.len() => from,
            Form::Of(_) => {
                let why = "the adapter to go on from is for a model with other layers";
                return Err(TrainError::Model(why.to_owned()));
            }
            Form::New {
                rank,
                scale,
                targets,
                seed,
            } => fresh(spec, rank, scale, &targets, seed)?,
        };
        let (mut variables, mut places) = (Vec::new(), Vec::new());
        for (layer, linear, part) in lora.parts() {
            let module = format!("model.layers.{layer}.{}", linear.module());
            let shapes = [
                ("lora_A", &part.a, (part.rank, part.inputs)),
                ("lora_B", &part.b, (part.outputs, part.rank)),
            ];
            for (side, numbers, shape) in shapes {
                let var = Var::from_slice(numbers, shape, &Device::Cpu)?;
                variables.push((format!("{module}.{side}.weight"), var));
            }
            places.push((layer, linear, part.scale));
        }
        Ok(Adapter {
            variables,
            places,
            base_model: settings.base_model,
            profile: settings.profile,
        })
    }

    pub(super) fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// What is added to a layer.
    pub(super) fn layer(&self, index: usize) -> Layer {
        let mut layer = Layer::default();
        let pairs = self.variables.as_chunks::<2>().0.iter();
        for ((of, linear, scale), [(_, a), (_, b)]) in self.places.iter().zip(pairs) {
            if *of == index {
                layer.0[*linear as usize] = Some(Added {
                    a: a.as_tensor().clone(),
                    b: b.as_tensor().clone(),
                    scale: *scale,
                });
            }
        }
        layer
    }

    /// The adapter as it is now.
    fn lora(&self, spec: &DecoderSpec) -> std::result::Result<Lora, TrainError> {
        let pairs = self.variables.as_chunks::<2>().0.iter();
        let parts = self.places.iter().zip(pairs);
        let parts = parts.map(|(&(layer, linear, scale), [(_, a), (_, b)])| {
            let numbers = |var: &Var| var.flatten_all()?.to_vec1();
            let part = LowRank {
                rank: a.dim(0)?,
                inputs: a.dim(1)?,
                outputs: b.dim(0)?,
                a: numbers(a)?,
                b: numbers(b)?,
                scale,
            };
            Ok((layer, linear, part))
        });
        let parts: Vec<_> = parts.collect::<Result<_>>()?;
        Lora::of_parts(spec, parts, self.profile.clone()).map_err(TrainError::Model)
    }

    /// Writes a PEFT directory.
    pub(super) fn save(
        &self,
        spec: &DecoderSpec,
        folder: &Path,
    ) -> std::result::Result<(), TrainError> {
        let saved = self.lora(spec)?.save(spec, &self.base_model, folder);
        saved.map_err(|error| TrainError::Io {
            path: folder.to_owned(),
            error,
        })
    }
}

/// A new adapter: A as PEFT begins it (uniform within ±1/√inputs), B zero.
fn fresh(
    spec: &DecoderSpec,
    rank: usize,
    scale: f32,
    targets: &[Linear],
    seed: u64,
) -> std::result::Result<Lora, TrainError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut parts = Vec::new();
    for layer in 0..spec.layers.len() {
        for &linear in targets {
            let [outputs, inputs] = linear.shape(spec);
            let bound = 1.0 / (inputs as f32).sqrt();
            let number = |_| random.random_range(-bound..bound);
            let part = LowRank {
                rank,
                inputs,
                outputs,
                a: (0..rank * inputs).map(number).collect(),
                b: vec![0.0; outputs * rank],
                scale,
            };
            parts.push((layer, linear, part));
        }
    }
    Lora::of_parts(spec, parts, None).map_err(TrainError::Model)
}
