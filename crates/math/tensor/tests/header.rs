//! The model file's header: what is refused and why, and what the safetensors
//! library makes of the same bytes.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;

use firesteel_base::{Hint, limits};
use firesteel_tensor::{DType, HeaderBuilder, HeaderError, ModelHeader, Tree};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn file(json: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<ModelHeader, HeaderError> {
    ModelHeader::parse(bytes, bytes.len() as u64)
}

/// The refusal of a header with `json` before `data_len` bytes, padded to eight.
#[track_caller]
fn refused(json: &str, data_len: usize, says: &str) -> HeaderError {
    let mut padded = json.to_owned();
    padded.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let error = parse(&file(&padded, data_len)).expect_err("this must be refused");
    let text = error.to_string();
    assert!(text.contains(says), "{text:?} does not say {says:?}");
    error
}

macro_rules! refuses {
    ($json:expr, $data:expr, $variant:pat, $says:expr) => {
        let error = refused($json, $data, $says);
        assert!(matches!(error, $variant), "{error:?}");
    };
}

#[test]
fn cut_files_are_refused() {
    for length in 0..8 {
        let error = parse(&vec![0; length]).unwrap_err();
        assert_eq!(
            error,
            HeaderError::TooShort {
                length: length as u64
            }
        );
        assert!(error.hint().is_some());
    }
    let whole = file("{}      ", 0);
    assert!(parse(&whole).is_ok());
    for length in 8..whole.len() {
        let error = parse(&whole[..length]).unwrap_err();
        assert!(
            matches!(error, HeaderError::Truncated { needed: 16, .. }),
            "{error:?}"
        );
    }
    // A prefix that ends within the header is not enough, whatever the file has.
    let error = ModelHeader::parse(&whole[..12], 16).unwrap_err();
    assert!(matches!(
        error,
        HeaderError::Truncated {
            needed: 16,
            length: 12
        }
    ));
    let error = ModelHeader::parse(&whole, u64::MAX).unwrap_err();
    assert!(matches!(error, HeaderError::FileTooLong { .. }));
    for length in [limits::MODEL_HEADER as u64 + 1, u64::MAX] {
        let error = parse(&length.to_le_bytes()).unwrap_err();
        assert!(
            matches!(error, HeaderError::HeaderTooLong { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn what_is_not_a_header_is_refused() {
    use HeaderError::{Entry, Json, UnknownDType};
    refuses!("[]", 0, Json { .. }, "start with `{`");
    refuses!(" {}", 0, Json { .. }, "start with `{`");
    refuses!("{", 0, Json { .. }, "EOF");
    refuses!("{} x", 0, Json { .. }, "trailing");
    refuses!("{\"a\":1}", 0, Entry { .. }, "`a`");
    refuses!("{\"a\":{}}", 0, Entry { .. }, "missing field `dtype`");
    refuses!(
        r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#,
        4,
        Entry { .. },
        "floating point"
    );
    refuses!(
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        4,
        Entry { .. },
        "-1"
    );
    refuses!(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
        4,
        Entry { .. },
        "trailing"
    );
    refuses!(
        r#"{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        Entry { .. },
        "stands twice"
    );
    refuses!(
        r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#,
        1,
        UnknownDType { .. },
        "`F4`"
    );
    // Deep nesting in a field that is skipped must not use up the stack.
    let deep = format!("{{\"a\":{{\"x\":{}", "[".repeat(1_000_000));
    refuses!(&deep, 0, Entry { .. }, "EOF");
}

#[test]
fn impossible_shapes_and_places_are_refused() {
    use HeaderError::{Misaligned, OutOfRange, Overflow, Rank, Size};
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let rank = |n: usize| format!("[{}]", vec!["1"; n].join(","));
    assert!(parse(&file(&format!("{} ", entry("U8", &rank(64), "[0,1]")), 1)).is_ok());
    refuses!(&entry("U8", &rank(65), "[0,1]"), 1, Rank { .. }, "64");
    for shape in [
        "[9223372036854775807]",
        "[4294967296,4294967296]",
        "[0,9223372036854775807,4]",
    ] {
        refuses!(&entry("F32", shape, "[0,0]"), 0, Overflow { .. }, "`a`");
    }
    refuses!(&entry("F32", "[1]", "[0,4]"), 3, OutOfRange { .. }, "0..4");
    refuses!(&entry("F32", "[1]", "[4,0]"), 4, OutOfRange { .. }, "4..0");
    refuses!(
        &entry("F32", "[1]", "[18446744073709551612,18446744073709551615]"),
        4,
        OutOfRange { .. },
        "`a`"
    );
    refuses!(&entry("F32", "[2]", "[0,4]"), 4, Size { .. }, "need 8");
    let two = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    refuses!(two, 5, Misaligned { .. }, "`b`");
    // An empty tensor has no element that could be misaligned.
    let two = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[0],"data_offsets":[1,1]}}"#;
    assert!(parse(&file(two, 1)).is_ok());
}

#[test]
fn holes_overlaps_and_leftovers_are_refused() {
    use HeaderError::{Hole, Overlap, TrailingBytes};
    let pair = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let fine = pair("[2,4]", "[0,2]");
    let header = parse(&file(&fine, 4)).unwrap();
    let names: Vec<_> = header.tensors().iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["a", "b"]);
    let names: Vec<_> = header.data_order().iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["b", "a"]);
    refuses!(&pair("[0,2]", "[1,3]"), 3, Overlap { .. }, "`b`");
    refuses!(&pair("[0,2]", "[0,2]"), 2, Overlap { .. }, "overlaps");
    refuses!(&pair("[0,2]", "[3,5]"), 5, Hole { .. }, "2..3");
    refuses!(&pair("[1,3]", "[3,5]"), 5, Hole { .. }, "0..1");
    refuses!(&pair("[0,2]", "[2,4]"), 5, TrailingBytes { .. }, "5 bytes");
    refuses!("{}", 1, TrailingBytes { .. }, "1 bytes");
}

#[test]
fn names_stand_once() {
    use HeaderError::{AliasTarget, Aliases, DuplicateMetadata, DuplicateName};
    let a = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refuses!(&format!("{{{a},{a}}}"), 1, DuplicateName { .. }, "`a`");
    refuses!(
        r#"{"__metadata__":{},"__metadata__":{}}"#,
        0,
        DuplicateName { .. },
        "__metadata__"
    );
    refuses!(
        r#"{"__metadata__":{"k":"1","k":"2"}}"#,
        0,
        DuplicateMetadata { .. },
        "`k`"
    );
    let with = |aliases: &str| {
        let text = serde_json::to_string(aliases).unwrap();
        format!(r#"{{"__metadata__":{{"firesteel.aliases":{text}}},{a}}}"#)
    };
    refuses!(&with("[]"), 1, Aliases { .. }, "alias map");
    refuses!(&with(r#"{"b":1}"#), 1, Aliases { .. }, "alias map");
    refuses!(&with(r#"{"b":"c"}"#), 1, AliasTarget { .. }, "`c`");
    refuses!(
        &with(r#"{"b":"a","c":"b"}"#),
        1,
        AliasTarget { .. },
        "`c` is an alias of `b`"
    );
    refuses!(&with(r#"{"a":"a"}"#), 1, DuplicateName { .. }, "`a`");
    refuses!(
        &with(r#"{"b":"a","b":"a"}"#),
        1,
        DuplicateName { .. },
        "`b`"
    );
    // A name is shown without what it could do to a terminal.
    let evil = r#"{"\u001b[2J":{"dtype":"?","shape":[],"data_offsets":[0,1]}}"#;
    refuses!(evil, 1, HeaderError::UnknownDType { .. }, "\\u{1b}[2J");
}

#[test]
fn the_tree_and_the_tensors_name_each_other() {
    use HeaderError::{NotInTree, TreeTensor};
    let with = |tree: &str| {
        let text = serde_json::to_string(tree).unwrap();
        let a = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        format!(r#"{{"__metadata__":{{"firesteel.tree":{text}}},{a}}}"#)
    };
    refuses!(
        &with(r#"{"q":1}"#),
        1,
        HeaderError::Tree(_),
        "unknown kind `q`"
    );
    refuses!(
        &with(r#"{"l":[{"t":"a"},{"t":"b"}]}"#),
        1,
        TreeTensor { .. },
        "`b` at `1`"
    );
    refuses!(&with(r#"{"l":[]}"#), 1, NotInTree { .. }, "`a`");
}

#[test]
fn what_cannot_be_written_is_refused() {
    let encode = |fill: &dyn Fn(&mut HeaderBuilder)| {
        let mut builder = HeaderBuilder::new();
        fill(&mut builder);
        builder.encode().map(|_| ())
    };
    let error = encode(&|b| {
        b.tensor("__metadata__", DType::U8, &[]);
    });
    assert_eq!(error, Err(HeaderError::ReservedName));
    let error = encode(&|b| {
        b.metadata("firesteel.tree", "{}");
    });
    assert!(matches!(error, Err(HeaderError::ReservedMetadata { .. })));
    let error = encode(&|b| {
        b.tensor("a", DType::U8, &[1; 65]);
    });
    assert!(matches!(error, Err(HeaderError::Rank { .. })));
    let error = encode(&|b| {
        b.tensor("a", DType::U8, &[1 << 62])
            .tensor("b", DType::U8, &[1 << 62]);
    });
    assert!(matches!(error, Err(HeaderError::Overflow { .. })));
    let error = encode(&|b| {
        b.tensor("a", DType::U8, &[]).tensor("a", DType::U8, &[]);
    });
    assert!(matches!(error, Err(HeaderError::DuplicateName { .. })));
    let error = encode(&|b| {
        b.metadata("k", &"x".repeat(limits::MODEL_HEADER));
    });
    assert!(matches!(error, Err(HeaderError::HeaderTooLong { .. })));
    let error = encode(&|b| {
        b.tree(Tree::Tensor("a".into()));
    });
    assert!(matches!(error, Err(HeaderError::TreeTensor { .. })));
}

#[test]
fn layout_is_aligned_and_keeps_the_users_order() {
    let mut builder = HeaderBuilder::new();
    builder
        .tensor("flag", DType::Bool, &[])
        .tensor("w", DType::F32, &[2, 3])
        .tensor("none", DType::F64, &[0, 4])
        .tensor("steps", DType::I64, &[])
        .tensor("h", DType::BF16, &[5])
        .alias("tied", "w")
        .metadata("made by", "a test");
    let (bytes, header) = builder.encode().unwrap();
    assert_eq!(header.data_start() % 64, 0);
    assert_eq!(header.data_start(), bytes.len() as u64);
    assert_eq!(header.data_len(), 8 + 24 + 10 + 1);
    let names: Vec<_> = header.tensors().iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["flag", "w", "none", "steps", "h"]);
    for tensor in header.tensors() {
        assert_eq!(tensor.start % tensor.dtype.size() as u64, 0, "{tensor:?}");
    }
    assert_eq!(header.get("tied"), header.get("w"));
    assert_eq!(header.get("steps").unwrap().elements(), 1);
    assert_eq!(header.get("none").unwrap().elements(), 0);
    assert!(header.get("x").is_none());
    let read = ModelHeader::parse(&bytes, header.total_len()).unwrap();
    assert_eq!(read, header);
    assert_eq!(
        read.tree_or_flat().tensor_names(),
        ["flag", "w", "none", "steps", "h", "tied"]
    );
}

#[test]
fn safetensors_files_are_read_and_ours_are_read_by_safetensors() {
    let data: Vec<u8> = (0..48).collect();
    let view = |dtype, shape: &[usize], bytes| {
        TensorView::new(dtype, shape.to_vec(), &data[..bytes]).unwrap()
    };
    use safetensors::Dtype;
    let tensors = [
        ("b.bool", view(Dtype::BOOL, &[3], 3)),
        ("a.half", view(Dtype::F16, &[3], 6)),
        ("c.double", view(Dtype::F64, &[2, 3], 48)),
        ("d.scalar", view(Dtype::I64, &[], 8)),
        ("e.empty", view(Dtype::F32, &[0, 7], 0)),
        ("f.fp8", view(Dtype::F8_E4M3, &[5], 5)),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let theirs = safetensors::serialize(tensors.clone(), Some(metadata)).unwrap();
    let header = parse(&theirs).unwrap();
    assert_eq!(header.metadata()["format"], "pt");
    assert_eq!(header.tensors().len(), tensors.len());
    for (name, view) in &tensors {
        let tensor = header.get(name).unwrap();
        let shape: Vec<_> = tensor.shape.iter().map(|&d| d as usize).collect();
        assert_eq!(shape, view.shape(), "{name}");
        assert_eq!(header.bytes_of(tensor, &theirs).unwrap(), view.data());
    }

    let (mut ours, header) = header.to_builder().encode().unwrap();
    for tensor in header.data_order() {
        let (_, view) = tensors.iter().find(|(n, _)| *n == &*tensor.name).unwrap();
        assert_eq!(ours.len() as u64, header.data_start() + tensor.start);
        ours.extend_from_slice(view.data());
    }
    let read = SafeTensors::deserialize(&ours).unwrap();
    for (name, view) in &tensors {
        assert_eq!(read.tensor(name).unwrap(), *view, "{name}");
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "it measures itself")]
fn a_hundred_thousand_tensors_take_well_under_a_second() {
    let names: Vec<_> = (0..100_000).map(|n| format!("layers.{n}.weight")).collect();
    let mut builder = HeaderBuilder::new();
    for name in &names {
        builder.tensor(name, DType::F32, &[3, 3]);
    }
    let leaves = names
        .iter()
        .map(|n| (n.clone(), Tree::Tensor(n.clone())))
        .collect();
    builder.tree(Tree::Dict(leaves));
    let before = std::time::Instant::now();
    let (bytes, header) = builder.encode().unwrap();
    let encoded = before.elapsed();
    let before = std::time::Instant::now();
    let read = ModelHeader::parse(&bytes, header.total_len()).unwrap();
    let parsed = before.elapsed();
    println!("encode {encoded:?}, parse {parsed:?}");
    assert_eq!(read.get("layers.99999.weight").unwrap().start, 99_999 * 36);
    // Quadratic work would take minutes; the rest is a busy machine.
    assert!(encoded.as_secs() < 5 && parsed.as_secs() < 5);
}

fn any_tensor() -> impl Strategy<Value = (String, DType, Vec<u64>)> {
    (
        "\\PC{0,8}",
        prop::sample::select(DType::ALL),
        prop::collection::vec(0u64..5, 0..4),
    )
}

fn any_tree(names: Vec<String>) -> impl Strategy<Value = Tree> {
    let scalar = prop_oneof![
        Just(Tree::None),
        any::<bool>().prop_map(Tree::Bool),
        any::<i64>().prop_map(Tree::Int),
        any::<f64>().prop_map(Tree::Float),
        ".{0,6}".prop_map(Tree::Str),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Tree::Bytes),
    ];
    let nested = scalar.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::List),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::Tuple),
            prop::collection::btree_map(".{0,5}", inner, 0..4)
                .prop_map(|entries| Tree::Dict(entries.into_iter().collect())),
        ]
    });
    nested.prop_map(move |rest| {
        let mut items: Vec<_> = names.iter().cloned().map(Tree::Tensor).collect();
        items.push(rest);
        Tree::List(items)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_by_us_and_by_safetensors(
        (tensors, tree) in prop::collection::vec(any_tensor(), 0..12).prop_flat_map(|mut tensors| {
            tensors.sort_by(|a, b| a.0.cmp(&b.0));
            tensors.dedup_by(|a, b| a.0 == b.0);
            let names = tensors.iter().map(|t| t.0.clone()).collect();
            (Just(tensors).prop_shuffle(), prop::option::of(any_tree(names)))
        }),
        metadata in prop::collection::btree_map(".{0,5}", ".{0,5}", 0..3),
    ) {
        let mut builder = HeaderBuilder::new();
        for (name, dtype, shape) in &tensors {
            builder.tensor(name, *dtype, shape);
        }
        if let Some((name, ..)) = tensors.first() {
            builder.alias("\u{1}an alias", name);
        }
        if let Some(tree) = &tree {
            builder.tree(tree.clone());
        }
        for (key, value) in &metadata {
            builder.metadata(key, value);
        }
        let (mut bytes, header) = builder.encode().unwrap();
        let read = ModelHeader::parse(&bytes, header.total_len()).unwrap();
        prop_assert_eq!(&read, &header);
        prop_assert_eq!(read.tree(), tree.as_ref());
        prop_assert_eq!(read.metadata(), &metadata);
        bytes.resize(header.total_len() as usize, 7);
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(theirs.len(), tensors.len());
        for (name, dtype, _) in &tensors {
            let view = theirs.tensor(name).unwrap();
            let ours = header.get(name).unwrap();
            prop_assert_eq!(view.data(), header.bytes_of(ours, &bytes).unwrap());
            prop_assert_eq!(view.dtype().bitsize(), dtype.size() * 8);
        }
    }

    /// Damage anywhere in a good header: never a panic, and whatever is still
    /// accepted is accepted by safetensors with the same tensors.
    #[test]
    fn damaged_headers_never_pass_where_safetensors_refuses(
        at in 0usize..10_000, with: u8, cut in 0usize..400,
    ) {
        let mut builder = HeaderBuilder::new();
        builder
            .tensor("a", DType::F32, &[2])
            .tensor("b", DType::U8, &[3])
            .alias("c", "a")
            .tree(Tree::parse(r#"{"d":[["a",{"t":"a"}],["b",{"t":"b"}],["f",{"f":0.5}]]}"#).unwrap());
        let (mut bytes, header) = builder.encode().unwrap();
        bytes.resize(header.total_len() as usize, 0);
        let place = at % bytes.len();
        bytes[place] = with;
        bytes.truncate(bytes.len() - cut % 24);
        firesteel_tensor::fuzz_model_header(&bytes);
        if let Ok(header) = parse(&bytes) {
            let theirs = SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(theirs.len(), header.tensors().len());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        firesteel_tensor::fuzz_model_header(&bytes);
        firesteel_tensor::fuzz_params_tree(&bytes);
    }
}

#[test]
fn a_partial_update_may_lack_tensors_of_its_tree() {
    let json = |partial: &str| {
        format!(
            r#"{{"__metadata__":{{{partial}"firesteel.tree":"{{\"d\":[[\"a\",{{\"t\":\"a\"}}],[\"b\",{{\"t\":\"b\"}}]]}}"}},"b":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
        )
    };
    refuses!(
        &json(""),
        4,
        HeaderError::TreeTensor { .. },
        "names the tensor `a` at `a`"
    );
    refuses!(
        &json(r#""firesteel.partial":"2","#),
        4,
        HeaderError::Partial { .. },
        "`2`"
    );
    let json = json(r#""firesteel.partial":"1","#);
    let padded = format!("{json:width$}", width = json.len().next_multiple_of(8));
    let header = parse(&file(&padded, 4)).unwrap();
    assert!(header.is_partial());
    assert!(header.metadata().is_empty(), "it is not the user's own");
    let (bytes, again) = header.to_builder().encode().unwrap();
    assert!(again.is_partial());
    let read = ModelHeader::parse(&bytes, again.total_len()).unwrap();
    assert_eq!(read, again);
    // A tensor that the tree does not name is an error as ever.
    let mut builder = header.to_builder();
    builder.tensor("c", DType::F32, &[1]);
    assert!(matches!(
        builder.encode(),
        Err(HeaderError::NotInTree { .. })
    ));
    let mut whole = HeaderBuilder::new();
    whole.metadata("firesteel.partial", "1");
    assert!(matches!(
        whole.encode(),
        Err(HeaderError::ReservedMetadata { .. })
    ));
}
