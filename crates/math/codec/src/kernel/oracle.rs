//! The kernels against their definitions, and against bitsandbytes.

use std::collections::BTreeMap;

use fearless_simd::Level;
use firesteel_tensor::{DType, ModelHeader};
use proptest::prelude::*;

use super::four::{self, Four};
use super::half::{self as halves, Half};
use super::{Dice, adaptive, int8, values};

fn levels() -> Vec<Level> {
    let best = Level::new();
    let mut levels = vec![best, Level::fallback(), Level::baseline()];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(best.as_sse4_2().map(Level::Sse4_2));
        levels.extend(best.as_avx2().map(Level::Avx2));
        levels.extend(best.as_avx512().map(Level::Avx512));
    }
    levels
}

/// The nearest code by looking at all of them, as `torch.bucketize` does it: codes
/// in order, middles between neighbors in f32, a middle counts to the lower one.
fn nearest_of(codes: &[f32], value: f32) -> usize {
    let mut order: Vec<usize> = (0..codes.len()).collect();
    order.sort_by(|a, b| codes[*a].total_cmp(&codes[*b]));
    let above = |pair: &&[usize]| value > (codes[pair[0]] + codes[pair[1]]) / 2.0;
    order[order.windows(2).filter(above).count()]
}

fn scaled(value: f32, most: f32) -> f32 {
    if most == 0.0 {
        value
    } else if (1.0 / most).is_finite() {
        value * (1.0 / most)
    } else {
        value / most
    }
}

fn oracle_four(four: Four, block: usize, values: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let codes = four.codes();
    let mut absmax = Vec::new();
    let mut nibbles = Vec::new();
    for values in values.chunks(block) {
        let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        absmax.push(most);
        nibbles.extend(
            values
                .iter()
                .map(|v| nearest_of(&codes, scaled(*v, most)) as u8),
        );
    }
    if nibbles.len() % 2 == 1 {
        nibbles.push(0);
    }
    let bytes = nibbles.chunks(2).map(|n| n[0] << 4 | n[1]).collect();
    (absmax, bytes)
}

fn oracle_int8(block: usize, values: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let mut absmax = Vec::new();
    let mut bytes = Vec::new();
    for values in values.chunks(block) {
        let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        absmax.push(most);
        for value in values {
            if most == 0.0 {
                bytes.push(0);
                continue;
            }
            let step = ((scaled(*value, most) + 1.0) * 32767.5 + 0.5)
                .floor()
                .clamp(0.0, 65535.0);
            let value = 2.0 * step / 65535.0 - 1.0;
            let distance = |code: &f32| (code - value).abs();
            let nearest = int8::CODES
                .iter()
                .map(distance)
                .fold(f32::INFINITY, f32::min);
            let code = int8::CODES
                .iter()
                .position(|code| distance(code) == nearest);
            bytes.push(code.expect("one of them is the nearest") as u8);
        }
    }
    (absmax, bytes)
}

fn check_four(four: Four, block: usize, input: &[f32]) {
    let (want_absmax, want) = oracle_four(four, block, input);
    for level in levels() {
        let mut absmax = vec![0.0; want_absmax.len()];
        let mut bytes = vec![0xaa; want.len()];
        assert!(four::encode(
            level,
            four,
            block,
            input,
            None,
            (&mut absmax, &mut bytes)
        ));
        assert_eq!(absmax, want_absmax);
        assert_eq!(bytes, want, "{four:?} {level:?} {input:?}");
        let mut back = vec![f32::NAN; input.len()];
        four::decode(four, block, &absmax, &bytes, &mut back);
        for (at, value) in back.iter().enumerate() {
            let nibble = want[at / 2] >> (4 * (1 - at % 2)) & 15;
            let exact = four.codes()[usize::from(nibble)] * want_absmax[at / block];
            assert_eq!(value.to_bits(), exact.to_bits());
        }
    }
}

fn check_int8(block: usize, input: &[f32]) {
    let (want_absmax, want) = oracle_int8(block, input);
    for level in levels() {
        let mut absmax = vec![0.0; want_absmax.len()];
        let mut bytes = vec![0xaa; want.len()];
        assert!(int8::encode(
            level,
            block,
            input,
            None,
            (&mut absmax, &mut bytes)
        ));
        assert_eq!(absmax, want_absmax);
        assert_eq!(bytes, want, "{level:?} {input:?}");
        let mut back = vec![f32::NAN; input.len()];
        int8::decode(block, &absmax, &bytes, &mut back);
        for ((value, code), at) in back.iter().zip(&want).zip(0..) {
            let exact = int8::CODES[usize::from(*code)] * want_absmax[at / block];
            assert_eq!(value.to_bits(), exact.to_bits());
        }
    }
}

fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1f32..1.0,
        2 => (-4f32..4.0).prop_map(|x| x.powi(7)),
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 3e38, 0.5]),
        1 => any::<f32>().prop_filter("finite", |x| x.is_finite()),
    ]
}

proptest! {
    #[test]
    fn four_bits_are_those_of_the_definition(
        input in prop::collection::vec(any_value(), 1..300),
        nf4: bool,
        blocks in prop::sample::select(vec![64usize, 128]),
    ) {
        check_four(if nf4 { Four::Nf4 } else { Four::Fp4 }, blocks, &input);
    }

    #[test]
    fn eight_bits_are_those_of_the_definition(
        input in prop::collection::vec(any_value(), 1..200),
        block in prop::sample::select(vec![64usize, 4096]),
    ) {
        check_int8(block, &input);
    }

    /// Chance is a matter of the place alone, takes one of the two codes around the
    /// value, and does so alike with any instructions.
    #[test]
    fn chance_is_the_same_everywhere(
        input in prop::collection::vec(-1f32..1.0, 130..300),
        seed: u64,
    ) {
        let dice = Dice::new(seed, "w");
        let blocks = input.len().div_ceil(64);
        for four in [Four::Nf4, Four::Fp4] {
            let mut outputs = Vec::new();
            for level in levels() {
                let (mut absmax, mut bytes) = (vec![0.0; blocks], vec![0; input.len().div_ceil(2)]);
                let room = (&mut absmax[..], &mut bytes[..]);
                four::encode(level, four, 64, &input, Some(dice.from(128)), room);
                let mut back = vec![0.0; input.len()];
                four::decode(four, 64, &absmax, &bytes, &mut back);
                let mut sorted = four.codes().to_vec();
                sorted.sort_by(f32::total_cmp);
                for ((value, back), at) in input.iter().zip(&back).zip(0..) {
                    let scale = absmax[at / 64];
                    let place = scaled(*value, scale);
                    let below = sorted.iter().rev().find(|c| **c <= place);
                    let above = sorted.iter().find(|c| **c >= place);
                    let around = [below, above].map(|c| c.map(|c| c * scale));
                    prop_assert!(around.contains(&Some(*back)), "{value} {back} {around:?}");
                }
                outputs.push((absmax, bytes));
            }
            prop_assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
            // The second half alone, from its own place on.
            let (mut absmax, mut bytes) = (vec![0.0; blocks - 1], vec![0; (input.len() - 64).div_ceil(2)]);
            let room = (&mut absmax[..], &mut bytes[..]);
            four::encode(Level::new(), four, 64, &input[64..], Some(dice.from(192)), room);
            prop_assert_eq!(&bytes[..], &outputs[0].1[32..]);
        }
        let mut outputs = Vec::new();
        for level in levels() {
            let (mut absmax, mut bytes) = (vec![0.0; 1], vec![0; input.len()]);
            let room = (&mut absmax[..], &mut bytes[..]);
            int8::encode(level, 4096, &input, Some(dice.from(0)), room);
            for half in [Half::Fp16, Half::Bf16] {
                let mut out = vec![0; 2 * input.len()];
                halves::encode(level, half, &input, Some(dice.from(0)), &mut out);
                bytes.extend(out);
            }
            let range = adaptive::Range::new(-1.0, 1.0, 32).expect("a small range");
            let mut out = vec![0; input.len() * range.dtype().size()];
            adaptive::encode(level, &range, &input, Some(dice.from(0)), &mut out);
            bytes.extend(out);
            outputs.push(bytes);
        }
        prop_assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    }

    /// Half precision, adaptive levels, widening and narrowing: alike with any
    /// instructions. That each is right, their own tests say.
    #[test]
    fn instructions_make_no_difference(bits in prop::collection::vec(any::<u32>(), 1..200)) {
        let all: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let finite: Vec<f32> = all.iter().map(|v| if v.is_finite() { *v } else { 1.0 }).collect();
        let mut outputs = Vec::new();
        for level in levels() {
            let mut output = Vec::new();
            for half in [Half::Fp16, Half::Bf16] {
                let mut out = vec![0; 2 * all.len()];
                halves::encode(level, half, &all, None, &mut out);
                output.extend_from_slice(&out);
                let mut back = vec![0.0; finite.len()];
                halves::encode(level, half, &finite, None, &mut out);
                halves::decode(level, half, &out, &mut back);
                output.extend(back.iter().flat_map(|v| v.to_le_bytes()));
            }
            for range in [(-1.0, 1.0), (-100.0, 300.0), (0.0, 1e-5)] {
                let range = adaptive::Range::new(range.0, range.1, 32).expect("it fits 16 bits");
                let small: Vec<f32> = finite.iter().map(|v| v.clamp(range.least as f32, 1.0)).collect();
                let mut out = vec![0; small.len() * range.dtype().size()];
                adaptive::encode(level, &range, &small, None, &mut out);
                let mut back = vec![0.0; small.len()];
                adaptive::decode(level, &range, &out, &mut back);
                output.extend_from_slice(&out);
                output.extend(back.iter().flat_map(|v| v.to_le_bytes()));
            }
            for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
                let mut bytes = vec![0; finite.len() * dtype.size()];
                values::narrow(level, dtype, &finite, &mut bytes);
                let mut back = vec![0.0; finite.len()];
                values::widen(level, dtype, &bytes, &mut back);
                output.extend_from_slice(&bytes);
                output.extend(back.iter().flat_map(|v| v.to_le_bytes()));
            }
            output.push(values::not_finite(level, &all) as u8);
            outputs.push(output);
        }
        prop_assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

/// Every middle between two codes, and what lies closest to it on either side.
#[test]
fn middles_count_to_the_lower_code() {
    for four in [Four::Nf4, Four::Fp4] {
        let mut codes = four.codes().to_vec();
        codes.sort_by(f32::total_cmp);
        let mut input = vec![1.0];
        for pair in codes.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            input.extend([middle.next_down(), middle, middle.next_up(), pair[0]]);
        }
        input.truncate(64);
        check_four(four, 64, &input);
        // The largest magnitude is another one, so that values are divided.
        let scaled: Vec<f32> = input.iter().map(|v| v * 0.37).collect();
        check_four(four, 64, &scaled);
    }
}

