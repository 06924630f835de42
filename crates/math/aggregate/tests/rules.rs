//! The rules per kind of tensor and value, and what errors say.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{File, Maker};
use firesteel_aggregate::{
    AggregateError, Cast, CastError, Contribution, Data, Exclude, Method, Options, PartialKey,
    Report, UpdateKind, VerifyProblem, Wide, failure, plan, verify,
};
use firesteel_base::FailureCode;
use firesteel_tensor::{DType, ModelHeader, Tree};

struct Folded {
    header: ModelHeader,
    bytes: Vec<u8>,
    report: Report,
}

impl Folded {
    fn f32(&self, name: &str) -> Vec<f32> {
        self.elements(name).map(f32::from_le_bytes).collect()
    }

    fn i64(&self, name: &str) -> Vec<i64> {
        self.elements(name).map(i64::from_le_bytes).collect()
    }

    fn elements<const N: usize>(&self, name: &str) -> impl Iterator<Item = [u8; N]> {
        let tensor = self.header.get(name).expect("the result has it");
        let bytes = self.header.bytes_of(tensor, &self.bytes).unwrap();
        bytes.as_chunks().0.iter().copied()
    }

    fn keys(&self) -> Vec<&str> {
        self.header.tensors().iter().map(|t| &*t.name).collect()
    }
}

