//! The executors under test: what holds for one must hold for the others.

use std::fmt;
use std::iter;
use std::sync::LazyLock;

use incant::exec::{Backend, DeviceChoice, Executor};
use incant::gguf::Gguf;
use incant::kernels::{Isa, Tier};
use incant::model::arch;

/// More threads than some machines have cores, so that threads interact everywhere.
const THREADS: usize = 3;

/// An executor, and the accuracy expected of it.
#[derive(Debug)]
pub(crate) struct Subject {
    name: String,
    pub(crate) backend: Backend,
    /// The maximum difference of a logit of a tiny random model from the oracle's.
    pub(crate) tolerance: f64,
    /// The maximum difference of a log-probability from that of the same tokens in another
    /// batch.
    pub(crate) between_batches: f32,
}

/// The maximum difference of a logit of a tiny random model from the oracle's if everything is
/// computed in f32.
///
/// The logits' root mean square is about 1.4 and f32 has seven digits. The observed difference
/// was 2e-5 in all models except the one of 62 layers, there 3e-5.
pub(crate) const F32_TOLERANCE: f64 = 1e-4;

/// The tolerance of the native executor, which stores keys and values as f16, and rounds the
/// activations that it multiplies with codes to 16 bits.
///
/// The observed difference was 1.8e-2. An oracle that rounds its keys and values likewise was
/// at most 4e-3 away, and 2e-3 with F32 weights.
pub(crate) const NATIVE_TOLERANCE: f64 = 6e-2;

/// The tolerance of prompts through AMX tiles, which round to bf16: it has three bits less than
/// f16.
const TILES_TOLERANCE: f64 = 8.0 * NATIVE_TOLERANCE;

/// The device executor on the CPU. Its products of different shapes add in different orders.
static REFERENCE: LazyLock<Subject> = LazyLock::new(|| Subject {
    name: "reference".to_owned(),
    backend: Backend::open(Some(DeviceChoice::Reference), None).expect("there is always a CPU"),
    tolerance: F32_TOLERANCE,
    between_batches: 2e-3,
});

/// The native executor with default settings. All tests share its threads.
static NATIVE: LazyLock<Subject> = LazyLock::new(|| native_with_threads(THREADS));

/// The native executor with each instruction set of this processor.
static INSTRUCTION_SETS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let Backend::Native { pool, .. } = &NATIVE.backend else {
        panic!("{} is not native", NATIVE.backend);
    };
    let native = |isa| {
        let pool = pool.clone();
        Subject::native(Backend::Native { isa, pool })
    };
    Isa::all().into_iter().map(native).collect()
});

impl Subject {
    /// The sums of a row do not depend on the batch; but with AMX tiles, they depend on whether
    /// the row belongs to a prompt.
    fn native(backend: Backend) -> Subject {
        let (tolerance, between_batches) = match &backend {
            Backend::Native { isa, .. } if isa.tier() == Tier::Amx => (TILES_TOLERANCE, 0.1),
            _ => (NATIVE_TOLERANCE, 0.0),
        };
        Subject {
            name: format!("native {backend}"),
            backend,
            tolerance,
            between_batches,
        }
    }

    /// The instruction set it uses, if it is native.
    pub(crate) fn tier(&self) -> Option<Tier> {
        match &self.backend {
            Backend::Native { isa, .. } => Some(isa.tier()),
            Backend::Device(_) => None,
        }
    }

    /// The size of an element of keys and values in bytes.
    pub(crate) fn kv_element_size(&self) -> usize {
        match &self.backend {
            Backend::Native { .. } => 2,
            Backend::Device(_) => 4,
        }
    }

    pub(crate) fn load(&self, gguf: &Gguf) -> Box<dyn Executor> {
        self.load_with(gguf, None)
    }

    /// Loads a model, with a limit in bytes for its KV cache.
    pub(crate) fn load_with(&self, gguf: &Gguf, kv_memory: Option<usize>) -> Box<dyn Executor> {
        let spec = arch::read(gguf).expect("a supported model");
        let loaded = self.backend.load(gguf, &spec, kv_memory);
        loaded.unwrap_or_else(|error| panic!("{self}: {error}"))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

pub(crate) fn reference() -> &'static Subject {
    &REFERENCE
}

pub(crate) fn native() -> &'static Subject {
    &NATIVE
}

/// The native executor with a number of threads of its own.
pub(crate) fn native_with_threads(threads: usize) -> Subject {
    let backend = Backend::open(Some(DeviceChoice::Cpu), Some(threads));
    Subject::native(backend.expect("there is always a CPU"))
}

/// The native executor with the best instruction set that computes prompts as exactly as
/// answers: assertions about real models to a hundredth of a nat, or bit for bit, do not hold
/// if AMX tiles round prompts to bf16.
pub(crate) fn exact() -> &'static Subject {
    let mut all = INSTRUCTION_SETS.iter();
    let exact = all.rfind(|subject| subject.tier() < Some(Tier::Amx));
    exact.expect("every processor runs plain code")
}

/// Both executors. A failing test shows which one it used.
pub(crate) fn both() -> impl Iterator<Item = &'static Subject> {
    named([&*REFERENCE, &*NATIVE])
}

/// The native executor with each instruction set, the plainest first.
pub(crate) fn instruction_sets() -> &'static [Subject] {
    &INSTRUCTION_SETS
}

/// Both executors, the native one with each instruction set.
pub(crate) fn all() -> impl Iterator<Item = &'static Subject> {
    named(iter::once(&*REFERENCE).chain(instruction_sets()))
}

fn named(
    subjects: impl IntoIterator<Item = &'static Subject>,
) -> impl Iterator<Item = &'static Subject> {
    let subjects = subjects.into_iter();
    subjects.inspect(|subject| eprintln!("On {subject}:"))
}
