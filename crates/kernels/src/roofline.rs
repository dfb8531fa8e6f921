//! The roofline of the machine: upper bounds on memory bandwidth and arithmetic throughput,
//! with which measured speeds are compared.

use std::hint::black_box;

use super::isa::{Isa, Tier};

/// Reads all of `bytes` at memory speed. The result has no meaning.
pub fn read(isa: Isa, bytes: &[u8]) -> u64 {
    match isa.tier() {
        // SAFETY: an `Isa` is proof that its instructions are supported.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 | Tier::Avx512 | Tier::Amx => unsafe { read_avx2(bytes) },
        _ => read_body(bytes),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let mut sum = 0;
    for page in bytes.chunks(4096) {
        for line in (0..page.len()).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(page.as_ptr().wrapping_add(line + 4096).cast());
        }
        sum ^= read_body(page);
    }
    sum
}

#[inline(always)]
fn read_body(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    let (whole, rest) = bytes.as_chunks::<128>();
    for line in whole {
        for (lane, eight) in lanes.iter_mut().zip(line.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*eight);
        }
    }
    let rest = rest.iter().fold(0, |sum, &byte| sum ^ u64::from(byte));
    lanes.into_iter().fold(rest, |sum, lane| sum ^ lane)
}

/// Runs multiply-adds of 16-bit integers, 16 lanes of pairs at a time, on values that stay in
/// registers: the operations that a product of codes consists of. Returns how many it ran.
pub fn multiply_add(isa: Isa, rounds: usize) -> u64 {
    match isa.tier() {
        // SAFETY: an `Isa` is proof that its instructions are supported.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => unsafe { multiply_add_avx2(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 | Tier::Amx => unsafe { multiply_add_avx512(rounds) },
        _ => multiply_add_scalar(rounds),
    }
}

/// Independent sums: enough to hide the latency of an addition.
const INDEPENDENT_SUMS: usize = 12;

fn multiply_add_scalar(rounds: usize) -> u64 {
    let mut sums = [0i32; INDEPENDENT_SUMS];
    let (a, b) = (black_box(3i16), black_box(5i16));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
        black_box(&mut sums);
    }
    (rounds * INDEPENDENT_SUMS) as u64
}

/// A loop that runs `$first` and `$then` for each sum, where `{sum}` stands for its register.
/// It is in assembly because an upper bound must not depend on where a compiler version keeps
/// twelve sums.
#[cfg(target_arch = "x86_64")]
macro_rules! sums {
    ($rounds:expr, $($line:literal),+; $($out:tt),+) => {
        // SAFETY: the block touches no memory; the registers it writes are declared, and the
        // caller has ensured that the instructions are supported.
        unsafe {
            std::arch::asm!(
                "test {left}, {left}",
                "jz 3f",
                "2:",
                $($line),+,
                "dec {left}",
                "jnz 2b",
                "3:",
                left = inout(reg) $rounds => _,
                $(out($out) _),+,
                options(nomem, nostack)
            )
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_add_avx2(rounds: usize) -> u64 {
    // The initial contents of the registers do not matter: integer operations take constant
    // time.
    sums!(
        rounds,
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm0, ymm0, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm1, ymm1, ymm13",
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm2, ymm2, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm3, ymm3, ymm13",
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm4, ymm4, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm5, ymm5, ymm13",
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm6, ymm6, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm7, ymm7, ymm13",
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm8, ymm8, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm9, ymm9, ymm13",
        "vpmaddwd ymm12, ymm14, ymm15", "vpaddd ymm10, ymm10, ymm12",
        "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm11, ymm11, ymm13";
        "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9",
        "ymm10", "ymm11", "ymm12", "ymm13"
    );
    (rounds * INDEPENDENT_SUMS * 16) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_add_avx512(rounds: usize) -> u64 {
    sums!(
        rounds,
        "vpdpwssd zmm0, zmm14, zmm15", "vpdpwssd zmm1, zmm14, zmm15",
        "vpdpwssd zmm2, zmm14, zmm15", "vpdpwssd zmm3, zmm14, zmm15",
        "vpdpwssd zmm4, zmm14, zmm15", "vpdpwssd zmm5, zmm14, zmm15",
        "vpdpwssd zmm6, zmm14, zmm15", "vpdpwssd zmm7, zmm14, zmm15",
        "vpdpwssd zmm8, zmm14, zmm15", "vpdpwssd zmm9, zmm14, zmm15",
        "vpdpwssd zmm10, zmm14, zmm15", "vpdpwssd zmm11, zmm14, zmm15";
        "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9",
        "zmm10", "zmm11"
    );
    (rounds * INDEPENDENT_SUMS * 32) as u64
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use super::super::{ActivationForms, Activations, Isa, LANES, Matrix, product};
    use super::{multiply_add, read};
    use incant_gguf::TensorType;

    #[test]
    fn every_byte_is_read() {
        for isa in Isa::all() {
            for len in [0, 1, 127, 128, 5000] {
                let mut bytes = vec![0u8; len];
                assert_eq!(read(isa, &bytes), 0);
                for at in [0, len / 2, len.saturating_sub(1)] {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = 1;
                        assert_ne!(read(isa, &bytes), 0, "{isa}, byte {at} of {len}");
                        bytes[at] = 0;
                    }
                }
            }
        }
    }

    #[test]
    fn work_is_counted() {
        for isa in Isa::all() {
            let one = multiply_add(isa, 1);
            assert!(one >= 12);
            assert_eq!(multiply_add(isa, 1000), 1000 * one);
        }
    }

    /// Returns the shortest of some runs, which excludes disturbance by other processes.
    fn fastest(mut run: impl FnMut()) -> f64 {
        let times = (0..20).map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        });
        times.min().unwrap_or(Duration::ZERO).as_secs_f64()
    }

    /// The bound was once too low because a compiler kept the sums in memory.
    #[test]
    fn no_product_is_faster_than_its_bound() {
        const ROUNDS: usize = 20_000;
        const ROWS: usize = 64;
        const COLUMNS: usize = 1024;
        const PANELS: usize = 4;
        for isa in Isa::all() {
            let bound = multiply_add(isa, ROUNDS) as f64
                / fastest(|| {
                    black_box(multiply_add(isa, ROUNDS));
                });
            let kind = TensorType::Q8_0;
            let bytes = PANELS * LANES * COLUMNS / kind.block_size() * kind.type_size();
            let matrix = Matrix::pack(kind, PANELS * LANES, COLUMNS, &vec![0x2c; bytes]);
            let matrix = matrix.expect("memory").expect("a format");
            let mut activations = Activations::new(isa);
            activations.reset(ROWS, 0, COLUMNS, ActivationForms::of([&matrix]));
            let mut out = vec![[0.0; LANES]; ROWS];
            let took = fastest(|| {
                for panel in 0..PANELS {
                    product::panel(isa, &matrix, panel, &activations, &mut out);
                }
            });
            let rate = (PANELS * LANES * COLUMNS * ROWS) as f64 / took;
            assert!(rate < bound, "{isa}: {rate:.2e} of {bound:.2e} a second");
        }
    }
}
