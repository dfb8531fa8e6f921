//! LoRA adapters: low-rank additions to the linear layers of a frozen model,
//! `y = x·Wᵀ + scale · (x·Aᵀ)·Bᵀ`.
//!
//! An adapter is read from a PEFT directory (`peft.rs`) or a GGUF file (`gguf.rs`)
//! into a [`Lora`], which is checked against the model that it is for: what does
//! not fit, or could not be applied exactly, is refused by name. Executors take it
//! from there. One that was trained is saved as a PEFT directory (`save.rs`).

mod error;
mod export;
mod gguf;
mod naming;
mod pairs;
mod peft;
mod save;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use error::LoraError;
pub use error::place;
pub use naming::Linear;
pub use peft::FILES as PEFT_FILES;

use self::pairs::Room;
use crate::DecoderSpec;
use incant_gguf::open::{Location, Opened};

/// Where a file says which profile its adapter goes with.
const PROFILE_KEY: &str = "incant.profile";

/// The highest rank that is accepted: far above any in use, far below what would
/// fill the memory.
const MOST_RANK: usize = 1024;

/// An adapter for one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// By layer.
    layers: Vec<LayerLora>,
    /// The profile that it was trained to be used with.
    profile: Option<String>,
}

/// The additions to one layer, by [`Linear`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerLora([Option<LowRank>; Linear::ALL.len()]);

impl LayerLora {
    /// What is added to a linear layer.
    pub fn get(&self, linear: Linear) -> Option<&LowRank> {
        self.0[linear as usize].as_ref()
    }
}

/// What is added to one linear layer of shape `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// `[rank, inputs]`, row by row.
    pub a: Vec<f32>,
    /// `[outputs, rank]`, row by row.
    pub b: Vec<f32>,
    /// What the product is multiplied by.
    pub scale: f32,
}

impl LowRank {
    /// No number that it adds is larger than this where those of its input are at most 1:
    /// max over the outputs *o* of |scale| · Σᵣ |B*ₒᵣ*| · Σᵢ |A*ᵣᵢ*|.
    pub fn most(&self) -> f64 {
        let size = |numbers: &[f32]| -> f64 { numbers.iter().map(|&n| f64::from(n).abs()).sum() };
        let low: Vec<f64> = self.a.chunks_exact(self.inputs).map(size).collect();
        let rows = self.b.chunks_exact(self.rank);
        let sums = rows.map(|row| -> f64 {
            let products = row.iter().zip(&low);
            products.map(|(&b, low)| f64::from(b).abs() * low).sum()
        });
        f64::from(self.scale).abs() * sums.fold(0.0, f64::max)
    }
}

impl Lora {
    /// Reads the adapter at `path`, a PEFT directory or a GGUF file, for the model
    /// that `spec` describes.
    ///
    /// # Errors
    /// See [`LoraError`]; each is one line that names the file and, where there is
    /// one, the tensor.
    pub fn read(path: &Path, spec: &DecoderSpec) -> Result<Lora, LoraError> {
        Lora::read_at(&Location::of(path), spec, usize::MAX)
    }

    /// [`read`](Self::read) at a location that a client may have named. An adapter with
    /// more than `most` numbers is refused before they are in memory.
    ///
    /// # Errors
    /// The same.
    pub fn read_at(
        location: &Location,
        spec: &DecoderSpec,
        most: usize,
    ) -> Result<Lora, LoraError> {
        let room = Room(most);
        let read = match location.open() {
            Ok(Opened::Folder) => peft::read(location, spec, room),
            Ok(Opened::File(_)) => gguf::read(location, spec, room),
            Err(error) => Err(error::Cause::Open(error)),
        };
        read.and_then(|lora| match lora.overflowing() {
            Some((layer, linear)) => Err(error::Cause::Overflow { layer, linear }),
            None => Ok(lora),
        })
        .map_err(|cause| LoraError::new(location, cause))
    }

    /// An adapter of these additions.
    ///
    /// # Errors
    /// One does not fit the model.
    pub(crate) fn new(
        spec: &DecoderSpec,
        parts: impl IntoIterator<Item = (usize, Linear, LowRank)>,
        profile: Option<String>,
    ) -> Result<Lora, error::Cause> {
        let mut layers = vec![LayerLora::default(); spec.layers.len()];
        for (layer, linear, part) in parts {
            if layers[layer].0[linear as usize].replace(part).is_some() {
                return Err(error::Cause::Repeated { layer, linear });
            }
        }
        if layers
            .iter()
            .all(|layer| layer.0.iter().all(Option::is_none))
        {
            return Err(error::Cause::Empty);
        }
        Ok(Lora { layers, profile })
    }

    /// An adapter of these additions, of which there is one at the most for each linear
    /// layer.
    ///
    /// # Errors
    /// There are none, or two for one; in words.
    pub fn of_parts(
        spec: &DecoderSpec,
        parts: impl IntoIterator<Item = (usize, Linear, LowRank)>,
        profile: Option<String>,
    ) -> Result<Lora, String> {
        Lora::new(spec, parts, profile).map_err(|cause| cause.to_string())
    }

    /// How many layers its model has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The additions to a layer.
    pub fn layer(&self, layer: usize) -> &LayerLora {
        &self.layers[layer]
    }

    /// The profile that it was trained to be used with, where its file says so.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// The same additions, to be used with `profile`.
    pub fn with_profile(self, profile: Option<String>) -> Lora {
        Lora { profile, ..self }
    }

    /// All additions, with their layers.
    pub fn parts(&self) -> impl Iterator<Item = (usize, Linear, &LowRank)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(index, layer)| {
            let linears = Linear::ALL.into_iter();
            linears.filter_map(move |linear| Some((index, linear, layer.get(linear)?)))
        })
    }

    /// The linear layer that it can add the largest number to, by [`LowRank::most`].
    pub fn strongest(&self) -> Option<(usize, Linear)> {
        let parts = self.parts();
        let parts = parts.map(|(layer, linear, part)| (layer, linear, part.most()));
        let strongest = parts.max_by(|(.., one), (.., other)| one.total_cmp(other));
        strongest.map(|(layer, linear, _)| (layer, linear))
    }

    /// A linear layer that a row of numbers no larger than 1 can overflow.
    fn overflowing(&self) -> Option<(usize, Linear)> {
        let overflows = |part: &LowRank| part.most() > f64::from(f32::MAX);
        let mut parts = self.parts();
        parts
            .find(|(_, _, part)| overflows(part))
            .map(|(layer, linear, _)| (layer, linear))
    }

    /// A hash of all that its numbers depend on.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (layer, linear, part) in self.parts() {
            for number in [layer, linear as usize, part.rank] {
                hash.update((number as u64).to_le_bytes());
            }
            hash.update(part.scale.to_le_bytes());
            for number in part.a.iter().chain(&part.b) {
                hash.update(number.to_le_bytes());
            }
        }
        hash.finalize().into()
    }
}
