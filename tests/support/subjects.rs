//! The executors that are tested: what holds for one must hold for the others.

use std::fmt;
use std::iter;
use std::sync::LazyLock;

use incant::exec::{Backend, DeviceChoice, Executor};
use incant::gguf::Gguf;
use incant::kernels::{Isa, Tier};
use incant::model::arch;

/// More than some machines have cores, so that threads meet everywhere.
const THREADS: usize = 3;

/// One executor, and what may be asked of it.
#[derive(Debug)]
pub(crate) struct Subject {
    name: String,
    pub(crate) backend: Backend,
    /// How far a logit of a tiny random model may be from the oracle's.
    pub(crate) tolerance: f64,
    /// How far a log-probability may be from what the same tokens got in
    /// another batch.
    pub(crate) between_batches: f32,
}

/// How far a logit of a tiny random model may be from the oracle's where all is
/// computed in f32.
///
/// The logits' root mean square is about 1.4 and f32 keeps seven digits. What
/// was seen: 2e-5 in all but the model of 62 layers, there 3e-5.
pub(crate) const F32_TOLERANCE: f64 = 1e-4;

/// The same of the native executor, which keeps keys and values in binary16, and
/// rounds to 16 bits what it multiplies with codes.
///
/// What was seen: 1.8e-2. An oracle that rounds its keys and values likewise was
/// 4e-3 away at most, and 2e-3 where weights are F32.
pub(crate) const NATIVE_TOLERANCE: f64 = 6e-2;

/// The same of prompts through tiles, which round to bf16: it has three bits
/// less than binary16.
const TILES_TOLERANCE: f64 = 8.0 * NATIVE_TOLERANCE;

/// The device executor on the CPU. Its products of different shapes add in
/// other orders.
static REFERENCE: LazyLock<Subject> = LazyLock::new(|| Subject {
    name: "reference".to_owned(),
    backend: Backend::open(Some(DeviceChoice::Reference), None).expect("there is always a CPU"),
    tolerance: F32_TOLERANCE,
    between_batches: 2e-3,
});

/// The native executor, as it is by default. All tests share its threads.
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
    /// A row's sums do not depend on the batch, but with tiles on whether it is
    /// one of a prompt.
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

    /// The instructions it uses, where it is native.
    pub(crate) fn tier(&self) -> Option<Tier> {
        match &self.backend {
            Backend::Native { isa, .. } => Some(isa.tier()),
            Backend::Device(_) => None,
        }
    }

    /// Bytes that a number of keys and values takes.
    pub(crate) fn kv_number(&self) -> usize {
        match &self.backend {
            Backend::Native { .. } => 2,
            Backend::Device(_) => 4,
        }
    }

    /// Loads a model.
    pub(crate) fn load(&self, gguf: &Gguf) -> Box<dyn Executor> {
        self.load_with(gguf, None)
    }

    /// The same, with so many bytes for KV.
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

/// The device executor on the CPU.
pub(crate) fn reference() -> &'static Subject {
    &REFERENCE
}

/// The native executor.
pub(crate) fn native() -> &'static Subject {
    &NATIVE
}

/// The native executor with so many threads of its own.
pub(crate) fn native_with_threads(threads: usize) -> Subject {
    let backend = Backend::open(Some(DeviceChoice::Cpu), Some(threads));
    Subject::native(backend.expect("there is always a CPU"))
}

/// The native executor with the best instructions that compute prompts as exactly as
/// answers: what is asserted of real models to a hundredth of a nat, or to the bit, does not
/// hold where tiles round prompts to bf16.
pub(crate) fn exact() -> &'static Subject {
    let mut all = INSTRUCTION_SETS.iter();
    let exact = all.rfind(|subject| subject.tier() < Some(Tier::Amx));
    exact.expect("every processor runs plain code")
}

/// Both executors. A test that fails shows which one it was on.
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
