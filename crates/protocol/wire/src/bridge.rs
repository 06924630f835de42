//! What agent and trainer say to each other over the trainer's Unix socket.
//!
//! The trainer dials, says [`Hello`], and is answered with [`Welcome`] or
//! [`Refused`]. Then it asks with [`Next`] and is answered, when there is work,
//! with [`Task`]; it answers that with [`TaskResult`] and is told [`Accepted`] or
//! [`Refused`]. [`Log`], [`Metric`] and [`Failed`] may come at any time, and
//! [`End`] may be told at any time.
//!
//! Offers and fetches of streams have a connection of their own, whose [`Hello`]
//! says so: there [`Offer`] and [`Withdraw`] are answered with [`Offered`], and
//! [`Fetch`] with [`Fetched`], or each with [`Refused`], one after the other.
//!
//! A model of at most `limits::INLINE_OBJECT` bytes travels inside its message.
//! A larger one towards the trainer is a descriptor that accompanies the frame's
//! first byte (`SCM_RIGHTS`) or, where none can be passed, [`Chunk`]s after the
//! task; a larger one from the trainer is the name of a file in the outbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The oldest version of this protocol that is understood.
pub const PROTOCOL_MIN: u32 = 1;
/// The newest version of this protocol that is understood.
pub const PROTOCOL_MAX: u32 = 1;

/// The newest version both ends understand; `None` when there is none.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Option<u32> {
    let best = PROTOCOL_MAX.min(peer_max);
    (best >= PROTOCOL_MIN.max(peer_min)).then_some(best)
}

/// One frame from a trainer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromTrainer {
    /// What it says; `None` is something a newer trainer says.
    #[prost(oneof = "from_trainer::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<from_trainer::Body>,
}

/// The kinds of [`FromTrainer`].
pub mod from_trainer {
    /// What a trainer says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The first frame of a connection.
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        /// A request for a task.
        #[prost(message, tag = "2")]
        Next(super::Next),
        /// A task's result.
        #[prost(message, tag = "3")]
        Result(super::TaskResult),
        /// A line of log.
        #[prost(message, tag = "4")]
        Log(super::Log),
        /// A value to track.
        #[prost(message, tag = "5")]
        Metric(super::Metric),
        /// The script failed.
        #[prost(message, tag = "6")]
        Failed(super::Failed),
        /// The trainer leaves in peace.
        #[prost(message, tag = "7")]
        Bye(super::Bye),
        /// Something for others to fetch.
        #[prost(message, tag = "8")]
        Offer(super::Offer),
        /// A request for what somebody offers.
        #[prost(message, tag = "9")]
        Fetch(super::Fetch),
        /// An offer's end.
        #[prost(message, tag = "10")]
        Withdraw(super::Withdraw),
    }
}

/// One frame from an agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromAgent {
    /// What it says; `None` is something a newer agent says.
    #[prost(oneof = "from_agent::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub body: Option<from_agent::Body>,
}

/// The kinds of [`FromAgent`].
pub mod from_agent {
    /// What an agent says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The trainer may stay.
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        /// Something to do.
        #[prost(message, tag = "2")]
        Task(super::Task),
        /// A piece of the last task's model.
        #[prost(message, tag = "3")]
        Chunk(super::Chunk),
        /// The last result has been taken.
        #[prost(message, tag = "4")]
        Accepted(super::Accepted),
        /// The last hello or result has been refused.
        #[prost(message, tag = "5")]
        Refused(super::Refused),
        /// There will be no more tasks.
        #[prost(message, tag = "6")]
        End(super::End),
        /// An offer has been taken, or withdrawn.
        #[prost(message, tag = "7")]
        Offered(super::Offered),
        /// What was asked for.
        #[prost(message, tag = "8")]
        Fetched(super::Fetched),
    }
}

/// Who calls.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// The oldest protocol version the trainer understands.
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// The secret that was given to the trainer at its start.
    #[prost(string, tag = "3")]
    pub token: String,
    /// Its process id, as it sees it.
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// Its rank within a multi-process trainer; rank 0 trains with the agent.
    #[prost(uint32, tag = "5")]
    pub rank: u32,
    /// The version of the product in the trainer's environment.
    #[prost(string, tag = "6")]
    pub version: String,
    /// True when no descriptor can be passed to this trainer, so that models
    /// are copied through the socket.
    #[prost(bool, tag = "7")]
    pub copies: bool,
    /// True for a connection that offers and fetches streams and takes no tasks.
    #[prost(bool, tag = "8")]
    pub streams: bool,
}

/// The handshake's good end.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Welcome {
    /// The version spoken from here on.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// What the trainer should know, as JSON; its fields are in `docs/specs/bridge.md`.
    #[prost(string, tag = "2")]
    pub json: String,
}

/// A request for a task.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Next {}

