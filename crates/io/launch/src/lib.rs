//! Starting, watching, signalling and burying trainers.
//!
//! Never: speaks with a trainer (that is `bridge`), decides whether a failed one
//! is tried again, or imports Python. The supervisor's side uses no thread and no
//! async runtime, so that it stays small and cannot be blocked by a neighbour.
//!
//! Start at [`Supervisor`] for the agent's side, at [`supervise()`] for the
//! supervisor process itself; the warm parent is `python/firesteel/_warm.py`. What
//! they say to each other is specified in `docs/specs/supervise.md`.

#![deny(clippy::indexing_slicing)]

mod agent;
mod supervise;
mod trainer;

pub use agent::{LaunchError, Supervisor, SupervisorConfig, SupervisorNotice, TrainerHandle};
pub use supervise::{SuperviseError, supervise};
pub use trainer::{
    End, ExitReport, ExternalSpec, Oom, OutputLine, Stream, TrainerEvent, TrainerSpec, WarmSpec,
    check_script, signal_name, thread_env,
};
