//! What a pull costs: tensors in a file to tensors in a file, over an in-memory
//! pipe, in processor seconds per gigabyte, and where they go.
//!
//! ```sh
//! cargo run --release -p firesteel-net --example pull_bench -- 1024 /tmp
//! ```
//! The first argument is MiB per model, the second a directory for the files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use firesteel_net::pipe;
use firesteel_net::pull::{
    FileSource, Known, Offered, Offers, Pull, Pulled, Serving, Sink, Source, serve,
};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};
use firesteel_transfer::{Budget, Digest, Layout, ManifestBuilder, ObjectRef};
use rustix::time::{ClockId, clock_gettime};

const MIB: usize = 1 << 20;

/// A file that was written once already, so that its pages are there.
struct FileSink(File);

impl Sink for FileSink {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}

struct Shop(Arc<Offered>);

impl Offers for Shop {
    fn find(&self, _peer: &str, object: u64) -> Option<Arc<Offered>> {
        (object == 1).then(|| self.0.clone())
    }
}

/// Wall and processor seconds of this process.
fn clocks() -> (f64, f64) {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    (
        seconds(ClockId::Monotonic),
        seconds(ClockId::ProcessCPUTime),
    )
}

fn timed<T>(name: &str, bytes: u64, work: impl FnOnce() -> T) -> T {
    let before = clocks();
    let result = work();
    let after = clocks();
    let (wall, cpu) = (after.0 - before.0, after.1 - before.1);
    let gigabytes = bytes as f64 / 1e9;
    println!(
        "{name:<44} {wall:7.3} s  {cpu:7.3} CPU-s  {:7.3} CPU-s/GB",
        cpu / gigabytes
    );
    result
}

/// A model of `count` tensors of `elements` f32 each.
fn write_model(path: &Path, count: usize, elements: usize) -> ModelHeader {
    let mut builder = HeaderBuilder::new();
    for at in 0..count {
        builder.tensor(
            &format!("layer.{at}.weight"),
            DType::F32,
            &[elements as u64],
        );
    }
    let (head, header) = builder.encode().expect("a plain model");
    let file = File::create(path).expect("the directory can be written");
    file.write_all_at(&head, 0).expect("the disk has room");
    let mut state = 1u64;
    let mut block = Vec::with_capacity(MIB);
    let mut at = header.data_start();
    while at < header.total_len() {
        block.clear();
        while block.len() < MIB {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let value = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            block.extend_from_slice(&value.to_le_bytes());
        }
        let here = usize::try_from(header.total_len() - at).map_or(MIB, |left| left.min(MIB));
        file.write_all_at(block.get(..here).unwrap_or_default(), at)
            .expect("the disk has room");
        at += here as u64;
    }
    header
}

fn warm_sink(path: &Path, length: u64) -> Arc<FileSink> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("the directory can be written");
    let zeros = vec![0u8; MIB];
    let mut at = 0;
    while at < length {
        let here = usize::try_from(length - at).map_or(MIB, |left| left.min(MIB));
        file.write_all_at(zeros.get(..here).unwrap_or_default(), at)
            .expect("the disk has room");
        at += here as u64;
    }
    Arc::new(FileSink(file))
}

async fn pull_one(
    offered: Arc<Offered>,
    sink: Arc<FileSink>,
    length: u64,
    known: Option<Arc<Known>>,
    budgets: (Budget, Budget),
) -> (Pulled, Duration) {
    let (near, far) = pipe(512 * 1024);
    let started = Instant::now();
    let serving = tokio::spawn(async move {
        let serving = Serving {
            peer: "puller".into(),
            budget: budgets.0,
            durations: firesteel_base::Durations::default(),
        };
        serve(far, &Shop(offered), &serving).await
    });
    let object = ObjectRef::new(1, length).expect("a length that files have");
    let mut pull = Pull::new("server", "model", object, sink, &budgets.1);
    if let Some(known) = known {
        pull = pull.known(known);
    }
    let pulled = pull.over(near).await.expect("nothing is in the way");
    let took = started.elapsed();
    serving
        .await
        .expect("no panic")
        .expect("nothing is in the way");
    (pulled, took)
}

fn offer(path: &Path, header: &ModelHeader) -> (Arc<dyn Source>, Arc<Offered>) {
    let source: Arc<dyn Source> = Arc::new(FileSource::open(path).expect("it was written"));
    let offered = Offered::new(source.clone(), Layout::of_model(header));
    (source, offered)
}

