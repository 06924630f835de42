//! Figures of long lines, for the part `wan` of `make bench`: how fast a model
//! arrives beside a plain TCP stream, how long a heartbeat takes meanwhile, and
//! what cuts cost.
//!
//! Never: compares with a figure of another run; everything that is set beside
//! each other is measured in one.
//!
//! Start at [`main`]; the figures go to stdout as JSON.

#![forbid(unsafe_code)]

mod line;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use firesteel_net_tests::{beat, followed_beat};
use firesteel_rig::{Direction, Link, Proxy, Space, isolate_process};
use serde_json::{Value, json};

use self::line::Line;

const USAGE: &str = "\
usage: firesteel-bench-wan [--quick] [long] [narrow] [cuts]

  long     100 ms round trip, 0.1 % loss, 200 Mbit/s: a model beside a plain TCP stream
  narrow   4 Mbit/s, 200 ms, 1 % loss: a 50 MB model, and heartbeats meanwhile
  cuts     1 GiB at 20 ms with ten cuts, beside the same without";

const MIB: u64 = 1024 * 1024;
const MS: Duration = Duration::from_millis(1);

/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // Before there is a second thread.
    let space = match isolate_process() {
        Ok(space) => space,
        Err(error) => return error.into(),
    };
    match run(&space) {
        Ok(figures) => {
            println!("{figures:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is asked for.
struct Asked {
    /// Everything is divided by this.
    share: u64,
    /// Runs of each case.
    times: usize,
}

fn run(space: &Space) -> Result<Value> {
    let mut asked = Asked { share: 1, times: 3 };
    let mut parts = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => {
                asked = Asked {
                    share: 10,
                    times: 1,
                }
            }
            "long" | "narrow" | "cuts" => parts.push(argument),
            other => bail!("`{other}` is nothing to measure\n\n{USAGE}"),
        }
    }
    if parts.is_empty() {
        parts = ["long", "narrow", "cuts"].map(str::to_owned).to_vec();
    }
    let mut figures = json!({"congestion_controls": congestions()?});
    for part in parts {
        eprintln!("== {part}");
        let done = match part.as_str() {
            "long" => long(space, &asked)?,
            "narrow" => narrow(space, &asked)?,
            _ => cuts(space, &asked)?,
        };
        figures
            .as_object_mut()
            .context("it is an object")?
            .insert(part, done);
    }
    Ok(figures)
}

/// What the kernel has of the two that are compared, and what it uses by itself.
fn congestions() -> Result<Value> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    Ok(json!({
        "available": read("tcp_available_congestion_control")?.trim(),
        "default": read("tcp_congestion_control")?.trim(),
    }))
}

