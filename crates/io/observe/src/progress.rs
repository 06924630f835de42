//! Live progress: what the job, the round and each site are doing.

mod render;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use firesteel_base::{Round, SiteName};

use crate::clock;
use crate::console::{Block, Console};
use crate::text;

/// The least time between two rounds' lines above a live block.
const ROUND_LINES: Duration = Duration::from_millis(100);

/// What is known when a job starts.
#[derive(Debug, Clone)]
pub struct JobLine {
    /// The job's name.
    pub name: String,
    /// Its sites, in the job's order.
    pub sites: Vec<SiteName>,
    /// How many rounds it has.
    pub rounds: u32,
    /// The first of them.
    pub start_round: u32,
}

/// What a site is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum SiteStage {
    /// Nothing yet: it waits for a slot or for the round.
    Waiting,
    /// Its trainer is starting, which may take that long.
    Starting {
        /// The `trainer-start` limit, counted down.
        limit: Duration,
    },
    /// The model is on its way to it.
    Downloading {
        /// Bytes there.
        done: u64,
        /// Bytes of the whole; 0 when not known.
        total: u64,
    },
    /// It trains.
    Training,
    /// Its result is on its way back.
    Sending {
        /// Bytes there.
        done: u64,
        /// Bytes of the whole; 0 when not known.
        total: u64,
    },
    /// Its result was taken.
    Done {
        /// What to show beside it: its key metric, say.
        note: String,
    },
    /// It failed in this round.
    Failed {
        /// One sentence.
        message: String,
    },
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundLine {
    /// Which one.
    pub round: Round,
    /// How long it took.
    pub took: Duration,
    /// Sites whose result counts.
    pub contributed: usize,
    /// The key metric's name and value, when there is one.
    pub metric: Option<(String, f64)>,
    /// Whether it is the best so far.
    pub best: bool,
}

/// Live progress of one job on a console; a clone is another handle to it.
///
/// Each round is one line. On a terminal a block below the lines is redrawn in
/// place, at most ten times a second, by the console's own thread. No call
/// blocks.
#[derive(Clone)]
pub struct Progress(Arc<Shared>);

struct Shared {
    console: Console,
    board: Arc<Board>,
}

struct Board(Mutex<State>);

struct State {
    job: JobLine,
    started: Instant,
    round: Option<(Round, Instant)>,
    last: Option<RoundLine>,
    best: Option<RoundLine>,
    /// When a round's line was last shown.
    told: Option<Instant>,
    sites: Vec<(SiteStage, Instant)>,
    places: HashMap<SiteName, usize>,
    outcome: Option<String>,
}

impl Progress {
    /// Starts showing a job.
    pub fn new(console: Console, job: JobLine) -> Self {
        let now = Instant::now();
        if !console.live() {
            console.line(format!(
                "job {}: {}, {}",
                job.name,
                counted(job.sites.len(), "site"),
                counted(job.rounds as usize, "round")
            ));
        }
        let places = job.sites.iter().cloned().zip(0..).collect();
        let board = Arc::new(Board(Mutex::new(State {
            sites: vec![(SiteStage::Waiting, now); job.sites.len()],
            places,
            job,
            started: now,
            round: None,
            last: None,
            best: None,
            told: None,
            outcome: None,
        })));
        console.show(Arc::clone(&board) as Arc<dyn Block>);
        Self(Arc::new(Shared { console, board }))
    }

    /// Progress that nobody sees.
    pub fn disabled() -> Self {
        Self::new(
            Console::off(),
            JobLine {
                name: String::new(),
                sites: Vec::new(),
                rounds: 0,
                start_round: 0,
            },
        )
    }

    /// A round has started: every site waits.
    pub fn round_started(&self, round: Round) {
        let now = Instant::now();
        let mut state = self.state();
        state.round = Some((round, now));
        state.sites.fill((SiteStage::Waiting, now));
        drop(state);
        self.0.console.touch();
    }

    /// What a site is doing now. The time beside it counts from the first time
    /// that this was said. A failure is to be logged as well: only a live block
    /// shows it, and only until the next round.
    pub fn site(&self, site: &SiteName, stage: SiteStage) {
        let mut state = self.state();
        let Some(&place) = state.places.get(site) else {
            return;
        };
        if let Some((shown, since)) = state.sites.get_mut(place) {
            if std::mem::discriminant(shown) != std::mem::discriminant(&stage) {
                *since = Instant::now();
            }
            *shown = stage;
        }
        drop(state);
        self.0.console.touch();
    }

    /// A round has ended.
    pub fn round_done(&self, line: RoundLine) {
        let mut state = self.state();
        let text = render::round_text(&state.job, &line);
        if line.best {
            state.best = Some(line.clone());
        }
        state.last = Some(line);
        // Above a live block a line per round is history worth scrolling back
        // to, unless rounds go by faster than anybody reads.
        let now = Instant::now();
        let readable = state
            .told
            .is_none_or(|told| now.duration_since(told) >= ROUND_LINES);
        let tell = readable || !self.0.console.live();
        if tell {
            state.told = Some(now);
        }
        drop(state);
        if tell {
            self.0.console.line(text);
        }
        self.0.console.touch();
    }

    /// Draws anew; only needed where time alone changes what is to be seen
    /// sooner than the console's own second.
    pub fn tick(&self) {
        self.0.console.touch();
    }

    /// The job has ended: shows how, and leaves it on the screen.
    pub fn finish(&self, outcome: &str) {
        let mut state = self.state();
        let outcome = text::printable(outcome).into_owned();
        let line = format!(
            "job {}: {outcome} after {}",
            state.job.name,
            clock::short(state.started.elapsed())
        );
        state.outcome = Some(outcome);
        drop(state);
        if self.0.console.live() {
            self.0.console.leave();
        } else {
            self.0.console.line(line);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.board.state()
    }
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block for Board {
    fn lines(&self, columns: usize, rows: usize) -> Vec<String> {
        render::block(&self.state(), Instant::now(), columns, rows)
    }
}

/// `1 site`, `5 sites`.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests;
