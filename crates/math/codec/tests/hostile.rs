//! Encoded models that lie: each is refused with an error that names the tensor,
//! and nothing is read or allocated beyond what is there.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{File, Maker, Random, encode, quantize};
use firesteel_codec::{Filter, Loss, Pick, Scheme, chain};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};

fn model() -> File {
    let mut random = Random(1);
    let weights = random.elements(DType::F32, 5_000);
    Maker::new()
        .raw("layer.w", DType::F32, &[5_000], weights)
        .build()
}

/// The error that an encoded model gives, at once or when it is read.
fn refusal(bytes: &[u8]) -> String {
    let header = match ModelHeader::parse(bytes, bytes.len() as u64) {
        Ok(header) => header,
        Err(error) => return error.to_string(),
    };
    let error = match chain::decode(&header, &bytes) {
        Err(error) => error.to_string(),
        Ok(None) => "not encoded".into(),
        Ok(Some(view)) => match view.write(&mut Vec::new()) {
            Err(error) => error.to_string(),
            Ok(()) => "accepted".into(),
        },
    };
    firesteel_codec::fuzz_encoded_model(bytes);
    error
}

/// The same file with other metadata.
fn with(encoded: &[u8], key: &str, change: impl Fn(&str) -> String) -> Vec<u8> {
    let header = ModelHeader::parse(encoded, encoded.len() as u64).unwrap();
    let old = header.metadata().get(key).unwrap();
    let mut builder = header.to_builder();
    builder.metadata(key, &change(old));
    let (mut bytes, new) = builder.encode().unwrap();
    bytes.extend_from_slice(&encoded[header.data_start() as usize..]);
    assert_eq!(bytes.len() as u64, new.total_len());
    bytes
}

/// The same file with other bytes in a tensor.
fn patched(encoded: &[u8], tensor: &str, at: usize, to: &[u8]) -> Vec<u8> {
    let header = ModelHeader::parse(encoded, encoded.len() as u64).unwrap();
    let tensor = header.get(tensor).unwrap();
    let start = (header.data_start() + tensor.start) as usize + at;
    let mut bytes = encoded.to_vec();
    bytes[start..start + to.len()].copy_from_slice(to);
    bytes
}

const LAYER: &str = "firesteel.codec.0";

#[test]
fn headers_that_lie_are_refused_by_name() {
    let (encoded, header) = encode(&[quantize(Scheme::Nf4)], &model());
    assert_eq!(header.metadata()[LAYER], "nf4 #;0 F32 5000");
    assert_eq!(refusal(&encoded), "accepted");
    for (layer, want) in [
        ("nf4 #;0 F32 5001", "`layer.w` is damaged"),
        ("nf4 #;0 F32 4998", "`layer.w` is damaged"),
        ("nf4 #;0 F32 9223372036854775807", "is larger than any"),
        (
            "nf4 #;0 F32 4294967296,4294967296,4294967296",
            "is larger than any",
        ),
        ("nf4 #;0 F32 -1", "an entry is none"),
        ("nf4 #;0 I64 5000", "`layer.w` is damaged"),
        ("nf4 #;0 F32 5000;0 F32 5000", "not in order"),
        ("nf4 #;0 F32 5000;1 F32 79", "its entry 1"),
        ("nf4 #;3 F32 5000", "not in order"),
        ("nf4 #;99999999999999999999999 F32 5000", "an entry is none"),
        ("nf4 #", "belongs to no tensor"),
        ("nf4 ##;0 F32 5000", "its `absmax` is missing"),
        ("nf4 ;0 F32 5000", "its mark is none"),
        ("nf4", "its mark is none"),
        ("pickle #;0 F32 5000", "`pickle` is no step"),
        ("int8 #;0 F32 5000", "`layer.w` is damaged"),
        ("int8 #;0 F32 2500", "its `absmax`"),
        ("fp4 #;0 F32 5000", "its code book is not that of fp4"),
        ("fp16 #;0 F32 5000", "`layer.w` is damaged"),
        ("adaptive #;0 F32 5000", "`layer.w` is damaged"),
        ("top_k #;0 F32 5000", "`layer.w` is damaged"),
        ("zstd #;0 F32 5000", "its `ends`"),
        ("", "is no step"),
    ] {
        let error = refusal(&with(&encoded, LAYER, |_| layer.into()));
        assert!(error.contains(want), "{layer}: {error}");
    }
    let many: String = "nf4 #;0 F32 ".to_owned() + &"1,".repeat(100);
    let error = refusal(&with(&encoded, LAYER, |_| many.clone()));
    assert!(error.contains("an entry is none"), "{error}");
    for (version, want) in [
        ("2 1", "version 2"),
        ("1 9", "9 layers"),
        ("1 0", "0 layers"),
        ("1 2", "layer 1"),
        ("1 x", "no number"),
        ("1", "no number"),
    ] {
        let error = refusal(&with(&encoded, "firesteel.codec", |_| version.into()));
        assert!(error.contains(want), "{version}: {error}");
    }
}

