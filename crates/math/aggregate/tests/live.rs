//! Updates that are read from their sites while they are folded: the same bits,
//! little memory, and clear words for what goes wrong.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::atomic::Ordering;

use common::{Afar, File, Maker, Random, read};
use firesteel_aggregate::{
    AggregateError, Contribution, Data, Exclude, Method, Options, ReadAt, UpdateKind,
    VerifyProblem, Wide, plan, verify, verify_live, verify_read,
};
use firesteel_base::{FailureCode, Hint, limits};
use firesteel_tensor::{DType, Facts};
use proptest::prelude::*;

fn fold(
    contributions: &[Contribution<'_>],
    model: Option<&File>,
    options: &Options,
) -> Result<Vec<u8>, AggregateError> {
    let plan = plan(contributions, model.map(File::model), options)?;
    let mut out = vec![0xaa; plan.output_len() as usize];
    plan.fold(&mut out).map(|_| out)
}

/// Finite values, which is what bools and floats of an update must be.
fn values(dtype: DType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count * dtype.size() {
        let bits = random.next().to_le_bytes();
        let element = &bits[..dtype.size()];
        let fits = match dtype {
            DType::Bool => element[0] <= 1,
            _ if dtype.is_float() => {
                let value = read(dtype, element);
                value.is_finite() && value.abs() < 1e300
            }
            _ => true,
        };
        if fits {
            bytes.extend_from_slice(element);
        }
    }
    bytes
}

/// Tensors of several dtypes, in this order; odd lengths, one empty, one single.
const TENSORS: [(&str, DType, &[u64]); 8] = [
    ("counter", DType::I64, &[]),
    ("head", DType::F64, &[33]),
    ("layer.weight", DType::F32, &[71, 29]),
    ("empty", DType::F32, &[0, 4]),
    ("layer.bias", DType::F32, &[29]),
    ("half", DType::BF16, &[1031]),
    ("tiny", DType::F8E4M3, &[77]),
    ("mask", DType::Bool, &[130]),
];

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Ours,
    Shuffled,
}

#[derive(Clone, Copy, PartialEq)]
enum Holds {
    Everything,
    WhatChanged,
}

