//! What server and agents say to each other on a control stream.
//!
//! Every message about work carries round, site and attempt; the job and the
//! lease's epoch travel once, in [`Welcome`] and [`StartJob`], since a control
//! stream of this version serves one job.

use std::collections::BTreeMap;

use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, SiteName, TaskKey, limits};

/// Why a message that decoded is still not one we can take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A part that every version has is missing.
    #[error("a `{message}` message without its `{part}`")]
    Missing {
        /// The message.
        message: &'static str,
        /// The part.
        part: &'static str,
    },
    /// A name that is not one.
    #[error("a message with a bad name")]
    Name(#[from] firesteel_base::IdError),
    /// More entries than the limit.
    #[error("a message with {count} {what}, the limit is {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

/// From an agent to the server.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToServer {
    /// One of the messages; none when it is of a later version.
    #[prost(oneof = "to_server::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub body: Option<to_server::Body>,
}

/// The bodies of [`ToServer`].
pub mod to_server {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The first message of a connection.
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        /// A task has arrived, before its model has.
        #[prost(message, tag = "2")]
        TaskAccepted(super::Key),
        /// A task came into another state.
        #[prost(message, tag = "3")]
        TaskProgress(super::TaskProgress),
        /// A task's result.
        #[prost(message, tag = "4")]
        Update(super::Update),
        /// A task ended without a result.
        #[prost(message, tag = "5")]
        TaskFailed(super::TaskFailed),
        /// A number that a trainer logged.
        #[prost(message, tag = "6")]
        Metric(super::Metric),
        /// The agent has stopped its part of the job; nothing follows.
        #[prost(message, tag = "7")]
        Stopped(super::Stopped),
        /// The site cannot take part in the job.
        #[prost(message, tag = "8")]
        Declined(super::Declined),
        /// A relay's sums of updates below it.
        #[prost(message, tag = "9")]
        Partial(super::Partial),
    }
}

/// From the server to an agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToSite {
    /// One of the messages; none when it is of a later version.
    #[prost(oneof = "to_site::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub body: Option<to_site::Body>,
}

/// The bodies of [`ToSite`].
pub mod to_site {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The answer to a hello that is taken.
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        /// The answer to a hello that is not.
        #[prost(message, tag = "2")]
        Refused(super::Refused),
        /// The job begins.
        #[prost(message, tag = "3")]
        StartJob(super::StartJob),
        /// A task to do.
        #[prost(message, tag = "4")]
        Assign(super::Assign),
        /// A task that is no longer wanted.
        #[prost(message, tag = "5")]
        Cancel(super::Cancel),
        /// A round is committed: its updates are part of the model for good.
        #[prost(message, tag = "6")]
        RoundCommitted(super::RoundCommitted),
        /// The job is over.
        #[prost(message, tag = "7")]
        EndJob(super::EndJob),
        /// A relay is to sum updates that it holds.
        #[prost(message, tag = "8")]
        Collect(super::Collect),
    }
}

/// The key of one piece of work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Key {
    /// The round, from zero.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// The site's name.
    #[prost(string, tag = "2")]
    pub site: String,
    /// The try, from zero.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
}

impl From<&TaskKey> for Key {
    fn from(key: &TaskKey) -> Self {
        Self {
            round: key.round.0,
            site: key.site.as_str().to_owned(),
            attempt: key.attempt.0,
        }
    }
}

impl TryFrom<&Key> for TaskKey {
    type Error = MessageError;

    fn try_from(key: &Key) -> Result<Self, MessageError> {
        Ok(Self {
            round: Round(key.round),
            site: SiteName::new(&key.site)?,
            attempt: Attempt(key.attempt),
        })
    }
}

/// Who connects.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// The oldest protocol the agent speaks.
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// Names of optional abilities.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// The agent's build, for logs.
    #[prost(string, tag = "4")]
    pub build: String,
    /// The site the agent acts for.
    #[prost(string, tag = "5")]
    pub site: String,
    /// A number that the agent drew when it was started, by which its connections
    /// are known to be of one and the same agent. Zero: it does not come back when
    /// its connection is lost.
    #[prost(uint64, tag = "6")]
    pub instance: u64,
    /// The epoch of the lease under which it works already; zero when it does not.
    #[prost(uint64, tag = "7")]
    pub lease_epoch: u64,
    /// The work that it has in hand: the task it is at, and results that it holds
    /// until their round is committed.
    #[prost(message, repeated, tag = "8")]
    pub holds: Vec<Key>,
    /// It is a relay, and the name is its own: it takes part in the job for the
    /// sites below it, each of which has a stream of its own.
    #[prost(bool, tag = "9")]
    pub relay: bool,
}

/// The server's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The protocol both will speak.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The server's build, for logs.
    #[prost(string, tag = "2")]
    pub build: String,
    /// The epoch of the lease under which the server drives the job.
    #[prost(uint64, tag = "3")]
    pub lease_epoch: u64,
}

