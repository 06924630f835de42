//! The block's text, from the state and the time: nothing here draws.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{JobLine, RoundLine, SiteStage, State, counted};
use crate::clock;
use crate::text;

/// Sites shown one by one; the rest are counted.
const SITE_LINES: usize = 12;
/// Rows left to the log lines above the block.
const ROWS_FOR_LINES: usize = 3;

/// `round 4/10: 5 of 5 sites, 1.2s, accuracy 0.9312 (best so far)`
pub(super) fn round_text(job: &JobLine, line: &RoundLine) -> String {
    let mut shown = format!(
        "{}: {} of {}, {}",
        round_name(job, line.round.0),
        line.contributed,
        counted(job.sites.len(), "site"),
        clock::short(line.took)
    );
    if let Some((name, value)) = &line.metric {
        let _ = write!(shown, ", {} {}", text::printable(name), number(*value));
        if line.best {
            shown.push_str(" (best so far)");
        }
    }
    shown
}

/// Rounds are counted from zero inside and from one for people.
fn round_name(job: &JobLine, round: u32) -> String {
    format!(
        "round {}/{}",
        u64::from(round) + 1,
        u64::from(job.start_round) + u64::from(job.rounds)
    )
}

pub(super) fn block(state: &State, now: Instant, columns: usize, rows: usize) -> Vec<String> {
    let mut lines = vec![job_line(state, now)];
    if state.outcome.is_some() {
        return lines;
    }
    let room = rows
        .saturating_sub(ROWS_FOR_LINES + lines.len())
        .clamp(1, SITE_LINES + 1);
    let (shown, hidden) = chosen(state, room);
    let width = shown
        .iter()
        .filter_map(|&at| state.job.sites.get(at))
        .map(|site| site.as_str().len())
        .max()
        .unwrap_or(0)
        .min(columns / 3);
    for at in shown {
        if let (Some(site), Some((stage, since))) = (state.job.sites.get(at), state.sites.get(at)) {
            let name = text::fitted(site.as_str(), width);
            let stage = stage_text(stage, now.saturating_duration_since(*since));
            lines.push(format!("  {name:width$}  {stage}"));
        }
    }
    if let Some(rest) = hidden {
        lines.push(rest);
    }
    lines
}

fn job_line(state: &State, now: Instant) -> String {
    let elapsed = clock::short(now.saturating_duration_since(state.started));
    let mut line = state.job.name.clone();
    match (&state.outcome, state.round) {
        (Some(outcome), _) => {
            let _ = write!(line, "  {outcome} after {elapsed}");
        }
        (None, None) => {
            let _ = write!(line, "  starting  {elapsed}");
        }
        (None, Some((round, since))) => {
            let in_round = clock::short(now.saturating_duration_since(since));
            let name = round_name(&state.job, round.0);
            let _ = write!(line, "  {name} ({in_round})  {elapsed}");
        }
    }
    if let Some((name, value)) = state.last.as_ref().and_then(|last| last.metric.as_ref()) {
        let _ = write!(line, "  {} {}", text::printable(name), number(*value));
        if let Some(best) = &state.best
            && let Some((_, value)) = &best.metric
        {
            let round = u64::from(best.round.0) + 1;
            let _ = write!(line, " (best {} in round {round})", number(*value));
        }
    }
    line
}