/// Which task a message is about.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TaskKey {
    /// `train`, `validate` or `submit_model`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The round it belongs to.
    #[prost(uint32, tag = "2")]
    pub round: u32,
    /// Which try it is, from zero.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
}

/// Something to do.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Task {
    /// Which.
    #[prost(message, required, tag = "1")]
    pub key: TaskKey,
    /// The job's first round.
    #[prost(uint32, tag = "2")]
    pub start_round: u32,
    /// How many rounds the job has.
    #[prost(uint32, tag = "3")]
    pub total_rounds: u32,
    /// The model's meta dictionary, as JSON.
    #[prost(string, tag = "4")]
    pub meta: String,
    /// The model; none for a task without one.
    #[prost(oneof = "task::Model", tags = "5, 6, 7")]
    pub model: Option<task::Model>,
}

/// The kinds of a task's model.
pub mod task {
    /// How a task's model reaches the trainer.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Model {
        /// The bytes of the model file.
        #[prost(bytes = "bytes", tag = "5")]
        Inline(bytes::Bytes),
        /// The length of the file whose descriptor comes with this frame.
        #[prost(uint64, tag = "6")]
        File(u64),
        /// The length of the file that follows in chunks.
        #[prost(uint64, tag = "7")]
        Copied(u64),
    }
}

/// A piece of a model that is copied through the socket.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Chunk {
    /// The next bytes of the file.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: bytes::Bytes,
}

/// What a task came to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskResult {
    /// The task it answers.
    #[prost(message, required, tag = "1")]
    pub key: TaskKey,
    /// `FULL` or `DIFF`; empty when there is no model.
    #[prost(string, tag = "2")]
    pub params_type: String,
    /// The trained model; none for a result of metrics alone.
    #[prost(oneof = "task_result::Model", tags = "3, 4")]
    pub model: Option<task_result::Model>,
    /// What the trainer measured.
    #[prost(btree_map = "string, double", tag = "5")]
    pub metrics: BTreeMap<String, f64>,
    /// The result's meta dictionary, as JSON.
    #[prost(string, tag = "6")]
    pub meta: String,
    /// The name, within the outbox, of the state to keep for the next round;
    /// empty when the trainer keeps none.
    #[prost(string, tag = "7")]
    pub state_file: String,
    /// True when the model holds only what changed: a tensor of the task's model
    /// that it lacks is unchanged.
    #[prost(bool, tag = "8")]
    pub partial: bool,
}

/// The kinds of a result's model.
pub mod task_result {
    /// How a result's model reaches the agent.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Model {
        /// The bytes of the model file.
        #[prost(bytes = "bytes", tag = "3")]
        Inline(bytes::Bytes),
        /// The name of the model file within the outbox.
        #[prost(string, tag = "4")]
        File(String),
    }
}

/// The last result has been taken: the trainer may forget it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Accepted {}

/// The last hello or result has been refused.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Refused {
    /// A `FailureCode`, as text.
    #[prost(string, tag = "1")]
    pub code: String,
    /// Why, as one sentence without a full stop.
    #[prost(string, tag = "2")]
    pub message: String,
    /// What to do about it; may be empty.
    #[prost(string, tag = "3")]
    pub hint: String,
}

/// There will be no more tasks for this trainer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct End {
    /// Why, for the log.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// A line of log.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Log {
    /// Python's levels: 10 debug, 20 info, 30 warning, 40 error, 50 critical.
    #[prost(uint32, tag = "1")]
    pub level: u32,
    /// The logger's dotted name.
    #[prost(string, tag = "2")]
    pub logger: String,
    /// The text.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Microseconds since 1970 on the trainer's wall clock.
    #[prost(uint64, tag = "4")]
    pub time: u64,
    /// Lines that were dropped before this one because the agent was slow.
    #[prost(uint32, tag = "5")]
    pub dropped: u32,
}

/// A value to track.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Metric {
    /// One event, as JSON: `key`, `value`, `type`, `step`, `time`, …
    #[prost(string, tag = "1")]
    pub json: String,
}

/// The script failed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Failed {
    /// A `FailureCode`, as text.
    #[prost(string, tag = "1")]
    pub code: String,
    /// A `Phase`, as text.
    #[prost(string, tag = "2")]
    pub phase: String,
    /// What happened, as one sentence without a full stop.
    #[prost(string, tag = "3")]
    pub message: String,
    /// The Python traceback; may be empty.
    #[prost(string, tag = "4")]
    pub traceback: String,
}

/// The trainer leaves in peace.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Bye {}

/// What a stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum StreamKind {
    /// A file of any content.
    File = 0,
    /// A model file.
    Model = 1,
    /// Items one after the other: `docs/specs/stream.md`.
    Items = 2,
    /// A folder whose files may be asked for by name.
    Folder = 3,
}

