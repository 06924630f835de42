//! The eight durations. A ninth needs a decision record.

use std::time::Duration;

/// Every time limit of the product. `None` means: no limit.
///
/// Progress is never timed out: `idle` counts from the last progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations {
    /// To open a connection and end its handshake. Default 10 s.
    pub connect: Duration,
    /// Without a byte of progress on a transfer before it is tried anew. Default 60 s.
    pub idle: Duration,
    /// For streams and logs to empty when a job or process ends. Default 5 s.
    pub drain: Duration,
    /// How long a site that fell silent is still counted as present. Default 15 min.
    pub lease: Duration,
    /// For a round, from its first assignment. Default none.
    pub round: Option<Duration>,
    /// For one site's task, from delivery to the trainer. Default none.
    pub task: Option<Duration>,
    /// From starting a trainer to its first message. Default 120 s: importing
    /// torch on a busy machine with a cold cache has been seen to take 60.
    pub trainer_start: Duration,
    /// Between asking a process to end and ending it. Default 10 s.
    pub stop_grace: Duration,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            lease: Duration::from_secs(15 * 60),
            round: None,
            task: None,
            trainer_start: Duration::from_secs(120),
            stop_grace: Duration::from_secs(10),
        }
    }
}
