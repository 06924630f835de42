//! How fast eight updates are folded, beside a C loop over the same files.
//!
//! `cargo run --release -p firesteel-aggregate --example fold_bench -- [MB] [ROUNDS]`
//!
//! Prints one JSON object. Rates are gigabytes of input per second and core, the
//! best of all rounds; the C loop and ours take turns, so that both meet the same
//! neighbors on a shared machine. `fresh_maps` maps the inputs anew every round
//! as a server does, `kept_maps` does not. `live` reads every update in windows
//! as one that is not spooled, and holds it against its manifest; per CPU-second
//! it and `mapped` are beside each other.
#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads files, runs the C loop and looks at the clock"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use firesteel_aggregate::{Contribution, Data, LiveSource, Method, Model, Options, plan, verify};
use firesteel_base::limits;
use firesteel_tensor::{DType, Facts, FactsBuilder, HeaderBuilder, ModelHeader};
use memmap2::{Mmap, MmapMut};

const UPDATES: usize = 8;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| {
        args.next()
            .map_or(default, |a| a.parse().expect("a number"))
    };
    let (megabytes, rounds) = (number(64), number(5));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (paths, header) = write_updates(dir.path(), megabytes);
    let yardstick = compile_yardstick(dir.path());
    let bench = Bench {
        dir: dir.path(),
        paths,
        header,
    };
    let gigabytes = (UPDATES * bench.header.data_len() as usize) as f64 / 1e9;
    let rate = |seconds: f64| gigabytes / seconds;

    let mut best = [f64::INFINITY; 8];
    let mut took = |what: usize, seconds: f64| best[what] = best[what].min(seconds);
    for _ in 0..rounds {
        took(0, bench.yardstick(&yardstick, "fresh"));
        took(
            1,
            bench.ours(Method::Mean, 1, Maps::Fresh, Output::Recycled),
        );
        took(2, bench.yardstick(&yardstick, "kept"));
        took(3, bench.ours(Method::Mean, 1, Maps::Kept, Output::Recycled));
        took(4, bench.ours(Method::Mean, 1, Maps::Fresh, Output::Fresh));
        took(
            5,
            bench.ours(Method::Median, 1, Maps::Fresh, Output::Recycled),
        );
        took(7, bench.verify());
        took(
            6,
            bench.ours(Method::Mean, 2, Maps::Fresh, Output::Recycled),
        );
    }
    let [
        c_fresh,
        fresh,
        c_kept,
        kept,
        fresh_output,
        median,
        two,
        verified,
    ] = best;
    println!("{{");
    println!("  \"updates\": {UPDATES}, \"megabytes_each\": {megabytes}, \"rounds\": {rounds},");
    println!(
        "  \"c_fresh_maps\": {:.2}, \"mean_fresh_maps\": {:.2},",
        rate(c_fresh),
        rate(fresh)
    );
    println!(
        "  \"c_kept_maps\": {:.2}, \"mean_kept_maps\": {:.2},",
        rate(c_kept),
        rate(kept)
    );
    println!("  \"mean_over_c_fresh_maps\": {:.3},", c_fresh / fresh);
    println!("  \"mean_over_c_kept_maps\": {:.3},", c_kept / kept);
    println!("  \"mean_fresh_output\": {:.2},", rate(fresh_output));
    println!("  \"mean_two_threads_per_core\": {:.2},", rate(two) / 2.0);
    println!("  \"verify\": {:.2},", rate(verified));
    let [mapped, live, read, facts] = bench.per_cpu_second();
    println!("  \"mapped_per_cpu_second\": {mapped:.2}, \"live_per_cpu_second\": {live:.2},");
    println!("  \"read_per_cpu_second\": {read:.2}, \"facts_per_cpu_second\": {facts:.2},");
    println!(
        "  \"median\": {:.2}, \"median_time_over_mean\": {:.2}",
        rate(median),
        median / fresh
    );
    println!("}}");
}

#[derive(Clone, Copy, PartialEq)]
enum Maps {
    Fresh,
    Kept,
}

#[derive(Clone, Copy, PartialEq)]
enum Output {
    Recycled,
    Fresh,
}

struct Bench<'d> {
    dir: &'d Path,
    paths: Vec<PathBuf>,
    header: ModelHeader,
}

