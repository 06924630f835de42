//! Sums of some sites' updates, and what comes of them further up.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{File, Maker, Random, levels};
use firesteel_aggregate::{
    AggregateError, Contribution, Data, Exclude, Method, Options, Report, Sums, SumsError,
    UpdateKind, VerifyProblem, plan, plan_sums, verify_sums,
};
use firesteel_tensor::{DType, ModelHeader, Tree};
use proptest::prelude::*;

/// A file of sums, as it would have travelled.
struct Summed {
    bytes: Vec<u8>,
    sums: Sums,
}

fn sum(
    contributions: &[Contribution<'_>],
    model: Option<&File>,
    options: &Options,
) -> Result<Summed, AggregateError> {
    let plan = plan_sums(contributions, model.map(File::model), options)?;
    let mut bytes = vec![0; plan.output_len() as usize];
    plan.fold(&mut bytes)?;
    let header = ModelHeader::parse(&bytes, bytes.len() as u64).expect("a model file");
    let sums = Sums::of(&header).expect("what was just written");
    verify_sums(&sums, &bytes, model.map(|model| &model.header), options).unwrap();
    Ok(Summed { bytes, sums })
}

fn fold(
    contributions: &[Contribution<'_>],
    model: Option<&File>,
    options: &Options,
) -> Result<(Vec<u8>, Report), AggregateError> {
    let plan = plan(contributions, model.map(File::model), options)?;
    let mut bytes = vec![0; plan.output_len() as usize];
    let report = plan.fold(&mut bytes)?;
    Ok((bytes, report))
}

fn options(kind: UpdateKind) -> Options {
    Options {
        kind,
        ..Options::mean()
    }
}

/// Values whose products with weights and their sums all fit an f64, as those of
/// most trainings do: any order of adding gives the same.
fn tame(dtype: DType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let value = (random.next() % 512) as f64 / 64.0 - 4.0;
        match dtype {
            DType::F64 => bytes.extend(value.to_le_bytes()),
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
            // The upper half of an f32; nine bits of ours fit eight but for a tie.
            DType::BF16 => {
                bytes.extend(&(((value * 64.0) as i32 / 4) as f32 / 16.0).to_le_bytes()[2..])
            }
            _ => unreachable!(),
        }
    }
    bytes
}

fn update(random: &mut Random, elements: usize, changed: bool) -> File {
    let count = (random.next() % 1000) as i64;
    let ids: Vec<i64> = (0..4).map(|_| (random.next() % 7) as i64 - 3).collect();
    let mut maker = Maker::new();
    for (name, dtype) in [("a", DType::F32), ("b", DType::BF16), ("c", DType::F64)] {
        if name == "b" && !changed {
            continue;
        }
        maker = maker.raw(
            name,
            dtype,
            &[elements as u64],
            tame(dtype, elements, random),
        );
    }
    maker = maker.i64("count", &[], &[count]).i64("ids", &[4], &ids);
    let small = [(random.next() % 9) as u8, 255, 3];
    maker = maker.raw("bytes", DType::U8, &[3], small.to_vec());
    maker = maker.bools("mask", &[1, 0, 1]);
    if !changed {
        maker = maker.partial();
    }
    maker.at(random.next() as usize % 2).build()
}

/// Any tree of relays over these sites: who is below whom is drawn.
fn check(sites: usize, elements: usize, kind: UpdateKind, seed: u64) {
    let mut random = Random(seed);
    let model = update(&mut random, elements, true);
    let files: Vec<File> = (0..sites)
        .map(|site| update(&mut random, elements, site % 3 != 1))
        .collect();
    let names: Vec<String> = (0..sites).map(|site| format!("site-{site}")).collect();
    let weights: Vec<f64> = (0..sites)
        .map(|_| (1 + random.next() % 64) as f64)
        .collect();
    let all: Vec<Contribution<'_>> = files
        .iter()
        .zip(&names)
        .zip(&weights)
        .map(|((file, name), weight)| file.from(name, *weight))
        .collect();
    let options = options(kind);
    let (flat, report) = fold(&all, Some(&model), &options).unwrap();

    // Two levels below the server, and some sites that are below nobody.
    let (direct, below) = all.split_at(random.next() as usize % 2);
    let cut = random.next() as usize % below.len();
    let (near, far) = below.split_at(cut);
    let mut lower = Vec::new();
    let step = 1 + random.next() as usize % 3;
    for group in far.chunks(step) {
        lower.push(sum(group, Some(&model), &options).unwrap());
    }
    let mut upper: Vec<Contribution<'_>> = near.to_vec();
    upper.extend(
        lower
            .iter()
            .map(|summed| summed.sums.from("relay", &summed.bytes)),
    );
    let upper = sum(&upper, Some(&model), &options).unwrap();
    assert_eq!(upper.sums.counted().sites, below.len());
    for level in levels() {
        let options = Options {
            simd: level,
            threads: 1 + random.next() as usize % 3,
            ..options.clone()
        };
        let mut top = direct.to_vec();
        top.push(upper.sums.from("upper", &upper.bytes));
        let (folded, through) = fold(&top, Some(&model), &options).unwrap();
        assert!(
            folded == flat,
            "the bits differ from those of the flat fold"
        );
        assert_eq!(through.sites, report.sites);
        assert_eq!(through.partial, report.partial);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn sums_through_any_relays_are_the_flat_fold(
        sites in 2usize..9,
        elements in 1usize..5000,
        diff: bool,
        seed: u64,
    ) {
        let kind = if diff { UpdateKind::Diff } else { UpdateKind::Full };
        check(sites, elements, kind, seed);
    }

    /// What cannot be added exactly differs by less than the sum's own rounding:
    /// after the one to f32 by at most one unit of its last place.
    #[test]
    fn wild_values_are_within_one_unit(seed: u64) {
        let mut random = Random(seed);
        let mut file = || {
            let values = (0..300).map(|_| {
                let sign = if random.next().is_multiple_of(2) { 1.0 } else { -1.0 };
                sign * f32::from_bits((random.next() % 0x5000_0000) as u32)
            });
            Maker::new().f32("w", &values.collect::<Vec<_>>()).build()
        };
        let files: Vec<File> = (0..6).map(|_| file()).collect();
        let all: Vec<_> = files.iter().map(|file| file.from("s", 0.3)).collect();
        let options = Options::mean();
        let (flat, _) = fold(&all, None, &options).unwrap();
        let low = sum(&all[..3], None, &options).unwrap();
        let high = sum(&all[3..], None, &options).unwrap();
        let relays = [low.sums.from("l", &low.bytes), high.sums.from("h", &high.bytes)];
        let (folded, _) = fold(&relays, None, &options).unwrap();
        let header = ModelHeader::parse(&flat, flat.len() as u64).unwrap();
        prop_assert_eq!(&folded[..header.data_start() as usize], &flat[..header.data_start() as usize]);
        let values = |bytes: &[u8]| -> Vec<f32> {
            let data = &bytes[header.data_start() as usize..];
            data.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
        };
        let largest = |at: usize| {
            let values = all.iter().map(|c| match c.data {
                Data::Mapped(bytes) => f32::from_le_bytes(
                    bytes[c.header.data_start() as usize + 4 * at..][..4].try_into().unwrap(),
                ).abs(),
                _ => unreachable!(),
            });
            f64::from(values.fold(0.0, f32::max))
        };
        for (at, (a, b)) in values(&flat).into_iter().zip(values(&folded)).enumerate() {
            let unit = f64::from(a.abs().max(b.abs())) * f64::from(f32::EPSILON);
            let bound = unit.max(largest(at) * 6.0 * f64::EPSILON);
            prop_assert!((f64::from(a) - f64::from(b)).abs() <= bound, "{} {}", a, b);
        }
    }

    #[test]
    fn bytes_of_a_stranger_never_panic(text in "[\\[\\]{}:,\"a-z0-9.-]{0,80}") {
        let mut maker = Maker::new().f32("w", &[1.0]).build().header.to_builder();
        maker.metadata("firesteel.sums", &text);
        let (_, header) = maker.encode().unwrap();
        prop_assert!(Sums::of(&header).is_err());
    }
}

#[test]
fn without_a_model_keys_trees_and_values_come_through() {
    let file = |steps: i64, loss: f64, extra: bool| {
        let more = if extra {
            r#",["more",{"t":"more"}]"#
        } else {
            ""
        };
        let tree = format!(
            r#"{{"d":[["net",{{"t":"w"}}],["steps",{{"i":"{steps}"}}],["loss",{{"f":{loss:?}}}]{more},["name",{{"s":"x"}}]]}}"#
        );
        let mut maker = Maker::new().f32("w", &[loss as f32, 2.0]);
        if extra {
            maker = maker.f32("more", &[4.0]);
        }
        maker.tree(&tree).build()
    };
    let files = [
        file(3, 0.5, false),
        file(9, 0.25, true),
        file(4, 0.75, false),
    ];
    let [a, b, c] = &files;
    let options = Options::mean();
    let all = [a.from("a", 1.0), b.from("b", 2.0), c.from("c", 4.0)];
    let (flat, report) = fold(&all, None, &options).unwrap();
    let low = sum(&all[1..], None, &options).unwrap();
    let top = [all[0], low.sums.from("north", &low.bytes)];
    let (folded, through) = fold(&top, None, &options).unwrap();
    assert_eq!(folded, flat);
    assert_eq!(through, report);
    let header = ModelHeader::parse(&folded, folded.len() as u64).unwrap();
    let Some(Tree::Dict(entries)) = header.tree() else {
        panic!("no dict")
    };
    assert!(entries.contains(&("steps".to_owned(), Tree::Int(9))));
    // No site's own value is in what the relay hands up.
    let told = String::from_utf8_lossy(&low.bytes[..low.bytes.len() - 24]).into_owned();
    assert!(!told.contains("0.25") && !told.contains("0.75"), "{told}");
}

#[test]
fn an_update_in_which_nothing_changed_counts_through_relays() {
    let model = Maker::new().f32("a", &[1.0, 2.0]).f32("b", &[8.0]).build();
    let none = Maker::new().partial().build();
    let some = Maker::new().f32("a", &[3.0, 4.0]).partial().build();
    for kind in [UpdateKind::Full, UpdateKind::Diff] {
        let options = options(kind);
        let all = [
            none.from("x", 1.0),
            none.from("y", 3.0),
            some.from("z", 4.0),
        ];
        let (flat, report) = fold(&all, Some(&model), &options).unwrap();
        let low = sum(&all[..2], Some(&model), &options).unwrap();
        assert_eq!(low.sums.counted().weight, 4.0);
        let top = [low.sums.from("low", &low.bytes), all[2]];
        let (folded, through) = fold(&top, Some(&model), &options).unwrap();
        assert_eq!((folded, through), (flat, report));
    }
}

#[test]
fn excluded_keys_stay_below() {
    let model = Maker::new().f32("a", &[1.0]).f32("head", &[8.0]).build();
    let one = Maker::new().f32("a", &[3.0]).f32("head", &[9.0]).build();
    let options = Options {
        exclude: Exclude::new(&["^head"]).unwrap(),
        ..Options::mean()
    };
    let low = sum(&[one.from("x", 1.0)], Some(&model), &options).unwrap();
    let header = ModelHeader::parse(&low.bytes, low.bytes.len() as u64).unwrap();
    let names: Vec<_> = header
        .tensors()
        .iter()
        .map(|t| t.name.to_string())
        .collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn what_has_no_sums_is_refused_by_name() {
    let one = Maker::new().f32("a", &[3.0]).bools("mask", &[1]).build();
    let other = Maker::new().f32("a", &[3.0]).bools("mask", &[0]).build();
    let median = Options {
        method: Method::Median,
        ..Options::mean()
    };
    let error = sum(&[one.from("x", 1.0)], None, &median).err().unwrap();
    assert!(matches!(error, AggregateError::NoSums { .. }), "{error}");
    let all = [one.from("x", 1.0), other.from("y", 1.0)];
    let error = sum(&all, None, &Options::mean()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the bool tensor `mask` has other values at y than at x"
    );
    // The same above, where only the relays are known.
    let low = sum(&all[..1], None, &Options::mean()).unwrap();
    let top = [low.sums.from("north", &low.bytes), all[1]];
    let error = fold(&top, None, &Options::mean()).unwrap_err();
    assert!(error.to_string().contains("north"), "{error}");
    let error = fold(&top, Some(&one), &options(UpdateKind::Diff)).unwrap_err();
    assert!(matches!(error, AggregateError::OtherKind { .. }), "{error}");
}

#[test]
fn a_relay_that_tampers_is_noticed() {
    let model = Maker::new().f32("a", &[1.0, 2.0]).build();
    let one = Maker::new().f32("a", &[3.0, 4.0]).build();
    let options = Options::mean();
    let low = sum(&[one.from("x", 1.0)], Some(&model), &options).unwrap();
    let header = ModelHeader::parse(&low.bytes, low.bytes.len() as u64).unwrap();
    let mut bytes = low.bytes.clone();
    let start = header.data_start() as usize;
    bytes[start..start + 8].copy_from_slice(&f64::NAN.to_le_bytes());
    let problems = verify_sums(&low.sums, &bytes, Some(&model.header), &options).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "tensor `a`: 1 of 2 values are NaN or Inf"
    );
    let problems = verify_sums(&low.sums, &bytes[..start], Some(&model.header), &options);
    assert!(matches!(
        problems.unwrap_err()[0],
        VerifyProblem::Length { .. }
    ));
    let other = Maker::new().f32("b", &[1.0, 2.0]).build();
    let problems = verify_sums(&low.sums, &low.bytes, Some(&other.header), &options);
    assert!(problems.is_err());
    let text = &header.metadata()["firesteel.sums"];
    for (from, to, expected) in [
        (
            r#"["version",{"i":"1"}]"#,
            r#"["version",{"i":"2"}]"#,
            "version 2",
        ),
        (
            r#"{"s":"full"}"#,
            r#"{"s":"some"}"#,
            "neither full nor diff",
        ),
        (r#"{"s":"F32"}"#, r#"{"s":"F31"}"#, "no dtype"),
        (r#"{"s":"F32"}"#, r#"{"s":"BOOL"}"#, "not BOOL"),
        (r#"{"s":"F32"}"#, r#"{"s":"I64"}"#, "least or greatest"),
        (r#"["keys","#, r#"["clefs","#, "`keys` is missing"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        let mut builder = header.to_builder();
        builder.metadata("firesteel.sums", &text.replacen(from, to, 1));
        let (_, header) = builder.encode().unwrap();
        let error = Sums::of(&header).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = Sums::of(&model.header).unwrap_err();
    assert!(matches!(error, SumsError::Malformed { .. }));
}
