#![allow(missing_docs, clippy::unwrap_used)]
use firesteel_base::Round;
use firesteel_store::*;
use firesteel_tensor::{DType, HeaderBuilder};
use std::time::Instant;
fn model(len: u64) -> Vec<u8> {
    let mut b = HeaderBuilder::new();
    b.tensor("w", DType::U8, &[len]);
    let (mut bytes, h) = b.encode().unwrap();
    bytes.resize(h.total_len() as usize, 1);
    bytes
}
fn main() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let run = RunDir::create(dir.path(), "j", "{}").unwrap();
    let objects = run.objects().unwrap();
    let mut kept = run.kept_models(2).unwrap();
    let snaps = run.snapshots().unwrap();
    let bytes = model(20_000);
    let n = 2000u32;
    let t = Instant::now();
    let mut parts = [0f64; 4];
    for r in 0..n {
        let s = Instant::now();
        let o = objects.from_bytes(bytes.clone()).unwrap();
        parts[0] += s.elapsed().as_secs_f64();
        let s = Instant::now();
        kept.save_last(Round(r), &o).unwrap();
        parts[1] += s.elapsed().as_secs_f64();
        let s = Instant::now();
        snaps.save(Round(r), &bytes[..2000]).unwrap();
        parts[2] += s.elapsed().as_secs_f64();
        let s = Instant::now();
        kept.prune().unwrap();
        parts[3] += s.elapsed().as_secs_f64();
    }
    println!("small commit {:.1} us; from_bytes {:.1} save_last {:.1} snapshot {:.1} prune {:.1}", t.elapsed().as_secs_f64() * 1e6 / f64::from(n), parts[0]*1e6/f64::from(n), parts[1]*1e6/f64::from(n), parts[2]*1e6/f64::from(n), parts[3]*1e6/f64::from(n));
    let big = 256 << 20;
    let src = model(big);
    for i in 0..8u32 {
        let s = Instant::now();
        let mut out = objects.output(src.len() as u64).unwrap();
        let a = s.elapsed().as_secs_f64() * 1e3;
        let s2 = Instant::now();
        out.bytes_mut().copy_from_slice(&src);
        let b = s2.elapsed().as_secs_f64() * 1e3;
        let o = out.finish().unwrap();
        let s3 = Instant::now();
        kept.save_last(Round(n + i), &o).unwrap();
        kept.prune().unwrap();
        let c = s3.elapsed().as_secs_f64() * 1e3;
        println!("256 MiB: room {a:.2} ms, copy {b:.1} ms, keep {c:.2} ms");
    }
    // adopt + drop
    let outbox = Outbox::create(&dir.path().join("outbox")).unwrap();
    for _ in 0..3 {
        std::fs::write(outbox.path().join("r"), &src).unwrap();
        let s = Instant::now();
        let o = objects.adopt(&outbox, "r").unwrap();
        let a = s.elapsed().as_secs_f64() * 1e3;
        let mut sum = 0u64;
        let s = Instant::now();
        for c in o.bytes().chunks(4096) { sum += u64::from(c[0]); }
        let b = s.elapsed().as_secs_f64() * 1e3;
        let s = Instant::now();
        drop(o);
        println!("adopt {a:.3} ms touch {b:.1} ms drop {:.2} ms {sum}", s.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::write(outbox.path().join("r"), &bytes).unwrap();
    let s = Instant::now();
    for _ in 0..1000 {
        std::fs::write(outbox.path().join("r"), &bytes).unwrap();
        objects.adopt(&outbox, "r").unwrap();
    }
    println!("small write+adopt {:.1} us", s.elapsed().as_secs_f64() * 1e3);
}
