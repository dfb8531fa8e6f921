//! A model's file written anew: its weights in another type, or with an adapter
//! merged into them.
//!
//! [`Rewrite::new`] plans what becomes of each tensor, [`Rewrite::write`] does it.
//! What does not change is copied byte for byte. What does is unpacked, added to and
//! quantized some rows at a time, by candle's quantizers on all threads, so that no
//! tensor is ever in memory as a whole.

mod mix;
mod rows;
mod target;

use std::collections::HashMap;
use std::io;
use std::path::Path;

pub use mix::Mix;
pub use target::Target;

use crate::lora::{Lora, LowRank};
use crate::{DecoderSpec, ModelError, Weight, Weights, candle_dtype};
use incant_gguf::{CHAT_TEMPLATE_KEY, Gguf, MARKERS_KEY, TensorInfo, TensorType, Writer};

/// Why a file could not be written; one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A number is too large for a type, or is none.
    #[error("tensor '{}' holds {number}, which cannot be written as {kind}", name.escape_debug())]
    Number {
        /// The tensor.
        name: String,
        /// What it holds.
        number: f32,
        /// The type it should have got.
        kind: TensorType,
    },
}

/// A model's file that is written anew.
pub struct Rewrite<'a> {
    gguf: &'a Gguf,
    target: Target,
    tensors: Vec<Change<'a>>,
    /// How it is to chat, where that is not as before.
    chat: Option<Chat>,
}

/// What becomes of a tensor.
#[derive(Debug)]
pub struct Change<'a> {
    /// The tensor as it is.
    pub tensor: &'a TensorInfo,
    /// The type that it should have.
    pub wanted: TensorType,
    /// The type that it gets: another one if its rows are not whole blocks of the
    /// wanted one.
    pub kind: TensorType,
    /// What is added to which of its rows.
    additions: Vec<Addition<'a>>,
}

/// What is added to rows of a tensor.
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
    /// Whether it is a matrix: the embedding, the head, or a linear layer's weights.
    pub fn is_matrix(&self) -> bool {
        self.tensor.shape.len() > 1
    }

    /// Whether an adapter adds to it.
    pub fn is_adapted(&self) -> bool {
        !self.additions.is_empty()
    }

    /// Whether it stays as it is, byte for byte.
    pub fn is_copied(&self) -> bool {
        self.kind == self.tensor.kind && !self.is_adapted()
    }
}

impl<'a> Rewrite<'a> {
    /// Plans to write `gguf`, the model that `spec` describes, with its matrices in
    /// the type that `target` says and, where there is an adapter for it, with
    /// `scale · B·A` added to them. Norms and biases stay as they are.
    ///
    /// # Errors
    /// A tensor is missing or of a type that cannot be unpacked.
    pub fn new(
        gguf: &'a Gguf,
        spec: &DecoderSpec,
        target: Target,
        lora: Option<&'a Lora>,
    ) -> Result<Rewrite<'a>, ModelError> {
        Weights::new(gguf, spec).check(|kind| candle_dtype(kind).is_some())?;
        let mut additions: HashMap<String, Vec<Addition<'a>>> = HashMap::new();
        for (layer, linear, part) in lora.iter().flat_map(|lora| lora.parts()) {
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

    /// The same, with this chat template in place of the file's own. A line of an answer that
    /// begins with one of the `markers` ends it.
    #[must_use]
    pub fn with_chat(self, template: String, markers: Vec<String>) -> Rewrite<'a> {
        Rewrite {
            chat: Some(Chat { template, markers }),
            ..self
        }
    }

    /// What the matrices shall be.
    pub fn target(&self) -> Target {
        self.target
    }

    /// What becomes of each tensor, in file order.
    pub fn tensors(&self) -> &[Change<'a>] {
        &self.tensors
    }

    /// Writes the file at `path`, all of it or nothing. `progress` hears how many
    /// bytes of tensors were written each time, and of how many.
    ///
    /// # Errors
    /// The file cannot be written, or a number does not fit its type.
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
            // None where there were some before is none, too.
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

/// ggml's `GGML_QNT_VERSION`: how quantized blocks are laid out.
const QUANTIZATION_VERSION: u32 = 2;
