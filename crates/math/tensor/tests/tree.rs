//! The params tree's text form: canonical, limited, exact about what is wrong.
#![allow(clippy::unwrap_used, reason = "a test")]

use firesteel_base::limits;
use firesteel_tensor::{Tree, TreeError};
use proptest::prelude::*;

#[track_caller]
fn refused(text: &str, says: &str) -> TreeError {
    let error = Tree::parse(text).expect_err("this must be refused");
    let message = error.to_string();
    assert!(message.contains(says), "{message:?} does not say {says:?}");
    error
}

#[test]
fn every_kind_has_its_text() {
    let text = r#"{"d":[["z",{"l":[{"s":"é\n"},{"i":"-9223372036854775808"}]}],["a",{"u":[{"f":1.5},{"f":"nan"},{"f":"-inf"},{"f":-0.0},{"b":true},{"x":"AAH/"},{"n":0},{"t":"z.0"}]}]]}"#;
    let tree = Tree::parse(text).unwrap();
    let Tree::Dict(entries) = &tree else {
        panic!("{tree:?}")
    };
    assert_eq!(entries[0].0, "z", "the order of keys is the user's");
    assert_eq!(
        entries[0].1,
        Tree::List(vec![Tree::Str("é\n".into()), Tree::Int(i64::MIN)])
    );
    assert_eq!(tree.to_json(), text);
    assert_eq!(tree.tensor_names(), ["z.0"]);
    let mut paths = Vec::new();
    tree.walk(|path, leaf| paths.push(format!("{}={}", path.as_str(), leaf.kind())));
    assert_eq!(paths[..3], ["z.0=str", "z.1=int", "a.0=float"]);
    assert_eq!(paths.len(), 10);
}

#[test]
fn python_spellings_of_a_float_are_read() {
    for (text, value) in [
        ("1", 1.0),
        ("1.0", 1.0),
        ("1e+16", 1e16),
        ("5e-324", 5e-324),
    ] {
        let tree = Tree::parse(&format!("{{\"f\": {text} }}")).unwrap();
        assert_eq!(tree, Tree::Float(value));
    }
}

#[test]
fn what_is_not_a_tree_is_refused_with_its_path() {
    use TreeError::{Base64, DuplicateKey, Float, Int, Json, UnknownKind};
    let inside = |node: &str| format!(r#"{{"d":[["a",{{"l":[{{"n":0}},{node}]}}]]}}"#);
    for (node, says) in [
        ("{}", "`a.1`: a node has no key"),
        ("[]", "`a.1`: invalid type: sequence"),
        ("3", "`a.1`"),
        ("{\"n\":1}", "none is written as 0"),
        ("{\"n\":0,\"b\":true}", "`a.1`"),
        ("{\"b\":0}", "expected a boolean"),
        ("{\"d\":[[\"k\"]]}", "`a.1.k`"),
        ("{\"d\":[[\"k\",{\"n\":0},1]]}", "`a.1`"),
        ("{\"d\":{}}", "key and node pairs"),
    ] {
        let error = refused(&inside(node), says);
        assert!(matches!(error, Json { .. }), "{node}: {error:?}");
    }
    let error = refused(&inside("{\"p\":0}"), "unknown kind `p` at `a.1`");
    assert!(matches!(error, UnknownKind { .. }));
    for number in ["01", "+1", "-0", "", "1.0", "9223372036854775808"] {
        let error = refused(&inside(&format!("{{\"i\":\"{number}\"}}")), "at `a.1`");
        assert!(matches!(error, Int { .. }), "{number}");
    }
    let error = refused(&inside("{\"f\":\"Infinity\"}"), "`Infinity`");
    assert!(matches!(error, Float { .. }));
    for text in ["A", "AA", "AAH_", "AB=="] {
        let error = refused(&inside(&format!("{{\"x\":\"{text}\"}}")), "at `a.1`");
        assert!(matches!(error, Base64 { .. }), "{text}");
    }
    let twice = "{\"d\":[[\"k\",{\"n\":0}],[\"k\",{\"n\":0}]]}";
    let error = refused(&inside(twice), "`k` twice in the dict at `a.1`");
    assert!(matches!(error, DuplicateKey { .. }));
    refused("{\"n\":0} {\"n\":0}", "trailing");
    refused("{\"q\":0}", "at `params`");
}

#[test]
fn limits_hold_for_text_and_for_trees_in_memory() {
    let nested = |depth: usize| {
        let mut tree = Tree::None;
        for _ in 1..depth {
            tree = Tree::Dict(vec![("k".into(), tree)]);
        }
        tree
    };
    let deepest = nested(limits::TREE_DEPTH);
    assert_eq!(deepest.check(), Ok(()));
    assert_eq!(Tree::parse(&deepest.to_json()).unwrap(), deepest);
    let deeper = nested(limits::TREE_DEPTH + 1);
    assert!(matches!(deeper.check(), Err(TreeError::TooDeep { .. })));
    let error = refused(&deeper.to_json(), "deeper than 64 levels");
    assert!(matches!(error, TreeError::TooDeep { .. }));
    // Far deeper than any stack.
    refused(&"{\"l\":[".repeat(500_000), "deeper than 64 levels");

    let half = "x".repeat(limits::TREE_BYTES / 2);
    let fits = Tree::List(vec![Tree::Str(half.clone()), Tree::Str(half.clone())]);
    assert_eq!(fits.check(), Ok(()));
    let over = Tree::Dict(vec![
        (half.clone(), Tree::Str(half)),
        ("k".into(), Tree::None),
    ]);
    assert!(matches!(over.check(), Err(TreeError::TooManyBytes { .. })));
    refused(&over.to_json(), "16777216 bytes at");

    let many = Tree::List(vec![Tree::None; limits::TREE_LEAVES]);
    assert!(matches!(many.check(), Err(TreeError::TooManyLeaves { .. })));
    refused(&many.to_json(), "more than 4000000 nodes");
    let twice = Tree::Dict(vec![("k".into(), Tree::None), ("k".into(), Tree::None)]);
    assert!(matches!(twice.check(), Err(TreeError::DuplicateKey { .. })));
}

proptest! {
    #[test]
    fn a_float_keeps_its_bits(bits: u64) {
        let value = f64::from_bits(bits);
        let tree = Tree::parse(&Tree::Float(value).to_json()).unwrap();
        let Tree::Float(read) = tree else { panic!("{tree:?}") };
        prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()));
    }

    #[test]
    fn texts_and_bytes_survive(text in any::<String>(), bytes in any::<Vec<u8>>()) {
        let tree = Tree::Dict(vec![(text.clone(), Tree::Str(text)), ("\u{0}".into(), Tree::Bytes(bytes))]);
        prop_assume!(tree.check().is_ok());
        prop_assert_eq!(Tree::parse(&tree.to_json()).unwrap(), tree);
    }
}
