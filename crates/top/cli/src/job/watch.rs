//! A job, watched: lines of what happened and, on a terminal, a line of how it is.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::{Duration, Instant};

use firesteel_api::event::EventQuery;
use firesteel_api::{EventKind, JobDetail, JobEvent, JobState};
use firesteel_session::Session;
use serde_json::{json, to_value};
use tokio::time::timeout_at;

use super::look::{self, numbers, stated};
use crate::remote::{Done, Ended, Exit, plain, print, size, span};

/// Seconds that one request for events waits.
const WAIT: u32 = 20;
/// How often the live line is drawn anew while nothing happens: its clock goes on.
const REDRAW: Duration = Duration::from_millis(250);
/// States of a site that are as they should be: the live line shows them.
const QUIET: [&str; 9] = [
    "deploying",
    "deployed",
    "starting",
    "started",
    "ready",
    "working",
    "in",
    "stopping",
    "stopped",
];
/// Columns of the bar.
const BAR: usize = 20;

/// Watches a job to its end.
pub(super) async fn watch(session: &Session, id: &str, limit: Option<f64>, as_json: bool) -> Done {
    let job = session.job(id).await?;
    let limit = limit.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    let until = limit.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
    let mut view = View::new(&job, as_json);
    let mut query = EventQuery {
        after: 0,
        wait: WAIT,
        limit: None,
    };
    loop {
        let mut asking = pin!(session.events_through_cuts(id, query));
        let events = loop {
            let next = tokio::time::Instant::now() + REDRAW;
            match timeout_at(next, &mut asking).await {
                Ok(events) => break events?,
                Err(_) => view.draw(),
            }
            if until.is_some_and(|until| tokio::time::Instant::now() >= until) {
                view.clear();
                return Err(Ended::new(
                    Exit::TooLong,
                    "timeout",
                    format!("the job has not ended in time: {}", plain(&view.status)),
                    "it goes on; watch it again",
                ));
            }
        };
        for event in &events.events {
            view.take(event)?;
        }
        query.after = events.next;
        if events.ended {
            break;
        }
        view.draw();
    }
    view.clear();
    let job = session.job(id).await?;
    if as_json {
        print(&format!("{}\n", json!({ "job": look::value(&job) })))?;
    } else {
        print(&end(&job))?;
    }
    Ended::of(job.summary.state)
}

/// What is said when a job has ended.
fn end(job: &JobDetail) -> String {
    let one = &job.summary;
    let mut out = format!(
        "{}: {} after {}\n",
        plain(&one.name),
        plain(&stated(one.state, &one.status)),
        span(one.seconds)
    );
    if !job.losses.is_empty() {
        out.push_str(&format!("without {}\n", plain(&job.losses.join(", "))));
    }
    if !one.state.is_success()
        && let Some(failure) = job.failures.last()
    {
        let who = failure.site.as_deref().unwrap_or("server");
        out.push_str(&format!("{}: {}\n", plain(who), plain(&failure.message)));
        for line in failure.traceback.as_deref().unwrap_or_default().lines() {
            out.push_str(&format!("  | {}\n", plain(line)));
        }
        if !failure.hint.is_empty() {
            out.push_str(&format!("hint: {}\n", plain(&failure.hint)));
        }
    }
    out
}

struct View {
    as_json: bool,
    live: bool,
    started: Instant,
    state: JobState,
    status: String,
    rounds: (u32, u32),
    bytes: (u64, u64),
    sites: BTreeMap<String, (String, String)>,
    drawn: bool,
}

impl View {
    fn new(job: &JobDetail, as_json: bool) -> Self {
        let one = &job.summary;
        let sites = job
            .at
            .iter()
            .map(|site| (site.site.clone(), (site.state.clone(), site.status.clone())))
            .collect();
        let ago = Duration::try_from_secs_f64(one.seconds).unwrap_or_default();
        Self {
            as_json,
            live: !as_json && std::io::stderr().is_terminal(),
            started: Instant::now().checked_sub(ago).unwrap_or_else(Instant::now),
            state: one.state,
            status: one.status.clone(),
            rounds: (one.rounds_done, one.rounds),
            bytes: (job.bytes_down, job.bytes_up),
            sites,
            drawn: false,
        }
    }

    fn take(&mut self, event: &JobEvent) -> Done {
        if self.as_json {
            return print(&format!("{}\n", to_value(event).unwrap_or_default()));
        }
        let line = self.learn(&event.what);
        if let Some(line) = line {
            self.clear();
            let clock = event.at.as_str().get(11..19).unwrap_or_default();
            print(&format!("{} {}\n", plain(clock), plain(&line)))?;
        }
        Ok(())
    }

