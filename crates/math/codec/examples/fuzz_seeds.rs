//! Writes small encoded models for the fuzzer to start from.
//!
//! `cargo run -p firesteel-codec --example fuzz_seeds -- fuzz/seeds/encoded_model`
#![allow(clippy::disallowed_methods, reason = "it writes the fuzzer's seeds")]

use firesteel_codec::{
    Chain, Context, Draft, Filter, Kind, Loss, Model, Pick, Rounding, Scheme, chain,
};
use firesteel_tensor::{DType, HeaderBuilder};

fn main() {
    let folder = std::env::args().nth(1).expect("a folder");
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::F32, &[20, 20]);
    builder.tensor("n", DType::I64, &[2]);
    builder.alias("tied", "w");
    let (mut bytes, header) = builder.encode().expect("two tensors fit");
    bytes.extend_from_slice(&[7; 16]);
    for at in 0..400 {
        bytes.extend_from_slice(&(at as f32 * 0.01 - 2.0).to_le_bytes());
    }
    bytes.truncate(header.total_len() as usize);
    let pick = Pick::all();
    let compress = Filter::Compress {
        level: 3,
        pick: pick.clone(),
    };
    let mut chains = vec![("zstd".to_owned(), vec![compress.clone()])];
    let top = Filter::TopK {
        share: 0.1,
        pick: pick.clone(),
        loss: Loss::Forgotten,
    };
    chains.push(("top_k".into(), vec![top.clone()]));
    for scheme in Scheme::ALL {
        let quantize = Filter::Quantize {
            scheme,
            pick: pick.clone(),
            rounding: Rounding::Nearest,
            loss: Loss::Forgotten,
        };
        chains.push((scheme.to_string(), vec![quantize.clone()]));
        chains.push((
            format!("top_k-{scheme}-zstd"),
            vec![top.clone(), quantize, compress.clone()],
        ));
    }
    for (name, filters) in chains {
        let context = Context {
            kind: Kind::Diff,
            seed: 0,
            residual: None,
            scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
        };
        let model = Model {
            header: &header,
            bytes: &bytes,
        };
        let mut out = Vec::new();
        chain::encode(&Chain::new(filters), model, context, &mut out).expect("it is finite");
        std::fs::write(format!("{folder}/{name}"), out).expect("the folder is there");
    }
}
