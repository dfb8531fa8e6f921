//! What the machine could do at best: the bounds that measured speed is held
//! against.

use std::hint::black_box;

use super::isa::{Isa, Tier};

/// Reads all of `bytes`, as fast as memory gives them. The result means nothing.
pub fn read(isa: Isa, bytes: &[u8]) -> u64 {
    match isa.tier() {
        // SAFETY: an `Isa` is proof that its instructions are there.
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

/// Multiply-adds of 16-bit numbers, 16 lanes of pairs at a time, on numbers that
/// stay in registers: what a product of codes is made of. Gives how many it did.
pub fn multiply_add(isa: Isa, rounds: usize) -> u64 {
    match isa.tier() {
        // SAFETY: an `Isa` is proof that its instructions are there.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => unsafe { multiply_add_avx2(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 | Tier::Amx => unsafe { multiply_add_avx512(rounds) },
        _ => multiply_add_scalar(rounds),
    }
}

/// Sums at a time: enough that none waits for itself.
const SUMS: usize = 12;

fn multiply_add_scalar(rounds: usize) -> u64 {
    let mut sums = [0i32; SUMS];
    let (a, b) = (black_box(3i16), black_box(5i16));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
        black_box(&mut sums);
    }
    (rounds * SUMS) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_add_avx2(rounds: usize) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); SUMS];
    let (a, b) = (_mm256_set1_epi16(3), _mm256_set1_epi16(5));
    for _ in 0..rounds {
        // Opaque, or the product would be computed once.
        let a = opaque(a);
        for sum in &mut sums {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(opaque(a), b));
        }
    }
    black_box(&sums);
    (rounds * SUMS * 16) as u64
}

/// The same vector, of which the compiler knows nothing any more.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn opaque(mut a: std::arch::x86_64::__m256i) -> std::arch::x86_64::__m256i {
    // SAFETY: no instructions at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags))
    };
    a
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_add_avx512(rounds: usize) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); SUMS];
    let (a, b) = (_mm512_set1_epi16(3), _mm512_set1_epi16(5));
    for _ in 0..rounds {
        for sum in &mut sums {
            // The sum is part of the instruction: it cannot be computed once.
            *sum = _mm512_dpwssd_epi32(*sum, a, b);
        }
    }
    black_box(&sums);
    (rounds * SUMS * 32) as u64
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::{multiply_add, read};

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
}
