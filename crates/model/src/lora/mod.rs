//! LoRA adapters: low-rank additions to the linear layers of a frozen model,
//! `y = x·Wᵀ + scale · (x·Aᵀ)·Bᵀ`.
//!
//! An adapter is read from a PEFT directory (`peft.rs`) or a GGUF file (`gguf.rs`) into a
//! [`Lora`], which is checked against its model: parts that do not match, or could not be
//! applied exactly, are refused by name. Executors pack it into their own form. A trained
//! adapter is saved as a PEFT directory (`save.rs`).

mod error;
mod export;
mod gguf;
mod naming;
mod pairs;
mod peft;
mod save;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use error::module_path;
pub use error::{AdditionsError, LoraError};
pub use naming::Linear;
pub use peft::FILES as PEFT_FILES;

use self::pairs::ElementBudget;
use crate::DecoderSpec;
use incant_gguf::open::{Location, Opened};

/// The metadata key for the profile that an adapter belongs to.
const PROFILE_KEY: &str = "incant.profile";

/// The maximum rank: far above any in use, far below one that would exhaust the memory.
const MAX_RANK: usize = 1024;

/// An adapter for one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Indexed by layer.
    layers: Vec<LayerLora>,
    /// The profile that it was trained for.
    profile: Option<String>,
}

/// The additions to one layer, by [`Linear`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerLora([Option<LowRank>; Linear::ALL.len()]);

impl LayerLora {
    /// Returns the addition to a linear layer.
    pub fn get(&self, linear: Linear) -> Option<&LowRank> {
        self.0[linear as usize].as_ref()
    }
}

/// The low-rank addition to one linear layer of shape `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// `[rank, inputs]`, row-major.
    pub a: Vec<f32>,
    /// `[outputs, rank]`, row-major.
    pub b: Vec<f32>,
    /// The factor of the product.
    pub scale: f32,
}

impl LowRank {
    /// Returns an upper bound of the magnitude of the elements it adds if those of its input
    /// are at most 1: max over the outputs *o* of |scale| · Σᵣ |B*ₒᵣ*| · Σᵢ |A*ᵣᵢ*|.
    pub fn output_bound(&self) -> f64 {
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
    /// Reads the adapter at `path`, a PEFT directory or a GGUF file, for the model that `spec`
    /// describes.
    ///
    /// # Errors
    /// See [`LoraError`]; each displays as one line that names the file and, if applicable, the
    /// tensor.
    pub fn read(path: &Path, spec: &DecoderSpec) -> Result<Lora, LoraError> {
        Lora::read_at(&Location::of(path), spec, usize::MAX)
    }

    /// Like [`read`](Self::read), at a location that may come from a client. An adapter with
    /// more than `most` elements is refused before they are loaded.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_at(
        location: &Location,
        spec: &DecoderSpec,
        most: usize,
    ) -> Result<Lora, LoraError> {
        let budget = ElementBudget(most);
        let read = match location.open() {
            Ok(Opened::Folder) => peft::read(location, spec, budget),
            Ok(Opened::File(_)) => gguf::read(location, spec, budget),
            Err(error) => Err(error::Cause::Open(error)),
        };
        read.and_then(|lora| match lora.overflowing() {
            Some((layer, linear)) => Err(error::Cause::Overflow { layer, linear }),
            None => Ok(lora),
        })
        .map_err(|cause| LoraError::new(location, cause))
    }

    /// Creates an adapter of these additions.
    ///
    /// # Errors
    /// An addition does not match the model.
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

    /// Creates an adapter of these additions, at most one for each linear layer.
    ///
    /// # Errors
    /// There are no additions, or two for the same linear layer.
    pub fn of_additions(
        spec: &DecoderSpec,
        parts: impl IntoIterator<Item = (usize, Linear, LowRank)>,
        profile: Option<String>,
    ) -> Result<Lora, AdditionsError> {
        Lora::new(spec, parts, profile).map_err(AdditionsError)
    }

    /// The number of layers of its model.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the additions to a layer.
    pub fn layer(&self, layer: usize) -> &LayerLora {
        &self.layers[layer]
    }

    /// The profile that it was trained for, if its file names one.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// Returns the adapter with another profile.
    pub fn with_profile(self, profile: Option<String>) -> Lora {
        Lora { profile, ..self }
    }

    /// Iterates over all additions, with their layers.
    pub fn additions(&self) -> impl Iterator<Item = (usize, Linear, &LowRank)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(index, layer)| {
            let linears = Linear::ALL.into_iter();
            linears.filter_map(move |linear| Some((index, linear, layer.get(linear)?)))
        })
    }

    /// Returns the linear layer to which it can add the largest element, by
    /// [`LowRank::output_bound`].
    pub fn largest_addition(&self) -> Option<(usize, Linear)> {
        let parts = self.additions();
        let parts = parts.map(|(layer, linear, part)| (layer, linear, part.output_bound()));
        let largest = parts.max_by(|(.., one), (.., other)| one.total_cmp(other));
        largest.map(|(layer, linear, _)| (layer, linear))
    }

    /// Returns a linear layer that can overflow for inputs of magnitude at most 1.
    fn overflowing(&self) -> Option<(usize, Linear)> {
        let overflows = |part: &LowRank| part.output_bound() > f64::from(f32::MAX);
        let mut parts = self.additions();
        parts
            .find(|(_, _, part)| overflows(part))
            .map(|(layer, linear, _)| (layer, linear))
    }

    /// Returns a hash of everything that its results depend on.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (layer, linear, part) in self.additions() {
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
