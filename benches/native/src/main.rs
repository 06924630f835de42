//! The programs of `make bench` for which Python would be too slow, or too heavy.
//!
//! Never: part of what is shipped, or run by hand: `benches/run.py` starts them
//! and reads the JSON that they print.
//!
//! Start at [`Task`].
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench opens files and sockets and looks at the clock"
)]

mod bare;
mod clock;
mod files;
mod parts;
mod pull;
mod tls;

use anyhow::Result;
use clap::Parser;

/// As the program that is measured has.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What to run.
#[derive(Debug, Parser)]
enum Task {
    /// A file copied between two processes over a bare socket, by TCP and by TLS.
    Bare(bare::Options),
    /// One end of it: started by `bare`.
    #[command(hide = true)]
    BareEnd(bare::EndOptions),
    /// What the steps of a copy cost by themselves.
    Parts(parts::Options),
    /// A model pulled as roles do it, between two processes.
    Pull(pull::Options),
    /// One end of it: started by `pull`.
    #[command(hide = true)]
    PullEnd(pull::EndOptions),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Bare(options) => bare::run(&options),
        Task::BareEnd(options) => bare::end(&options),
        Task::Parts(options) => parts::run(&options),
        Task::Pull(options) => pull::run(&options),
        Task::PullEnd(options) => pull::end(&options),
    }
}
