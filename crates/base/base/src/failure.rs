//! Why a site's work failed: data that travels from the site to the person.

use std::fmt;

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Before the trainer's first message: finding, starting, importing.
    Start,
    /// Between receiving a task and sending its result.
    Train,
    /// Handing the result over: writing, checking its form.
    Send,
    /// The server's checks of the update against the model.
    Verify,
    /// Summing the updates.
    Aggregate,
    /// Writing a model, a log or a snapshot.
    Save,
}

impl Phase {
    /// The word used in messages and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Train => "train",
            Self::Send => "send",
            Self::Verify => "verify",
            Self::Aggregate => "aggregate",
            Self::Save => "save",
        }
    }

    /// The inverse of [`Phase::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Start,
            Self::Train,
            Self::Send,
            Self::Verify,
            Self::Aggregate,
            Self::Save,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == word)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal,)*) => {
        /// The stable code of a kind of failure; each has its section in
        /// `docs/reference/failures.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FailureCode { $($(#[$doc])* $variant,)* }

        impl FailureCode {
            /// Every code, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as written in logs and records.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The inverse of [`FailureCode::as_str`].
            pub fn parse(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|c| c.as_str() == code)
            }
        }
    };
}

codes! {
    /// The training script does not exist or cannot be read.
    ScriptMissing = "script-missing",
    /// The command or interpreter could not be started.
    SpawnFailed = "spawn-failed",
    /// The script raised while it was being imported or before `init`.
    ImportFailed = "import-failed",
    /// The script raised an exception.
    Raised = "raised",
    /// The trainer exited before it had sent its result.
    Exited = "exited",
    /// The trainer was ended by a signal (a segmentation fault, say).
    Signaled = "signaled",
    /// The kernel ended the trainer for want of memory.
    OutOfMemory = "out-of-memory",
    /// Nothing was heard from the trainer within `trainer-start`.
    NeverStarted = "never-started",
    /// The trainer ran but never asked for a task.
    NeverReceived = "never-received",
    /// The task's deadline passed.
    TaskDeadline = "task-deadline",
    /// The round's deadline passed.
    RoundDeadline = "round-deadline",
    /// A tensor holds NaN or Inf.
    NotFinite = "not-finite",
    /// A tensor has another shape than the model's.
    ShapeMismatch = "shape-mismatch",
    /// A tensor has another dtype than the model's.
    DtypeMismatch = "dtype-mismatch",
    /// The update has tensors the model lacks, or the wrong kind of params.
    KeyMismatch = "key-mismatch",
    /// The update was FULL where DIFF was expected, or the reverse.
    ParamsType = "params-type",
    /// The Client API was used in a way that cannot work.
    Misuse = "misuse",
    /// What arrived is not a model: a damaged or hostile file or message.
    Malformed = "malformed",
    /// The disk is full or a quota was reached.
    DiskFull = "disk-full",
    /// The connection to the site was lost.
    Disconnected = "disconnected",
    /// The job was aborted by a person.
    Aborted = "aborted",
    /// None of the others: a bug in the product. Please report it.
    Internal = "internal",
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One site's failure: what failed, when, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub code: FailureCode,
    /// While doing what.
    pub phase: Phase,
    /// One sentence without a full stop that can stand after `site-3: `.
    pub message: String,
    /// What to do; empty when there is nothing useful to say.
    pub hint: String,
    /// The trainer's Python traceback, when there is one.
    pub traceback: Option<String>,
    /// The trainer's last lines of output, oldest first.
    pub log_tail: Vec<String>,
}

impl Failure {
    /// A failure without traceback or output.
    pub fn new(code: FailureCode, phase: Phase, message: impl Into<String>) -> Self {
        Self {
            code,
            phase,
            message: message.into(),
            hint: String::new(),
            traceback: None,
            log_tail: Vec::new(),
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, during {}]", self.message, self.code, self.phase)
    }
}
