//! What a person or a program sees of a run: logs, live progress, metrics and
//! TensorBoard's event files.
//!
//! Never: decides anything about a job, fails one because a line could not be
//! written, installs itself into the process (no global logger: the library
//! lives inside a user's Python), or sends anything anywhere.
//!
//! Start at [`Logs`] and [`Progress`], which share a [`Console`]; the records
//! of rounds are in [`metrics`], event files in [`TbWriter`]. The format of
//! `log.json` is in `docs/reference/log-schema.md`.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod clock;
mod config;
mod console;
mod events;
mod logs;
pub mod metrics;
mod progress;
mod text;

pub use config::{ConfigError, ConsoleMode, FilesConfig, LogConfig};
pub use console::{Console, ConsoleOptions, ConsoleStyle, Target};
pub use events::{TbError, TbWriter};
pub use logs::{FL_LOGGERS, Level, Logger, Logs, Record, is_fl_logger};
pub use metrics::{MetricsWriter, RoundRecord, RunStatus, SiteRecord, Summary};
pub use progress::{JobLine, Progress, RoundLine, SiteStage};