#[test]
fn zeros_get_the_codes_that_bitsandbytes_gives_them() {
    let zeros = [0.0; 130];
    let (absmax, bytes) = oracle_four(Four::Nf4, 64, &zeros);
    assert_eq!((absmax, bytes), (vec![0.0; 3], vec![0x77; 65]));
    check_four(Four::Nf4, 64, &zeros);
    check_four(Four::Fp4, 64, &zeros);
    check_int8(64, &zeros);
    let mut one = [0.0; 64];
    one[3] = 5.0;
    one[4] = -0.0;
    let (mut absmax, mut bytes) = ([0.0], [0; 64]);
    int8::encode(Level::new(), 64, &one, None, (&mut absmax, &mut bytes));
    assert_eq!((bytes[0], bytes[3], bytes[4]), (131, 255, 131));
    // So small that its inverse is infinite.
    check_int8(64, &[1e-45, -1e-45, 0.0, 4e-45]);
}

#[test]
fn what_is_not_finite_is_told() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut input = [0.5; 100];
        input[77] = bad;
        let (mut absmax, mut bytes) = ([0.0; 2], [0; 100]);
        let level = Level::new();
        let room = (&mut absmax[..], &mut bytes[..50]);
        assert!(!four::encode(level, Four::Nf4, 64, &input, None, room));
        assert!(!int8::encode(
            level,
            64,
            &input,
            None,
            (&mut absmax, &mut bytes)
        ));
        assert_eq!(values::not_finite(level, &input), 1);
    }
}

