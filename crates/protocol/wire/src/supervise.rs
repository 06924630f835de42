//! What agent and supervisor, and supervisor and warm parent, say to each other.
//!
//! Agent and supervisor are one binary's two processes and speak prost frames
//! ([`Order`], [`Notice`]). The warm parent is a bare Python process that has to
//! read and write without any library, so supervisor and warm parent speak JSON
//! in frames of the same form: a little-endian `u32` length, then that many bytes
//! ([`WarmRequest`], [`WarmReport`]).

use std::collections::BTreeMap;

use firesteel_base::limits;
use serde::{Deserialize, Serialize};

use crate::frame::FrameError;

/// The version of the protocol between agent and supervisor.
pub const PROTOCOL: u32 = 1;

/// The version of the protocol between supervisor and warm parent.
pub const WARM_PROTOCOL: u32 = 1;

/// One frame from an agent to its supervisor.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Order {
    /// What to do; `None` is something a newer agent asks.
    #[prost(oneof = "order::Body", tags = "1, 2, 3, 4")]
    pub body: Option<order::Body>,
}

/// The kinds of [`Order`].
pub mod order {
    /// What an agent asks.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Body {
        /// The first frame: how to work.
        #[prost(message, tag = "1")]
        Configure(super::Configure),
        /// Start a trainer.
        #[prost(message, tag = "2")]
        Spawn(super::Spawn),
        /// End a trainer.
        #[prost(message, tag = "3")]
        Stop(super::Stop),
        /// End every trainer, then the supervisor itself.
        #[prost(message, tag = "4")]
        Shutdown(super::Shutdown),
    }
}

/// How a supervisor works.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Configure {
    /// [`PROTOCOL`] of the agent.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// True: end everything when the agent is gone. False: let running trainers
    /// come to their end first.
    #[prost(bool, tag = "2")]
    pub die_with_agent: bool,
    /// Milliseconds between asking processes to end and ending them, when no
    /// order says otherwise.
    #[prost(uint64, tag = "3")]
    pub stop_grace_ms: u64,
    /// The warm parent to start now; none when no trainer will be forked.
    #[prost(message, optional, tag = "4")]
    pub warm: Option<WarmParent>,
}

/// A Python process from which trainers are forked.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WarmParent {
    /// The interpreter.
    #[prost(string, tag = "1")]
    pub python: String,
    /// Modules to import ahead, each within the allow-list.
    #[prost(string, repeated, tag = "2")]
    pub preload: Vec<String>,
    /// Variables added to the supervisor's own environment.
    #[prost(btree_map = "string, string", tag = "3")]
    pub env: BTreeMap<String, String>,
    /// Whether a process whose script ended well runs the next one, too.
    #[prost(bool, tag = "4")]
    pub reuse: bool,
}

/// Start a trainer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Spawn {
    /// The agent's number for it, never used twice.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The directory it runs in.
    #[prost(string, tag = "2")]
    pub cwd: String,
    /// Variables added to the environment.
    #[prost(btree_map = "string, string", tag = "3")]
    pub env: BTreeMap<String, String>,
    /// How it is started.
    #[prost(oneof = "spawn::How", tags = "4, 5")]
    pub how: Option<spawn::How>,
}

/// The kinds of [`Spawn`].
pub mod spawn {
    /// How a trainer is started.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum How {
        /// Forked from the warm parent.
        #[prost(message, tag = "4")]
        Warm(super::WarmSpawn),
        /// A process of its own.
        #[prost(message, tag = "5")]
        External(super::ExternalSpawn),
    }
}

/// A trainer forked from the warm parent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WarmSpawn {
    /// The Python script.
    #[prost(string, tag = "1")]
    pub script: String,
    /// Its arguments.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// What its random generators are seeded from; none: from the system.
    #[prost(string, optional, tag = "3")]
    pub seed: Option<String>,
}

/// A trainer started as a process of its own.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExternalSpawn {
    /// The command and its arguments.
    #[prost(string, repeated, tag = "1")]
    pub argv: Vec<String>,
    /// The terminal it talks to instead of the supervisor's pipes; empty: none.
    #[prost(string, tag = "2")]
    pub terminal: String,
}

/// End a trainer and all its descendants.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stop {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Milliseconds between asking and ending; 0 ends it at once.
    #[prost(uint64, tag = "2")]
    pub grace_ms: u64,
}

/// End every trainer, then the supervisor itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Shutdown {
    /// Milliseconds between asking and ending; 0 ends them at once.
    #[prost(uint64, tag = "1")]
    pub grace_ms: u64,
}

/// One frame from a supervisor to its agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Notice {
    /// What happened; `None` is something a newer supervisor says.
    #[prost(oneof = "notice::Body", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub body: Option<notice::Body>,
}

/// The kinds of [`Notice`].
pub mod notice {
    /// What a supervisor says.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Body {
        /// The supervisor works.
        #[prost(message, tag = "1")]
        Ready(super::Ready),
        /// A trainer runs.
        #[prost(message, tag = "2")]
        Started(super::Started),
        /// Trainers wrote lines.
        #[prost(message, tag = "3")]
        Output(super::Output),
        /// A trainer has ended.
        #[prost(message, tag = "4")]
        Exited(super::Exited),
        /// A trainer could not be started.
        #[prost(message, tag = "5")]
        SpawnFailed(super::SpawnFailed),
        /// The warm parent has imported its modules.
        #[prost(message, tag = "6")]
        WarmReady(super::WarmReady),
        /// The warm parent has ended unasked.
        #[prost(message, tag = "7")]
        WarmLost(super::WarmLost),
    }
}