/// A file of those tensors that `with` picks, in the order of the seed if it asks
/// for one. All sites have the same bools.
fn file(seed: u64, order: Order, with: impl Fn(&str) -> bool, kind: Holds) -> File {
    let mut random = Random(seed);
    let mut tensors = TENSORS.to_vec();
    let mut data: Vec<Vec<u8>> = Vec::new();
    for (name, dtype, shape) in &tensors {
        let count = shape.iter().product::<u64>() as usize;
        let seed = if *name == "mask" { 1 } else { random.next() };
        data.push(values(*dtype, count, &mut Random(seed)));
    }
    let mut places: Vec<usize> = (0..tensors.len()).collect();
    if order == Order::Shuffled {
        random.shuffle(&mut places);
    }
    let mut maker = Maker::new();
    if kind == Holds::WhatChanged {
        maker = maker.partial();
    }
    for at in places {
        let (name, dtype, shape) = std::mem::replace(&mut tensors[at], ("", DType::U8, &[]));
        if with(name) {
            maker = maker.raw(name, dtype, shape, std::mem::take(&mut data[at]));
        }
    }
    maker.build()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever mix of sites is live: the bits of a fold of files.
    #[test]
    fn any_mix_of_mapped_and_live_gives_equal_bits(
        seed: u64,
        sites in prop::collection::vec((any::<bool>(), any::<bool>(), 0u8..3), 1..7),
        diff: bool,
        threads in 1usize..4,
        exclude: bool,
        wide: bool,
    ) {
        let model = file(seed, Order::Ours, |_| true, Holds::Everything);
        let files: Vec<File> = sites
            .iter()
            .enumerate()
            .map(|(at, (_, shuffled, lacks))| {
                let lacks = ["", "half", "layer.weight"][usize::from(*lacks)];
                let order = if *shuffled { Order::Shuffled } else { Order::Ours };
                file(seed ^ (at as u64 + 1), order, |name| name != lacks, Holds::Everything)
            })
            .collect();
        let names: Vec<String> = (0..files.len()).map(|at| format!("site-{at}")).collect();
        let afar: Vec<Afar<'_>> = files.iter().map(Afar::new).collect();
        let mut options = Options::mean();
        options.kind = if diff { UpdateKind::Diff } else { UpdateKind::Full };
        options.threads = threads;
        if exclude {
            options.exclude = Exclude::new(&["bias|head"]).unwrap();
        }
        if wide {
            options.master_dtype = Some(Wide::F64);
        }
        let weight = |at: usize| 0.3 + at as f64;
        let mapped: Vec<_> = (0..files.len())
            .map(|at| files[at].from(&names[at], weight(at)))
            .collect();
        let mixed: Vec<_> = (0..files.len())
            .map(|at| match sites[at].0 {
                true => afar[at].from(&names[at], weight(at)),
                false => mapped[at],
            })
            .collect();
        let expected = fold(&mapped, Some(&model), &options);
        let got = fold(&mixed, Some(&model), &options);
        prop_assert_eq!(got, expected);
    }

    /// A site that leaves out what did not change counts as if it had sent it.
    #[test]
    fn a_partial_update_counts_as_the_whole_one(
        seed: u64,
        sites in prop::collection::vec((any::<bool>(), 0u8..=255), 1..6),
        method in prop::sample::select(vec![Method::Mean, Method::Median, Method::TrimmedMean(0.3)]),
        diff: bool,
        live: bool,
    ) {
        let model = file(seed, Order::Ours, |_| true, Holds::Everything);
        let live = live && method == Method::Mean;
        // What every site lacks is the model's, not a mean of it: not compared.
        let all_lack = |name: &str| {
            let bit = TENSORS.iter().position(|t| t.0 == name).unwrap();
            sites.iter().all(|(partial, sent)| *partial && sent & (1 << bit) == 0)
        };
        let mut options = Options::mean();
        options.method = method;
        options.kind = if diff { UpdateKind::Diff } else { UpdateKind::Full };
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        for (at, (partial, sent)) in sites.iter().enumerate() {
            let sends = |name: &str| {
                let bit = TENSORS.iter().position(|t| t.0 == name).unwrap();
                !partial || sent & (1 << bit) != 0
            };
            let own = file(seed ^ (at as u64 + 1), Order::Ours, |_| true, Holds::Everything);
            let mut filled = Maker::new();
            for (name, dtype, shape) in TENSORS {
                let unchanged = match options.kind {
                    UpdateKind::Diff if dtype != DType::Bool => vec![0; own.tensor(name).len()],
                    _ => model.tensor(name).to_vec(),
                };
                let bytes = if sends(name) { own.tensor(name).to_vec() } else { unchanged };
                filled = filled.raw(name, dtype, shape, bytes);
            }
            whole.push(filled.build());
            let holds = if *partial { Holds::WhatChanged } else { Holds::Everything };
            parts.push(file(seed ^ (at as u64 + 1), Order::Ours, sends, holds));
        }
        let afar: Vec<Afar<'_>> = parts.iter().map(Afar::new).collect();
        let from = |files: &[File]| -> Result<Vec<u8>, AggregateError> {
            let all: Vec<_> = files.iter().map(|f| f.from("site", 1.7)).collect();
            fold(&all, Some(&model), &options)
        };
        let expected = from(&whole);
        let got = match live {
            true => {
                let all: Vec<_> = afar.iter().map(|f| f.from("site", 1.7)).collect();
                fold(&all, Some(&model), &options)
            }
            false => from(&parts),
        };
        match (&got, &expected) {
            (Ok(got), Ok(expected)) => {
                for tensor in model.header.tensors() {
                    let bytes = |file| model.header.bytes_of(tensor, file);
                    match all_lack(&tensor.name) {
                        true => prop_assert_eq!(bytes(got), bytes(model.bytes())),
                        false => prop_assert_eq!(bytes(got), bytes(expected), "{}", tensor.name),
                    }
                }
            }
            // Sums of the largest values outgrow a narrow dtype on both ways.
            _ => prop_assert_eq!(&got, &expected),
        }
    }
}