/// Which sites get a line, and the line for the others. Failed ones come
/// first: they are what somebody must look at.
fn chosen(state: &State, room: usize) -> (Vec<usize>, Option<String>) {
    let all = state.sites.len();
    if all <= room.min(SITE_LINES) {
        return ((0..all).collect(), None);
    }
    let lines = room.saturating_sub(1).min(SITE_LINES);
    let rank = |stage: &SiteStage| match stage {
        SiteStage::Failed { .. } => 0,
        SiteStage::Starting { .. }
        | SiteStage::Downloading { .. }
        | SiteStage::Training
        | SiteStage::Sending { .. } => 1,
        SiteStage::Waiting => 2,
        SiteStage::Done { .. } => 3,
    };
    let mut shown = Vec::with_capacity(lines);
    for wanted in 0..4 {
        let of_rank = state.sites.iter().enumerate();
        let of_rank = of_rank.filter(|(_, (stage, _))| rank(stage) == wanted);
        shown.extend(of_rank.map(|(at, _)| at).take(lines - shown.len()));
    }
    shown.sort_unstable();
    let mut counts: Vec<(&str, usize)> = Vec::new();
    let mut next = shown.iter().copied().peekable();
    for (at, (stage, _)) in state.sites.iter().enumerate() {
        if next.next_if_eq(&at).is_some() {
            continue;
        }
        let word = stage_word(stage);
        match counts.iter_mut().find(|(counted, _)| *counted == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let parts: Vec<String> = counts
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    let rest = format!("  … {} more: {}", all - shown.len(), parts.join(", "));
    (shown, Some(rest))
}

fn stage_word(stage: &SiteStage) -> &'static str {
    match stage {
        SiteStage::Waiting => "waiting",
        SiteStage::Starting { .. } => "starting",
        SiteStage::Downloading { .. } => "downloading",
        SiteStage::Training => "training",
        SiteStage::Sending { .. } => "sending",
        SiteStage::Done { .. } => "done",
        SiteStage::Failed { .. } => "failed",
    }
}

fn stage_text(stage: &SiteStage, since: Duration) -> String {
    let word = stage_word(stage);
    match stage {
        SiteStage::Waiting => word.into(),
        SiteStage::Starting { limit } => {
            let left = limit.saturating_sub(since).as_secs_f64().ceil();
            format!("{word:<11}  {left}s left")
        }
        SiteStage::Downloading { done, total } | SiteStage::Sending { done, total } => {
            if *total == 0 {
                format!("{word:<11}  {}", clock::short(since))
            } else {
                // As floats: a percentage of exabytes does not fit the product.
                let percent = (*done as f64 / *total as f64 * 100.0)
                    .clamp(0.0, 100.0)
                    .floor();
                format!("{word:<11}  {percent}%{}", moved_text(*done, *total, since))
            }
        }
        SiteStage::Training => format!("{word:<11}  {}", clock::short(since)),
        SiteStage::Done { note } if note.is_empty() => word.into(),
        SiteStage::Done { note } => format!("{word:<11}  {}", one_line(note)),
        SiteStage::Failed { message } => format!("{word:<11}  {}", one_line(message)),
    }
}

/// `  12.5 of 256.0 MiB, 110.2 MB/s, 3s left`; what is small is not worth it.
fn moved_text(done: u64, total: u64, since: Duration) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    if (total as f64) < MIB {
        return String::new();
    }
    let mut text = format!(
        "  {:.1} of {:.1} MiB",
        done as f64 / MIB,
        total as f64 / MIB
    );
    // A rate over a moment says nothing.
    if done > 0 && since >= Duration::from_secs(1) {
        let rate = done as f64 / since.as_secs_f64();
        let _ = write!(text, ", {:.1} MB/s", rate / 1e6);
        let left = total.saturating_sub(done) as f64 / rate;
        if let Ok(left) = Duration::try_from_secs_f64(left) {
            let _ = write!(text, ", {} left", clock::short(left));
        }
    }
    text
}

fn one_line(message: &str) -> String {
    text::printable(message).replace(['\n', '\t'], " ")
}

/// Four significant digits, as people compare metrics.
fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        format!("{value}")
    } else if size != 0.0 && !(1e-3..1e6).contains(&size) {
        format!("{value:.3e}")
    } else if size < 10.0 {
        format!("{value:.4}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_shows_bytes_and_soon_its_rate() {
        let shown = |done, total, seconds| {
            let stage = SiteStage::Sending { done, total };
            stage_text(&stage, Duration::from_secs_f64(seconds))
        };
        let mib = 1 << 20;
        assert_eq!(shown(5, 10, 9.0), "sending      50%");
        assert_eq!(
            shown(64 * mib, 256 * mib, 0.5),
            "sending      25%  64.0 of 256.0 MiB"
        );
        assert_eq!(
            shown(64 * mib, 256 * mib, 2.0),
            "sending      25%  64.0 of 256.0 MiB, 33.6 MB/s, 6.0s left"
        );
        assert_eq!(
            shown(0, 256 * mib, 2.0),
            "sending      0%  0.0 of 256.0 MiB"
        );
    }
}
