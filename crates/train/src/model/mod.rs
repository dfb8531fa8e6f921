//! The model that is trained: a decoder with frozen packed (quantized) weights, and a LoRA
//! adapter that changes.
//!
//! It computes the same as the executors, for whole sequences at once. The whole forward pass
//! is one function of the adapter's elements with its own backward pass. The packed weights are
//! the only copy, in the backward pass too. Gradient checkpointing (`recompute`) trades time
//! for memory.

mod adapter;
mod attention;
mod decoder;
mod layer;
mod linear;
mod lm_head;
mod node;
mod rows;

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

pub use adapter::{AdapterInit, AdapterSettings};

use self::adapter::{Adapter, Layout};
use self::decoder::{Angles, Decoder};
use self::layer::{Activations, Layer};
use self::lm_head::{LmHead, Scored};
use self::node::{custom_op, with_elements};
use self::rows::{Rows, Sequence};
use super::{Batch, Student, Target, TrainError};
use incant_gguf::Gguf;
use incant_kernels::pool::Pool;
use incant_kernels::{Isa, math};
use incant_model::PackedWeights;
use incant_model::{DecoderSpec, arch};

/// A frozen model with an adapter that is being trained, on the CPU.
pub struct Model {
    decoder: Arc<Decoder>,
    adapter: Adapter,
    /// Gradient checkpointing: recompute each layer's activations in the backward pass instead
    /// of keeping them.
    recompute: bool,
}

/// Data about a batch that layers need.
struct Context {
    sequences: Vec<Sequence>,
    /// One for each of the model's RoPE variants.
    angles: Vec<Angles>,
    /// The factor of each row's attention scores.
    scales: Vec<f32>,
    /// Rows in each part but the last.
    part_rows: usize,
}

/// A batch after its forward pass.
struct ForwardPass {
    context: Context,
    layout: Layout,
    /// The last layer's outputs in the rows before each token that counts.
    x: Vec<f32>,
    /// Which rows these are.
    output_rows: Vec<usize>,
    /// Rows of the whole batch.
    rows: usize,
    /// One for each layer, if gradients are needed.
    saved: Vec<SavedActivations>,
}

/// Activations saved for the backward pass through a layer.
enum SavedActivations {
    All(Activations),
    /// The layer's inputs; the rest is recomputed.
    Inputs(Vec<Vec<f32>>),
}

impl Model {
    /// Packs the weights of `gguf` for kernels of `isa`, and makes an adapter for them.
    ///
    /// # Errors
    /// The file is not supported, or the adapter does not fit it.
    pub fn load(
        gguf: &Gguf,
        isa: Isa,
        pool: &Pool,
        settings: AdapterSettings,
        recompute: bool,
    ) -> Result<Model, TrainError> {
        let failed = |error: &dyn std::fmt::Display| TrainError::Model(error.to_string());
        let spec = arch::read(gguf).map_err(|error| failed(&error))?;
        let weights = PackedWeights::load(gguf, &spec, pool).map_err(|error| failed(&error))?;
        let adapter = Adapter::new(&spec, settings)?;
        Ok(Model {
            decoder: Arc::new(Decoder::new(spec, isa, weights)),
            adapter,
            recompute,
        })
    }

    /// The model's specification.
    pub fn spec(&self) -> &DecoderSpec {
        &self.decoder.spec
    }

    /// A score for each token that counts, computed from the normalised last hidden state
    /// before it. If `with_gradients` is set, the result is differentiable with respect to the
    /// adapter.
    fn score(
        &self,
        name: &'static str,
        batch: &Batch,
        with_gradients: bool,
        score: impl FnOnce(LmHead<'_>, &[f32], &[u32]) -> Scored,
    ) -> Result<Tensor, TrainError> {
        let elements = self.adapter.elements()?;
        let save: Option<fn(Activations) -> SavedActivations> =
            match (with_gradients, self.recompute) {
                (false, _) => None,
                (true, false) => Some(SavedActivations::All),
                (true, true) => {
                    Some(|activations| SavedActivations::Inputs(activations.into_inputs()))
                }
            };
        let (forward_pass, targets) = with_elements(&elements, |elements| {
            let layout = self.adapter.layout().clone();
            self.decoder.forward(batch, layout, elements, save)
        })?;
        let decoder = Arc::clone(&self.decoder);
        let (values, gradients) =
            score(decoder.lm_head(), &forward_pass.normed(&decoder), &targets);
        let Some(gradients) = gradients else {
            return Ok(Tensor::new(values, &Device::Cpu)?);
        };
        let backward = move |elements: &[f32], dy: &[f32]| {
            let mut d_normed = gradients.clone();
            let rows = d_normed.chunks_exact_mut(decoder.spec.hidden);
            for (row, dy) in rows.zip(dy) {
                math::scale(decoder.isa, row, *dy);
            }
            forward_pass.backward(&decoder, elements, d_normed)
        };
        Ok(custom_op(name, &elements, values, Box::new(backward))?)
    }

    fn score_tokens(&self, batch: &Batch, with_gradients: bool) -> Result<Tensor, TrainError> {
        self.score(
            "log-probabilities",
            batch,
            with_gradients,
            |lm_head, x, targets| lm_head.logprobs(x, targets, with_gradients),
        )
    }

    fn score_divergences(
        &self,
        batch: &Batch,
        teacher: &Tensor,
        with_gradients: bool,
    ) -> Result<Tensor, TrainError> {
        with_elements(teacher, |teacher| {
            self.score("divergences", batch, with_gradients, |lm_head, x, _| {
                lm_head.divergences(x, teacher, with_gradients)
            })
        })?
    }

    fn score_sparse_divergences(
        &self,
        batch: &Batch,
        targets: &[&Target],
        with_gradients: bool,
    ) -> Result<Tensor, TrainError> {
        self.score(
            "sparse divergences",
            batch,
            with_gradients,
            |lm_head, x, _| lm_head.sparse_divergences(x, targets, with_gradients),
        )
    }
}

impl Decoder {
    fn lm_head(&self) -> LmHead<'_> {
        LmHead {
            isa: self.isa,
            matrix: &self.weights.lm_head,
            scale: self.spec.logit_scale,
            cap: self.spec.logit_cap,
        }
    }

