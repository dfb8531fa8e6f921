//! [`Words`]: integer operations of the product kernels, on 16 words of 32 bits at a time.

use super::super::math::{LANES, Lanes, Plain};

/// Operations on 16 words of 32 bits, each of which is also two 16-bit halves.
pub(super) trait Words: Lanes {
    /// 16 words, in registers.
    type Words: Copy;

    /// Returns 16 words equal to `word`.
    fn splat_words(self, word: u32) -> Self::Words;
    fn load_words(self, from: &[u32; LANES]) -> Self::Words;
    fn store_words(self, words: Self::Words, to: &mut [u32; LANES]);
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn or(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Shifts each half right. `by` must be a constant.
    fn shift_right(self, words: Self::Words, by: i32) -> Self::Words;
    /// Shifts each half left. `by` must be a constant.
    fn shift_left(self, words: Self::Words, by: i32) -> Self::Words;
    /// Subtracts each half of `b` from that of `a`.
    fn subtract(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Adds to each word the product of the lower halves and that of the upper halves, as
    /// signed integers (VNNI's `vpdpwssd`).
    fn add_products(self, sum: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Converts each word, as a signed integer, to f32.
    fn to_f32(self, words: Self::Words) -> Self::Vector;
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// Splits a word into its lower and upper half.
fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// Applies `f` to each half of each word.
#[inline(always)]
fn by_halves(mut a: [u32; LANES], f: impl Fn(u16) -> u16) -> [u32; LANES] {
    for word in &mut a {
        let [low, high] = halves(*word);
        *word = u32::from(f(low)) | u32::from(f(high)) << 16;
    }
    a
}

impl Words for Plain {
    type Words = [u32; LANES];

    #[inline(always)]
    fn splat_words(self, word: u32) -> [u32; LANES] {
        [word; LANES]
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> [u32; LANES] {
        *from
    }

    #[inline(always)]
    fn store_words(self, words: [u32; LANES], to: &mut [u32; LANES]) {
        *to = words;
    }

    #[inline(always)]
    fn and(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|lane| a[lane] & b[lane])
    }

    #[inline(always)]
    fn or(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|lane| a[lane] | b[lane])
    }

    #[inline(always)]
    fn shift_right(self, words: [u32; LANES], by: i32) -> [u32; LANES] {
        by_halves(words, |half| half >> by)
    }

    #[inline(always)]
    fn shift_left(self, words: [u32; LANES], by: i32) -> [u32; LANES] {
        by_halves(words, |half| half << by)
    }

    #[inline(always)]
    fn subtract(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|lane| {
            let ([low, high], [other_low, other_high]) = (halves(a[lane]), halves(b[lane]));
            let low = low.wrapping_sub(other_low);
            u32::from(low) | u32::from(high.wrapping_sub(other_high)) << 16
        })
    }

    #[inline(always)]
    fn add_products(self, sum: [u32; LANES], a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        let signed = |word: u32| halves(word).map(|half| i32::from(half.cast_signed()));
        std::array::from_fn(|lane| {
            let (a, b) = (signed(a[lane]), signed(b[lane]));
            let products = a[0] * b[0] + a[1] * b[1];
            sum[lane].wrapping_add(products.cast_unsigned())
        })
    }

    #[inline(always)]
    fn to_f32(self, words: [u32; LANES]) -> [f32; LANES] {
        words.map(|word| word.cast_signed() as f32)
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn multiply(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::super::math::{Avx2, Avx512, LANES};
    use super::Words;

    /// Applies an operation to the two registers of AVX2, which hold eight words each.
    #[inline(always)]
    fn both<T>(f: impl Fn(usize) -> T) -> [T; 2] {
        [f(0), f(1)]
    }

    // SAFETY of all blocks below: `self` proves that the processor has the instructions, and
    // the arrays are as long as the data read or written.
    impl Words for Avx2 {
        type Words = [__m256i; 2];

        #[inline(always)]
        fn splat_words(self, word: u32) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_set1_epi32(word.cast_signed()); 2] }
        }

        #[inline(always)]
        fn load_words(self, from: &[u32; LANES]) -> [__m256i; 2] {
            let from = from.as_ptr().cast::<__m256i>();
            // SAFETY: see above.
            both(|half| unsafe { _mm256_loadu_si256(from.add(half)) })
        }

        #[inline(always)]
        fn store_words(self, words: [__m256i; 2], to: &mut [u32; LANES]) {
            let to = to.as_mut_ptr().cast::<__m256i>();
            for (half, words) in words.into_iter().enumerate() {
                // SAFETY: see above.
                unsafe { _mm256_storeu_si256(to.add(half), words) };
            }
        }

        #[inline(always)]
        fn and(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_and_si256(a[half], b[half]) })
        }

        #[inline(always)]
        fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_or_si256(a[half], b[half]) })
        }

        #[inline(always)]
        fn shift_right(self, words: [__m256i; 2], by: i32) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_srl_epi16(words[half], _mm_cvtsi32_si128(by)) })
        }

        #[inline(always)]
        fn shift_left(self, words: [__m256i; 2], by: i32) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_sll_epi16(words[half], _mm_cvtsi32_si128(by)) })
        }

        #[inline(always)]
        fn subtract(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_sub_epi16(a[half], b[half]) })
        }

        #[inline(always)]
        fn add_products(self, sum: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_add_epi32(sum[half], _mm256_madd_epi16(a[half], b[half])) })
        }

        #[inline(always)]
        fn to_f32(self, words: [__m256i; 2]) -> [__m256; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_cvtepi32_ps(words[half]) })
        }

        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_add_ps(a[half], b[half]) })
        }

        #[inline(always)]
        fn multiply(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above.
            both(|half| unsafe { _mm256_mul_ps(a[half], b[half]) })
        }
    }

    // SAFETY of all blocks below: as for `Avx2`.
    impl Words for Avx512 {
        type Words = __m512i;

        #[inline(always)]
        fn splat_words(self, word: u32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_set1_epi32(word.cast_signed()) }
        }

        #[inline(always)]
        fn load_words(self, from: &[u32; LANES]) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store_words(self, words: __m512i, to: &mut [u32; LANES]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
        }

        #[inline(always)]
        fn and(self, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_and_si512(a, b) }
        }

        #[inline(always)]
        fn or(self, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_or_si512(a, b) }
        }

        #[inline(always)]
        fn shift_right(self, words: __m512i, by: i32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_srl_epi16(words, _mm_cvtsi32_si128(by)) }
        }

        #[inline(always)]
        fn shift_left(self, words: __m512i, by: i32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_sll_epi16(words, _mm_cvtsi32_si128(by)) }
        }

        #[inline(always)]
        fn subtract(self, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_sub_epi16(a, b) }
        }

        #[inline(always)]
        fn add_products(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_dpwssd_epi32(sum, a, b) }
        }

        #[inline(always)]
        fn to_f32(self, words: __m512i) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtepi32_ps(words) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn multiply(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_mul_ps(a, b) }
        }
    }
}
