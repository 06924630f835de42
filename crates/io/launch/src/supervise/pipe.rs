//! The two pipes of a process's output.

use std::os::fd::OwnedFd;

use firesteel_wire::supervise::Line;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::lines::{Cutter, Ring};

/// Bytes read from a pipe at once: what a pipe holds by default.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// Bytes read from a process's pipe after its end. Its descendants may still
/// write, and would keep the supervisor busy otherwise.
const DRAIN_BYTES: usize = 1024 * 1024;

/// What a process writes: the pipes, and its last lines.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) out: Option<Pipe>,
    pub(super) err: Option<Pipe>,
    pub(super) ring: Ring,
}

/// One pipe, while it is open.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) descriptor: OwnedFd,
    cutter: Cutter,
}

impl Pipe {
    fn new() -> std::io::Result<(Self, OwnedFd)> {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only this end: the process at the other expects to be able to wait.
        let flags = rustix::fs::fcntl_getfl(&reading)?;
        rustix::fs::fcntl_setfl(&reading, flags | OFlags::NONBLOCK)?;
        Ok((
            Self {
                descriptor: reading,
                cutter: Cutter::default(),
            },
            writing,
        ))
    }
}

impl Output {
    /// Two pipes, and the ends to write to.
    pub(super) fn pipes() -> std::io::Result<(Self, OwnedFd, OwnedFd)> {
        let (out, stdout) = Pipe::new()?;
        let (err, stderr) = Pipe::new()?;
        let output = Self {
            out: Some(out),
            err: Some(err),
            ring: Ring::default(),
        };
        Ok((output, stdout, stderr))
    }

    fn pipe(&mut self, stderr: bool) -> &mut Option<Pipe> {
        if stderr { &mut self.err } else { &mut self.out }
    }

    /// Reads once; gives the lines that were completed.
    pub(super) fn read(&mut self, stderr: bool, scratch: &mut [u8]) -> Vec<Line> {
        self.read_some(stderr, scratch).1
    }

    /// Reads what is there and finishes the last lines.
    pub(super) fn drain(&mut self, scratch: &mut [u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for stderr in [false, true] {
            let mut total = 0;
            while total < DRAIN_BYTES {
                let (count, read) = self.read_some(stderr, scratch);
                lines.extend(read);
                if count == 0 {
                    break;
                }
                total += count;
            }
            let rest = self
                .pipe(stderr)
                .take()
                .and_then(|mut pipe| pipe.cutter.finish());
            lines.extend(self.keep(stderr, rest));
        }
        lines
    }

    fn read_some(&mut self, stderr: bool, scratch: &mut [u8]) -> (usize, Vec<Line>) {
        let Some(pipe) = self.pipe(stderr) else {
            return (0, Vec::new());
        };
        match rustix::io::read(&pipe.descriptor, &mut *scratch) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (0, Vec::new()),
            Ok(0) | Err(_) => {
                let rest = pipe.cutter.finish();
                *self.pipe(stderr) = None;
                (0, self.keep(stderr, rest))
            }
            Ok(count) => {
                let lines = pipe.cutter.push(scratch.get(..count).unwrap_or_default());
                (count, self.keep(stderr, lines))
            }
        }
    }

    fn keep(&mut self, stderr: bool, texts: impl IntoIterator<Item = String>) -> Vec<Line> {
        let lines: Vec<Line> = texts
            .into_iter()
            .map(|text| Line { stderr, text })
            .collect();
        for line in &lines {
            self.ring.push(line.clone());
        }
        lines
    }
}