fn fold(
    contributions: &[Contribution<'_>],
    model: Option<&File>,
    options: &Options,
) -> Result<Folded, AggregateError> {
    let plan = plan(contributions, model.map(File::model), options)?;
    let mut bytes = vec![0; plan.output_len() as usize];
    let report = plan.fold(&mut bytes)?;
    let header = ModelHeader::parse(&bytes, bytes.len() as u64).expect("a model file came out");
    assert_eq!(&header, plan.header());
    Ok(Folded {
        header,
        bytes,
        report,
    })
}

fn mean(
    contributions: &[Contribution<'_>],
    model: Option<&File>,
) -> Result<Folded, AggregateError> {
    fold(contributions, model, &Options::mean())
}

fn diff() -> Options {
    Options {
        kind: UpdateKind::Diff,
        ..Options::mean()
    }
}

fn excluding(pattern: &str) -> Options {
    Options {
        exclude: Exclude::new(&[pattern]).unwrap(),
        ..Options::mean()
    }
}

#[test]
fn weights_count_and_differences_are_added() {
    let model = Maker::new().f32("w", &[10.0, 20.0]).build();
    let a = Maker::new().f32("w", &[1.0, 2.0]).build();
    let b = Maker::new().f32("w", &[5.0, 6.0]).build();
    let sites = [a.from("site-1", 3.0), b.from("site-2", 1.0)];
    assert_eq!(mean(&sites, Some(&model)).unwrap().f32("w"), [2.0, 3.0]);
    assert_eq!(mean(&sites, None).unwrap().f32("w"), [2.0, 3.0]);
    let added = fold(&sites, Some(&model), &diff()).unwrap();
    assert_eq!(added.f32("w"), [12.0, 23.0]);
    assert_eq!(added.report.sites, 2);
    let error = fold(&sites, None, &diff()).err().unwrap();
    assert_eq!(error, AggregateError::DiffWithoutModel);
}

#[test]
fn integers_bools_and_counters() {
    let site = |counter: i64, ids: &[i64], flags: &[u8]| {
        Maker::new()
            .i64("num_batches_tracked", &[], &[counter])
            .i64("same", &[2], &[1 << 60, -5])
            .i64("ids", &[2], ids)
            .bools("mask", flags)
            .build()
    };
    let a = site(30, &[1, i64::MAX], &[1, 0]);
    let b = site(70, &[2, i64::MAX], &[1, 0]);
    let folded = mean(&[a.from("site-1", 1.0), b.from("site-2", 1.0)], None).unwrap();
    assert_eq!(folded.i64("num_batches_tracked"), [70]);
    assert_eq!(folded.i64("same"), [1 << 60, -5]);
    assert_eq!(folded.i64("ids"), [2, i64::MAX], "1.5 rounds to even");
    let passed: Vec<_> = folded.report.passed_through.iter().map(|k| &**k).collect();
    assert_eq!(passed, ["same", "mask"]);
    assert_eq!(
        folded.report.warnings,
        ["integers that differ between sites were averaged and rounded, in `ids`"]
    );

    // Differences: counters add the greatest, bools are the new values.
    let base = site(1000, &[5, 6], &[0, 1]);
    let c = site(7, &[-1, 0], &[1, 0]);
    let d = site(9, &[-2, 0], &[1, 0]);
    let folded = fold(&[c.from("c", 1.0), d.from("d", 3.0)], Some(&base), &diff()).unwrap();
    assert_eq!(folded.i64("num_batches_tracked"), [1009]);
    assert_eq!(folded.i64("ids"), [3, 6], "5 - 1.75 is 3.25");
    assert_eq!(folded.i64("same"), [1 << 61, -10]);
    let mask: Vec<[u8; 1]> = folded.elements("mask").collect();
    assert_eq!(mask, [[1], [0]]);

    let odd = site(1, &[1, 1], &[0, 0]);
    let sites = [
        a.from("site-1", 1.0),
        odd.from("site-2", 1.0),
        b.from("site-3", 1.0),
        odd.from("site-4", 1.0),
    ];
    let error = mean(&sites, None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the bool tensor `mask` has other values at site-2 and site-4 than at site-1"
    );
}

#[test]
fn keys_that_some_sites_lack() {
    let model = Maker::new()
        .f32("a", &[1.0])
        .f32("b", &[2.0])
        .f32("c", &[3.0])
        .build();
    let all = Maker::new().f32("b", &[6.0]).f32("a", &[5.0]).build();
    let one = Maker::new().f32("a", &[9.0]).build();
    let sites = [all.from("site-1", 1.0), one.from("site-2", 1.0)];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(folded.keys(), ["a", "b", "c"]);
    assert_eq!(folded.f32("a"), [7.0]);
    assert_eq!(folded.f32("b"), [6.0]);
    assert_eq!(folded.f32("c"), [3.0]);
    let partial = PartialKey {
        key: "b".into(),
        sites: 1,
    };
    assert_eq!(folded.report.partial, std::slice::from_ref(&partial));
    assert_eq!(&*folded.report.kept[0], "c");

    // Without a model: the first site's order, then what others have more.
    let folded = mean(&[one.from("site-2", 1.0), all.from("site-1", 1.0)], None).unwrap();
    assert_eq!(folded.keys(), ["a", "b"]);
    assert_eq!(folded.report.partial, [partial]);

    let stranger = Maker::new().f32("a", &[1.0]).f32("zz", &[1.0]).build();
    let error = mean(&[stranger.from("site-9", 1.0)], Some(&model))
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "site-9: tensor `zz` is not in the model");
}

#[test]
fn excluded_keys_stay_the_models() {
    let model = Maker::new()
        .f32("body", &[0.0])
        .f32("head.w", &[7.0])
        .build();
    let site = Maker::new()
        .f32("body", &[4.0])
        // Not even their shape matters.
        .f32("head.w", &[1.0, 2.0])
        .build();
    let options = excluding("^head");
    assert_eq!(verify(site.model(), Some(&model.header), &options), Ok(()));
    let folded = fold(&[site.from("site-1", 1.0)], Some(&model), &options).unwrap();
    assert_eq!(folded.f32("body"), [4.0]);
    assert_eq!(folded.f32("head.w"), [7.0]);
    assert_eq!(&*folded.report.excluded[0], "head.w");
    // Without a model there is nothing to keep.
    let folded = fold(&[site.from("site-1", 1.0)], None, &options).unwrap();
    assert_eq!(folded.keys(), ["body"]);
    assert_eq!(&*folded.report.excluded[0], "head.w");

    let error = Exclude::new(&["ok", "a("]).unwrap_err();
    assert_eq!(error.to_string(), "`a(` is not a regular expression");
}

#[test]
fn tied_weights_stay_tied() {
    let model = Maker::new().f32("emb", &[0.0]).alias("out", "emb").build();
    let tied = Maker::new().f32("emb", &[2.0]).alias("out", "emb").build();
    let renamed = Maker::new().f32("out", &[4.0]).build();
    let turned = Maker::new().f32("out", &[6.0]).alias("emb", "out").build();
    for file in [&tied, &renamed, &turned] {
        assert_eq!(
            verify(file.model(), Some(&model.header), &Options::mean()),
            Ok(())
        );
    }
    let sites = [
        tied.from("a", 1.0),
        renamed.from("b", 1.0),
        turned.from("c", 1.0),
    ];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(folded.keys(), ["emb"]);
    assert_eq!(folded.f32("out"), [4.0]);
    assert!(folded.report.warnings.is_empty());

    let apart = Maker::new().f32("out", &[8.0]).f32("emb", &[1.0]).build();
    let folded = mean(&[apart.from("a", 1.0)], Some(&model)).unwrap();
    assert_eq!(folded.f32("emb"), [1.0]);
    assert_eq!(
        folded.report.warnings,
        ["`emb` came apart from the tensor that the model ties to it; the tied one counts"]
    );
}

#[test]
fn weights_that_cannot_be() {
    let file = Maker::new().f32("w", &[1.0]).build();
    for weight in [-1.0, f64::NAN, f64::INFINITY, 1e39] {
        let error = mean(&[file.from("site-1", weight)], None).err().unwrap();
        assert!(
            error.to_string().starts_with("site-1 has the weight"),
            "{error}"
        );
    }
    let error = mean(&[file.from("a", 0.0), file.from("b", 1e-60)], None)
        .err()
        .unwrap();
    assert_eq!(error, AggregateError::NoWeight { sites: 2 });
    let folded = mean(&[file.from("a", 0.0), file.from("b", 1.0)], None).unwrap();
    assert_eq!(
        folded.report.warnings,
        ["a counted for nothing, with a weight of zero"]
    );
    assert_eq!(mean(&[], None).err(), Some(AggregateError::Nothing));
    for fraction in [0.5, -0.1, f64::NAN] {
        let options = Options {
            method: Method::TrimmedMean(fraction),
            ..Options::mean()
        };
        let error = fold(&[file.from("a", 1.0)], None, &options).err().unwrap();
        assert!(matches!(error, AggregateError::Trim { .. }));
    }
    // A median counts everybody once.
    let other = Maker::new().f32("w", &[9.0]).build();
    let options = Options {
        method: Method::Median,
        ..Options::mean()
    };
    let sites = [
        file.from("a", 0.0),
        file.from("b", 1e9),
        other.from("c", 5.0),
    ];
    assert_eq!(fold(&sites, None, &options).unwrap().f32("w"), [1.0]);
}

#[test]
fn a_result_that_outgrows_its_dtype_is_an_error() {
    let half = |bits: u16| {
        let bytes = bits.to_le_bytes().to_vec();
        Maker::new().raw("h", DType::F16, &[1], bytes).build()
    };
    let model = half(0x7bff);
    let error = fold(&[half(0x7bff).from("a", 1.0)], Some(&model), &diff())
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "the aggregate of `h`: 1 of 1 values are NaN or Inf"
    );
    let options = Options {
        master_dtype: Some(Wide::F32),
        ..diff()
    };
    let folded = fold(&[half(0x7bff).from("a", 1.0)], Some(&model), &options).unwrap();
    assert_eq!(folded.f32("h"), [131_008.0]);
}