    /// Takes note, and gives the line that says so, if it is worth one.
    fn learn(&mut self, what: &EventKind) -> Option<String> {
        match what {
            EventKind::State { state, status } => {
                self.state = *state;
                self.status.clone_from(status);
                Some(stated(*state, status))
            }
            EventKind::Site {
                site,
                state,
                status,
            } => {
                let now = (state.clone(), status.clone());
                self.sites.insert(site.clone(), now);
                // What a site does within a round is on the live line.
                let worth = !QUIET.contains(&state.as_str());
                let more = if status.is_empty() {
                    String::new()
                } else {
                    format!(": {status}")
                };
                worth.then(|| format!("{site} {state}{more}"))
            }
            EventKind::RoundStarted { round, rounds, .. } => {
                self.rounds = (*round, *rounds);
                for (state, status) in self.sites.values_mut() {
                    if state == "in" || state == "late" {
                        "ready".clone_into(state);
                        status.clear();
                    }
                }
                None
            }
            EventKind::RoundDone {
                round,
                rounds,
                contributed,
                sites,
                seconds,
                metrics,
            } => {
                self.rounds = (round + 1, *rounds);
                let mut line = format!(
                    "round {} of {rounds}: {contributed} of {sites} sites, {}",
                    u64::from(*round) + 1,
                    span(*seconds)
                );
                if !metrics.is_empty() {
                    line.push_str(&format!(", {}", numbers(metrics)));
                }
                Some(line)
            }
            EventKind::Bytes { down, up } => {
                self.bytes = (*down, *up);
                None
            }
            EventKind::Failure { failure } => {
                let who = failure.site.as_deref().unwrap_or("server");
                Some(format!("{who}: {} [{}]", failure.message, failure.code))
            }
            EventKind::Note { message } => Some(message.clone()),
            _ => None,
        }
    }

    fn draw(&mut self) {
        if !self.live {
            return;
        }
        let columns = rustix::termios::tcgetwinsize(std::io::stderr())
            .map_or(0, |size| usize::from(size.ws_col));
        // A terminal that does not know its width says 0.
        let columns = if columns == 0 { 80 } else { columns.max(20) };
        let line: String = self.line().chars().take(columns - 1).collect();
        eprint!("\r\x1b[K{line}");
        // A line that is drawn too late is no failure.
        let _ = std::io::stderr().flush();
        self.drawn = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }

    fn line(&self) -> String {
        let running = self.state == JobState::Running;
        let mut parts = vec![if running {
            self.state.to_string()
        } else {
            stated(self.state, &self.status)
        }];
        let (done, rounds) = self.rounds;
        if rounds > 0 && running {
            let at = (BAR * done.min(rounds) as usize) / rounds as usize;
            let bar = format!("{}{}", "━".repeat(at), "─".repeat(BAR - at));
            let round = done.saturating_add(1).min(rounds);
            parts.push(format!("{bar} round {round} of {rounds}"));
        }
        if !self.sites.is_empty() && running {
            let has = |word: &str| {
                self.sites
                    .values()
                    .filter(|(state, _)| state == word)
                    .count()
            };
            parts.push(format!("{} of {} sites in", has("in"), self.sites.len()));
        }
        let (down, up) = self.bytes;
        if down + up > 0 {
            parts.push(format!("↓ {} ↑ {}", size(down), size(up)));
        }
        parts.push(span(self.started.elapsed().as_secs_f64().floor()));
        let waiting = self.sites.iter().find(|(_, (state, _))| state == "working");
        if let Some((site, (_, status))) = waiting {
            let more = if status.is_empty() { "working" } else { status };
            parts.push(format!("{site}: {more}"));
        }
        plain(&parts.join("  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            as_json: false,
            live: false,
            started: Instant::now(),
            state: JobState::Running,
            status: "running".to_owned(),
            rounds: (0, 0),
            bytes: (0, 0),
            sites: BTreeMap::new(),
            drawn: false,
        }
    }

    #[test]
    fn the_live_line_says_round_sites_and_bytes() {
        let mut view = view();
        let site = |site: &str, state: &str, status: &str| EventKind::Site {
            site: site.to_owned(),
            state: state.to_owned(),
            status: status.to_owned(),
        };
        let quiet = [
            EventKind::RoundStarted {
                round: 1,
                rounds: 4,
                sites: 2,
            },
            site("site-1", "in", ""),
            site("site-2", "working", "training"),
            EventKind::Bytes {
                down: 2048,
                up: 1024,
            },
        ];
        for event in &quiet {
            assert_eq!(view.learn(event), None);
        }
        assert_eq!(
            view.line(),
            "running  ━━━━━───────────────  round 2 of 4".replace("─  round", "─ round")
                + "  1 of 2 sites in  ↓ 2.0 KiB ↑ 1.0 KiB  0.0 s  site-2: training"
        );
    }

    #[test]
    fn what_is_worth_a_line_gets_one() {
        let mut view = view();
        let done = EventKind::RoundDone {
            round: 1,
            rounds: 4,
            contributed: 2,
            sites: 3,
            seconds: 1.25,
            metrics: BTreeMap::from([("loss".to_owned(), 0.5)]),
        };
        assert_eq!(
            view.learn(&done).unwrap(),
            "round 2 of 4: 2 of 3 sites, 1.2 s, loss 0.5000"
        );
        let away = EventKind::Site {
            site: "site-1".to_owned(),
            state: "absent".to_owned(),
            status: "the connection broke off".to_owned(),
        };
        assert_eq!(
            view.learn(&away).unwrap(),
            "site-1 absent: the connection broke off"
        );
        assert_eq!(view.learn(&EventKind::Unknown), None);
    }
}