#[test]
fn numbers_that_lie_are_refused_by_name() {
    let (encoded, _) = encode(&[quantize(Scheme::Int8)], &model());
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let error = refusal(&patched(&encoded, "layer.w#absmax", 4, &bad.to_le_bytes()));
        assert_eq!(
            error,
            "the encoded tensor `layer.w` is damaged: a largest magnitude is none"
        );
    }
    let error = refusal(&patched(&encoded, "layer.w#code", 40, &9f32.to_le_bytes()));
    assert!(
        error.contains("its code book is not that of int8"),
        "{error}"
    );

    let (encoded, _) = encode(&[quantize(Scheme::Adaptive)], &model());
    for (at, bad) in [
        (0, f64::NAN),
        (8, f64::INFINITY),
        (8, -1.0),
        (16, 0.5),
        (16, 1e9),
        (16, 0.0),
    ] {
        let error = refusal(&patched(&encoded, "layer.w#range", at, &bad.to_le_bytes()));
        assert!(
            error.contains("`layer.w` is damaged: its range is none"),
            "{at} {bad}: {error}"
        );
    }

    let top = Filter::TopK {
        share: 0.01,
        pick: Pick::all(),
        loss: Loss::Forgotten,
    };
    let (encoded, _) = encode(&[top], &model());
    for bad in [u64::MAX, 51, 0] {
        let error = refusal(&patched(&encoded, "layer.w#ends", 0, &bad.to_le_bytes()));
        assert!(
            error.contains("`layer.w` is damaged: the counts"),
            "{error}"
        );
    }
    for (at, bad) in [(0, 5_000u16), (2, 0), (98, 65_535)] {
        let error = refusal(&patched(&encoded, "layer.w#index", at, &bad.to_le_bytes()));
        assert!(
            error.contains("`layer.w` is damaged: the places"),
            "{error}"
        );
    }

    let zip = Filter::Compress {
        level: 1,
        pick: Pick::all(),
    };
    let (encoded, header) = encode(&[zip], &model());
    let length = header.get("layer.w").unwrap().size();
    for bad in [u64::MAX, length + 1, length - 1, 0] {
        let error = refusal(&patched(&encoded, "layer.w#ends", 0, &bad.to_le_bytes()));
        assert!(
            error.contains("`layer.w` is damaged: the lengths"),
            "{error}"
        );
    }
    let error = refusal(&patched(&encoded, "layer.w", 0, &[0; 64]));
    assert!(
        error.contains("`layer.w` is damaged: a frame cannot be"),
        "{error}"
    );
}

/// A frame that says it holds gigabytes fills no more than its tensor has room for.
#[test]
fn a_bomb_is_cut_at_the_length_of_its_tensor() {
    let bomb = {
        let zeros = vec![0u8; 64 << 20];
        zstd::bulk::compress(&zeros, 19).unwrap()
    };
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[bomb.len() as u64]);
    builder.tensor("w#ends", DType::U64, &[1]);
    builder.metadata("firesteel.codec", "1 1");
    builder.metadata(LAYER, "zstd #;0 U8 1000");
    let (mut bytes, header) = builder.encode().unwrap();
    bytes.extend_from_slice(&(bomb.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&bomb);
    assert_eq!(bytes.len() as u64, header.total_len());
    let error = refusal(&bytes);
    assert!(error.contains("`w` is damaged: a frame"), "{error}");
}

/// A small file may stand for a huge tensor; what it would be is known before
/// anything is read.
#[test]
fn a_huge_model_is_seen_before_it_is_read() {
    let elements = 1u64 << 50;
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[0]);
    builder.tensor("w#range", DType::F64, &[3]);
    builder.metadata("firesteel.codec", "1 1");
    builder.metadata(LAYER, &format!("adaptive #;0 F32 {elements}"));
    let (mut bytes, _) = builder.encode().unwrap();
    for number in [1.0f64, 0.0, 0.0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let header = ModelHeader::parse(&bytes, bytes.len() as u64).unwrap();
    let view = chain::decode(&header, &bytes).unwrap().unwrap();
    assert_eq!(view.header().data_len(), elements * 4);
    firesteel_codec::fuzz_encoded_model(&bytes);
}

/// Every single byte of a small encoded model, changed: refused, or read without a
/// panic; and every length that it could be cut to.
#[test]
fn any_changed_byte_is_survived() {
    let mut random = Random(2);
    let file = Maker::new()
        .raw("w", DType::F32, &[400], random.elements(DType::F32, 400))
        .build();
    let zip = Filter::Compress {
        level: 1,
        pick: Pick::all(),
    };
    for filters in [
        vec![quantize(Scheme::Nf4)],
        vec![quantize(Scheme::Adaptive), zip],
    ] {
        let (encoded, _) = encode(&filters, &file);
        for at in 0..encoded.len() {
            let mut bytes = encoded.clone();
            bytes[at] = bytes[at].wrapping_add(1 + (random.next() % 254) as u8);
            firesteel_codec::fuzz_encoded_model(&bytes);
            firesteel_codec::fuzz_encoded_model(&encoded[..at]);
        }
    }
}