#[test]
fn a_wide_master_goes_out_narrow_and_comes_back() {
    let half = |values: [u16; 2]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Maker::new()
            .raw("h", DType::F16, &[2], bytes)
            .i64("n", &[], &[3])
            .build()
    };
    let wire = half([0x3c00, 0x3c01]);
    let options = Options {
        master_dtype: Some(Wide::F32),
        ..Options::mean()
    };
    let sites = [half([0x3c00, 0x3c01]), half([0x3c01, 0x3c01])];
    let sites = [sites[0].from("a", 1.0), sites[1].from("b", 1.0)];
    let master = fold(&sites, Some(&wire), &options).unwrap();
    assert_eq!(
        master.f32("h"),
        [1.0 + 2f32.powi(-11), 1.0 + 2f32.powi(-10)]
    );
    // The next round's updates are checked and folded against the wide master.
    let model = firesteel_aggregate::Model {
        header: &master.header,
        bytes: &master.bytes,
    };
    assert_eq!(
        verify(sites[1].header_and_bytes(), Some(model.header), &options),
        Ok(())
    );
    let again = plan(&sites, Some(model), &options).unwrap();
    assert_eq!(again.header().get("h").unwrap().dtype, DType::F32);

    let cast = Cast::new(model, &wire.header).unwrap();
    let mut out = vec![0; cast.header().total_len() as usize];
    cast.write(&mut out).unwrap();
    let tensor = cast.header().get("h").unwrap();
    assert_eq!(tensor.dtype, DType::F16);
    let bytes = cast.header().bytes_of(tensor, &out).unwrap();
    assert_eq!(
        bytes,
        [0x00, 0x3c, 0x01, 0x3c],
        "a tie goes to the even one"
    );
    assert!(matches!(
        cast.write(&mut out[1..]),
        Err(CastError::Length { .. })
    ));

    let large = Maker::new().f32("h", &[1e6, 0.0]).build();
    let cast = Cast::new(large.model(), &wire.header).unwrap();
    let mut out = vec![0; cast.header().total_len() as usize];
    assert_eq!(
        cast.write(&mut out).unwrap_err().to_string(),
        "tensor `h`: 1 of 2 values are too large for F16"
    );
    let wrong = Maker::new().i64("h", &[2], &[1, 1]).build();
    assert!(matches!(
        Cast::new(wrong.model(), &wire.header),
        Err(CastError::Kind { .. })
    ));
}

