//! The terminal: lines scroll, a block of live progress stays below them.
//!
//! One thread owns the output, so that a terminal which was stopped (Ctrl-S) or
//! a pipe that nobody reads holds up nobody's round.

mod screen;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firesteel_base::{Durations, limits};

use screen::Screen;

/// Between two drawings of the block: ten a second look alive, more cost more
/// than they show.
const REDRAW: Duration = Duration::from_millis(100);
/// How often the block is drawn when nothing changes, for its clocks to run.
const IDLE_REDRAW: Duration = Duration::from_secs(1);

/// How the console shows things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleStyle {
    /// A live block on a terminal, plain lines elsewhere.
    Auto,
    /// Plain lines.
    Plain,
    /// Nothing at all.
    Off,
}

impl ConsoleStyle {
    /// Reads `auto`, `plain` or `off`.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "plain" => Some(Self::Plain),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

/// Where the console writes.
pub enum Target {
    /// The process's standard error.
    Stderr,
    /// Somewhere else; a terminal of this size (columns, rows) where given.
    Writer {
        /// Receives the bytes.
        writer: Box<dyn Write + Send>,
        /// Columns and rows, when it is a terminal.
        terminal: Option<(usize, usize)>,
    },
}

/// What a console is made from.
pub struct ConsoleOptions {
    /// How it shows things.
    pub style: ConsoleStyle,
    /// Where it writes.
    pub target: Target,
    /// Whether colors are wanted on a terminal; see [`Console::stderr`].
    pub color: bool,
}

/// A handle to the terminal; a clone is another to the same. When the last is
/// dropped, what is queued is written, for at most `drain`.
#[derive(Clone)]
pub struct Console(Arc<Handle>);

/// What the thread draws below the lines.
pub(crate) trait Block: Send + Sync {
    /// The lines of the block, each at most `columns` wide.
    fn lines(&self, columns: usize, rows: usize) -> Vec<String>;
}

struct Handle {
    queue: Option<Arc<Queue>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    live: bool,
    colored: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Rung for the thread when there is something to do.
    work: Condvar,
    /// Rung for those who wait until everything is written.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    block: Option<Arc<dyn Block>>,
    /// The block changed since it was drawn.
    dirty: bool,
    /// The block is to be drawn once more and left on the screen.
    leave: bool,
    busy: bool,
    closed: bool,
}

impl Console {
    /// The console on standard error. Colors are used on a terminal unless
    /// `NO_COLOR` is set (to anything but nothing) or `TERM` is `dumb`.
    pub fn stderr(style: ConsoleStyle) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let color = set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
        Self::new(ConsoleOptions {
            style,
            target: Target::Stderr,
            color,
        })
    }

    /// A console that shows nothing.
    pub fn off() -> Self {
        Self(Arc::new(Handle {
            queue: None,
            thread: Mutex::new(None),
            live: false,
            colored: false,
        }))
    }

    /// A console, and its thread unless it is off.
    pub fn new(options: ConsoleOptions) -> Self {
        if options.style == ConsoleStyle::Off {
            return Self::off();
        }
        let (screen, terminal) = Screen::new(options.target);
        let live = terminal && options.style == ConsoleStyle::Auto;
        let queue = Arc::new(Queue::default());
        let for_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("firesteel-console".into())
            .spawn(move || run(&for_thread, screen, live));
        // Without a thread there is nothing to see, which is no reason to fail.
        let Ok(thread) = thread else {
            return Self::off();
        };
        Self(Arc::new(Handle {
            queue: Some(queue),
            thread: Mutex::new(Some(thread)),
            live,
            colored: terminal && options.color,
        }))
    }

    /// Whether a block is drawn live.
    pub fn live(&self) -> bool {
        self.0.live
    }

    /// Whether colors are used.
    pub fn colored(&self) -> bool {
        self.0.colored
    }

    /// Whether anything is shown at all.
    pub fn enabled(&self) -> bool {
        self.0.queue.is_some()
    }