    /// Forward pass of a batch through all layers, with an adapter whose elements are
    /// `elements`. Also returns the tokens that count.
    fn forward(
        &self,
        batch: &Batch,
        layout: Layout,
        elements: &[f32],
        save: Option<fn(Activations) -> SavedActivations>,
    ) -> (ForwardPass, Vec<u32>) {
        let Rows {
            tokens,
            positions,
            sequences,
            counted,
        } = Rows::new(batch);
        let context = self.context(&positions, sequences);
        let part = context.part_rows;
        let mut x = self.embed(&tokens, part);
        let mut saved = Vec::new();
        for index in 0..self.spec.layers.len() {
            let layer = Layer {
                decoder: self,
                index,
                context: &context,
                adapter: layout.layer(index, elements),
            };
            let activations;
            (x, activations) = layer.forward(x);
            saved.extend(save.map(|save| save(activations)));
        }
        let (output_rows, targets): (Vec<usize>, Vec<u32>) = counted.into_iter().unzip();
        let hidden = self.spec.hidden;
        let row = |&row: &usize| &x[row / part][row % part * hidden..][..hidden];
        let forward_pass = ForwardPass {
            x: output_rows.iter().flat_map(row).copied().collect(),
            rows: tokens.len(),
            context,
            layout,
            output_rows,
            saved,
        };
        (forward_pass, targets)
    }
}

impl ForwardPass {
    /// The normalised hidden states before each token that counts.
    fn normed(&self, decoder: &Decoder) -> Vec<f32> {
        decoder.norm(&decoder.weights.output_norm, &self.x)
    }

    /// Backward pass: from the gradient of [`normed`](Self::normed) to that of the adapter's
    /// elements.
    fn backward(&self, decoder: &Decoder, elements: &[f32], mut d_normed: Vec<f32>) -> Vec<f32> {
        let (hidden, part) = (decoder.spec.hidden, self.context.part_rows);
        decoder.norm_backward(&decoder.weights.output_norm, &self.x, &mut d_normed);
        let firsts = (0..self.rows).step_by(part);
        let mut dx: Vec<Vec<f32>> = firsts
            .map(|first| vec![0.0; part.min(self.rows - first) * hidden])
            .collect();
        // Sequences with a common prefix may each count the token that follows it, so a row can
        // occur more than once.
        for (&row, from) in self.output_rows.iter().zip(d_normed.chunks_exact(hidden)) {
            let to = &mut dx[row / part][row % part * hidden..][..hidden];
            math::add_assign(decoder.isa, to, from);
        }
        let mut gradient = vec![0.0; elements.len()];
        for (index, saved) in self.saved.iter().enumerate().rev() {
            let layer = Layer {
                decoder,
                index,
                context: &self.context,
                adapter: self.layout.layer(index, elements),
            };
            let parts;
            (dx, parts) = match saved {
                SavedActivations::All(activations) => layer.backward(activations, dx),
                SavedActivations::Inputs(x) => layer.backward(&layer.forward(x.clone()).1, dx),
            };
            // Summed in a fixed order, so that results are reproducible.
            for own in &parts {
                self.layout.add(decoder.isa, index, own, &mut gradient);
            }
        }
        gradient
    }
}

impl Student for Model {
    fn variables(&self) -> &[(String, Var)] {
        self.adapter.variables()
    }

    fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        self.score_tokens(batch, true)
    }

    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let (forward_pass, targets) = self.decoder.forward(batch, Layout::default(), &[], None);
        let rows = forward_pass.normed(&self.decoder);
        let shape = (targets.len(), self.decoder.spec.hidden);
        Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?)
    }

    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError> {
        self.score_divergences(batch, teacher, true)
    }

    fn sparse_divergences(&self, batch: &Batch, targets: &[&Target]) -> Result<Tensor, TrainError> {
        self.score_sparse_divergences(batch, targets, true)
    }

    fn without_gradients(&self) -> Box<dyn Student + '_> {
        Box::new(WithoutGradients(self))
    }

    fn save(&self, folder: &Path) -> Result<(), TrainError> {
        self.adapter.save(&self.decoder.spec, folder)
    }
}

/// A model without gradients.
struct WithoutGradients<'a>(&'a Model);

impl Student for WithoutGradients<'_> {
    fn variables(&self) -> &[(String, Var)] {
        self.0.variables()
    }

    fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        self.0.score_tokens(batch, false)
    }

    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        self.0.unadapted(batch)
    }

    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError> {
        self.0.score_divergences(batch, teacher, false)
    }

    fn sparse_divergences(&self, batch: &Batch, targets: &[&Target]) -> Result<Tensor, TrainError> {
        self.0.score_sparse_divergences(batch, targets, false)
    }

    fn without_gradients(&self) -> Box<dyn Student + '_> {
        self.0.without_gradients()
    }

    fn save(&self, folder: &Path) -> Result<(), TrainError> {
        self.0.save(folder)
    }
}
