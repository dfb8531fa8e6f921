//! Quantization: rewrites the GGUF file of a model, with its weights in another type, or with
//! an adapter merged into them.
//!
//! [`Rewrite::new`] plans the change of each tensor, [`Rewrite::write`] applies it. Unchanged
//! tensors are copied byte for byte. Changed ones are dequantized, merged and quantized a few
//! rows at a time, by candle's quantizers on all threads, so that no tensor is ever in memory
//! as a whole.

mod mix;
mod rows;
mod target;

use std::collections::HashMap;
use std::io;
use std::path::Path;

pub use mix::Mix;
pub use target::{Target, UnknownTarget};

use crate::lora::{Lora, LowRank};
use crate::{DecoderSpec, ModelError, Weight, Weights, candle_dtype};
use incant_gguf::{CHAT_TEMPLATE_KEY, Gguf, MARKERS_KEY, TensorInfo, TensorType, Writer};

/// The error of a rewrite; it displays as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An element is too large for its new type, or is NaN.
    #[error("tensor '{}' holds {number}, which cannot be written as {kind}", name.escape_debug())]
    Element {
        /// The tensor.
        name: String,
        /// The element.
        number: f32,
        /// The requested type.
        kind: TensorType,
    },
}

/// A rewrite of a model's file.
pub struct Rewrite<'a> {
    gguf: &'a Gguf,
    target: Target,
    tensors: Vec<Change<'a>>,
    /// The new chat template, if it changes.
    chat: Option<Chat>,
}

/// The planned change of a tensor.
#[derive(Debug)]
pub struct Change<'a> {
    /// The original tensor.
    pub tensor: &'a TensorInfo,
    /// The requested type.
    pub wanted: TensorType,
    /// The actual type: another one if the rows are not a multiple of the block size of the
    /// requested type.
    pub kind: TensorType,
    /// The additions to its rows.
    additions: Vec<Addition<'a>>,
}

/// A low-rank addition to rows of a tensor.
#[derive(Clone, Copy, Debug)]
struct Addition<'a> {
    /// The first of the rows.
    first: usize,
    part: &'a LowRank,
}

/// A chat template for the written file.
#[derive(Clone, Debug)]
struct Chat {
    template: String,
    markers: Vec<String>,
}

impl Change<'_> {
    /// Whether the tensor is a matrix: the embedding, the LM head, or the weights of a linear
    /// layer.
    pub fn is_matrix(&self) -> bool {
        self.tensor.shape.len() > 1
    }

    /// Whether an adapter adds to the tensor.
    pub fn is_adapted(&self) -> bool {
        !self.additions.is_empty()
    }

    /// Whether the tensor is copied byte for byte.
    pub fn is_copied(&self) -> bool {
        self.kind == self.tensor.kind && !self.is_adapted()
    }
}

impl<'a> Rewrite<'a> {
    /// Plans to write `gguf`, the model that `spec` describes, with its matrices in the type
    /// that `target` specifies and, if there is an adapter, with `scale · B·A` added to them.
    /// Norms and biases are copied.
    ///
    /// # Errors
    /// A tensor is missing or has a type that cannot be dequantized.
    pub fn new(
        gguf: &'a Gguf,
        spec: &DecoderSpec,
        target: Target,
        lora: Option<&'a Lora>,
    ) -> Result<Rewrite<'a>, ModelError> {
        Weights::new(gguf, spec).check(|kind| candle_dtype(kind).is_some())?;
        let mut additions: HashMap<String, Vec<Addition<'a>>> = HashMap::new();
        for (layer, linear, part) in lora.iter().flat_map(|lora| lora.additions()) {
            let role = linear.part();
            let first = role.rows(spec).start;
            let tensor = additions.entry(role.tensor(spec, layer)).or_default();
            tensor.push(Addition { first, part });
        }
        let model = mix::Model {
            layers: spec.layers.len(),
            has_head: gguf.tensor("output.weight").is_ok(),
        };
        let tensors = gguf.tensors().map(|tensor| {
            let additions = additions.remove(&tensor.name).unwrap_or_default();
            let wanted = target.wanted(tensor, !additions.is_empty(), model);
            Change {
                tensor,
                wanted,
                kind: target::fitting(wanted, tensor),
                additions,
            }
        });
        Ok(Rewrite {
            gguf,
            target,
            tensors: tensors.collect(),
            chat: None,
        })
    }

    /// Replaces the chat template.
    #[must_use]
    pub fn with_chat(self, template: String, markers: Vec<String>) -> Rewrite<'a> {
        Rewrite {
            chat: Some(Chat { template, markers }),
            ..self
        }
    }

    /// The target of the matrices.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The changes of all tensors, in file order.
    pub fn tensors(&self) -> &[Change<'a>] {
        &self.tensors
    }

    /// Writes the file at `path` atomically. `progress` is called for each written piece of tensor
    /// data with its size and the total size, in bytes.
    ///
    /// # Errors
    /// The file cannot be written, or an element does not fit its type.
    pub fn write(
        &self,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), QuantizeError> {
        let mut writer = Writer::new().metadata(self.gguf.metadata());
        let is_changed = |change: &Change<'_>| change.kind != change.tensor.kind;
        let file_type = match self.target {
            Target::Type(kind) => Some(target::file_type(kind)),
            Target::Mix(mix) => Some(mix.file_type()),
            Target::Auto if self.tensors.iter().any(is_changed) => {
                Some(target::file_type(TensorType::Q8_0))
            }
            Target::Auto | Target::Same => None,
        };
        if let Some(file_type) = file_type {
            writer = writer
                .count("general.file_type", file_type)
                .count("general.quantization_version", QUANTIZATION_VERSION);
        }
        if let Some(Chat { template, markers }) = &self.chat {
            writer = writer.text(CHAT_TEMPLATE_KEY, template);
            // An empty list is written, too, if the file had a list before.
            if !markers.is_empty() || self.gguf.metadata().contains(MARKERS_KEY) {
                writer = writer.texts(MARKERS_KEY, markers);
            }
        }
        for change in &self.tensors {
            let TensorInfo { name, shape, .. } = change.tensor;
            writer = writer.tensor(name, shape, change.kind);
        }
        let all = writer.data_len();
        writer.write(path, |index, out| {
            let change = &self.tensors[index];
            let view = self.gguf.tensor(&change.tensor.name);
            let weight = Weight::whole(view.expect("the file's own tensor"));
            rows::each(change, weight, |source, bytes| {
                out.write_all(bytes)?;
                self.gguf.release(source);
                progress(bytes.len() as u64, all);
                Ok(())
            })
        })
    }
}

/// ggml's `GGML_QNT_VERSION`: the version of the layout of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;