trait HeaderAndBytes<'a> {
    fn header_and_bytes(&self) -> firesteel_aggregate::Model<'a>;
}

impl<'a> HeaderAndBytes<'a> for Contribution<'a> {
    fn header_and_bytes(&self) -> firesteel_aggregate::Model<'a> {
        firesteel_aggregate::Model {
            header: self.header,
            bytes: match self.data {
                Data::Mapped(bytes) => bytes,
                _ => unreachable!("these tests map their files"),
            },
        }
    }
}

#[test]
fn values_of_the_params_tree() {
    let tree = |lr: &str, step: &str, name: &str| {
        format!(
            r#"{{"d":[["w",{{"t":"w"}}],["opt",{{"l":[{lr},{step},{{"s":"{name}"}},{{"n":0}}]}}]]}}"#
        )
    };
    let site = |w: f32, lr: &str, step: &str, name: &str| {
        Maker::new()
            .f32("w", &[w])
            .tree(&tree(lr, step, name))
            .build()
    };
    let model = site(0.0, r#"{"f":100.0}"#, r#"{"i":"40"}"#, "sgd");
    let a = site(1.0, r#"{"f":0.5}"#, r#"{"i":"10"}"#, "sgd");
    let b = site(3.0, r#"{"i":"1"}"#, r#"{"i":"12"}"#, "sgd");
    let sites = [a.from("site-1", 3.0), b.from("site-2", 1.0)];
    let folded = mean(&sites, Some(&model)).unwrap();
    let want = Tree::parse(&tree(r#"{"f":0.625}"#, r#"{"i":"12"}"#, "sgd")).unwrap();
    assert_eq!(folded.header.tree(), Some(&want));
    let folded = fold(&sites, Some(&model), &diff()).unwrap();
    let want = Tree::parse(&tree(r#"{"f":100.625}"#, r#"{"i":"52"}"#, "sgd")).unwrap();
    assert_eq!(folded.header.tree(), Some(&want));
    let folded = mean(&sites, None).unwrap();
    assert_eq!(folded.header.tensors().len(), 1);

    let odd = site(1.0, r#"{"f":0.5}"#, r#"{"i":"10"}"#, "adam");
    let sites = [a.from("site-1", 1.0), odd.from("site-2", 1.0)];
    let error = mean(&sites, Some(&model)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the str at `opt.2` is another at site-2 than at site-1"
    );
    let folded = fold(&sites, Some(&model), &excluding(r"opt\.2")).unwrap();
    assert_eq!(&*folded.report.excluded[0], "opt.2");
    // A site that leaves the list out altogether.
    let bare = Maker::new()
        .f32("w", &[5.0])
        .tree(r#"{"d":[["w",{"t":"w"}]]}"#)
        .build();
    let folded = mean(&[a.from("a", 1.0), bare.from("b", 1.0)], Some(&model)).unwrap();
    let partial: Vec<_> = folded
        .report
        .partial
        .iter()
        .map(|p| (&*p.key, p.sites))
        .collect();
    assert_eq!(
        partial,
        [("opt.0", 1), ("opt.1", 1), ("opt.2", 1), ("opt.3", 1)]
    );
    assert_eq!(folded.f32("w"), [3.0]);
    // Trees of different sites are laid over each other when there is no model.
    let folded = mean(&[bare.from("b", 1.0), a.from("a", 1.0)], None).unwrap();
    let tree = folded.header.tree().unwrap().to_json();
    assert!(tree.contains(r#"{"f":0.5}"#), "{tree}");
    let error = fold(&[a.from("a", 1.0)], None, &excluding("opt"))
        .err()
        .unwrap();
    assert!(matches!(error, AggregateError::ExcludedItem { .. }));
}

/// What a site is told about its update.
#[track_caller]
fn told(update: File, model: &File, options: &Options) -> Vec<String> {
    let problems = verify(update.model(), Some(&model.header), options).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_sites_are_told() {
    let options = Options::mean();
    let model = Maker::new()
        .f32("fc.weight", &[0.0; 100])
        .raw("conv", DType::F32, &[3, 3], vec![0; 36])
        .bools("mask", &[0, 1])
        .build();
    let mut values = [0f32; 100];
    for bad in &mut values[..12] {
        *bad = f32::NAN;
    }
    values[50] = f32::NEG_INFINITY;
    assert_eq!(
        told(
            Maker::new().f32("fc.weight", &values).build(),
            &model,
            &options
        ),
        ["tensor `fc.weight`: 13 of 100 values are NaN or Inf"]
    );
    let update = Maker::new()
        .raw("conv", DType::F32, &[3, 4], vec![0; 48])
        .f32("fc\n", &[1.0])
        .raw("fc.weight", DType::F64, &[100], vec![0; 800])
        .bools("mask", &[2, 1]);
    let update = update.build();
    let problems = verify(update.model(), Some(&model.header), &options).unwrap_err();
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "tensor `conv` has shape [3, 4], the model has [3, 3]",
            "tensor `fc\\u{a}` is not in the model",
            "tensor `fc.weight` is F64, the model has F32",
            "tensor `mask`: 1 of 2 values are neither true nor false",
        ]
    );
    let codes: Vec<_> = problems.iter().map(VerifyProblem::code).collect();
    use FailureCode::{DtypeMismatch, KeyMismatch, Malformed, ShapeMismatch};
    assert_eq!(
        codes,
        [ShapeMismatch, KeyMismatch, DtypeMismatch, Malformed]
    );
    let failure = failure(&problems).unwrap();
    assert_eq!(
        failure.to_string(),
        "tensor `conv` has shape [3, 4], the model has [3, 3] (and 3 more problems) [shape-mismatch, during verify]"
    );
    assert!(
        failure
            .hint
            .starts_with("every site must build the same network")
    );
    assert!(firesteel_aggregate::failure(&[]).is_none());

    assert_eq!(
        told(Maker::new().build(), &model, &options),
        ["the update has none of the model's 3 keys"]
    );
    let cut = Maker::new().f32("fc.weight", &[0.0; 100]).build();
    let short = firesteel_aggregate::Model {
        header: &cut.header,
        bytes: &cut.bytes()[..cut.bytes().len() - 1],
    };
    let problems = verify(short, Some(&model.header), &options).unwrap_err();
    assert!(matches!(problems[..], [VerifyProblem::Length { .. }]));

    let tree = |value: &str| {
        let text = format!(r#"{{"d":[["x",{value}],["t",{{"t":"t"}}]]}}"#);
        Maker::new().f32("t", &[1.0]).tree(&text).build()
    };
    let model = tree(r#"{"f":1.0}"#);
    let says = |value: &str| told(tree(value), &model, &options);
    assert_eq!(says(r#"{"f":"nan"}"#), ["the value at `x` is nan"]);
    assert_eq!(says(r#"{"f":"-inf"}"#), ["the value at `x` is -inf"]);
    assert_eq!(
        says(r#"{"s":"1"}"#),
        ["the value at `x` is of type str, the model has float"]
    );
    assert_eq!(
        says(r#"{"l":[{"i":"1"}]}"#),
        ["the int at `x.0` is not in the model"]
    );
    assert_eq!(
        verify(tree(r#"{"i":"3"}"#).model(), Some(&model.header), &options),
        Ok(())
    );
}

#[test]
fn files_that_do_not_fit_are_refused_before_the_fold() {
    let a = Maker::new().f32("w", &[1.0]).build();
    let b = Maker::new().f32("w", &[1.0, 2.0]).build();
    let error = mean(&[a.from("site-1", 1.0), b.from("site-2", 1.0)], None)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "site-2: tensor `w` has shape [2], the model has [1]"
    );
    let mut cut = a.from("site-1", 1.0);
    cut.data = Data::Mapped(&a.bytes()[..a.bytes().len() - 1]);
    assert!(matches!(
        mean(&[cut], None),
        Err(AggregateError::Length { .. })
    ));
    let plan = plan(&[a.from("site-1", 1.0)], None, &Options::mean()).unwrap();
    assert!(matches!(
        plan.fold(&mut [0; 3]),
        Err(AggregateError::Output { .. })
    ));
}

/// What a server with many small sites, or with a very long model, must not
/// take long over; quadratic work would take minutes.
#[test]
#[allow(clippy::disallowed_methods, reason = "it measures itself")]
fn many_sites_and_many_tensors() {
    let small = Maker::new().f32("w", &[2.0; 10]).f32("b", &[1.0]).build();
    let names: Vec<_> = (0..10_000).map(|n| format!("site-{n}")).collect();
    let sites: Vec<_> = names.iter().map(|name| small.from(name, 3.0)).collect();
    let before = std::time::Instant::now();
    assert_eq!(mean(&sites, Some(&small)).unwrap().bytes, small.bytes());
    println!("10,000 sites: {:?}", before.elapsed());

    let mut maker = Maker::new();
    for n in 0..50_000 {
        maker = maker.f32(&format!("layers.{n}"), &[n as f32]);
    }
    let long = maker.build();
    let sites: Vec<_> = names
        .iter()
        .take(8)
        .map(|name| long.from(name, 1.0))
        .collect();
    let before = std::time::Instant::now();
    assert_eq!(
        verify(long.model(), Some(&long.header), &Options::mean()),
        Ok(())
    );
    println!("verify 50,000 tensors: {:?}", before.elapsed());
    let before = std::time::Instant::now();
    let folded = mean(&sites, Some(&long)).unwrap();
    println!("8 sites of 50,000 tensors: {:?}", before.elapsed());
    assert_eq!(folded.bytes, long.bytes());
    assert!(before.elapsed().as_secs() < 10);
}

#[test]
fn models_without_tensors_or_elements() {
    let empty = Maker::new().build();
    let folded = mean(&[empty.from("a", 1.0), empty.from("b", 1.0)], None).unwrap();
    assert_eq!(folded.bytes, empty.bytes());
    let hollow = Maker::new()
        .f32("none", &[])
        .i64("no ints", &[0, 3], &[])
        .bools("no bools", &[])
        .build();
    for method in [Method::Mean, Method::Median, Method::TrimmedMean(0.1)] {
        let options = Options {
            method,
            ..Options::mean()
        };
        let folded = fold(&[hollow.from("a", 1.0)], Some(&hollow), &options).unwrap();
        assert_eq!(folded.bytes, hollow.bytes());
    }
}

#[test]
fn a_partial_update_says_nothing_of_what_it_lacks() {
    let model = Maker::new()
        .f32("w", &[10.0, 20.0])
        .f32("frozen", &[5.0])
        .build();
    let whole = |w: f32, frozen: f32| {
        Maker::new()
            .f32("w", &[w; 2])
            .f32("frozen", &[frozen])
            .build()
    };
    let changed = |w: f32| Maker::new().f32("w", &[w; 2]).partial().build();
    let (a, b, c) = (changed(1.0), changed(3.0), whole(5.0, 8.0));
    // All leave it out: the model's own.
    let sites = [a.from("site-1", 1.0), b.from("site-2", 3.0)];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(
        (folded.f32("w"), folded.f32("frozen")),
        (vec![2.5; 2], vec![5.0])
    );
    assert_eq!(folded.report.kept, ["frozen".into()]);
    // One sends it: the others count with what they were given.
    let sites = [
        a.from("site-1", 1.0),
        b.from("site-2", 1.0),
        c.from("site-3", 1.0),
    ];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(
        (folded.f32("w"), folded.f32("frozen")),
        (vec![3.0; 2], vec![6.0])
    );
    assert_eq!(folded.report.partial, [], "every site counted");
    let folded = fold(&sites, Some(&model), &diff()).unwrap();
    assert_eq!(folded.f32("frozen"), [(5.0 + 8.0 / 3.0f64) as f32]);
    // One that is not partial and lacks it has no say, as before.
    let d = Maker::new().f32("w", &[1.0; 2]).build();
    let sites = [
        a.from("site-1", 1.0),
        c.from("site-2", 1.0),
        d.from("site-3", 1.0),
    ];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(folded.f32("frozen"), [6.5]);
    let expected = PartialKey {
        key: "frozen".into(),
        sites: 2,
    };
    assert_eq!(folded.report.partial, [expected]);
    // The result is a whole model again.
    assert!(!folded.header.is_partial());

    let error = mean(&[a.from("site-1", 1.0)], None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "site-1: the update holds only what changed, but there is no model that it changed"
    );
    let options = Options::mean();
    let problems = verify(a.model(), None, &options).unwrap_err();
    assert_eq!(problems, [VerifyProblem::PartialWithoutModel]);
    assert_eq!(problems[0].code(), FailureCode::KeyMismatch);
    assert_eq!(verify(a.model(), Some(&model.header), &options), Ok(()));
    let unknown = Maker::new().f32("new", &[1.0]).partial().build();
    assert!(verify(unknown.model(), Some(&model.header), &options).is_err());
    // Nothing changed: nothing is said, and nothing is wrong.
    let nothing = Maker::new().partial().build();
    assert_eq!(
        verify(nothing.model(), Some(&model.header), &options),
        Ok(())
    );
    let sites = [nothing.from("site-1", 1.0), c.from("site-2", 1.0)];
    let folded = mean(&sites, Some(&model)).unwrap();
    assert_eq!(
        (folded.f32("w"), folded.f32("frozen")),
        (vec![7.5, 12.5], vec![6.5])
    );
    let alone = mean(&sites[..1], Some(&model)).unwrap();
    assert_eq!(alone.bytes, model.bytes());
}

#[test]
fn a_partial_update_of_integers_bools_and_values_follows_their_rules() {
    let tree =
        r#"{"d":[["n",{"t":"n"}],["ids",{"t":"ids"}],["mask",{"t":"mask"}],["lr",{"f":1.0}]]}"#;
    let file = |n: i64, ids: &[i64], mask: &[u8]| {
        Maker::new()
            .i64("n", &[], &[n])
            .i64("ids", &[2], ids)
            .bools("mask", mask)
            .tree(tree)
            .build()
    };
    let model = file(100, &[4, 8], &[1, 0]);
    // Its tree is whole, and its values are always said.
    let part = |lr: &str| {
        let tree = tree.replace("1.0", lr);
        Maker::new()
            .i64("ids", &[2], &[6, 8])
            .partial()
            .tree(&tree)
            .build()
    };
    let (a, b) = (part("2.0"), file(90, &[0, 0], &[1, 0]));
    let folded = mean(&[a.from("a", 1.0), b.from("b", 1.0)], Some(&model)).unwrap();
    assert_eq!(
        folded.i64("n"),
        [100],
        "the greatest, the model's own among them"
    );
    assert_eq!(folded.i64("ids"), [3, 4]);
    let Some(Tree::Dict(entries)) = folded.header.tree() else {
        panic!("the tree is gone");
    };
    assert_eq!(entries[3].1, Tree::Float(1.5));
    let passed: Vec<_> = folded.report.passed_through.iter().map(|k| &**k).collect();
    assert_eq!(passed, ["mask"]);
    // Differences of zero; a bool's is the model's value.
    let folded = fold(&[a.from("a", 1.0), b.from("b", 1.0)], Some(&model), &diff()).unwrap();
    assert_eq!(folded.i64("n"), [190]);
    assert_eq!(folded.i64("ids"), [7, 12]);
    let c = file(90, &[0, 0], &[0, 0]);
    let error = mean(&[a.from("a", 1.0), c.from("b", 1.0)], Some(&model))
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "the bool tensor `mask` has other values at b than at a"
    );
}

#[test]
fn a_partial_update_under_a_wide_model_counts_as_the_site_knows_it() {
    // 1/3 in f32, and what the sites were given of it in bf16.
    let master = Maker::new().f32("w", &[1.0 / 3.0]).build();
    let given = [0xab, 0x3e];
    let one = [0x80, 0x3f];
    let bf16 = |bytes: [u8; 2]| Maker::new().raw("w", DType::BF16, &[1], bytes.to_vec());
    let options = Options {
        master_dtype: Some(Wide::F32),
        ..Options::mean()
    };
    let (whole, changed) = (bf16(given).build(), bf16(one).build());
    let part = Maker::new().partial().build();
    let from = |first: &File| {
        let sites = [first.from("a", 1.0), changed.from("b", 1.0)];
        fold(&sites, Some(&master), &options).unwrap().bytes
    };
    assert_eq!(from(&part), from(&whole));
    let alone = fold(&[part.from("a", 1.0)], Some(&master), &options).unwrap();
    assert_eq!(
        alone.f32("w"),
        [1.0 / 3.0],
        "nobody changed it: it keeps every bit"
    );
}