/// Ranges that FLARE's version decodes to NaN, and the bounds of the code widths.
#[test]
fn adaptive_levels_follow_the_range_and_are_never_none() {
    let bits = |width: f64, element: u32| {
        let range = adaptive::Range::new(0.0, width, element);
        range.map(|r| (r.steps + 1).ilog2())
    };
    assert_eq!(bits(1e-9, 32), Some(1));
    assert_eq!(bits(2.2e-4, 32), Some(1));
    assert_eq!(bits(3e-4, 32), Some(1));
    assert_eq!(bits(1.0, 32), Some(7));
    assert_eq!(bits(10.0, 32), Some(8));
    assert_eq!(bits(20.0, 32), Some(9));
    assert_eq!(bits(1e9, 32), None);
    assert_eq!(bits(1e6, 16), None);
    let input: Vec<f32> = (0..50).map(|at| at as f32 * 2e-6).collect();
    let range = adaptive::Range::new(0.0, f64::from(input[49]), 32).expect("small");
    let (mut codes, mut back) = (vec![0; 50], vec![0.0; 50]);
    adaptive::encode(Level::new(), &range, &input, None, &mut codes);
    adaptive::decode(Level::new(), &range, &codes, &mut back);
    assert!(
        back.iter()
            .all(|v| v.is_finite() && (0.0..=1e-4).contains(v))
    );
    assert_eq!((back[0], back[49]), (0.0, input[49]));
}

// bitsandbytes ---------------------------------------------------------------

static VECTORS: &[u8] = include_bytes!("../../testdata/bitsandbytes.safetensors");

fn tensors() -> BTreeMap<String, Vec<u8>> {
    let header = ModelHeader::parse(VECTORS, VECTORS.len() as u64).expect("a model file");
    let bytes = |t| {
        header
            .bytes_of(t, VECTORS)
            .expect("it is in there")
            .to_vec()
    };
    let tensors = header.tensors().iter();
    tensors.map(|t| (t.name.to_string(), bytes(t))).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

#[test]
fn code_books_are_those_of_bitsandbytes() {
    let all = tensors();
    assert_eq!(floats(&all["code.dynamic_signed_256"]), int8::CODES);
    assert_eq!(floats(&all["code.nf4_16"]), Four::Nf4.codes());
    assert_eq!(
        all["code.fp4_16"],
        bytemuck::cast_slice::<f32, u8>(&Four::Fp4.codes())
    );
}

/// 81 tensors of three schemes, dtypes and inputs, in blocks of 64 to 4096.
#[test]
fn bytes_are_those_of_bitsandbytes() {
    let all = tensors();
    let mut checked = 0;
    for (key, want) in all.iter().filter(|(key, _)| key.ends_with(".q")) {
        let words: Vec<&str> = key.split('.').collect();
        let &[input, scheme, dtype, block, _] = &words[..] else {
            panic!("{key}");
        };
        let block: usize = block[2..].parse().expect("bs64 and the like");
        let dtype = match dtype {
            "float32" => DType::F32,
            "float16" => DType::F16,
            "bfloat16" => DType::BF16,
            other => panic!("{other}"),
        };
        let level = Level::new();
        // The input as the model has it.
        let input = floats(&all[&format!("{input}.input")]);
        let mut source = vec![0; input.len() * dtype.size()];
        values::narrow(level, dtype, &input, &mut source);
        let mut input = input;
        values::widen(level, dtype, &source, &mut input);

        let mut absmax = vec![0.0; input.len().div_ceil(block)];
        let mut bytes = vec![0; want.len()];
        let mut back = vec![0.0; input.len()];
        let room = (&mut absmax[..], &mut bytes[..]);
        let four = match scheme {
            "nf4" => Some(Four::Nf4),
            "fp4" => Some(Four::Fp4),
            _ => None,
        };
        if let Some(four) = four {
            assert!(four::encode(level, four, block, &input, None, room));
            four::decode(four, block, &absmax, &bytes, &mut back);
        } else {
            assert!(int8::encode(level, block, &input, None, room));
            int8::decode(block, &absmax, &bytes, &mut back);
        }
        let stem = key.trim_end_matches('q');
        assert_eq!(absmax, floats(&all[&format!("{stem}absmax")]), "{key}");
        assert_eq!(&bytes, want, "{key}");
        if let Some(want) = all.get(&format!("{stem}deq")) {
            let mut restored = vec![0; input.len() * dtype.size()];
            values::narrow(level, dtype, &back, &mut restored);
            values::widen(level, dtype, &restored, &mut back);
            assert_eq!(back, floats(want), "{key}");
        }
        checked += 1;
    }
    assert_eq!(checked, 81);
}