impl Bench<'_> {
    /// Seconds of the better of two rounds: the first touches what the second
    /// finds touched, where that is what is measured.
    fn ours(&self, method: Method, threads: usize, maps: Maps, output: Output) -> f64 {
        let mut options = Options::mean();
        (options.method, options.threads) = (method, threads);
        let mut files = self.map();
        let mut out = self.output("recycled");
        out.fill(1);
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let before = Instant::now();
            if maps == Maps::Fresh {
                files = self.map();
            }
            if output == Output::Fresh {
                fs::remove_file(self.dir.join("recycled")).expect("the output is there");
                out = self.output("recycled");
            }
            let contributions: Vec<_> = files
                .iter()
                .map(|bytes| Contribution {
                    site: "a site",
                    weight: 3.0,
                    header: &self.header,
                    data: Data::Mapped(bytes),
                })
                .collect();
            let plan = plan(&contributions, None, &options).expect("the updates fit");
            plan.fold(&mut out).expect("the updates are finite");
            best = best.min(before.elapsed().as_secs_f64());
        }
        best
    }

    /// Gigabytes of updates per second of CPU time: mapped and folded; read live,
    /// checked and folded; only read; only looked at for their manifests.
    fn per_cpu_second(&self) -> [f64; 4] {
        const TIMES: usize = 10;
        let gigabytes = (TIMES * UPDATES * self.header.data_len() as usize) as f64 / 1e9;
        let files = self.map();
        let before = cpu_seconds();
        let mut facts = Vec::new();
        for _ in 0..TIMES {
            facts = files.iter().map(|file| self.facts(file)).collect();
        }
        let looked = cpu_seconds() - before;
        let mut out = self.output("recycled");
        out.fill(1);
        let mut fold = |maps: &[Mmap], live: &[Preading]| {
            let header = &self.header;
            let mapped = maps.iter().map(|bytes| Data::Mapped(bytes));
            let live = live.iter().zip(&facts);
            let live = live.map(|(source, facts)| Data::Live { source, facts });
            let contributions: Vec<_> = mapped
                .chain(live)
                .map(|data| Contribution {
                    site: "a site",
                    weight: 3.0,
                    header,
                    data,
                })
                .collect();
            let plan = plan(&contributions, None, &Options::mean()).expect("the updates fit");
            plan.fold(&mut out)
                .expect("the updates are as they should be");
        };
        let before = cpu_seconds();
        for _ in 0..TIMES {
            fold(&self.map(), &[]);
        }
        let mapped = cpu_seconds() - before;
        let before = cpu_seconds();
        for _ in 0..TIMES {
            let live: Vec<_> = self.paths.iter().cloned().map(Preading).collect();
            fold(&[], &live);
        }
        let live = cpu_seconds() - before;
        let mut window = vec![0; limits::LIVE_WINDOW];
        let before = cpu_seconds();
        for path in (0..TIMES).flat_map(|_| &self.paths) {
            let mut file = File::open(path).expect("the update is there");
            while file.read(&mut window).expect("it can be read") > 0 {}
        }
        let read = cpu_seconds() - before;
        [mapped, live, read, looked].map(|seconds| gigabytes / seconds)
    }

    fn facts(&self, file: &[u8]) -> Vec<Facts> {
        let tensors = self.header.tensors().iter();
        tensors
            .map(|tensor| {
                let mut facts = FactsBuilder::new(tensor.dtype);
                let bytes = self.header.bytes_of(tensor, file);
                facts.push(bytes.expect("the file is whole"));
                facts.finish()
            })
            .collect()
    }

    /// Seconds to check all updates as they arrive.
    fn verify(&self) -> f64 {
        let files = self.map();
        let before = Instant::now();
        for bytes in &files {
            let header = &self.header;
            let update = Model { header, bytes };
            verify(update, Some(header), &Options::mean()).expect("the updates are fine");
        }
        before.elapsed().as_secs_f64()
    }

    fn yardstick(&self, program: &Path, mode: &str) -> f64 {
        let out = Command::new(program)
            .args([mode, "2", &self.header.data_start().to_string()])
            .args(&self.paths)
            .output()
            .expect("the C loop runs");
        let text = String::from_utf8(out.stdout).expect("it prints numbers");
        let seconds = text.split(' ').next().and_then(|s| s.parse().ok());
        seconds.expect("it prints seconds first")
    }

    fn map(&self) -> Vec<Mmap> {
        let map = |path: &PathBuf| {
            let file = File::open(path).expect("the update is there");
            // SAFETY: the files are this process's own, in a directory that only
            // it knows, and nobody writes or cuts them while they are mapped.
            unsafe { Mmap::map(&file) }.expect("the update can be mapped")
        };
        self.paths.iter().map(map).collect()
    }

    fn output(&self, name: &str) -> MmapMut {
        let path = self.dir.join(name);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(false);
        let file = open.open(path).expect("the output can be made");
        file.set_len(self.header.total_len())
            .expect("there is room");
        // SAFETY: as for the inputs; only this mapping writes the file.
        unsafe { MmapMut::map_mut(&file) }.expect("the output can be mapped")
    }
}

/// A file that is read as it is folded.
struct Preading(PathBuf);

impl LiveSource for Preading {
    fn open(&self, ranges: &[Range<u64>]) -> io::Result<Box<dyn Read + Send + '_>> {
        let [range] = ranges else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let mut file = File::open(&self.0)?;
        file.seek(io::SeekFrom::Start(range.start))?;
        Ok(Box::new(file.take(range.end - range.start)))
    }
}

/// CPU time of this process, of all its threads, to a hundredth of a second.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux says so");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|f| f.parse::<f64>().ok());
    (ticks().unwrap_or(0.0) + ticks().unwrap_or(0.0)) / 100.0
}

/// Eight model files of f32, a few tensors each, warm in the page cache.
fn write_updates(dir: &Path, megabytes: usize) -> (Vec<PathBuf>, ModelHeader) {
    let mut builder = HeaderBuilder::new();
    for layer in 0..4 {
        let rows = megabytes as u64 * 64;
        builder.tensor(&format!("layers.{layer}.weight"), DType::F32, &[rows, 1024]);
    }
    let (head, header) = builder.encode().expect("a few tensors fit");
    let mut paths = Vec::new();
    let mut state = 1u32;
    for update in 0..UPDATES {
        let path = dir.join(format!("update-{update}"));
        let mut file = BufWriter::new(File::create(&path).expect("a file can be made"));
        file.write_all(&head).expect("there is room");
        for _ in 0..header.data_len() / 4 {
            // Weights as they are: random, of a few sizes, of both signs.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits((state & 0x83ff_ffff) | 0x3c00_0000);
            file.write_all(&value.to_le_bytes()).expect("there is room");
        }
        file.flush().expect("there is room");
        paths.push(path);
    }
    (paths, header)
}

fn compile_yardstick(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../benches/aggregate/sum.c");
    let program = dir.join("sum");
    let status = Command::new("cc")
        .args(["-O3", "-march=native", "-o"])
        .arg(&program)
        .arg(&source)
        .status();
    assert!(
        status.expect("a C compiler").success(),
        "the C loop compiles"
    );
    program
}
