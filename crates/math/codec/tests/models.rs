//! Whole models through chains: what comes back, how large they are on the way,
//! and that windows, seeds and readers make no difference.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Maker, Pieces, Random, encode, encode_with, floats, quantize, restored};
use firesteel_codec::{
    Chain, Context, Draft, EncodeError, Filter, Kind, Loss, Model, Pick, ReadAt, Residual,
    Rounding, Scheme, chain,
};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};
use proptest::prelude::*;

const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

/// A model with all there is: every dtype, ties, a tree, a user's metadata, scalars,
/// empty tensors, names with marks.
fn all_kinds(seed: u64) -> common::File {
    let mut random = Random(seed);
    let mut maker = Maker::new();
    for &dtype in DType::ALL {
        let values = random.elements(dtype, 5_001);
        maker = maker.raw(&format!("t.{dtype}"), dtype, &[3, 1667], values);
    }
    let weights = random.elements(DType::F32, 70_000);
    maker
        .raw("tied#1", DType::F32, &[70_000], weights)
        .raw("one", DType::F32, &[], 1.5f32.to_le_bytes().to_vec())
        .raw("none", DType::F32, &[0, 7], Vec::new())
        .alias("head##x", "tied#1")
        .metadata("user", "a;b \"c\"")
        .tree_of_all(r#"["lr",{"f":0.5}]"#)
        .build()
}

#[test]
fn what_is_not_a_number_comes_back_as_it_was() {
    let file = all_kinds(1);
    for filter in [
        quantize(Scheme::Nf4),
        quantize(Scheme::Fp16),
        quantize(Scheme::Adaptive),
        Filter::Compress {
            level: 3,
            pick: Pick::all(),
        },
        Filter::TopK {
            share: 0.01,
            pick: Pick::all(),
            loss: Loss::Forgotten,
        },
    ] {
        let name = format!("{filter:?}");
        let (encoded, header) = encode(&[filter], &file);
        assert!(encoded.len() < file.bytes().len(), "{name}");
        // It is a model file like any other.
        assert_eq!(
            ModelHeader::parse(&encoded, encoded.len() as u64).unwrap(),
            header
        );
        assert!(chain::is_encoded(&header).unwrap());
        let (bytes, back) = restored(&encoded);
        assert_eq!(back, file.header, "{name}");
        for tensor in file.header.tensors() {
            if !FLOATS.contains(&tensor.dtype) {
                let is = back
                    .bytes_of(back.get(&tensor.name).unwrap(), &bytes)
                    .unwrap();
                assert_eq!(is, file.tensor(&tensor.name), "{name} {}", tensor.name);
            }
        }
        // The head too is what our writers write.
        let start = back.data_start() as usize;
        assert_eq!(&bytes[..start], &file.bytes()[..start]);
    }
}

/// The largest error that a scheme may make, as a share of the largest value.
fn share_of_error(scheme: Scheme) -> f64 {
    match scheme {
        Scheme::Fp16 => 0.0005,
        Scheme::Bf16 => 0.004,
        Scheme::Int8 => 0.0075,
        Scheme::Nf4 => 0.16,
        Scheme::Fp4 => 0.17,
        Scheme::Adaptive => 0.005,
    }
}

#[test]
fn values_come_back_in_their_own_dtype_and_near() {
    for scheme in Scheme::ALL {
        for dtype in FLOATS {
            let mut random = Random(5);
            let input: Vec<f64> = (0..9_999).map(|_| random.normal()).collect();
            let file = Maker::new().values("w", dtype, &[9_999], &input).build();
            let (encoded, header) = encode(&[quantize(scheme)], &file);
            let (bytes, back) = restored(&encoded);
            let tensor = back.get("w").unwrap();
            assert_eq!((tensor.dtype, &tensor.shape[..]), (dtype, &[9_999][..]));
            let before = floats(dtype, file.tensor("w"));
            let after = floats(dtype, back.bytes_of(tensor, &bytes).unwrap());
            let most = before.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (a, b) in before.iter().zip(&after) {
                // Beside the scheme's own error there is the dtype's.
                let room = most * (share_of_error(scheme) + 0.004);
                assert!((a - b).abs() <= room, "{scheme} {dtype}: {a} became {b}");
            }
            // 16 bits in 16 bits would save nothing.
            let smaller = dtype.size() > 2 || !matches!(scheme, Scheme::Fp16 | Scheme::Bf16);
            assert_eq!(
                header.get("w").unwrap().dtype != dtype,
                smaller,
                "{scheme} {dtype}"
            );
        }
    }
}

/// Llama-3.2-1B with an untied head: 147 tensors, 1,498,482,688 parameters.
fn llama() -> ModelHeader {
    let mut builder = HeaderBuilder::new();
    let mut add = |name: String, shape: &[u64]| {
        builder.tensor(&name, DType::F32, shape);
    };
    add("model.embed_tokens.weight".into(), &[128_256, 2048]);
    for layer in 0..16 {
        let mut add = |part: &str, shape: &[u64]| {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        };
        add("self_attn.q_proj", &[2048, 2048]);
        add("self_attn.k_proj", &[512, 2048]);
        add("self_attn.v_proj", &[512, 2048]);
        add("self_attn.o_proj", &[2048, 2048]);
        add("mlp.gate_proj", &[8192, 2048]);
        add("mlp.up_proj", &[8192, 2048]);
        add("mlp.down_proj", &[2048, 8192]);
        add("input_layernorm", &[2048]);
        add("post_attention_layernorm", &[2048]);
    }
    add("model.norm.weight".into(), &[2048]);
    add("lm_head.weight".into(), &[128_256, 2048]);
    builder.encode().unwrap().1
}

#[test]
fn messages_of_a_llama_are_as_large_as_published() {
    let model = llama();
    assert_eq!(model.tensors().len(), 147);
    let mib = |bytes: u64| format!("{:.2}", bytes as f64 / 1_048_576.0);
    assert_eq!(mib(model.data_len()), "5716.26");
    for (scheme, data, meta) in [
        (Scheme::Fp16, "2858.13", "0.00"),
        (Scheme::Bf16, "2858.13", "0.00"),
        (Scheme::Int8, "1429.06", "1.54"),
        (Scheme::Fp4, "714.53", "89.33"),
        (Scheme::Nf4, "714.53", "89.33"),
    ] {
        let chain = Chain::new(vec![quantize(scheme)]);
        let encoded = chain::largest(&chain, &model).unwrap();
        let own: u64 = model
            .tensors()
            .iter()
            .map(|t| encoded.get(&t.name).unwrap().size())
            .sum();
        assert_eq!(mib(own), data, "{scheme}");
        assert_eq!(mib(encoded.data_len() - own), meta, "{scheme}");
    }
}

#[test]
fn a_plan_knows_the_length_before_the_values_do() {
    let file = all_kinds(3);
    for scheme in Scheme::ALL {
        let (encoded, header) = encode(&[quantize(scheme)], &file);
        let chain = Chain::new(vec![quantize(scheme)]);
        let largest = chain::largest(&chain, &file.header).unwrap();
        if scheme == Scheme::Adaptive {
            assert!(largest.total_len() >= encoded.len() as u64);
        } else {
            assert_eq!(largest, header);
        }
    }
    let zip = Filter::Compress {
        level: 1,
        pick: Pick::all(),
    };
    let (encoded, _) = encode(std::slice::from_ref(&zip), &file);
    let largest = chain::largest(&Chain::new(vec![zip]), &file.header).unwrap();
    assert!(largest.total_len() >= encoded.len() as u64);
}

#[test]
fn a_source_that_gives_little_at_a_time_gives_the_same_bytes() {
    let file = all_kinds(4);
    for rounding in [Rounding::Nearest, Rounding::Stochastic] {
        let filters = vec![
            Filter::Quantize {
                scheme: Scheme::Nf4,
                pick: Pick::all(),
                rounding,
                loss: Loss::Forgotten,
            },
            Filter::Compress {
                level: 1,
                pick: Pick::all(),
            },
        ];
        let (want, _) = encode(&filters, &file);
        let (again, _) = encode(&filters, &file);
        assert_eq!(want, again, "an attempt that is repeated");
        let (bytes, _) = restored(&want);
        // In pieces of any size, from any place.
        let header = ModelHeader::parse(&want, want.len() as u64).unwrap();
        let source = Pieces(&want);
        let view = chain::decode(&header, &source).unwrap().unwrap();
        let mut random = Random(9);
        for _ in 0..200 {
            let from = random.below(bytes.len() as u64);
            let length = random.below((bytes.len() as u64 - from).min(300_000) + 1);
            let mut part = vec![0; length as usize];
            view.read_at(from, &mut part).unwrap();
            assert!(
                part == bytes[from as usize..][..length as usize],
                "{from} {length}"
            );
        }
        let mut past = [0; 2];
        assert!(view.read_at(bytes.len() as u64 - 1, &mut past).is_err());
    }
}

#[test]
fn chance_follows_the_seed() {
    let mut random = Random(8);
    let file = Maker::new()
        .raw(
            "w",
            DType::F32,
            &[20_000],
            random.elements(DType::F32, 20_000),
        )
        .build();
    for scheme in Scheme::ALL {
        let filter = Filter::Quantize {
            scheme,
            pick: Pick::all(),
            rounding: Rounding::Stochastic,
            loss: Loss::Forgotten,
        };
        let with = |seed| {
            encode_with(std::slice::from_ref(&filter), &file, Kind::Full, seed)
                .unwrap()
                .0
        };
        assert_eq!(with(1), with(1), "{scheme}");
        assert_ne!(with(1), with(2), "{scheme}");
        assert_ne!(with(1), encode(&[quantize(scheme)], &file).0, "{scheme}");
    }
}

#[test]
fn layers_lie_on_each_other() {
    let mut random = Random(6);
    let file = Maker::new()
        .raw(
            "layers.0.w",
            DType::F32,
            &[300, 300],
            random.elements(DType::F32, 90_000),
        )
        .raw(
            "head.w",
            DType::F32,
            &[300, 100],
            random.elements(DType::F32, 30_000),
        )
        .raw("steps", DType::I64, &[1], 7i64.to_le_bytes().to_vec())
        .build();
    let only = |scheme, include: &str| Filter::Quantize {
        scheme,
        pick: Pick::new(&[include.to_owned()], &[]).unwrap(),
        rounding: Rounding::Nearest,
        loss: Loss::Forgotten,
    };
    // Some tensors in one scheme, the rest in another, and all of it compressed.
    let (_, header) = encode(
        &[only(Scheme::Nf4, "^layers"), quantize(Scheme::Fp16)],
        &file,
    );
    assert_eq!(header.get("layers.0.w").unwrap().dtype, DType::U8);
    assert_eq!(header.get("layers.0.w#absmax").unwrap().dtype, DType::F32);
    assert_eq!(header.get("head.w").unwrap().dtype, DType::F16);
    let zip = Filter::Compress {
        level: 3,
        pick: Pick::all(),
    };
    let filters = [
        only(Scheme::Nf4, "^layers"),
        quantize(Scheme::Fp16),
        zip.clone(),
    ];
    let (encoded, _) = encode(&filters, &file);
    let (bytes, header) = restored(&encoded);
    let (plain, _) = restored(&encode(&filters[..2], &file).0);
    assert_eq!(header, file.header);
    assert_eq!(bytes, plain, "compression loses nothing");

    // The largest values of a difference, in eight bits each.
    let top = Filter::TopK {
        share: 0.05,
        pick: Pick::all(),
        loss: Loss::Forgotten,
    };
    let filters = [top, quantize(Scheme::Int8), zip];
    let (encoded, _) = encode_with(&filters, &file, Kind::Diff, 0).unwrap();
    assert!(encoded.len() < file.bytes().len() / 20);
    let (bytes, header) = restored(&encoded);
    let is = floats(
        DType::F32,
        header
            .bytes_of(header.get("head.w").unwrap(), &bytes)
            .unwrap(),
    );
    let was = floats(DType::F32, file.tensor("head.w"));
    let kept = is.iter().zip(&was).filter(|(is, _)| **is != 0.0);
    let most = was.iter().fold(0f64, |m, v| m.max(v.abs()));
    let mut count = 0;
    for (is, was) in kept {
        assert!((is - was).abs() < 0.008 * most);
        count += 1;
    }
    assert!((1480..=1500).contains(&count), "{count}");
}

#[test]
fn top_k_keeps_the_largest_and_the_first_of_equals() {
    let mut values = vec![0.25f64; 200_000];
    values[150_000] = -9.0;
    values[70_000] = 3.0;
    for dtype in FLOATS {
        let file = Maker::new().values("w", dtype, &[200_000], &values).build();
        let top = Filter::TopK {
            share: 5.0 / 200_000.0,
            pick: Pick::all(),
            loss: Loss::Forgotten,
        };
        let (encoded, header) = encode_with(&[top], &file, Kind::Diff, 0).unwrap();
        assert_eq!(header.get("w").unwrap().shape, [5]);
        let (bytes, back) = restored(&encoded);
        let is = floats(
            dtype,
            back.bytes_of(back.get("w").unwrap(), &bytes).unwrap(),
        );
        let kept: Vec<_> = (0..200_000).filter(|at| is[*at] != 0.0).collect();
        assert_eq!(kept, [0, 1, 2, 70_000, 150_000]);
        assert_eq!((is[70_000], is[150_000]), (3.0, -9.0));
    }
}

#[test]
fn top_k_of_whole_params_is_refused() {
    let file = Maker::new()
        .values("w", DType::F32, &[4], &[1.0, 2.0, 3.0, 4.0])
        .build();
    let top = Filter::TopK {
        share: 0.5,
        pick: Pick::all(),
        loss: Loss::Forgotten,
    };
    let error = encode_with(&[top], &file, Kind::Full, 0).unwrap_err();
    assert!(matches!(error, EncodeError::NotDifference { kind: "FULL" }));
}

#[test]
fn what_is_not_finite_is_refused_by_name() {
    for scheme in Scheme::ALL {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut values = vec![0.5; 5_000];
            values[4_321] = bad;
            values[1] = bad;
            let file = Maker::new()
                .values("good", DType::F32, &[5_000], &vec![1.0; 5_000])
                .values("layer.w", DType::F32, &[5_000], &values)
                .build();
            let error = encode_with(&[quantize(scheme)], &file, Kind::Full, 0).unwrap_err();
            let text = error.to_string();
            let want = format!("tensor `layer.w`: 2 of 5000 values are NaN or Inf, which {scheme}");
            assert!(text.starts_with(&want), "{text}");
            // Left out of the filter it travels as it is.
            let pick = Pick::new(&[], &["^layer".into()]).unwrap();
            let filter = Filter::Quantize {
                scheme,
                pick,
                rounding: Rounding::Nearest,
                loss: Loss::Forgotten,
            };
            assert!(encode_with(&[filter], &file, Kind::Full, 0).is_ok());
        }
    }
}

