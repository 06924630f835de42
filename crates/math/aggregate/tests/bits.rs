//! The same bits for every instruction set, thread count and arrival order, and
//! the bits that plain scalar arithmetic gives.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{File, Maker, Random, expected, levels, read};
use firesteel_aggregate::{Contribution, Method, Options, UpdateKind, Wide, plan};
use firesteel_tensor::DType;
use proptest::prelude::*;

const FLOATS: [DType; 6] = [
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
    DType::F8E5M2,
];

/// Finite values of all sizes, zeros of both signs, and many ties.
fn values(dtype: DType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * dtype.size());
    while bytes.len() < count * dtype.size() {
        let mut bits = random.next();
        if bits.is_multiple_of(7) {
            // Few distinct values: equal ones, and zero with either sign.
            bits = (bits >> 8 & 3) << (8 * dtype.size() - 3);
        }
        let element = &bits.to_le_bytes()[..dtype.size()];
        let value = read(dtype, element);
        // Eight of them must not overflow a sum.
        if value.is_finite() && value.abs() < 1e300 {
            bytes.extend_from_slice(element);
        }
    }
    bytes
}

struct Case {
    dtype: DType,
    sites: usize,
    elements: usize,
    method: Method,
    kind: UpdateKind,
    wide: Option<Wide>,
}

impl Case {
    fn check(&self) {
        let mut random = Random(self.sites as u64 * 31 + self.elements as u64);
        let file = |dtype, offset: usize, random: &mut Random| {
            Maker::new()
                .raw("small", DType::F32, &[1], 1.5f32.to_le_bytes().to_vec())
                .raw(
                    "w",
                    dtype,
                    &[self.elements as u64],
                    values(dtype, self.elements, random),
                )
                .at(offset)
                .build()
        };
        let wide = self.wide.map_or(self.dtype, Wide::dtype);
        let model = file(wide, 0, &mut random);
        // Every other file lies where no element is aligned.
        let files: Vec<File> = (0..self.sites)
            .map(|site| file(self.dtype, site % 2, &mut random))
            .collect();
        let names: Vec<String> = (0..self.sites).map(|s| format!("site-{s:03}")).collect();
        let mut arrived: Vec<Contribution<'_>> = files
            .iter()
            .zip(&names)
            .map(|(file, name)| file.from(name, (random.next() % 1000) as f64 / 7.0 + 0.1))
            .collect();

        let sources: Vec<_> = files
            .iter()
            .zip(&arrived)
            .map(|(f, c)| (f.tensor("w"), c.weight))
            .collect();
        let rules = (self.method, self.kind, wide);
        let want = expected(self.dtype, &sources, Some((wide, model.tensor("w"))), rules);

        let mut options = Options::mean();
        (options.method, options.kind) = (self.method, self.kind);
        options.master_dtype = self.wide;
        let mut first: Option<Vec<u8>> = None;
        for level in levels() {
            for threads in [1, 7] {
                (options.simd, options.threads) = (level, threads);
                random.shuffle(&mut arrived);
                let mut in_order = arrived.clone();
                in_order.sort_by_key(|c| c.site);
                let plan = plan(&in_order, Some(model.model()), &options).unwrap();
                let mut out = vec![0xaa; plan.output_len() as usize];
                let report = plan.fold(&mut out);
                // Sums of the largest values may outgrow a narrow dtype; then
                // every path must say so.
                let tensor = plan.header().get("w").unwrap();
                let got = plan.header().bytes_of(tensor, &out).unwrap();
                if got != want {
                    let at = got.iter().zip(&want).position(|(a, b)| a != b).unwrap();
                    let size = wide.size();
                    let at = at / size * size;
                    panic!(
                        "{:?} {} sites {:?} {:?} {level:?} {threads} threads: element {}: {:?}, not {:?}",
                        self.dtype,
                        self.sites,
                        self.method,
                        self.kind,
                        at / size,
                        read(wide, &got[at..at + size]),
                        read(wide, &want[at..at + size]),
                    );
                }
                assert_eq!(
                    report.is_ok(),
                    firesteel_tensor::check_finite(wide, &want) == 0
                );
                assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
            }
        }
    }
}

