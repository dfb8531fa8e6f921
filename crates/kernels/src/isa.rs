//! The instruction set that the kernels use, chosen once at run time.

use std::fmt;
use std::str::FromStr;

/// The instruction sets that kernels are written for, the plainest first. Each includes the
/// previous ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Plain Rust as the compiler translates it: the reference implementation.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AMX tiles of bf16 for prompts (prefill) and training, AVX-512 for everything else; also
    /// AVX512_BF16, which converts weights to bf16.
    Amx,
}

impl Tier {
    const ALL: [Tier; 4] = [Tier::Scalar, Tier::Avx2, Tier::Avx512, Tier::Amx];

    /// The name in `INCANT_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Avx2 => "avx2",
            Tier::Avx512 => "avx512",
            Tier::Amx => "amx",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn runs_here(self) -> bool {
        match self {
            Tier::Scalar => true,
            Tier::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Tier::Avx512 => {
                Tier::Avx2.runs_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Tier::Amx => {
                Tier::Avx512.runs_here() && is_x86_feature_detected!("avx512bf16") && enable_amx()
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn runs_here(self) -> bool {
        self == Tier::Scalar
    }
}

/// Whether the processor has AMX tiles of bf16 and the system lets this process use them: a
/// process must request once permission for the tile state of its threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn enable_amx() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    /// The bits of XCR0 that tell that the system saves the tile state.
    const SAVED: u64 = 1 << 17 | 1 << 18;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    let features = __cpuid_count(7, 0).edx;
    if features & BF16 == 0 || features & TILES == 0 || !is_x86_feature_detected!("xsave") {
        return false;
    }
    // SAFETY: AVX is supported, so the processor has XSAVE and the system has enabled it.
    if unsafe { _xgetbv(0) } & SAVED != SAVED {
        return false;
    }
    // SAFETY: the system call changes only what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn enable_amx() -> bool {
    false
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An instruction set that this processor supports.
///
/// Values are created only after detection, so an `Isa` is proof that the kernels of its tier
/// may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Tier);

/// The error of an `INCANT_ISA` that names no instruction set, or an unsupported one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is unknown.
    #[error("'{0}' is no instruction set (scalar, avx2, avx512, amx)")]
    Unknown(String),
    /// The processor or the system does not support the instruction set.
    #[error("this processor cannot run {0} (it can run {1})")]
    Unsupported(Tier, String),
}

impl Isa {
    /// The best instruction set that the processor supports.
    pub fn best() -> Isa {
        *Isa::all().last().expect("every processor runs plain code")
    }

    /// All instruction sets that the processor supports, the plainest first.
    pub fn all() -> Vec<Isa> {
        let here = Tier::ALL.into_iter().filter(|tier| tier.runs_here());
        here.map(Isa).collect()
    }

    /// Returns the instruction set named by `INCANT_ISA`, or the best one if the variable is
    /// unset or empty.
    ///
    /// # Errors
    /// The name is unknown, or the instruction set is unsupported.
    pub fn from_env() -> Result<Isa, IsaError> {
        match std::env::var("INCANT_ISA") {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(Isa::best()),
        }
    }

    /// The tier of this instruction set.
    pub fn tier(self) -> Tier {
        self.0
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let tier = Tier::ALL.into_iter().find(|tier| tier.name() == name);
        let tier = tier.ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        if !tier.runs_here() {
            let all: Vec<&str> = Isa::all().iter().map(|isa| isa.0.name()).collect();
            return Err(IsaError::Unsupported(tier, all.join(", ")));
        }
        Ok(Isa(tier))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