/// Why a connection is not taken.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refused {
    /// A sentence for the site's operator.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// A job begins at a site.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartJob {
    /// The job's id.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The job spec, as JSON of [`crate::spec`].
    #[prost(bytes = "bytes", tag = "2")]
    pub spec: bytes::Bytes,
    /// The seed of the job: from the spec, or drawn by the server.
    #[prost(uint64, tag = "3")]
    pub seed: u64,
    /// The round after which a site's kept state is not to be used: the job
    /// resumes before it. Absent in a job that starts anew.
    #[prost(uint32, optional, tag = "4")]
    pub resume_round: Option<u32>,
    /// Which of the runs of this job it is.
    #[prost(string, tag = "5")]
    pub run: String,
    /// Bytes of the job's model; zero when it is not known yet.
    #[prost(uint64, tag = "6")]
    pub model_length: u64,
}

/// A model, or where it lies.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Object {
    /// The model file's bytes, when they are few.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub inline: Option<bytes::Bytes>,
    /// Else the id under which the sender offers it.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// Its length in bytes.
    #[prost(uint64, tag = "3")]
    pub length: u64,
}

/// A task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Assign {
    /// Its key.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// `train`, `validate`, `submit_model`.
    #[prost(string, tag = "2")]
    pub task: String,
    /// The model, when there is one yet.
    #[prost(message, optional, tag = "3")]
    pub model: Option<Object>,
    /// The job's first round.
    #[prost(uint32, tag = "4")]
    pub start_round: u32,
    /// The job's number of rounds.
    #[prost(uint32, tag = "5")]
    pub total_rounds: u32,
    /// Extra facts for the trainer, a JSON object.
    #[prost(string, tag = "6")]
    pub meta: String,
    /// Microseconds the site has from delivery to the trainer; absent: no limit.
    #[prost(uint64, optional, tag = "7")]
    pub task_limit_micros: Option<u64>,
}

/// What a task is doing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskProgress {
    /// Its key.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// One of [`TaskState`].
    #[prost(enumeration = "TaskState", tag = "2")]
    pub state: i32,
    /// Bytes of the task's model that have arrived.
    #[prost(uint64, tag = "3")]
    pub done: u64,
    /// Bytes of the model; zero when it is not on its way.
    #[prost(uint64, tag = "4")]
    pub total: u64,
}

/// The states of a task at a site, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TaskState {
    /// Waits for a worker.
    Queued = 0,
    /// Its trainer is starting.
    Starting = 1,
    /// The trainer has the model.
    Training = 2,
    /// The result is on its way.
    Sending = 3,
}

/// A result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// Of which task.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// The params, when there are any.
    #[prost(message, optional, tag = "2")]
    pub model: Option<Object>,
    /// Whether the params are a difference to the model handed out.
    #[prost(bool, tag = "3")]
    pub diff: bool,
    /// The weight the site gives its update: `NUM_STEPS_CURRENT_ROUND`.
    #[prost(double, optional, tag = "4")]
    pub steps: Option<f64>,
    /// Numbers the trainer reports.
    #[prost(btree_map = "string, double", tag = "5")]
    pub metrics: BTreeMap<String, f64>,
    /// Other facts, a JSON object.
    #[prost(string, tag = "6")]
    pub meta: String,
    /// Seconds the trainer had the task.
    #[prost(double, tag = "7")]
    pub train_seconds: f64,
    /// Whether a tensor of the model handed out that the params lack is unchanged.
    #[prost(bool, tag = "8")]
    pub partial: bool,
    /// The params are at the relay that passed this on, which has checked them and
    /// sums them when it is told to; `model` is absent then.
    #[prost(bool, tag = "9")]
    pub at_relay: bool,
}

/// A task without a result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskFailed {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// Why.
    #[prost(message, optional, tag = "2")]
    pub failure: Option<FailureMessage>,
}

/// A [`Failure`] as a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailureMessage {
    /// [`FailureCode::as_str`].
    #[prost(string, tag = "1")]
    pub code: String,
    /// [`Phase::as_str`].
    #[prost(string, tag = "2")]
    pub phase: String,
    /// See [`Failure::message`].
    #[prost(string, tag = "3")]
    pub message: String,
    /// See [`Failure::hint`].
    #[prost(string, tag = "4")]
    pub hint: String,
    /// See [`Failure::traceback`].
    #[prost(string, optional, tag = "5")]
    pub traceback: Option<String>,
    /// See [`Failure::log_tail`].
    #[prost(string, repeated, tag = "6")]
    pub log_tail: Vec<String>,
}