#[test]
fn what_is_too_large_becomes_the_largest() {
    let file = Maker::new()
        .values("w", DType::F32, &[4], &[1e6, -1e9, 65504.0, 1.0])
        .values("d", DType::F64, &[2], &[1e300, -1e300])
        .build();
    let (bytes, back) = restored(&encode(&[quantize(Scheme::Fp16)], &file).0);
    let of = |name: &str| {
        let tensor = back.get(name).unwrap();
        floats(tensor.dtype, back.bytes_of(tensor, &bytes).unwrap())
    };
    assert_eq!(of("w"), [65504.0, -65504.0, 65504.0, 1.0]);
    assert_eq!(of("d"), [65504.0, -65504.0]);
}

#[test]
fn small_tensors_stay_as_they_are() {
    let bias = vec![0.1; 100];
    let file = Maker::new()
        .values("bias", DType::F32, &[100], &bias)
        .build();
    let (_, header) = encode(&[quantize(Scheme::Int8)], &file);
    assert_eq!(header.get("bias").unwrap().dtype, DType::F32);
    let (_, header) = encode(&[quantize(Scheme::Bf16)], &file);
    assert_eq!(header.get("bias").unwrap().dtype, DType::BF16);
}

#[test]
fn tensors_are_left_out_and_the_update_says_so() {
    let file = all_kinds(2);
    let patterns = |p: &[&str]| p.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let exclude = Filter::Exclude(Pick::new(&patterns(&["^t\\.F", "head"]), &[]).unwrap());
    let (encoded, header) = encode(std::slice::from_ref(&exclude), &file);
    assert!(!chain::is_encoded(&header).unwrap());
    assert!(header.is_partial());
    assert!(header.get("t.F32").is_none() && header.get("t.I64").is_some());
    // By an alias, too.
    assert!(header.get("tied#1").is_none() && header.get("head##x").is_none());
    assert_eq!(header.tree(), file.header.tree());
    assert_eq!(
        ModelHeader::parse(&encoded, encoded.len() as u64).unwrap(),
        header
    );
    let at = header.get("t.I64").unwrap();
    assert_eq!(header.bytes_of(at, &encoded).unwrap(), file.tensor("t.I64"));

    let keep = Filter::Keep(Pick::new(&patterns(&["^t.F64$"]), &[]).unwrap());
    let (encoded, _) = encode(&[keep, quantize(Scheme::Nf4)], &file);
    let (_, header) = restored(&encoded);
    assert!(header.is_partial());
    let names: Vec<_> = header.tensors().iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["t.F64"]);
    // Behind a filter that encodes it takes the parts along.
    let (encoded, header) = encode(&[quantize(Scheme::Nf4), exclude], &file);
    assert!(header.get("t.F32").is_none());
    let (_, header) = restored(&encoded);
    assert!(header.get("t.F32").is_none() && header.get("t.I64").is_some());
}