fn has(name: &str) -> Result<bool> {
    let names = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
    Ok(names.split_whitespace().any(|one| one == name))
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A model beside one plain TCP stream of as many bytes, in turns.
fn long(space: &Space, asked: &Asked) -> Result<Value> {
    let link = Link::round_trip(100 * MS)
        .loss(0.001)
        .rate(200_000_000, 100 * MS);
    let mut all = json!({});
    // A loss every 1.5 MB keeps CUBIC at some Mbit/s: it gets fewer bytes.
    for (congestion, mib) in [("bbr", 256), ("cubic", 16)] {
        if !has(congestion)? {
            all[congestion] = json!("this kernel does not have it");
            continue;
        }
        let bytes = mib * MIB / asked.share;
        let (mut plain, mut ours) = (Vec::new(), Vec::new());
        for number in 0..asked.times {
            let seed = number as u64;
            let line = Line::new(space, link, seed, Some(congestion))?;
            let took = line.plain(congestion, bytes)?;
            plain.push(took.as_secs_f64());
            let line = Line::new(space, link, seed, Some(congestion))?;
            let pulled = line.pull(line.server_address(), bytes)?;
            ours.push(pulled.took.as_secs_f64());
            eprintln!(
                "{congestion}, {mib} MiB: plain {took:.2?}, ours {:.2?}",
                pulled.took
            );
        }
        let (plain_s, ours_s) = (median(plain.clone()), median(ours.clone()));
        all[congestion] = json!({
            "bytes": bytes,
            "plain_s": plain,
            "ours_s": ours,
            "plain_mbit": bytes as f64 * 8e-6 / plain_s,
            "ours_mbit": bytes as f64 * 8e-6 / ours_s,
            "ours_to_plain": plain_s / ours_s,
        });
    }
    Ok(all)
}

/// A model that fills a narrow line for minutes, and heartbeats beside it.
fn narrow(space: &Space, asked: &Asked) -> Result<Value> {
    let link = Link::round_trip(200 * MS)
        .loss(0.01)
        .rate(4_000_000, 200 * MS);
    let mut all = json!({});
    let line = Line::new(space, link, 1, None)?;
    let beats = (300 / asked.share).max(30);
    let (idle, followed) = line.at_the_site(async {
        let mut control = line.control(line.server_address()).await?;
        let (mut idle, mut followed) = (Vec::new(), Vec::new());
        for _ in 0..beats {
            let next = tokio::time::sleep(BEAT);
            idle.push(beat(&mut control).await?);
            next.await;
            let next = tokio::time::sleep(BEAT);
            followed.push(followed_beat(&mut control).await?);
            next.await;
        }
        anyhow::Ok((idle, followed))
    })?;
    all["idle_heartbeat"] = percentiles(idle);
    all["idle_heartbeat_followed"] = percentiles(followed);
    eprintln!("idle: {}", all["idle_heartbeat"]);
    eprintln!("followed: {}", all["idle_heartbeat_followed"]);
    // The system's own is what a user gets; the others take turns with less.
    for (name, congestion, bytes) in [
        ("default", None, 50_000_000),
        ("bbr", Some("bbr"), 10_000_000),
        ("cubic", Some("cubic"), 5_000_000),
    ] {
        if congestion.is_some_and(|name| !has(name).unwrap_or(false)) {
            all[name] = json!("this kernel does not have it");
            continue;
        }
        let bytes = bytes / asked.share;
        let line = Line::new(space, link, 2, congestion)?;
        let pulled = line.pull(line.server_address(), bytes)?;
        let there = line.wan.counts(Direction::There);
        all[name] = json!({
            "bytes": pulled.bytes,
            "seconds": pulled.took.as_secs_f64(),
            "mbit": pulled.bytes as f64 * 8e-6 / pulled.took.as_secs_f64(),
            "line_bytes": there.bytes,
            "lost": there.lost,
            "overflowed": there.overflowed,
            "heartbeat": percentiles(pulled.beats),
            "heartbeat_followed": percentiles(pulled.followed),
        });
        eprintln!("{name}: {}", all[name]);
    }
    Ok(all)
}

fn percentiles(mut beats: Vec<Duration>) -> Value {
    beats.sort_unstable();
    let at = |share: f64| {
        let index = ((beats.len() as f64 - 1.0) * share).round() as usize;
        beats.get(index).map(|took| took.as_secs_f64() * 1e3)
    };
    json!({
        "count": beats.len(), "p50_ms": at(0.5), "p90_ms": at(0.9),
        "p99_ms": at(0.99), "max_ms": at(1.0),
    })
}

/// Ten cuts beside none, in bytes on the line.
fn cuts(space: &Space, asked: &Asked) -> Result<Value> {
    let link = Link::round_trip(20 * MS).rate(200_000_000, 20 * MS);
    let bytes = 1024 * MIB / asked.share;
    let mut figures = json!({"bytes": bytes});
    let mut used = Vec::new();
    for cuts in [0, 10] {
        let line = Line::new(space, link, 3, None)?;
        // It stands beside the site: what it lets go of has crossed the line.
        let proxy = line.at_the_site(Proxy::start(line.server_address()))?;
        proxy.cut_at(
            Direction::Back,
            (1..=cuts).map(|number| bytes / (cuts + 1) * number),
        );
        let started = Instant::now();
        let pulled = line.pull(proxy.address(), bytes)?;
        if proxy.cuts() != cuts {
            bail!("{} cuts instead of {cuts}", proxy.cuts());
        }
        let on_the_line = line.wan.counts(Direction::There).bytes;
        used.push(on_the_line);
        eprintln!(
            "{cuts} cuts: {on_the_line} bytes within {:.1?}",
            started.elapsed()
        );
        figures[format!("cuts_{cuts}")] = json!({
            "line_bytes": on_the_line,
            "bytes": pulled.bytes,
            "passed": proxy.passed(Direction::Back),
            "seconds": pulled.took.as_secs_f64(),
        });
    }
    if let [none, ten] = used.as_slice() {
        figures["bytes_over_minimum"] = json!(*ten as f64 / *none as f64);
    }
    Ok(figures)
}
