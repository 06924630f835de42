//! How fast one core encodes and decodes, beside a copy of the same bytes.
//!
//! `cargo run --release -p firesteel-codec --example codec_bench -- [MB] [ROUNDS]`
//!
//! Prints one JSON object. Rates are gigabytes of the f32 model per second, the
//! best of all rounds; each scheme takes turns with a copy of its own, so that both
//! meet the same neighbors on a shared machine. All memory is touched before it counts.
#![allow(clippy::disallowed_methods, reason = "a bench looks at the clock")]

use std::time::Instant;

use firesteel_codec::{
    Chain, Context, Draft, Filter, Kind, Loss, Model, Pick, Rounding, Scheme, chain,
};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| {
        args.next()
            .map_or(default, |a| a.parse().expect("a number"))
    };
    let (megabytes, rounds) = (number(256), number(5));
    let (header, model) = model(megabytes);
    let gigabytes = model.len() as f64 / 1e9;
    let mut copy = vec![1u8; model.len()];
    let mut out = vec![1u8; model.len()];
    let mut back = vec![1u8; model.len()];

    let quantize = |scheme, rounding| Filter::Quantize {
        scheme,
        pick: Pick::all(),
        rounding,
        loss: Loss::Forgotten,
    };
    let mut cases: Vec<(String, Filter)> = Vec::new();
    for scheme in Scheme::ALL {
        cases.push((scheme.to_string(), quantize(scheme, Rounding::Nearest)));
    }
    for scheme in Scheme::ALL {
        let name = format!("{scheme}_stochastic");
        cases.push((name, quantize(scheme, Rounding::Stochastic)));
    }
    let pick = Pick::all();
    cases.push((
        "zstd_3".into(),
        Filter::Compress {
            level: 3,
            pick: pick.clone(),
        },
    ));
    let loss = Loss::Forgotten;
    cases.push((
        "top_k_1_percent".into(),
        Filter::TopK {
            share: 0.01,
            pick,
            loss,
        },
    ));

    let mut best = vec![Best::default(); cases.len()];
    for _ in 0..rounds {
        for ((_, filter), best) in cases.iter().zip(&mut best) {
            let before = Instant::now();
            copy.copy_from_slice(&model);
            best.copy = best.copy.min(before.elapsed().as_secs_f64());
            std::hint::black_box(&copy);

            let chain = Chain::new(vec![filter.clone()]);
            let context = Context {
                kind: Kind::Diff,
                seed: 1,
                residual: None,
                scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
            };
            let input = Model {
                header: &header,
                bytes: &model,
            };
            let before = Instant::now();
            let encoded = chain::encode(&chain, input, context, &mut out).expect("it is finite");
            best.encode = best.encode.min(before.elapsed().as_secs_f64());
            best.length = encoded.header.total_len();
            let encoded_bytes = &out[..best.length as usize];
            let view = chain::decode(&encoded.header, &encoded_bytes)
                .expect("it was encoded just now")
                .expect("it was encoded just now");
            let before = Instant::now();
            view.write(&mut back).expect("there is room");
            best.decode = best.decode.min(before.elapsed().as_secs_f64());
        }
    }
    let copy = best
        .iter()
        .map(|best| best.copy)
        .fold(f64::INFINITY, f64::min);
    println!("{{");
    println!(
        "  \"megabytes\": {megabytes}, \"rounds\": {rounds}, \"memcpy\": {:.2},",
        gigabytes / copy
    );
    let last = cases.len() - 1;
    for (at, ((name, _), best)) in cases.iter().zip(best).enumerate() {
        println!(
            "  \"{name}\": {{\"encode\": {:.2}, \"decode\": {:.2}, \"encode_over_memcpy\": {:.2}, \"size\": {:.4}}}{}",
            gigabytes / best.encode,
            gigabytes / best.decode,
            best.copy / best.encode,
            best.length as f64 / model.len() as f64,
            if at == last { "" } else { "," }
        );
    }
    println!("}}");
}

/// Seconds of the best round, and bytes.
#[derive(Clone)]
struct Best {
    copy: f64,
    encode: f64,
    decode: f64,
    length: u64,
}

impl Default for Best {
    fn default() -> Self {
        Self {
            copy: f64::INFINITY,
            encode: f64::INFINITY,
            decode: f64::INFINITY,
            length: 0,
        }
    }
}

/// A model of f32, as weights are: of many sizes and both signs.
fn model(megabytes: usize) -> (ModelHeader, Vec<u8>) {
    let mut builder = HeaderBuilder::new();
    for layer in 0..4 {
        let rows = megabytes as u64 * 64;
        builder.tensor(&format!("layers.{layer}.weight"), DType::F32, &[rows, 1024]);
    }
    let (mut bytes, header) = builder.encode().expect("a few tensors fit");
    let mut state = 1u32;
    let mut unit = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    for _ in 0..header.data_len() / 4 {
        // The sum of three is nearly normal.
        let value = (unit() + unit() + unit()) * 0.04;
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    (header, bytes)
}