#[test]
fn a_kind_that_is_not_let_out_is_refused() {
    let file = Maker::new().values("w", DType::F32, &[1], &[1.0]).build();
    let only = [Filter::Only(Kind::Diff)];
    assert!(encode_with(&only, &file, Kind::Diff, 0).is_ok());
    let error = encode_with(&only, &file, Kind::Full, 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a filter lets no params of kind FULL out"
    );
}

/// What is sent over many rounds sums up to what should have been sent: the error
/// is that of one round, not of all.
#[test]
fn fed_back_errors_do_not_add_up() {
    let mut random = Random(11);
    let count = 5_000;
    let step: Vec<f64> = (0..count).map(|_| random.normal() * 1e-3).collect();
    let file = Maker::new()
        .values("w", DType::F32, &[count], &step)
        .build();
    let exact = floats(DType::F32, file.tensor("w"));
    for lossy in [
        |loss| Filter::Quantize {
            scheme: Scheme::Nf4,
            pick: Pick::all(),
            rounding: Rounding::Nearest,
            loss,
        },
        |loss| Filter::TopK {
            share: 0.1,
            pick: Pick::all(),
            loss,
        },
    ] {
        let mut errors = Vec::new();
        for loss in [Loss::Forgotten, Loss::FedBack] {
            let chain = Chain::new(vec![lossy(loss)]);
            assert_eq!(chain.feeds_back(), loss == Loss::FedBack);
            let mut sum = vec![0f64; count as usize];
            let mut before: Option<(Vec<u8>, ModelHeader)> = None;
            let rounds = 60;
            for _ in 0..rounds {
                let (mut out, mut after) = (Vec::new(), Vec::new());
                let residual = Residual {
                    before: before
                        .as_ref()
                        .map(|(bytes, header)| Model { header, bytes }),
                    after: &mut after,
                };
                let context = Context {
                    kind: Kind::Diff,
                    seed: 0,
                    residual: Some(residual),
                    scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
                };
                let encoded = chain::encode(&chain, file.model(), context, &mut out).unwrap();
                let (bytes, header) = restored(&out);
                let sent = header.bytes_of(header.get("w").unwrap(), &bytes).unwrap();
                for (sum, sent) in sum.iter_mut().zip(floats(DType::F32, sent)) {
                    *sum += sent;
                }
                before = encoded.residual.map(|header| (after, header));
                assert_eq!(before.is_some(), loss == Loss::FedBack);
            }
            let error: f64 = sum
                .iter()
                .zip(&exact)
                .map(|(s, e)| (s / f64::from(rounds) - e).abs())
                .sum();
            errors.push(error / count as f64);
        }
        assert!(errors[1] < errors[0] / 4.0, "{errors:?}");
    }
}

