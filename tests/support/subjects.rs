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
    /// What becomes of the numbers of keys and values that it keeps.
    pub(crate) kept: fn(f64) -> f64,
    /// How far a log-probability may be from what the same tokens got in
    /// another batch.
    pub(crate) between_batches: f32,
}

/// The device executor on the CPU.
///
/// The oracle's logits have a root mean square of about 1.4 and f32 keeps seven
/// digits: 2e-5 was seen in all but the model of 62 layers, there 3e-5. Products
/// of different shapes add in other orders.
static REFERENCE: LazyLock<Subject> = LazyLock::new(|| Subject {
    name: "reference".to_owned(),
    backend: Backend::open(Some(DeviceChoice::Reference), None).expect("there is always a CPU"),
    tolerance: 1e-4,
    kept: |number| number,
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
    /// It keeps KV in 11 bits and rounds what it multiplies to 16.
    fn native(backend: Backend) -> Subject {
        Subject {
            name: format!("native {backend}"),
            backend,
            tolerance: 1.0,
            kept: |number| half::f16::from_f64(number).to_f64(),
            between_batches: 0.0,
        }
    }

    /// The instructions it uses, where it is native.
    pub(crate) fn tier(&self) -> Option<Tier> {
        match &self.backend {
            Backend::Native { isa, .. } => Some(isa.tier()),
            Backend::Device(_) => None,
        }
    }

    /// Loads a model.
    pub(crate) fn load(&self, gguf: &Gguf) -> Box<dyn Executor> {
        let spec = arch::read(gguf).expect("a supported model");
        let loaded = self.backend.load(gguf, &spec);
        loaded.unwrap_or_else(|error| panic!("{self}: {error}"))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
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
