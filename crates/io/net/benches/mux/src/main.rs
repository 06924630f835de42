//! Multiplexers beside each other, over loopback TLS in one process:
//! CPU seconds per GB of both ends together, throughput, a heartbeat's delay
//! beside uploads, and memory. The figures of
//! `docs/decisions/0005-multiplexer.md` come from here.
//!
//! `cargo run --release -- [MiB per run] [which, comma separated]`

mod muxes;
mod pairs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub type Stream = Box<dyn Io>;

/// Streams, and what must live as long as they.
pub struct Streams {
    pub pairs: Vec<(Stream, Stream)>,
    pub keep: Box<dyn std::any::Any + Send>,
}

const CHUNK: usize = 256 * 1024;

struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> isize {
    HELD.load(Ordering::Relaxed)
}

fn cpu() -> f64 {
    // SAFETY: the struct is plain numbers, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Bytes through all pairs at once, and with `beat` a ninth that echoes.
async fn copy(streams: Streams, total: u64, beat: Option<(Stream, Stream)>) -> String {
    let Streams { pairs, keep } = streams;
    let each = total / pairs.len() as u64;
    let moved = each * pairs.len() as u64;
    let (start, before) = (Instant::now(), cpu());
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for (mut write, mut read) in pairs {
        writers.push(tokio::spawn(async move {
            let chunk = vec![7_u8; CHUNK];
            let mut left = each as usize;
            while left > 0 {
                let size = left.min(CHUNK);
                write.write_all(&chunk[..size]).await.unwrap();
                left -= size;
            }
            write.flush().await.unwrap();
            write
        }));
        readers.push(tokio::spawn(async move {
            let mut chunk = vec![0; CHUNK];
            let mut got = 0;
            while got < each {
                let size = read.read(&mut chunk).await.unwrap();
                assert!(size > 0, "ended after {got}");
                got += size as u64;
            }
            read
        }));
    }
    let beating = beat.map(|(mut near, mut far)| {
        let echo = tokio::spawn(async move {
            let mut bytes = [0; 8];
            while far.read_exact(&mut bytes).await.is_ok() {
                far.write_all(&bytes).await.unwrap();
                far.flush().await.unwrap();
            }
        });
        let delays = tokio::spawn(async move {
            let mut delays = Vec::new();
            loop {
                let start = Instant::now();
                let mut bytes = [0; 8];
                let turn = async {
                    near.write_all(&[1; 8]).await?;
                    near.flush().await?;
                    near.read_exact(&mut bytes).await
                };
                // The uploads are over before the last answer.
                match tokio::time::timeout(Duration::from_secs(5), turn).await {
                    Ok(Ok(_)) => delays.push(start.elapsed()),
                    _ => return delays,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                if DONE.load(Ordering::Relaxed) == 1 {
                    return delays;
                }
            }
        });
        (echo, delays)
    });
    let mut kept = Vec::new();
    for reader in readers {
        kept.push(reader.await.unwrap());
    }
    let gb = moved as f64 / 1e9;
    let (wall, used) = (start.elapsed().as_secs_f64(), cpu() - before);
    let mut line = format!("{:.3} CPU-s/GB  {:.2} GB/s", used / gb, gb / wall);
    if let Some((echo, delays)) = beating {
        DONE.store(1, Ordering::Relaxed);
        let mut delays = delays.await.unwrap();
        DONE.store(0, Ordering::Relaxed);
        echo.abort();
        delays.sort();
        let at = |share: usize| delays[(delays.len() - 1) * share / 100].as_secs_f64() * 1e3;
        line += &format!(
            "  heartbeat p50 {:.2} ms p99 {:.2} ms",
            at(50),
            at(99)
        );
    }
    for writer in writers {
        kept.push(writer.await.unwrap());
    }
    drop((kept, keep));
    line
}

static DONE: AtomicIsize = AtomicIsize::new(0);

/// Bytes held per idle stream, both ends, and with one that nobody reads.
async fn memory(name: &str) -> String {
    let before = held();
    let one = muxes::open(name, 1).await;
    let with_one = held();
    drop(one);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let start = held();
    let many = muxes::open(name, 201).await;
    let idle = (held() - start - (with_one - before)) / 200;
    let Streams { mut pairs, keep } = many;
    let quiet = held();
    let mut written = 0_usize;
    let (write, _) = &mut pairs[0];
    let chunk = vec![0; 16 * 1024];
    while let Ok(size) =
        tokio::time::timeout(Duration::from_millis(500), write.write(&chunk)).await
    {
        written += size.unwrap();
        if written > 1 << 30 {
            break;
        }
    }
    let line = format!(
        "connection {} KB, idle stream {idle} B, stuck reader: {} KiB accepted, {} KiB held",
        (with_one - before) / 1000,
        written / 1024,
        (held() - quiet) / 1024
    );
    drop((pairs, keep));
    line
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let total = arguments.next().map_or(1024, |mib| mib.parse().unwrap()) << 20;
    let which = arguments.next().unwrap_or_else(|| muxes::ALL.join(","));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let say = |name: &str, what: &str, line: String| println!("{name:22} {what:12} {line}");
    for name in which.split(',') {
        runtime.block_on(async {
            let limit = Duration::from_secs(120);
            for count in [1, 8] {
                if count > 1 && muxes::BARE.contains(&name) {
                    continue;
                }
                let run = async { copy(muxes::open(name, count).await, total, None).await };
                let line = tokio::time::timeout(limit, run).await;
                let line = line.unwrap_or_else(|_| "stalled".to_owned());
                say(name, &format!("{count} streams"), line);
            }
            if muxes::BARE.contains(&name) {
                return;
            }
            let run = async {
                let mut streams = muxes::open(name, 9).await;
                let beat = streams.pairs.pop();
                copy(streams, total, beat).await
            };
            let line = tokio::time::timeout(limit, run).await;
            say(name, "8 and a beat", line.unwrap_or_else(|_| "stalled".to_owned()));
            let line = tokio::time::timeout(limit, memory(name)).await;
            say(name, "memory", line.unwrap_or_else(|_| "stalled".to_owned()));
        });
    }
}