#[test]
fn a_residual_of_another_shape_is_refused() {
    let file = Maker::new()
        .values("w", DType::F32, &[2, 3], &[1.0; 6])
        .build();
    let other = Maker::new()
        .values("w", DType::F32, &[6], &[1.0; 6])
        .build();
    let chain = Chain::new(vec![Filter::Quantize {
        scheme: Scheme::Fp16,
        pick: Pick::all(),
        rounding: Rounding::Nearest,
        loss: Loss::FedBack,
    }]);
    let (mut out, mut after) = (Vec::new(), Vec::new());
    let context = Context {
        kind: Kind::Full,
        seed: 0,
        residual: Some(Residual {
            before: Some(other.model()),
            after: &mut after,
        }),
        scratch: &mut || Ok(Box::new(Vec::new()) as Box<dyn Draft>),
    };
    let error = chain::encode(&chain, file.model(), context, &mut out).unwrap_err();
    assert!(error.to_string().contains("`w`"), "{error}");
}

#[test]
fn more_layers_than_any_reader_takes_are_refused() {
    let file = Maker::new()
        .values("w", DType::F32, &[300], &[1.0; 300])
        .build();
    let zip = Filter::Compress {
        level: 1,
        pick: Pick::all(),
    };
    let error = encode_with(&vec![zip.clone(); 9], &file, Kind::Full, 0).unwrap_err();
    assert!(matches!(
        error,
        EncodeError::TooManyLayers { count: 9, limit: 8 }
    ));
    let (encoded, _) = encode(&vec![zip; 8], &file);
    let (bytes, _) = restored(&encoded);
    assert_eq!(bytes, file.bytes());
}

