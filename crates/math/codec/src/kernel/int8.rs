//! Eight bits per element: the dynamic map of bitsandbytes, to the bit.
//!
//! Its quantizer does not take the nearest of the 256 codes: it puts the range
//! from -1 to 1 onto 65,536 steps and looks the step up in a table. So zero, which
//! lies between two steps, is not the code of zero. We do the same, because equal
//! bytes can be checked and because a table is fast.

use std::sync::LazyLock;

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16, i32x16};

use super::Scale;
use super::dice::Throw;

/// The positive codes below 1, least first, as bits.
const RISING: [u32; 127] = [
    0x3513_a3b7,
    0x365a_1a94,
    0x3702_05ff,
    0x37b2_4206,
    0x3837_8034,
    0x388a_efb3,
    0x38ba_1f4b,
    0x3923_d70b,
    0x398c_e705,
    0x39c7_e283,
    0x3a01_6f01,
    0x3a1e_ecc1,
    0x3a3c_6a80,
    0x3a59_e83e,
    0x3a77_65ff,
    0x3aa7_ef9d,
    0x3af1_a9fc,
    0x3b1d_b22d,
    0x3b42_8f5c,
    0x3b67_6c8a,
    0x3b86_24dd,
    0x3b98_9374,
    0x3bab_020d,
    0x3bbd_70a4,
    0x3bcf_df3b,
    0x3be2_4dd3,
    0x3bf4_bc6a,
    0x3c03_9581,
    0x3c0c_cccd,
    0x3c16_0418,
    0x3c1f_3b64,
    0x3c3a_e148,
    0x3c68_f5c3,
    0x3c8b_851f,
    0x3ca2_8f5d,
    0x3cb9_999a,
    0x3cd0_a3d7,
    0x3ce7_ae15,
    0x3cfe_b852,
    0x3d0a_e148,
    0x3d16_6667,
    0x3d21_eb85,
    0x3d2d_70a3,
    0x3d38_f5c3,
    0x3d44_7ae1,
    0x3d50_0000,
    0x3d5b_851f,
    0x3d67_0a3d,
    0x3d72_8f5d,
    0x3d7e_147b,
    0x3d84_cccd,
    0x3d8a_8f5d,
    0x3d90_51eb,
    0x3d96_147b,
    0x3d9b_d70a,
    0x3da1_999a,
    0x3da7_5c2a,
    0x3dad_1eb8,
    0x3db2_e148,
    0x3db8_a3d7,
    0x3dbe_6667,
    0x3dc4_28f7,
    0x3dc9_eb85,
    0x3ddb_3334,
    0x3df8_0000,
    0x3e0a_6666,
    0x3e18_cccd,
    0x3e27_3333,
    0x3e35_999a,
    0x3e44_0000,
    0x3e52_6666,
    0x3e60_cccd,
    0x3e6f_3333,
    0x3e7d_9999,
    0x3e86_0000,
    0x3e8d_3334,
    0x3e94_6666,
    0x3e9b_999a,
    0x3ea2_cccc,
    0x3eaa_0000,
    0x3eb1_3333,
    0x3eb8_6666,
    0x3ebf_999a,
    0x3ec6_cccc,
    0x3ece_0000,
    0x3ed5_3333,
    0x3edc_6666,
    0x3ee3_999a,
    0x3eea_cccc,
    0x3ef2_0000,
    0x3ef9_3332,
    0x3f00_3333,
    0x3f03_cccc,
    0x3f07_6666,
    0x3f0b_0000,
    0x3f0e_999a,
    0x3f12_3334,
    0x3f15_cccd,
    0x3f19_6666,
    0x3f1d_0000,
    0x3f20_999a,
    0x3f24_3334,
    0x3f27_cccd,
    0x3f2b_6666,
    0x3f2f_0000,
    0x3f32_999a,
    0x3f36_3334,
    0x3f39_cccd,
    0x3f3d_6666,
    0x3f41_0000,
    0x3f44_999a,
    0x3f48_3333,
    0x3f4b_cccd,
    0x3f4f_6666,
    0x3f53_0000,
    0x3f56_999a,
    0x3f5a_3333,
    0x3f5d_cccd,
    0x3f61_6666,
    0x3f65_0000,
    0x3f68_999a,
    0x3f6c_3333,
    0x3f6f_cccd,
    0x3f73_6666,
    0x3f77_0000,
    0x3f7a_999a,
    0x3f7e_3333,
];

/// The value of each code: 127 negative ones, zero, 127 positive ones and 1.
pub(crate) static CODES: [f32; 256] = {
    let mut codes = [0.0; 256];
    let mut at = 0;
    while at < RISING.len() {
        codes[128 + at] = f32::from_bits(RISING[at]);
        codes[126 - at] = -f32::from_bits(RISING[at]);
        at += 1;
    }
    codes[255] = 1.0;
    codes
};

