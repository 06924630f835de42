//! The supervisor's view of the warm parent.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use bytes::{Buf, Bytes, BytesMut};
use firesteel_base::limits;
use firesteel_wire::supervise::{WarmParent, WarmReport, WarmRequest, decode_json, encode_json};

use super::outgoing::Outgoing;
use super::pipe::Output;
use super::process;

/// The Python module that is the warm parent.
pub(super) const MODULE: &str = "firesteel._warm";

/// What the interpreter is told to run. Not `-m`, for that would put the working
/// directory first on the path, where a file called `random.py` is user code.
const BOOT: &str = "import sys\n\
if sys.path and sys.path[0] == '': del sys.path[0]\n\
from firesteel._warm import main\n\
main()";

pub(super) struct Warm {
    pub(super) pid: u32,
    pub(super) python: String,
    pub(super) socket: UnixStream,
    pub(super) outgoing: Outgoing,
    pub(super) output: Output,
    pub(super) ready: bool,
    incoming: BytesMut,
}

/// Tells the loader to resolve every symbol at the start.
const BIND_NOW: &str = "LD_BIND_NOW";

impl Warm {
    /// Starts the interpreter. `lifeline` is the reading end of a pipe whose
    /// other end this process alone holds.
    pub(super) fn start(config: &WarmParent, lifeline: BorrowedFd<'_>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (output, stdout, stderr) = Output::pipes()?;
        let mut command = Command::new(&config.python);
        command
            .args(["-c", BOOT])
            .arg(format!("--lifeline={}", lifeline.as_raw_fd()))
            .arg(format!("--preload={}", config.preload.join(",")))
            .arg(format!("--reuse={}", u8::from(config.reuse)))
            .envs(&config.env)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr));
        if std::env::var_os(BIND_NOW).is_none() && !config.env.contains_key(BIND_NOW) {
            // Functions of shared libraries are then looked up here, once, and
            // not by every trainer at its first call of each.
            command
                .env(BIND_NOW, "1")
                .arg(format!("--unset={BIND_NOW}"));
        }
        process::detach(&mut command);
        process::inherit(&mut command, lifeline.as_raw_fd());
        let child = command.spawn()?;
        Ok(Self {
            pid: child.id(),
            python: config.python.clone(),
            socket: ours,
            outgoing: Outgoing::default(),
            output,
            ready: false,
            incoming: BytesMut::new(),
        })
    }

    /// Has a trainer forked, whose output goes to the two descriptors.
    pub(super) fn ask(
        &mut self,
        request: &WarmRequest,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(), String> {
        let frame = encode_json(request).map_err(|error| error.to_string())?;
        self.outgoing.push(Bytes::from(frame), vec![stdout, stderr]);
        // If it is gone, that is noticed when it is reaped.
        let _ = self.outgoing.flush(&self.socket);
        Ok(())
    }

    /// What it has reported so far, without waiting.
    ///
    /// # Errors
    /// What is wrong with what it sent; it cannot be listened to any more.
    pub(super) fn reports(&mut self) -> Result<Vec<WarmReport>, String> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self
                    .incoming
                    .extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut reports = Vec::new();
        while let Some(head) = self.incoming.first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > limits::FRAME {
                return Err(format!("a report of {length} bytes"));
            }
            if self.incoming.len() < 4 + length {
                break;
            }
            self.incoming.advance(4);
            let body = self.incoming.split_to(length);
            reports.push(decode_json(&body)?);
        }
        Ok(reports)
    }
}
