//! The emulated line for commands, from a shell or a bench.
//!
//! Never: decides what is a good figure; it runs commands and counts packets.
//!
//! Start at [`wan`].

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::Duration;

use firesteel_rig::{Counts, Direction, Link, Place, RigError, Wan, isolate_process, memory};

const USAGE: &str = "\
usage: firesteel-rig wan [--round-trip MS] [--jitter MS] [--loss PERCENT] [--mbit RATE]
                         [--queue MS] [--seed N] --far COMMAND --near COMMAND
       firesteel-rig touch MIB

  wan     runs two shell commands at the ends of an emulated line; RIG_NEAR and
          RIG_FAR in their environment are the addresses. When the near one has
          ended, the far one is ended, and what went over the line is printed to
          stderr as JSON. The exit code is the near one's.
  touch   writes to so much fresh memory once and gives it back";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["wan", options @ ..] => match parse(options) {
            Ok(options) => wan(&options).unwrap_or_else(ExitCode::from),
            Err(wrong) => usage(&wrong),
        },
        ["touch", mib] => match mib.parse::<u64>() {
            Ok(mib) => {
                memory::touch(mib * 1024 * 1024);
                ExitCode::SUCCESS
            }
            Err(_) => usage(&format!("`{mib}` is no number of MiB")),
        },
        _ => usage("no such command"),
    }
}

fn usage(wrong: &str) -> ExitCode {
    eprintln!("error: {wrong}\n\n{USAGE}");
    ExitCode::from(2)
}

struct Options {
    link: Link,
    seed: u64,
    near: String,
    far: String,
}

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let mut given = BTreeMap::new();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else {
            return Err(format!("`{}` has no value", pair.concat()));
        };
        given.insert(*name, *value);
    }
    let mut number = |name: &str, default: f64| -> Result<f64, String> {
        let value = given.remove(name).map_or(Ok(default), |value| {
            value
                .parse()
                .map_err(|_| format!("`{value}` of `{name}` is no number"))
        })?;
        if value >= 0.0 {
            Ok(value)
        } else {
            Err(format!("`{name}` is less than nothing"))
        }
    };
    let millis = |value: f64| Duration::from_secs_f64(value / 1000.0);
    let mut link = Link::round_trip(millis(number("--round-trip", 0.0)?))
        .jitter(millis(number("--jitter", 0.0)?))
        .loss(number("--loss", 0.0)? / 100.0);
    let (mbit, queue) = (number("--mbit", 0.0)?, number("--queue", 200.0)?);
    if mbit > 0.0 {
        link = link.rate((mbit * 1e6) as u64, millis(queue));
    }
    let seed = number("--seed", 1.0)? as u64;
    let mut command = |name: &str| {
        let command = given.remove(name).map(str::to_owned);
        command.ok_or_else(|| format!("`{name}` is missing"))
    };
    let (near, far) = (command("--near")?, command("--far")?);
    match given.first_key_value() {
        Some((name, _)) => Err(format!("there is no option `{name}`")),
        None => Ok(Options {
            link,
            seed,
            near,
            far,
        }),
    }
}

fn wan(options: &Options) -> Result<ExitCode, RigError> {
    let _space = isolate_process()?;
    let (near, far) = (Place::new()?, Place::new()?);
    let wan = Wan::join(&near, &far, options.link, options.seed)?;
    let start = |place: &Place, script: &str| {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .env("RIG_NEAR", wan.near().to_string())
            .env("RIG_FAR", wan.far().to_string());
        place.start(command)
    };
    let failed = |source| RigError::Failed {
        what: "a command".to_owned(),
        source,
    };
    let far = start(&far, &options.far).map_err(failed)?;
    let mut near = start(&near, &options.near).map_err(failed)?;
    let status = near.wait().map_err(failed)?;
    drop(far);
    let counts = |direction| json(&wan.counts(direction));
    eprintln!(
        "{{\"there\": {}, \"back\": {}}}",
        counts(Direction::There),
        counts(Direction::Back)
    );
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn json(counts: &Counts) -> String {
    format!(
        "{{\"packets\": {}, \"bytes\": {}, \"lost\": {}, \"overflowed\": {}, \"arrived\": {}, \"arrived_bytes\": {}}}",
        counts.packets,
        counts.bytes,
        counts.lost,
        counts.overflowed,
        counts.arrived,
        counts.arrived_bytes
    )
}
