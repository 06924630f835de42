//! What it costs to receive a file into a new one, and into one that was used
//! before.
//!
//! `cargo run --release -p firesteel-store --example receive_bench -- [MB] [ROUNDS] [DIR]`
//!
//! Prints one JSON object. Rates are gigabytes per second of one thread, medians
//! of all rounds, beside a copy from memory to memory; the memory that is needed
//! was touched before. `reader` is reading it in windows to be sent, and
//! `new_mapping` copying the same windows from a mapping that nobody touched yet.
#![allow(
    clippy::disallowed_methods,
    reason = "a bench makes files and looks at the clock"
)]

use std::path::PathBuf;
use std::time::Instant;

use firesteel_base::{Attempt, Round, SiteName, TaskKey};
use firesteel_store::{InMemory, ModelObject, Objects, PartName, Spool, SpoolBudget};
use firesteel_tensor::{DType, HeaderBuilder};

/// Bytes of one write, as they come from a connection.
const WINDOW: usize = 256 * 1024;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| {
        args.next()
            .map_or(default, |arg| arg.parse().expect("a number"))
    };
    let (megabytes, rounds) = (number(256), number(5) as usize);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("receive-bench-{}", std::process::id()));

    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::U8, &[megabytes << 20]);
    let (mut model, header) = builder.encode().expect("one tensor fits");
    model.resize(header.total_len() as usize, 7);
    let gigabytes = model.len() as f64 / 1e9;

    let mut copy = vec![1; model.len()];
    let mut took = Took::default();
    for round in 0..rounds {
        let before = Instant::now();
        copy.copy_from_slice(&model);
        took.add(0, before);

        // Its own `Objects` has no file to use again.
        let fresh = Objects::open(&dir.join(format!("fresh-{round}"))).expect("a directory");
        let (object, written) = receive(&fresh, "site-1", &model);
        took.seconds[1].push(written);
        drop(object);
        let (object, written) = receive(&fresh, "site-2", &model);
        took.seconds[2].push(written);

        let reader = object.reader().expect("the file is there");
        let mut window = vec![0; WINDOW];
        let before = Instant::now();
        for at in (0..reader.len()).step_by(WINDOW) {
            let count = (reader.len() - at).min(WINDOW as u64) as usize;
            reader
                .read_at(at, &mut window[..count])
                .expect("it is the same");
        }
        took.add(3, before);

        // The same through the object's mapping, which nobody has touched yet.
        let before = Instant::now();
        for bytes in object.bytes().chunks(WINDOW) {
            window[..bytes.len()].copy_from_slice(bytes);
        }
        took.add(4, before);
        drop((reader, object, fresh));
    }
    let rate = |what: usize| gigabytes / took.median(what);
    println!("{{");
    println!("  \"megabytes\": {megabytes}, \"rounds\": {rounds},");
    println!("  \"memory_to_memory\": {:.2},", rate(0));
    println!("  \"into_a_new_file\": {:.2},", rate(1));
    println!("  \"into_a_used_file\": {:.2},", rate(2));
    println!("  \"reader\": {:.2},", rate(3));
    println!("  \"new_mapping\": {:.2}", rate(4));
    println!("}}");
    std::fs::remove_dir_all(&dir).expect("it is ours");
}

fn receive(objects: &Objects, site: &str, model: &[u8]) -> (ModelObject, f64) {
    let name = PartName::of_update(&TaskKey {
        round: Round(0),
        site: SiteName::new(site).expect("a name"),
        attempt: Attempt(0),
    });
    let spool = Spool::open(objects, SpoolBudget::HalfOfFree, InMemory::Allow);
    drop(spool.expect("a spool"));
    let before = Instant::now();
    let incoming = objects.incoming(&name, model.len() as u64).expect("room");
    for (at, bytes) in model.chunks(WINDOW).enumerate() {
        incoming
            .write_at((at * WINDOW) as u64, bytes)
            .expect("room was made");
    }
    let object = incoming.finish().expect("it is a model");
    (object, before.elapsed().as_secs_f64())
}

#[derive(Default)]
struct Took {
    seconds: [Vec<f64>; 5],
}

impl Took {
    fn add(&mut self, what: usize, since: Instant) {
        self.seconds[what].push(since.elapsed().as_secs_f64());
    }

    fn median(&self, what: usize) -> f64 {
        let mut seconds = self.seconds[what].clone();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }
}