    /// Shows a line (or several) above the block. Lines beyond what is waiting
    /// to be shown already (`limits::CONSOLE_BACKLOG`) are counted instead.
    pub fn line(&self, line: String) {
        let Some(queue) = &self.0.queue else { return };
        let mut state = queue.lock();
        if state.bytes + line.len() > limits::CONSOLE_BACKLOG && !state.lines.is_empty() {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        queue.work.notify_one();
    }

    /// Shows a line even where the console is off: on standard error then.
    pub(crate) fn complain(&self, line: &str) {
        if self.enabled() {
            self.line(line.to_owned());
        } else {
            // Nobody is left to tell when that fails too.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Waits until everything queued is written; `false` when that takes longer
    /// than `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        let Some(queue) = &self.0.queue else {
            return true;
        };
        let state = queue.lock();
        let pending = |state: &mut State| {
            !state.closed && (state.busy || state.leave || !state.lines.is_empty())
        };
        let (_state, waited) = queue
            .idle
            .wait_timeout_while(state, timeout, pending)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    pub(crate) fn show(&self, block: Arc<dyn Block>) {
        self.change(|state| {
            state.block = Some(block);
            state.dirty = true;
        });
    }

    pub(crate) fn touch(&self) {
        if self.0.live {
            self.change(|state| state.dirty = true);
        }
    }

    /// Draws the block a last time and leaves it where it is.
    pub(crate) fn leave(&self) {
        self.change(|state| state.leave = state.block.is_some());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(queue) = &self.0.queue {
            change(&mut queue.lock());
            queue.work.notify_one();
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("live", &self.0.live)
            .field("enabled", &self.enabled())
            .finish()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(queue) = &self.queue else { return };
        let mut state = queue.lock();
        state.leave = state.block.is_some();
        state.closed = true;
        drop(state);
        queue.work.notify_one();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else { return };
        let state = queue.lock();
        let drain = Durations::default().drain;
        let unfinished = |state: &mut State| state.busy || !state.lines.is_empty() || state.leave;
        let (_state, waited) = queue
            .idle
            .wait_timeout_while(state, drain, unfinished)
            .unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() {
            drop(_state);
            // It returns at once; a panic in it was reported by its own hook.
            let _ = thread.join();
        }
    }
}

/// What the thread has to do next.
struct Work {
    lines: Vec<String>,
    block: Option<Arc<dyn Block>>,
    leave: bool,
    last: bool,
}

fn run(queue: &Queue, mut screen: Screen, live: bool) {
    let mut drawn = Instant::now()
        .checked_sub(IDLE_REDRAW)
        .unwrap_or_else(Instant::now);
    loop {
        let work = wait(queue, live, drawn);
        let block = work.block.as_deref().filter(|_| live);
        screen.draw(&work.lines, block, work.leave);
        drawn = Instant::now();
        let mut state = queue.lock();
        state.busy = false;
        drop(state);
        queue.idle.notify_all();
        if work.last {
            return;
        }
    }
}

/// Waits for lines, for a change of the block, or for its clocks to tick.
fn wait(queue: &Queue, live: bool, drawn: Instant) -> Work {
    let mut state = queue.lock();
    loop {
        let block = live && state.block.is_some();
        let since = drawn.elapsed();
        let urgent = state.closed || state.leave;
        let due = if urgent || (!block && !state.lines.is_empty()) {
            Duration::ZERO
        } else if block && (state.dirty || !state.lines.is_empty()) {
            REDRAW.saturating_sub(since)
        } else if block {
            IDLE_REDRAW.saturating_sub(since)
        } else {
            Duration::MAX
        };
        if due.is_zero() {
            break;
        }
        state = if due == Duration::MAX {
            queue
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner)
        } else {
            let waited = queue.work.wait_timeout(state, due);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
    }
    let mut lines: Vec<String> = state.lines.drain(..).collect();
    state.bytes = 0;
    if state.dropped > 0 {
        lines.push(format!(
            "… {} lines were not shown here; the log files have them",
            std::mem::take(&mut state.dropped)
        ));
    }
    let leave = std::mem::take(&mut state.leave);
    let block = state.block.clone();
    if leave {
        state.block = None;
    }
    state.dirty = false;
    state.busy = true;
    Work {
        lines,
        block,
        leave,
        last: state.closed,
    }
}

#[cfg(test)]
pub(crate) mod tests;