fn parts(path: &Path, sink: &FileSink, header: &ModelHeader) {
    let length = header.total_len();
    let file = File::open(path).expect("it was written");
    let mut window = vec![0u8; MIB];
    let each = |window: &mut Vec<u8>, work: &mut dyn FnMut(&mut [u8], u64)| {
        let mut at = 0;
        while at < length {
            let here = usize::try_from(length - at).map_or(MIB, |left| left.min(MIB));
            work(window.get_mut(..here).unwrap_or_default(), at);
            at += here as u64;
        }
    };
    timed("  pread of a warm file", length, || {
        each(&mut window, &mut |w, at| {
            file.read_exact_at(w, at).expect("readable")
        });
    });
    timed("  pwrite into a warm file", length, || {
        each(&mut window, &mut |w, at| {
            sink.write_at(at, w).expect("writable")
        });
    });
    timed("  BLAKE3, 1 MiB in the cache", length, || {
        each(&mut window, &mut |w, _| {
            std::hint::black_box(Digest::of(w));
        });
    });
    timed("  manifest: BLAKE3, finite, norm", length, || {
        let mut builder = ManifestBuilder::new(Layout::of_model(header));
        each(&mut window, &mut |w, _| builder.feed(w));
        std::hint::black_box(builder.finish().expect("all was fed"));
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(512, |a| a.parse().expect("MiB"));
    let dir = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let (from, to) = (dir.join("pull_bench.from"), dir.join("pull_bench.to"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let budgets = || (Budget::default(), Budget::default());

    println!("one tensor of {mib} MiB");
    let header = write_model(&from, 1, mib * MIB / 4);
    let length = header.total_len();
    let sink = warm_sink(&to, length);
    parts(&from, &sink, &header);
    let (source, offered) = offer(&from, &header);
    let manifest = timed("  make the manifest", length, || {
        runtime.block_on(offered.manifest()).expect("readable")
    });
    let once = |offered: &Arc<Offered>, known: Option<Arc<Known>>| {
        runtime.block_on(pull_one(
            offered.clone(),
            sink.clone(),
            length,
            known,
            budgets(),
        ))
    };
    for _ in 0..3 {
        timed("pull, manifest at hand", length, || once(&offered, None));
    }
    let known = Arc::new(Known::default());
    known.add(source, manifest);
    let (pulled, _) = timed("pull of what is there already", length, || {
        once(&offered, Some(known))
    });
    println!(
        "  {} of {length} bytes pulled, manifest {}",
        pulled.counters.pulled, pulled.counters.manifest
    );
    for receivers in [8, 24] {
        let took = timed(
            &format!("{receivers} receivers at once"),
            length * receivers,
            || {
                runtime.block_on(async {
                    let (out, back) = budgets();
                    let mut tasks = Vec::new();
                    for _ in 0..receivers {
                        let budgets = (out.clone(), back.clone());
                        let one = pull_one(offered.clone(), sink.clone(), length, None, budgets);
                        tasks.push(tokio::spawn(one));
                    }
                    let mut took = Vec::new();
                    for task in tasks {
                        took.push(task.await.expect("no panic").1);
                    }
                    took
                })
            },
        );
        let (slowest, fastest) = (took.iter().max(), took.iter().min());
        if let (Some(slowest), Some(fastest)) = (slowest, fastest) {
            let ratio = slowest.as_secs_f64() / fastest.as_secs_f64();
            println!("  slowest {slowest:.2?}, fastest {fastest:.2?}: {ratio:.2}");
        }
    }
    for (name, count, elements) in [
        ("one tensor of 400 MB", 1, 100_000 * 1024),
        ("100,000 tensors of 4 KiB", 100_000, 1024),
        ("100,000 scalars", 100_000, 1),
    ] {
        let header = write_model(&from, count, elements);
        let length = header.total_len();
        let sink = warm_sink(&to, length);
        for _ in 0..2 {
            let (_, offered) = offer(&from, &header);
            timed(&format!("{name}, manifest included"), length, || {
                runtime.block_on(pull_one(offered, sink.clone(), length, None, budgets()))
            });
        }
    }
    for path in [from, to] {
        std::fs::remove_file(path).expect("it was written here");
    }
}
