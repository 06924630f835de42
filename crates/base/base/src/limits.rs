//! Every limit of the product: its unit, its value, and why it is that.

/// Bytes in a site name, job id or other name (DNS labels stop there too).
pub const NAME_LENGTH: usize = 63;

/// Bytes up to which a model or update travels inside a message and never
/// touches a disk. Above it, it is a file.
pub const INLINE_OBJECT: usize = 64 * 1024;

/// Bytes of one frame on a control stream or a bridge: an inline object and
/// generous room for the rest (metrics, meta, a traceback). Worst-case memory is
/// this per stream and direction.
pub const FRAME: usize = 1024 * 1024;

/// Bytes of a model file's header. The safetensors format itself stops there.
pub const MODEL_HEADER: usize = 100_000_000;

/// Dimensions of a tensor; NumPy stops at 64.
pub const TENSOR_RANK: usize = 64;

/// Nesting of a params tree. Deep enough for any network seen in the wild,
/// shallow enough to recurse over.
pub const TREE_DEPTH: usize = 64;

/// Leaves of a params tree, tensors included.
pub const TREE_LEAVES: usize = 4_000_000;

/// Bytes of strings, bytes and keys in one params tree, tensors excluded.
pub const TREE_BYTES: usize = 16 * 1024 * 1024;

/// Metrics in one update.
pub const METRICS: usize = 4_096;

/// Bytes of the meta dictionary of one update, as JSON.
pub const META_BYTES: usize = 256 * 1024;

/// Sites of one simulated job. Each costs at most 100 KB.
pub const SIM_SITES: usize = 100_000;

/// Lines of a trainer's output that are kept for a failure report.
pub const LOG_TAIL_LINES: usize = 200;

/// Bytes of those lines together: they travel in one frame. The supervisor holds
/// at most this much per running trainer.
pub const LOG_TAIL_BYTES: usize = 256 * 1024;

/// Bytes of one line of a trainer's output; the rest of a longer one is cut
/// and said to be.
pub const LOG_LINE: usize = 16 * 1024;

/// Bytes of a traceback in a failure report; the middle of a longer one is cut.
pub const TRACEBACK_BYTES: usize = 64 * 1024;

/// Bytes of a job spec: it travels in one frame, with the job's id and seed.
pub const JOB_SPEC: usize = FRAME - 4096;

/// Bytes at which a log file is rotated, and how many old ones are kept
/// (FLARE's 20 MiB × 10).
pub const LOG_FILE: u64 = 20 * 1024 * 1024;
/// Rotated log files kept beside the current one.
pub const LOG_FILES_KEPT: usize = 10;

/// Bytes of log lines that wait for a terminal which takes none (Ctrl-S, a full
/// pipe). Beyond that they go to the files only.
pub const CONSOLE_BACKLOG: usize = 1024 * 1024;