#[test]
fn every_float_dtype_and_method() {
    for dtype in FLOATS {
        for method in [Method::Mean, Method::Median, Method::TrimmedMean(0.2)] {
            for kind in [UpdateKind::Full, UpdateKind::Diff] {
                Case {
                    dtype,
                    sites: 9,
                    elements: 2 * 2048 + 77,
                    method,
                    kind,
                    wide: None,
                }
                .check();
            }
        }
    }
}

#[test]
fn every_number_of_sites() {
    for sites in (1..=20).chain([31, 64, 65, 100]) {
        for method in [
            Method::Mean,
            Method::Median,
            Method::TrimmedMean(0.1),
            Method::TrimmedMean(0.49),
        ] {
            for dtype in [DType::F32, DType::F64] {
                Case {
                    dtype,
                    sites,
                    elements: 301,
                    method,
                    kind: UpdateKind::Full,
                    wide: None,
                }
                .check();
            }
        }
    }
}

#[test]
fn tensors_that_several_threads_share() {
    for method in [Method::Mean, Method::Median] {
        Case {
            dtype: DType::F32,
            sites: 5,
            elements: 3 * 64 * 2048 + 1,
            method,
            kind: UpdateKind::Full,
            wide: None,
        }
        .check();
    }
}

#[test]
fn wide_masters_of_narrow_updates() {
    for dtype in [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2] {
        for wide in [Wide::F32, Wide::F64] {
            for kind in [UpdateKind::Full, UpdateKind::Diff] {
                Case {
                    dtype,
                    sites: 4,
                    elements: 333,
                    method: Method::Mean,
                    kind,
                    wide: Some(wide),
                }
                .check();
            }
        }
    }
}

#[test]
fn a_mean_of_equal_values_is_that_value() {
    let file = Maker::new().f32("w", &[0.1, -0.0, f32::MAX, 1e-45]).build();
    let sites = [
        file.from("a", 0.3),
        file.from("b", 17.0),
        file.from("c", 3.3),
    ];
    let plan = plan(&sites, None, &Options::mean()).unwrap();
    let mut out = vec![0; plan.output_len() as usize];
    plan.fold(&mut out).unwrap();
    assert_eq!(out, file.bytes());
}

proptest! {
    /// Any bits at all, NaN among them: no panic, and the same bits everywhere.
    #[test]
    fn arbitrary_bits(
        seed: u64,
        sites in 1usize..12,
        elements in 0usize..70,
        dtype in prop::sample::select(DType::ALL),
        method in prop::sample::select(vec![Method::Mean, Method::Median, Method::TrimmedMean(0.25)]),
        diff: bool,
    ) {
        let mut random = Random(seed);
        let mut file = || {
            let bytes = (0..elements * dtype.size()).map(|_| {
                let byte = random.next() as u8;
                if dtype == DType::Bool { 1 } else { byte }
            });
            Maker::new().raw("x", dtype, &[elements as u64], bytes.collect()).build()
        };
        let model = file();
        let files: Vec<_> = (0..sites).map(|_| file()).collect();
        let contributions: Vec<_> = files.iter().map(|f| f.from("s", 2.0)).collect();
        let mut options = Options::mean();
        options.method = method;
        options.kind = if diff { UpdateKind::Diff } else { UpdateKind::Full };
        let mut outputs = Vec::new();
        for level in levels() {
            options.simd = level;
            let plan = plan(&contributions, Some(model.model()), &options).unwrap();
            let mut out = vec![0; plan.output_len() as usize];
            let finite = plan.fold(&mut out).is_ok();
            // A NaN's payload is not promised, only that it is refused.
            outputs.push((finite, if finite { out } else { Vec::new() }));
        }
        prop_assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
