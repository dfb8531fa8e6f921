//! The LoRA adapter that is being trained: its variables, their layout, and saving in PEFT's
//! format.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Result, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::TrainError;
use incant_kernels::{Isa, math};
use incant_model::DecoderSpec;
use incant_model::lora::{Linear, Lora, LowRank};

/// How to make or load an adapter, and the metadata to save with it.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// Its initial weights.
    pub init: AdapterInit,
    /// The name of the base model, for the adapter's files.
    pub base_model: String,
    /// The profile to use with the adapter.
    pub profile: Option<String>,
}

/// An adapter's initial weights.
#[derive(Clone, Debug)]
pub enum AdapterInit {
    /// Those of an existing adapter.
    Existing(Lora),
    /// Random A, and B zero.
    New {
        /// Rows of A, columns of B.
        rank: usize,
        /// The factor of the product B·A.
        scale: f32,
        /// The linear layers that get an adapter, the same in every layer.
        targets: Vec<Linear>,
        /// The seed of A's values.
        seed: u64,
    },
}

/// A and B of all adapted linear layers.
pub(super) struct Adapter {
    variables: Vec<(String, Var)>,
    layout: Layout,
    base_model: String,
    profile: Option<String>,
}

/// Where A and B of each linear layer are in the concatenation of all elements of an adapter.
#[derive(Clone, Default)]
pub(super) struct Layout {
    slots: Vec<Slot>,
}

/// Where A and B of one linear layer are; B directly follows A.
#[derive(Clone)]
struct Slot {
    layer: usize,
    linear: Linear,
    rank: usize,
    a: Range<usize>,
    b: Range<usize>,
    scale: f32,
}

/// The LoRA terms of one layer.
#[derive(Clone, Copy, Default)]
pub(super) struct Layer<'a>([Option<LoraTerm<'a>>; Linear::ALL.len()]);

/// The LoRA term of one linear layer: `scale · (x·Aᵀ)·Bᵀ`.
#[derive(Clone, Copy)]
pub(super) struct LoraTerm<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) rank: usize,
    pub(super) scale: f32,
}

/// Gradients of A and B of each linear layer of a layer; B's follows A's.
pub(super) type Gradients = [Vec<f32>; Linear::ALL.len()];

impl<'a> Layer<'a> {
    pub(super) fn get(&self, linear: Linear) -> Option<LoraTerm<'a>> {
        self.0[linear as usize]
    }
}

impl Layout {
    /// The LoRA terms of a layer, for an adapter with the elements `elements`.
    pub(super) fn layer<'a>(&self, index: usize, elements: &'a [f32]) -> Layer<'a> {
        let mut layer = Layer::default();
        for slot in self.slots.iter().filter(|slot| slot.layer == index) {
            layer.0[slot.linear as usize] = Some(LoraTerm {
                a: &elements[slot.a.clone()],
                b: &elements[slot.b.clone()],
                rank: slot.rank,
                scale: slot.scale,
            });
        }
        layer
    }

    /// Adds a layer's gradients to the gradient of the whole adapter.
    pub(super) fn add(&self, isa: Isa, index: usize, gradients: &Gradients, to: &mut [f32]) {
        for slot in self.slots.iter().filter(|slot| slot.layer == index) {
            let to = &mut to[slot.a.start..slot.b.end];
            math::add_assign(isa, to, &gradients[slot.linear as usize]);
        }
    }
}

impl Adapter {
    pub(super) fn new(
        spec: &DecoderSpec,
        settings: AdapterSettings,
    ) -> std::result::Result<Adapter, TrainError> {
        let lora = match settings.init {
            AdapterInit::Existing(from) if from.layers() == spec.layers.len() => from,
            AdapterInit::Existing(_) => {
                let why =
                    "the adapter to continue from is for a model with another number of layers";
                return Err(TrainError::Model(why.to_owned()));
            }
            AdapterInit::New {
                rank,
                scale,
                targets,
                seed,
            } => new_lora(spec, rank, scale, &targets, seed)?,
        };
        let (mut variables, mut slots) = (Vec::new(), Vec::new());
        let mut end = 0;
        for (layer, linear, part) in lora.additions() {
            let module = format!("model.layers.{layer}.{}", linear.module());
            let shapes = [
                ("lora_A", &part.a, (part.rank, part.inputs)),
                ("lora_B", &part.b, (part.outputs, part.rank)),
            ];
            for (side, elements, shape) in shapes {
                let var = Var::from_slice(elements, shape, &Device::Cpu)?;
                variables.push((format!("{module}.{side}.weight"), var));
            }
            let a = end..end + part.a.len();
            let b = a.end..a.end + part.b.len();
            end = b.end;
            slots.push(Slot {
                layer,
                linear,
                rank: part.rank,
                a,
                b,
                scale: part.scale,
            });
        }
        Ok(Adapter {
            variables,
            layout: Layout { slots },
            base_model: settings.base_model,
            profile: settings.profile,
        })
    }

    pub(super) fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The concatenated elements of all variables.
    pub(super) fn elements(&self) -> Result<Tensor> {
        let all = self.variables.iter().map(|(_, var)| var.flatten_all());
        Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0)
    }

    /// The adapter with its current values.
    fn lora(&self, spec: &DecoderSpec) -> std::result::Result<Lora, TrainError> {
        let pairs = self.variables.as_chunks::<2>().0.iter();
        let parts = self.layout.slots.iter().zip(pairs);
        let parts = parts.map(|(slot, [(_, a), (_, b)])| {
            let elements = |var: &Var| var.flatten_all()?.to_vec1();
            let part = LowRank {
                rank: slot.rank,
                inputs: a.dim(1)?,
                outputs: b.dim(0)?,
                a: elements(a)?,
                b: elements(b)?,
                scale: slot.scale,
            };
            Ok((slot.layer, slot.linear, part))
        });
        let parts: Vec<_> = parts.collect::<Result<_>>()?;
        Lora::of_additions(spec, parts, self.profile.clone())
            .map_err(|error| TrainError::Model(error.to_string()))
    }

    /// Writes the adapter as a PEFT directory.
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

/// A new adapter, initialised like PEFT's: A uniform within ±1/√inputs, B zero.
fn new_lora(
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
            let element = |_| random.random_range(-bound..bound);
            let part = LowRank {
                rank,
                inputs,
                outputs,
                a: (0..rank * inputs).map(element).collect(),
                b: vec![0.0; outputs * rank],
                scale,
            };
            parts.push((layer, linear, part));
        }
    }
    Lora::of_additions(spec, parts, None).map_err(|error| TrainError::Model(error.to_string()))
}