#[test]
fn windows_and_threads_change_no_bit_of_large_tensors() {
    let elements = limits::LIVE_WINDOW / 2 + 12_345;
    let files: Vec<File> = (0..3)
        .map(|site| {
            let mut random = Random(site);
            let ids = (0..3000)
                .map(|_| random.next() as i64 >> 40)
                .collect::<Vec<_>>();
            Maker::new()
                .f32(
                    "w",
                    &(0..elements)
                        .map(|_| random.next() as f32 * 1e-19)
                        .collect::<Vec<_>>(),
                )
                .i64("ids", &[3000], &ids)
                .bools("mask", &vec![1; limits::FOLD_PIECE + 7])
                .build()
        })
        .collect();
    let afar: Vec<_> = files.iter().map(Afar::new).collect();
    let names = ["a", "b", "c"];
    let mapped: Vec<_> = (0..3).map(|at| files[at].from(names[at], 2.0)).collect();
    let expected = fold(&mapped, None, &Options::mean()).unwrap();
    for live in 1..=3 {
        for threads in [1, 3] {
            let mut options = Options::mean();
            options.threads = threads;
            let mixed: Vec<_> = (0..3)
                .map(|at| match at < live {
                    true => afar[at].from(names[at], 2.0),
                    false => mapped[at],
                })
                .collect();
            assert!(
                fold(&mixed, None, &options).unwrap() == expected,
                "{live} live"
            );
        }
    }
    // Laid out alike, each was one range, to the last byte.
    let data = files[0].header.data_start()..files[0].header.total_len();
    assert_eq!(*afar[0].asked.lock().unwrap(), vec![data]);
}

#[test]
fn many_live_sites_share_what_is_held_of_them() {
    // More than `LIVE_FOLD / LIVE_WINDOW`, so each gets less than the most.
    let files: Vec<File> = (0..40)
        .map(|site| Maker::new().f32("w", &vec![site as f32; 700_000]).build())
        .collect();
    let afar: Vec<_> = files.iter().map(Afar::new).collect();
    let live: Vec<_> = afar.iter().map(|f| f.from("s", 1.0)).collect();
    let mapped: Vec<_> = files.iter().map(|f| f.from("s", 1.0)).collect();
    let options = Options::mean();
    assert!(fold(&live, None, &options).unwrap() == fold(&mapped, None, &options).unwrap());
    for afar in &afar {
        let largest = afar.largest.load(Ordering::Relaxed);
        assert!(
            largest <= limits::LIVE_FOLD / 2 / 40,
            "{largest} bytes at once"
        );
        assert!(
            largest > limits::LIVE_FOLD / 4 / 40,
            "{largest} bytes at once"
        );
    }
}

#[test]
fn only_what_counts_is_asked_for() {
    let model = Maker::new()
        .f32("a", &[1.0; 10])
        .f32("b", &[1.0; 10])
        .f32("c", &[1.0; 10])
        .build();
    let start = model.header.data_start();
    let mut options = Options::mean();
    options.exclude = Exclude::new(&["^b$"]).unwrap();
    let afar = Afar::new(&model);
    fold(&[afar.from("s", 1.0)], Some(&model), &options).unwrap();
    assert_eq!(
        *afar.asked.lock().unwrap(),
        vec![start..start + 40, start + 80..start + 120]
    );
    // Another order of the tensors: ranges in the order of the model's.
    let turned = Maker::new()
        .f32("c", &[3.0; 10])
        .f32("b", &[2.0; 10])
        .f32("a", &[1.0; 10])
        .build();
    let afar = Afar::new(&turned);
    let out = fold(&[afar.from("s", 1.0)], Some(&model), &Options::mean()).unwrap();
    assert_eq!(
        model.header.bytes_of(model.header.get("c").unwrap(), &out),
        Some(turned.tensor("c"))
    );
    let start = turned.header.data_start();
    let asked = [
        start + 80..start + 120,
        start + 40..start + 80,
        start..start + 40,
    ];
    assert_eq!(*afar.asked.lock().unwrap(), asked);
}