impl From<&Failure> for FailureMessage {
    fn from(failure: &Failure) -> Self {
        // INVARIANT: the whole fits a frame. The newest lines are the useful ones.
        let mut room = limits::FRAME / 4;
        let mut tail: Vec<String> = failure
            .log_tail
            .iter()
            .rev()
            .take(limits::LOG_TAIL_LINES)
            .take_while(|line| {
                let fits = line.len() <= room;
                room = room.saturating_sub(line.len());
                fits
            })
            .cloned()
            .collect();
        tail.reverse();
        Self {
            code: failure.code.as_str().to_owned(),
            phase: failure.phase.as_str().to_owned(),
            message: cut(&failure.message, limits::TRACEBACK_BYTES),
            hint: cut(&failure.hint, limits::TRACEBACK_BYTES),
            traceback: failure
                .traceback
                .as_deref()
                .map(|text| cut(text, limits::TRACEBACK_BYTES)),
            log_tail: tail,
        }
    }
}

impl From<FailureMessage> for Failure {
    fn from(message: FailureMessage) -> Self {
        Self {
            // A code of a later version is still a failure: keep its sentence.
            code: FailureCode::parse(&message.code).unwrap_or(FailureCode::Internal),
            phase: Phase::parse(&message.phase).unwrap_or(Phase::Train),
            message: message.message,
            hint: message.hint,
            traceback: message.traceback,
            log_tail: message.log_tail,
        }
    }
}

/// The text, without its middle when it is longer than `limit` bytes.
pub fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let half = limit.saturating_sub(32) / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    let (start, end) = (&text[..head], &text[tail..]);
    format!("{start}\n… {} bytes cut …\n{end}", tail - head)
}

/// A number, text or other value that a trainer logged while it ran.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    /// The event as JSON: key, value, type, step, time.
    #[prost(string, tag = "1")]
    pub event: String,
}

/// The agent's part of the job is over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stopped {
    /// Trainers that had to be ended by force.
    #[prost(uint32, tag = "1")]
    pub forced: u32,
}

/// Why a site cannot take part in the job.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Declined {
    /// Why.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<FailureMessage>,
}

/// A task that is no longer wanted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cancel {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// A sentence for the site's log.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Updates that a relay holds, or that are below it, are to be summed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Collect {
    /// The round whose updates they are summed for.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Which try to sum them it is; an earlier one is of no use any more.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    /// Whether they are differences.
    #[prost(bool, tag = "3")]
    pub diff: bool,
    /// They, in site order.
    #[prost(message, repeated, tag = "4")]
    pub parts: Vec<Weighed>,
    /// The model that was handed out, when there was one: the relay may not have
    /// it any more.
    #[prost(message, optional, tag = "5")]
    pub model: Option<Object>,
}

/// An update, and how much it counts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Weighed {
    /// It.
    #[prost(message, optional, tag = "1")]
    pub key: Option<Key>,
    /// Its weight.
    #[prost(double, tag = "2")]
    pub weight: f64,
}

/// The answer to a [`Collect`]: sums, or why there are none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Partial {
    /// Of the collect.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Of the collect.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    /// The sums, as a model file of their own kind; absent when nothing counted.
    #[prost(message, optional, tag = "3")]
    pub sums: Option<Object>,
    /// Whose updates are in it, or would be.
    #[prost(message, repeated, tag = "4")]
    pub contributors: Vec<Key>,
    /// Why there are none.
    #[prost(message, optional, tag = "5")]
    pub failure: Option<FailureMessage>,
    /// Those without which another try may succeed.
    #[prost(message, repeated, tag = "6")]
    pub blame: Vec<Blame>,
}

/// A site's part in the failure of a sum.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Blame {
    /// The site.
    #[prost(string, tag = "1")]
    pub site: String,
    /// What went wrong there.
    #[prost(message, optional, tag = "2")]
    pub failure: Option<FailureMessage>,
}

/// A round became part of the model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundCommitted {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub round: u32,
}

/// The job is over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EndJob {
    /// A sentence for the site's log.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Whether trainers are to be stopped in the middle of their work.
    #[prost(bool, tag = "2")]
    pub abort: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_always_fits_a_frame_and_keeps_its_newest_lines() {
        let mut failure = Failure::new(FailureCode::Raised, Phase::Train, "x".repeat(1 << 20));
        failure.traceback = Some("é".repeat(1 << 20));
        failure.log_tail = (0..400)
            .map(|n| format!("{n} {}", "y".repeat(limits::LOG_LINE)))
            .collect();
        let message = FailureMessage::from(&failure);
        assert!(crate::frame::encode(&message).is_ok());
        let back = Failure::from(message);
        assert_eq!(back.log_tail.last(), failure.log_tail.last());
        assert!(back.traceback.unwrap().contains("bytes cut"));
    }

    #[test]
    fn a_code_of_a_later_version_keeps_its_sentence() {
        let message = FailureMessage {
            code: "new".into(),
            message: "so it was".into(),
            ..Default::default()
        };
        let failure = Failure::from(message);
        assert_eq!(
            (failure.code, &*failure.message),
            (FailureCode::Internal, "so it was")
        );
    }
}
