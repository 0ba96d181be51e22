//! Keys and values into the layouts of [`amx`](super::amx), and what [`pairs`](super::pairs) packs with.

use std::arch::x86_64::*;

use super::amx::dim_steps;
use super::{Keys, PADDED_KEYS as KEYS, Rows};
use crate::kernels::amx::TILE;
use crate::memory::Line;

/// 32-bit numbers of a line.
const CELLS: usize = 16;

/// 32 floats from `at` of a row as bfloat16; what is past its end is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn rounded(row: &[f32], at: usize, scale: __m512) -> __m512i {
    // SAFETY: masks leave out what is past the end of the row
    let [low, high] = unsafe { [load_part(row, at), load_part(row, at + CELLS)] };
    let pairs = _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
    // SAFETY: 64 bytes each, every bit pattern is valid
    unsafe { std::mem::transmute::<__m512bh, __m512i>(pairs) }
}

/// 16 floats from `at` of two rows as bfloat16, in pairs; what is past their ends is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn paired(low: &[f32], high: &[f32], at: usize) -> __m512i {
    // words 0 and 16, 1 and 17 and so on
    const WORDS: [u16; 32] = {
        let (mut words, mut i) = ([0; 32], 0);
        while i < 32 {
            words[i] = (i / 2 + i % 2 * CELLS) as u16;
            i += 1;
        }
        words
    };
    // SAFETY: masks leave out what is past the end of the rows; 64 bytes each of any bits
    unsafe {
        let pairs = _mm512_cvtne2ps_pbh(load_part(high, at), load_part(low, at));
        let words = _mm512_loadu_si512(WORDS.as_ptr().cast());
        _mm512_permutexvar_epi16(words, std::mem::transmute::<__m512bh, __m512i>(pairs))
    }
}

/// 16 floats from `at`, zeros past the end.
///
/// # Safety
/// The processor has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load_part(row: &[f32], at: usize) -> __m512 {
    let left = row.len().saturating_sub(at).min(CELLS);
    // SAFETY: the mask has only lanes that are in the row
    unsafe { _mm512_maskz_loadu_ps(((1u32 << left) - 1) as u16, row.as_ptr().wrapping_add(at)) }
}

/// For each of the four sizes of blocks that are exchanged: which lanes of two rows make the new first and second.
const EXCHANGES: [([i32; 16], [i32; 16]); 4] = [exchange(8), exchange(4), exchange(2), exchange(1)];

const fn exchange(size: usize) -> ([i32; 16], [i32; 16]) {
    let (mut first, mut second) = ([0; 16], [0; 16]);
    let mut lane = 0;
    while lane < 16 {
        let here = lane & size == 0;
        first[lane] = (if here { lane } else { 16 + lane - size }) as i32;
        second[lane] = (if here { lane + size } else { 16 + lane }) as i32;
        lane += 1;
    }
    (first, second)
}

/// Transposes 16 x 16 32-bit numbers: the off-diagonal halves change places, then those of every quarter, and so on.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose(a: &mut [__m512i; 16]) {
    macro_rules! exchange {
        ($n:literal, $size:literal: $($i:literal)*) => {{
            // SAFETY: 64 bytes are readable in each
            let (first, second) = unsafe {
                (_mm512_loadu_si512(EXCHANGES[$n].0.as_ptr().cast()), _mm512_loadu_si512(EXCHANGES[$n].1.as_ptr().cast()))
            };
            $(
                let (x, y) = (a[$i], a[$i + $size]);
                a[$i] = _mm512_permutex2var_epi32(x, first, y);
                a[$i + $size] = _mm512_permutex2var_epi32(x, second, y);
            )*
        }};
    }
    exchange!(0, 8: 0 1 2 3 4 5 6 7);
    exchange!(1, 4: 0 1 2 3 8 9 10 11);
    exchange!(2, 2: 0 1 4 5 8 9 12 13);
    exchange!(3, 1: 0 2 4 6 8 10 12 14);
}

/// Some of a head's keys, `first..` up to [`PACKED_STEPS`](super::PACKED_STEPS) steps, into their part.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn pack_keys(keys: Keys, first: usize, k: Rows, to: &mut [Line]) {
    let steps = dim_steps(k.dim);
    let one = _mm512_set1_ps(1.0);
    for (n, to) in to.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let (block, step) = (n / (2 * steps) * 2 + n % 2, n / 2 % steps);
        let mut cells = [_mm512_setzero_si512(); TILE];
        for (i, cells) in cells.iter_mut().enumerate() {
            *cells = rounded(k.row(keys.row(first + block * TILE + i)), step * KEYS, one);
        }
        transpose(&mut cells);
        for (to, cells) in to.iter_mut().zip(cells) {
            // SAFETY: 64 aligned bytes are writable
            unsafe { _mm512_store_si512((to as *mut Line).cast(), cells) };
        }
    }
}

/// The values likewise.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn pack_values(keys: Keys, first: usize, v: Rows, to: &mut [Line]) {
    let (len, blocks) = (keys.len(), 2 * dim_steps(v.dim));
    let steps = to.len() / (blocks * TILE);
    for (step, i) in (0..steps).flat_map(|step| (0..TILE).map(move |i| (step, i))) {
        let at = first + step * KEYS + i;
        let row = |at: usize| if at < len { v.row(keys.row(at)) } else { &[] };
        let (low, high) = (row(at), row(at + TILE));
        for block in 0..blocks {
            let cells = paired(low, high, block * TILE);
            // SAFETY: 64 aligned bytes are writable
            unsafe { _mm512_store_si512((&raw mut to[(block * steps + step) * TILE + i]).cast(), cells) };
        }
    }
}