#[test]
fn order_statistics_refuse_a_live_update_with_a_sentence() {
    let file = Maker::new().f32("w", &[1.0]).build();
    let afar = Afar::new(&file);
    for (method, name) in [
        (Method::Median, "median"),
        (Method::TrimmedMean(0.1), "trimmed mean"),
    ] {
        assert!(method.needs_spooled());
        let mut options = Options::mean();
        options.method = method;
        let error = fold(
            &[file.from("a", 1.0), afar.from("site-2", 1.0)],
            None,
            &options,
        );
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the {name} needs every update on the server's disk, and that of site-2 is still at its site"
            )
        );
        assert!(error.hint().unwrap().contains("spool"));
    }
    assert!(!Method::Mean.needs_spooled());
}

#[test]
fn a_connection_that_is_gone_names_the_site() {
    let file = Maker::new().f32("w", &[1.0; 5000]).build();
    let mut afar = Afar::new(&file);
    for cut in [0, 997, 19_000] {
        afar.cut = Some(cut);
        let error = fold(
            &[file.from("a", 1.0), afar.from("site-2", 1.0)],
            None,
            &Options::mean(),
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "the update of site-2 could not be read to its end: its lease ended at round 3"
        );
    }
}

#[test]
fn what_comes_is_held_against_the_manifest() {
    let refused = |file: &File, lie: &dyn Fn(&mut Vec<Facts>)| {
        let good = Maker::new()
            .f32("v", &[1.0; 9000])
            .f32("w", &[1.0; 9000])
            .build();
        let mut afar = Afar::new(file);
        lie(&mut afar.facts);
        let error = fold(
            &[good.from("a", 1.0), afar.from("site-2", 1.0)],
            None,
            &Options::mean(),
        );
        let AggregateError::Update { site, problem } = error.unwrap_err() else {
            panic!("another error");
        };
        assert_eq!(site, "site-2");
        problem
    };
    let mut values = vec![1.0; 9000];
    values[8999] = f32::NAN;
    let bad = Maker::new()
        .f32("v", &[1.0; 9000])
        .f32("w", &values)
        .build();
    let finite = Facts {
        finite: true,
        norm: 9000f64.sqrt(),
    };
    let problem = refused(&bad, &|facts| facts[1] = finite);
    assert_eq!(
        problem.to_string(),
        "tensor `w` has values that are NaN or Inf"
    );
    assert_eq!(problem.code(), FailureCode::NotFinite);
    let fine = Maker::new()
        .f32("v", &[2.0; 9000])
        .f32("w", &[1.0; 9000])
        .build();
    let problem = refused(&fine, &|facts| facts[0].norm = 1.5);
    let VerifyProblem::Norm { tensor, .. } = &problem else {
        panic!("{problem}");
    };
    assert_eq!(tensor, "v");
    assert_eq!(problem.code(), FailureCode::Malformed);
    assert!(
        problem.to_string().ends_with("its manifest says 1.5e0"),
        "{problem}"
    );
    let problem = refused(&fine, &|facts| facts.truncate(1));
    assert_eq!(
        problem.to_string(),
        "the update's manifest tells of 1 tensors, its header of 2"
    );
    let flags = Maker::new().bools("m", &[0, 1]).build();
    let two = Maker::new().bools("m", &[0, 2]).build();
    let afar = Afar::new(&two);
    let error = fold(
        &[flags.from("a", 1.0), afar.from("b", 1.0)],
        None,
        &Options::mean(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "b: tensor `m`: 1 of 2 values are neither true nor false"
    );
}

#[test]
fn bools_that_differ_far_into_a_live_update_name_their_sites() {
    let mask = |at: usize| {
        let mut mask = vec![0; 3 * limits::FOLD_PIECE];
        if let Some(flag) = mask.get_mut(at) {
            *flag = 1;
        }
        Maker::new().bools("mask", &mask).build()
    };
    let files = [
        mask(usize::MAX),
        mask(5),
        mask(usize::MAX),
        mask(3 * limits::FOLD_PIECE - 1),
    ];
    let afar: Vec<_> = files.iter().map(Afar::new).collect();
    let names = ["site-1", "site-2", "site-3", "site-4"];
    for live in [false, true] {
        let all: Vec<_> = (0..4)
            .map(|at| match live {
                true => afar[at].from(names[at], 1.0),
                false => files[at].from(names[at], 1.0),
            })
            .collect();
        assert_eq!(
            fold(&all, None, &Options::mean()).unwrap_err().to_string(),
            "the bool tensor `mask` has other values at site-2 and site-4 than at site-1"
        );
    }
}

/// As a file that is decoded on the way.
fn read_at(file: &File) -> ReadAt<impl Fn(u64, &mut [u8]) -> std::io::Result<()> + Send + Sync> {
    ReadAt(|offset: u64, into: &mut [u8]| {
        let bytes = file.bytes().get(offset as usize..).unwrap_or_default();
        let bytes = bytes.get(..into.len());
        into.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    })
}

#[test]
fn an_update_that_is_decoded_on_the_way_may_go_into_any_fold() {
    let files: Vec<_> = (1..6)
        .map(|seed| file(seed, Order::Ours, |_| true, Holds::Everything))
        .collect();
    let turned = file(6, Order::Shuffled, |_| true, Holds::Everything);
    let files: Vec<_> = files.iter().chain([&turned]).collect();
    let reads: Vec<_> = files.iter().map(|file| read_at(file)).collect();
    for method in [Method::Mean, Method::Median, Method::TrimmedMean(0.2)] {
        let mut options = Options::mean();
        options.method = method;
        let mapped: Vec<_> = files.iter().map(|f| f.from("s", 1.5)).collect();
        let mut mixed = mapped.clone();
        for (at, read) in reads.iter().enumerate().skip(2) {
            mixed[at].data = Data::Read(read);
        }
        let expected = fold(&mapped, None, &options);
        assert!(fold(&mixed, None, &options) == expected, "{method:?}");
    }
    // Verified as the file itself is.
    let model = Maker::new()
        .f32("w", &[1.0; 4])
        .bools("m", &[0, 1])
        .f32("x", &[1.0])
        .build();
    let bad = Maker::new()
        .f32("w", &[1.0, f32::NAN, f32::INFINITY, 0.0])
        .bools("m", &[7, 1])
        .f32("x", &[f32::NAN])
        .f32("y", &[1.0])
        .build();
    let mut options = Options::mean();
    options.exclude = Exclude::new(&["^x$"]).unwrap();
    let expected = verify(bad.model(), Some(&model.header), &options).unwrap_err();
    assert_eq!(expected.len(), 3);
    let found = verify_read(&bad.header, &read_at(&bad), Some(&model.header), &options);
    assert_eq!(found.unwrap(), expected);
    let found = verify_read(
        &model.header,
        &read_at(&model),
        Some(&model.header),
        &options,
    );
    assert_eq!(found.unwrap(), []);
    let cut = ReadAt(|_: u64, _: &mut [u8]| Err(std::io::ErrorKind::UnexpectedEof.into()));
    assert!(verify_read(&model.header, &cut, None, &options).is_err());
    let large = Maker::new()
        .f32("w", &vec![f32::NAN; limits::LIVE_WINDOW / 2])
        .build();
    let found = verify_read(&large.header, &read_at(&large), None, &options).unwrap();
    assert_eq!(Err(found), verify(large.model(), None, &options));
}

#[test]
fn a_live_update_is_verified_by_its_manifest() {
    let model = Maker::new().f32("w", &[1.0; 4]).f32("b", &[1.0]).build();
    let check = |file: &File, facts: &[Facts], options: &Options| -> Vec<String> {
        let problems = verify_live(&file.header, facts, Some(&model.header), options);
        problems
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let options = Options::mean();
    let fine = Maker::new().f32("w", &[2.0; 4]).f32("b", &[3.0]).build();
    assert_eq!(check(&fine, &fine.facts(), &options), [""; 0]);
    assert_eq!(
        check(&fine, &fine.facts()[..1], &options),
        ["the update's manifest tells of 1 tensors, its header of 2"]
    );
    let bad = Maker::new()
        .f32("w", &[2.0; 3])
        .f32("b", &[f32::INFINITY])
        .build();
    assert_eq!(
        check(&bad, &bad.facts(), &options),
        [
            "tensor `w` has shape [3], the model has [4]",
            "tensor `b` has values that are NaN or Inf"
        ]
    );
    let mut excluding = Options::mean();
    excluding.exclude = Exclude::new(&["b|w"]).unwrap();
    assert_eq!(
        check(&bad, &bad.facts(), &excluding.for_kind(UpdateKind::Diff)),
        [""; 0]
    );
}
