//! [`Lanes`]: SIMD vectors of 16 f32 elements, for kernels that LLVM would not vectorize by
//! itself.

use half::f16;

/// Elements per vector on every instruction set. Because it is constant, all instruction sets
/// compute the same bits.
pub(crate) const LANES: usize = 16;

/// The largest finite f16.
const F16_MAX: f32 = 65504.0;

/// Operations on 16 elements at once.
///
/// A value of a type that implements this trait is proof that its instructions may be run: it
/// can be created safely only inside a function compiled for them. All methods are inlined into
/// such functions, so write kernels over this trait as `#[inline(always)]` functions and start
/// them with `dispatch!`.
pub(crate) trait Lanes: Copy {
    /// 16 elements, in registers.
    type Vector: Copy;
    /// The maximum number of rows of a tile that share a vector of factors, such that all sums,
    /// the factors and one more value stay in registers.
    const MAX_TILE_ROWS: usize;
    /// Whether one register holds all 16 elements and there are 32 registers.
    const WIDE: bool;

    /// All elements zero.
    fn zero(self) -> Self::Vector;
    /// All elements equal to `x`.
    fn splat(self, x: f32) -> Self::Vector;
    /// Reads 16 elements.
    fn load(self, from: &[f32; LANES]) -> Self::Vector;
    /// Reads 16 f16 elements.
    fn load_f16(self, from: &[u16; LANES]) -> Self::Vector;
    /// Computes `a · b + c`, rounded once.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// Writes 16 elements.
    fn store(self, x: Self::Vector, to: &mut [f32; LANES]);
    /// Writes 16 elements as f16, rounded to nearest even; values beyond ±65504 are clamped to
    /// it, and NaN stays NaN.
    fn store_f16(self, x: Self::Vector, to: &mut [u16; LANES]);
    /// Prefetches the cache line at an address, which may be invalid.
    fn prefetch(self, at: *const u16);
}

/// [`Lanes`] in plain Rust: the reference implementation.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type Vector = [f32; LANES];
    const MAX_TILE_ROWS: usize = 2;
    const WIDE: bool = false;

    #[inline(always)]
    fn zero(self) -> [f32; LANES] {
        [0.0; LANES]
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> [f32; LANES] {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], mut c: [f32; LANES]) -> [f32; LANES] {
        for lane in 0..LANES {
            c[lane] = a[lane].mul_add(b[lane], c[lane]);
        }
        c
    }

    #[inline(always)]
    fn store(self, x: [f32; LANES], to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn store_f16(self, x: [f32; LANES], to: &mut [u16; LANES]) {
        *to = x.map(|x| f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits());
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u16) {}
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{F16_MAX, LANES, Lanes};

    /// [`Lanes`] in AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// Creates the proof; safe only in functions compiled with these features.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) fn new() -> Avx2 {
            Avx2(())
        }
    }

    // SAFETY of all blocks below: `self` proves that the processor has the instructions, and
    // the arrays are as long as the data read or written.
    impl Lanes for Avx2 {
        type Vector = [__m256; 2];
        const MAX_TILE_ROWS: usize = 6;
        const WIDE: bool = false;

        #[inline(always)]
        fn zero(self) -> [__m256; 2] {
            self.splat(0.0)
        }

        #[inline(always)]
        fn splat(self, x: f32) -> [__m256; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
            let from = from.as_ptr();
            // SAFETY: see above.
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }

        #[inline(always)]
        fn load_f16(self, from: &[u16; LANES]) -> [__m256; 2] {
            let from = from.as_ptr().cast::<__m128i>();
            // SAFETY: see above.
            unsafe {
                let low = _mm_loadu_si128(from);
                let high = _mm_loadu_si128(from.add(1));
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            }
        }

        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above.
            unsafe {
                let low = _mm256_fmadd_ps(a[0], b[0], c[0]);
                let high = _mm256_fmadd_ps(a[1], b[1], c[1]);
                [low, high]
            }
        }

        #[inline(always)]
        fn store(self, x: [__m256; 2], to: &mut [f32; LANES]) {
            let to = to.as_mut_ptr();
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(to, x[0]);
                _mm256_storeu_ps(to.add(8), x[1]);
            }
        }

        #[inline(always)]
        fn store_f16(self, x: [__m256; 2], to: &mut [u16; LANES]) {
            let to = to.as_mut_ptr().cast::<__m128i>();
            // SAFETY: see above.
            unsafe {
                let highest = _mm256_set1_ps(F16_MAX);
                let lowest = _mm256_set1_ps(-F16_MAX);
                for (half, x) in x.into_iter().enumerate() {
                    // If an operand is NaN, min and max return their second operand.
                    let x = _mm256_max_ps(lowest, _mm256_min_ps(highest, x));
                    let x = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
                    _mm_storeu_si128(to.add(half), x);
                }
            }
        }

        #[inline(always)]
        fn prefetch(self, at: *const u16) {
            // SAFETY: prefetching reads nothing, so it cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// [`Lanes`] in AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        /// Creates the proof; safe only in functions compiled with these features.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        pub(crate) fn new() -> Avx512 {
            Avx512(())
        }
    }

    // SAFETY of all blocks below: as for `Avx2`.
    impl Lanes for Avx512 {
        type Vector = __m512;
        const MAX_TILE_ROWS: usize = 6;
        const WIDE: bool = true;

        #[inline(always)]
        fn zero(self) -> __m512 {
            self.splat(0.0)
        }

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn load_f16(self, from: &[u16; LANES]) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn store(self, x: __m512, to: &mut [f32; LANES]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
        }

        #[inline(always)]
        fn store_f16(self, x: __m512, to: &mut [u16; LANES]) {
            // SAFETY: see above.
            unsafe {
                // If an operand is NaN, min and max return their second operand.
                let x = _mm512_min_ps(_mm512_set1_ps(F16_MAX), x);
                let x = _mm512_max_ps(_mm512_set1_ps(-F16_MAX), x);
                let x = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), x);
            }
        }

        #[inline(always)]
        fn prefetch(self, at: *const u16) {
            // SAFETY: prefetching reads nothing, so it cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}