/// The code of each step.
static STEPS: LazyLock<Box<[u8; STEP_COUNT]>> = LazyLock::new(|| {
    let mut steps = vec![0u8; STEP_COUNT];
    let mut low = 0;
    for (at, step) in (0u32..).zip(&mut steps) {
        let value = 2.0 * at as f32 / 65535.0 - 1.0;
        // The first code whose successor is farther from the value.
        while low < 255 && (CODES[low + 1] - value).abs() < (CODES[low] - value).abs() {
            low += 1;
        }
        *step = low as u8;
    }
    let steps = steps.into_boxed_slice();
    steps.try_into().expect("it was made with this length")
});

const STEP_COUNT: usize = 65_536;

/// Values that are turned into steps before they are looked up.
const LANES: usize = 512;

/// The values of a vector.
const WIDE: usize = 16;

/// Quantizes values from the start of a block on. `absmax` gets one number per
/// block and `out` one byte per value; the last block may be short. The return
/// says whether all values are finite.
pub(crate) fn encode(
    level: Level,
    block: usize,
    values: &[f32],
    dice: Option<Throw>,
    (absmax, out): (&mut [f32], &mut [u8]),
) -> bool {
    let steps = &**STEPS;
    let mut most = 0;
    let mut at = 0u32;
    let blocks = values.chunks(block).zip(out.chunks_mut(block));
    for ((values, out), absmax) in blocks.zip(absmax) {
        let largest = dispatch!(level, _ => super::largest(values));
        most = most.max(largest);
        *absmax = f32::from_bits(largest);
        if largest == 0 {
            out.fill(0);
        } else if let Some(dice) = dice {
            let unit = |lane| dice.unit(at.wrapping_add(lane));
            by_chance(values, *absmax, steps, unit, out);
        } else {
            nearest(level, values, *absmax, steps, out);
        }
        at = at.wrapping_add(values.len() as u32);
    }
    most < super::INFINITE
}

fn nearest(level: Level, values: &[f32], absmax: f32, table: &[u8; STEP_COUNT], out: &mut [u8]) {
    let mut steps = [0i32; LANES];
    for (values, out) in values.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let scale = Scale::new(absmax.to_bits());
        dispatch!(level, simd => to_steps(simd, values, scale, &mut steps));
        for (out, step) in out.iter_mut().zip(steps) {
            *out = table[usize::from(step as u16)];
        }
    }
}

#[inline(always)]
fn to_steps<S: Simd>(simd: S, values: &[f32], scale: Scale, steps: &mut [i32; LANES]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (vectors, rest) = values.as_chunks::<WIDE>();
            let steps = steps.as_chunks_mut::<WIDE>().0;
            for (values, steps) in vectors.iter().zip(&mut *steps) {
                *steps = *step(simd, f32x16::simd_from(simd, *values), scale);
            }
            if let Some(steps) = steps.get_mut(vectors.len()) {
                let mut padded = [0.0; WIDE];
                padded[..rest.len()].copy_from_slice(rest);
                *steps = *step(simd, f32x16::simd_from(simd, padded), scale);
            }
        },
    );
}

#[inline(always)]
fn step<S: Simd>(simd: S, values: f32x16<S>, scale: Scale) -> i32x16<S> {
    let scaled = match scale {
        Scale::Times(scale) => values * scale,
        Scale::Over(absmax) => values / absmax,
    };
    // From a half to 65,535.5, give or take a last place: no step lies outside. Of
    // what is not finite any step will do, the block is refused.
    simd.cvt_i32_f32x16((scaled + 1.0) * 32767.5 + 0.5)
}

/// One of the two codes around each value, the nearer one more often.
fn by_chance(
    values: &[f32],
    absmax: f32,
    table: &[u8; STEP_COUNT],
    unit: impl Fn(u32) -> f32,
    out: &mut [u8],
) {
    for (at, (value, out)) in values.iter().zip(out).enumerate() {
        let value = (value / absmax).clamp(CODES[0], 1.0);
        // The greatest code that is not above the value, and not the last. The
        // table leads close to it; near zero codes lie closer than its steps.
        let place = (value + 1.0) * 32767.5 + 0.5;
        let mut low = usize::from(table[usize::from(place as u16)]).min(254);
        while CODES[low] > value && low > 0 {
            low -= 1;
        }
        while CODES[low + 1] <= value && low < 254 {
            low += 1;
        }
        let (below, above) = (CODES[low], CODES[low + 1]);
        let up = unit(at as u32) < (value - below) / (above - below);
        *out = (low + usize::from(up)) as u8;
    }
}

/// The values of codes from the start of a block on: as many as `into` has.
pub(crate) fn decode(block: usize, absmax: &[f32], bytes: &[u8], into: &mut [f32]) {
    let blocks = into.chunks_mut(block).zip(bytes.chunks(block));
    for ((into, bytes), absmax) in blocks.zip(absmax) {
        for (value, byte) in into.iter_mut().zip(bytes) {
            *value = CODES[usize::from(*byte)] * absmax;
        }
    }
}