/// The supervisor works.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ready {
    /// [`PROTOCOL`] of the supervisor.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// A trainer runs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Started {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its process id, which is its process group and session, too.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// A trainer wrote lines.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Output {
    /// Which; 0 is the warm parent.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The lines, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub lines: Vec<Line>,
}

/// One line of output.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Line {
    /// True for standard error.
    #[prost(bool, tag = "1")]
    pub stderr: bool,
    /// The text without its line end; what is not UTF-8 is replaced.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// A trainer has ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Exited {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its exit code, when it exited.
    #[prost(int32, optional, tag = "2")]
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    #[prost(int32, optional, tag = "3")]
    pub signal: Option<i32>,
    /// The strongest signal the supervisor itself had sent it; 0 for none.
    #[prost(int32, tag = "4")]
    pub sent_signal: i32,
    /// 0: no sign of memory shortage. 1: likely. 2: certain.
    #[prost(uint32, tag = "5")]
    pub oom: u32,
    /// What the verdict on memory rests on.
    #[prost(string, tag = "6")]
    pub oom_evidence: String,
    /// Bytes of memory it held at most.
    #[prost(uint64, tag = "7")]
    pub max_rss: u64,
    /// Microseconds of CPU it used, its reaped children's included.
    #[prost(uint64, tag = "8")]
    pub cpu_us: u64,
    /// Its last lines, oldest first.
    #[prost(message, repeated, tag = "9")]
    pub tail: Vec<Line>,
}

/// A trainer could not be started.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SpawnFailed {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A `FailureCode`, as text.
    #[prost(string, tag = "2")]
    pub code: String,
    /// Why, as one sentence without a full stop.
    #[prost(string, tag = "3")]
    pub message: String,
    /// What to do about it.
    #[prost(string, tag = "4")]
    pub hint: String,
    /// The last lines of whoever should have started it.
    #[prost(message, repeated, tag = "5")]
    pub tail: Vec<Line>,
}

/// The warm parent has imported its modules.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WarmReady {
    /// Its process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// The interpreter's version.
    #[prost(string, tag = "2")]
    pub python: String,
    /// Modules that could not be imported, with the reason.
    #[prost(btree_map = "string, string", tag = "3")]
    pub failed: BTreeMap<String, String>,
    /// Milliseconds that the imports took.
    #[prost(uint64, tag = "4")]
    pub import_ms: u64,
}

/// The warm parent has ended unasked; it is started again when needed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WarmLost {
    /// How it ended, as a sentence.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// What a supervisor asks of a warm parent. The descriptors of the trainer's
/// standard output and standard error come with the frame's first byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmRequest {
    /// The trainer's number.
    pub id: u64,
    /// The Python script.
    pub script: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The directory it runs in.
    pub cwd: String,
    /// Variables added to the environment.
    pub env: BTreeMap<String, String>,
    /// What its random generators are seeded from.
    pub seed: Option<String>,
}

/// What a warm parent reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WarmReport {
    /// The imports are done.
    Ready {
        /// [`WARM_PROTOCOL`] of the warm parent.
        protocol: u32,
        /// The interpreter's version.
        python: String,
        /// Modules that could not be imported, with the reason.
        #[serde(default)]
        failed: BTreeMap<String, String>,
        /// Milliseconds that the imports took.
        #[serde(default)]
        import_ms: u64,
    },
    /// A trainer was forked.
    Started {
        /// The trainer's number.
        id: u64,
        /// Its process id.
        pid: u32,
    },
    /// A trainer could not be forked.
    Failed {
        /// The trainer's number.
        id: u64,
        /// A `FailureCode`, as text.
        code: String,
        /// Why, as one sentence without a full stop.
        message: String,
        /// What to do about it.
        #[serde(default)]
        hint: String,
    },
    /// A trainer has ended.
    Exited {
        /// Its process id.
        pid: u32,
        /// The status as `waitpid` returns it.
        status: i32,
        /// Bytes of memory it held at most.
        max_rss: u64,
        /// Microseconds of CPU it used.
        cpu_us: u64,
        /// Whether only its script has ended: the process waits for the next.
        #[serde(default)]
        kept: bool,
    },
}

/// A JSON frame ready to be written.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit [`limits::FRAME`].
pub fn encode_json(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message).expect("these types are always JSON");
    if body.len() > limits::FRAME {
        return Err(FrameError::TooLong {
            length: body.len(),
            limit: limits::FRAME,
        });
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Reads the body of a JSON frame. Unknown fields are ignored; an unknown kind
/// is an error, for the two ends of this protocol start with a version check.
///
/// # Errors
/// What is wrong with the text, as a sentence.
pub fn decode_json<'a, M: Deserialize<'a>>(body: &'a [u8]) -> Result<M, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_python_writes_them() {
        let text =
            br#"{"kind": "exited", "pid": 7, "status": 256, "max_rss": 1, "cpu_us": 2, "new": 3}"#;
        assert_eq!(
            decode_json::<WarmReport>(text).unwrap(),
            WarmReport::Exited {
                pid: 7,
                status: 256,
                max_rss: 1,
                cpu_us: 2,
                kept: false
            }
        );
        assert!(decode_json::<WarmReport>(br#"{"kind": "dance"}"#).is_err());
        assert!(decode_json::<WarmReport>(b"\xff\xff").is_err());
    }

    #[test]
    fn a_request_that_does_not_fit_is_refused() {
        let request = WarmRequest {
            id: 1,
            script: "x".repeat(limits::FRAME),
            args: Vec::new(),
            cwd: String::new(),
            env: BTreeMap::new(),
            seed: None,
        };
        assert!(matches!(
            encode_json(&request),
            Err(FrameError::TooLong { .. })
        ));
    }
}