#[test]
fn a_failing_disk_is_told_from_a_failing_source() {
    let mut random = Random(3);
    let file = Maker::new()
        .raw(
            "w",
            DType::F32,
            &[90_000],
            random.elements(DType::F32, 90_000),
        )
        .build();
    let filters = [
        quantize(Scheme::Int8),
        Filter::Compress {
            level: 1,
            pick: Pick::all(),
        },
        Filter::TopK {
            share: 0.5,
            pick: Pick::all(),
            loss: Loss::Forgotten,
        },
    ];
    for filter in filters {
        let chain = Chain::new(vec![filter]);
        for room in [0, 100, 50_000] {
            let mut out = common::Full {
                bytes: Vec::new(),
                room,
            };
            let error = common::try_encode(&chain, file.model(), &mut out).unwrap_err();
            assert!(matches!(error, EncodeError::Write(_)), "{error:?}");
        }
        let half = &file.bytes()[..file.bytes().len() / 2];
        let source = common::Short {
            bytes: half,
            size: file.bytes().len() as u64,
        };
        let model = Model {
            header: &file.header,
            bytes: &source,
        };
        let error = common::try_encode(&chain, model, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, EncodeError::Read(_)), "{error:?}");
    }
}

proptest! {
    /// Any shapes, values and chains: what comes back has the model's header, and
    /// reads alike in parts and as a whole.
    #[test]
    fn any_chain_comes_back(
        seed: u64,
        elements in 0usize..9_000,
        dtype in prop::sample::select(DType::ALL),
        chosen in prop::collection::vec(0usize..9, 1..4),
    ) {
        let mut random = Random(seed);
        let file = Maker::new()
            .raw("x", dtype, &[elements as u64], random.elements(dtype, elements))
            .raw("y#", DType::F32, &[700], random.elements(DType::F32, 700))
            .build();
        let filters: Vec<Filter> = chosen.iter().map(|at| match at {
            0..=5 => quantize(Scheme::ALL[*at]),
            6 => Filter::Compress { level: 1, pick: Pick::all() },
            7 => Filter::TopK { share: 0.3, pick: Pick::all(), loss: Loss::FedBack },
            _ => Filter::Quantize {
                scheme: Scheme::Nf4,
                pick: Pick::new(&["x".into()], &[]).unwrap(),
                rounding: Rounding::Stochastic,
                loss: Loss::FedBack,
            },
        }).collect();
        let (encoded, header) = encode_with(&filters, &file, Kind::Diff, seed).unwrap();
        prop_assert_eq!(&ModelHeader::parse(&encoded, encoded.len() as u64).unwrap(), &header);
        let (bytes, back) = restored(&encoded);
        prop_assert_eq!(&back, &file.header);
        let view = chain::decode(&header, &encoded).unwrap().unwrap();
        let mut at = 0;
        while at < bytes.len() {
            let length = (1 + random.below(5_000) as usize).min(bytes.len() - at);
            let mut part = vec![0; length];
            view.read_at(at as u64, &mut part).unwrap();
            prop_assert!(part == bytes[at..at + length]);
            at += length;
        }
        firesteel_codec::fuzz_encoded_model(&encoded);
    }
}