/// Something for others to fetch. Its descriptor comes with this frame.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Offer {
    /// The name it may be asked for by; empty: by its id alone.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it is.
    #[prost(enumeration = "StreamKind", tag = "2")]
    pub kind: i32,
    /// Its bytes; zero for a folder.
    #[prost(uint64, tag = "3")]
    pub length: u64,
    /// The sites that may fetch it; none named: all of the job.
    #[prost(string, repeated, tag = "4")]
    pub to: Vec<String>,
    /// How many may fetch it before it is withdrawn; zero: any number.
    #[prost(uint32, tag = "5")]
    pub times: u32,
    /// True when it was written for this purpose, and nobody changes it any more.
    #[prost(bool, tag = "6")]
    pub owned: bool,
}

/// An offer has been taken, or withdrawn.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Offered {
    /// By which it is found: a secret among those who are told.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// A request for what somebody offers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Fetch {
    /// The site that offers it.
    #[prost(string, tag = "1")]
    pub site: String,
    /// Its id; empty when it is asked for by name.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Its name; a file in a folder is `<the folder's name>/<path within it>`.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Microseconds to wait for the offer to be made.
    #[prost(uint64, tag = "4")]
    pub wait: u64,
}

/// What was asked for. Its descriptor, open for reading, comes with this frame.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Fetched {
    /// Its id; empty for a file in a folder.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it is.
    #[prost(enumeration = "StreamKind", tag = "3")]
    pub kind: i32,
    /// Its bytes.
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// True when nobody changes the file any more, so that it need not be copied.
    #[prost(bool, tag = "5")]
    pub owned: bool,
}

/// The end of an offer: who has fetched it keeps what it has.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Withdraw {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// How a trainer that a person started finds the agent: a file of mode 0600,
/// read by `flare.init(config_file=…)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachProfile {
    /// The version of this file's form; 1.
    pub schema_version: u32,
    /// Always `attach`: tells this file from other JSON files at a glance.
    pub execution_mode: String,
    /// The path of the agent's socket.
    pub socket: String,
    /// The secret that lets the trainer in.
    pub token: String,
    /// The site it trains for.
    pub site: String,
    /// The job it trains in.
    pub job: String,
}

impl AttachProfile {
    /// The version of the form written here.
    pub const SCHEMA_VERSION: u32 = 1;

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and a number are always JSON")
    }

    /// Reads the file's text. Unknown fields are ignored.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the text.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let profile: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if profile.schema_version != Self::SCHEMA_VERSION {
            return Err(format!(
                "schema_version is {}, and this version of Firesteel reads {}",
                profile.schema_version,
                Self::SCHEMA_VERSION
            ));
        }
        if profile.execution_mode != "attach" {
            return Err(format!(
                "execution_mode is {:?}, not \"attach\"",
                profile.execution_mode
            ));
        }
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn versions_meet_at_the_newest_common_one() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 9), Some(1));
        assert_eq!(negotiate(2, 9), None);
        assert_eq!(negotiate(0, 0), None);
        assert_eq!(negotiate(9, 1), None);
    }

    #[test]
    fn what_a_newer_peer_says_is_an_empty_body() {
        // Field 99, a string, unknown to this version.
        let message = FromAgent::decode(&[0x9a, 0x06, 0x01, b'x'][..]).unwrap();
        assert_eq!(message.body, None);
    }

    #[test]
    fn the_first_version_of_a_task_has_these_bytes() {
        let task = FromAgent {
            body: Some(from_agent::Body::Task(Task {
                key: TaskKey {
                    name: "train".into(),
                    round: 2,
                    attempt: 1,
                },
                start_round: 0,
                total_rounds: 5,
                meta: "{}".into(),
                model: Some(task::Model::File(300)),
            })),
        };
        let bytes = task.encode_to_vec();
        assert_eq!(
            bytes,
            b"\x12\x16\x0a\x0b\x0a\x05train\x10\x02\x18\x01\x18\x05\x22\x02{}\x30\xac\x02"
        );
        assert_eq!(FromAgent::decode(&bytes[..]).unwrap(), task);
    }

    #[test]
    fn an_attach_profile_is_checked() {
        let profile = AttachProfile {
            schema_version: 1,
            execution_mode: "attach".into(),
            socket: "/run/x/bridge.sock".into(),
            token: "secret".into(),
            site: "site-1".into(),
            job: "digits".into(),
        };
        assert_eq!(
            AttachProfile::from_json(&profile.to_json()).unwrap(),
            profile
        );
        let newer = profile
            .to_json()
            .replace("\"schema_version\": 1", "\"schema_version\": 2");
        assert!(
            AttachProfile::from_json(&newer)
                .unwrap_err()
                .contains("schema_version is 2")
        );
        assert!(
            AttachProfile::from_json("{}")
                .unwrap_err()
                .contains("schema_version")
        );
    }
}
