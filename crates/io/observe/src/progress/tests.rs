use super::*;
use crate::console::ConsoleStyle;
use crate::console::tests::{Tape, shown};

fn job(sites: usize) -> JobLine {
    JobLine {
        name: "digits".into(),
        sites: (1..=sites)
            .map(|number| SiteName::new(&format!("site-{number}")).unwrap())
            .collect(),
        rounds: 10,
        start_round: 0,
    }
}

fn done(round: u32, value: f64, best: bool) -> RoundLine {
    RoundLine {
        round: Round(round),
        took: Duration::from_millis(1200),
        contributed: 2,
        metric: Some(("accuracy".into(), value)),
        best,
    }
}

/// A progress whose block is looked at without a terminal.
fn board(sites: usize) -> Progress {
    Progress::new(Console::off(), job(sites))
}

fn block(progress: &Progress, after: Duration, columns: usize, rows: usize) -> Vec<String> {
    let state = progress.state();
    render::block(&state, state.started + after, columns, rows)
}

fn at_start(progress: &Progress) -> Vec<String> {
    // The stages began a moment after the job did; whole seconds are shown.
    block(progress, Duration::from_millis(50), 100, 40)
}

#[test]
fn each_stage_has_its_words() {
    let progress = board(8);
    progress.round_started(Round(3));
    let sites = job(8).sites;
    let stages = [
        SiteStage::Waiting,
        SiteStage::Starting {
            limit: Duration::from_secs(120),
        },
        SiteStage::Downloading {
            done: 45,
            total: 100,
        },
        SiteStage::Training,
        SiteStage::Sending { done: 0, total: 0 },
        SiteStage::Done {
            note: "accuracy 0.92".into(),
        },
        SiteStage::Failed {
            message: "ValueError: bad\nTraceback".into(),
        },
        SiteStage::Done {
            note: String::new(),
        },
    ];
    for (site, stage) in sites.iter().zip(stages) {
        progress.site(site, stage);
    }
    progress.site(&SiteName::new("stranger").unwrap(), SiteStage::Training);
    assert_eq!(
        at_start(&progress),
        [
            "digits  round 4/10 (0.0s)  0.1s",
            "  site-1  waiting",
            "  site-2  starting     120s left",
            "  site-3  downloading  45%",
            "  site-4  training     0.0s",
            "  site-5  sending      0.0s",
            "  site-6  done         accuracy 0.92",
            "  site-7  failed       ValueError: bad Traceback",
            "  site-8  done",
        ]
        .map(|line| line.replace("0.1s", &clock::short(Duration::from_millis(50))))
    );
    let later = block(&progress, Duration::from_secs(65), 100, 40);
    assert!(
        later[0].starts_with("digits  round 4/10 (1m 0"),
        "{later:?}"
    );
    assert!(later[2].ends_with("  55s left") || later[2].ends_with("  56s left"));
    let overdue = block(&progress, Duration::from_secs(500), 100, 40);
    assert!(overdue[2].ends_with("  0s left"));
}

#[test]
fn the_key_metric_and_its_best_are_shown() {
    let progress = board(2);
    assert!(at_start(&progress)[0].starts_with("digits  starting  0."));
    progress.round_started(Round(0));
    progress.round_done(done(0, 0.5, true));
    progress.round_started(Round(1));
    progress.round_done(done(1, 0.9312, true));
    progress.round_started(Round(2));
    progress.round_done(done(2, 0.9, false));
    let line = &at_start(&progress)[0];
    assert!(
        line.ends_with("accuracy 0.9000 (best 0.9312 in round 2)"),
        "{line}"
    );
}

#[test]
fn of_many_sites_the_ones_that_matter_are_shown() {
    let progress = board(1000);
    progress.round_started(Round(0));
    let sites = job(1000).sites;
    for site in &sites[..900] {
        progress.site(
            site,
            SiteStage::Done {
                note: String::new(),
            },
        );
    }
    for site in &sites[900..910] {
        progress.site(site, SiteStage::Training);
    }
    progress.site(
        &sites[500],
        SiteStage::Failed {
            message: "it exited".into(),
        },
    );
    let lines = at_start(&progress);
    assert_eq!(lines.len(), 14);
    assert!(lines[1].starts_with("  site-501  failed"), "{lines:?}");
    assert!(lines[2].starts_with("  site-901  training"));
    assert!(lines[12].starts_with("  site-911  waiting"));
    assert_eq!(lines[13], "  … 988 more: 899 done, 89 waiting");
    // A low window shows fewer, a very low one still the job.
    assert_eq!(block(&progress, Duration::ZERO, 100, 10).len(), 7);
    assert_eq!(block(&progress, Duration::ZERO, 100, 2).len(), 2);
}

#[test]
fn twelve_sites_need_no_summary() {
    let progress = board(12);
    progress.round_started(Round(0));
    assert_eq!(at_start(&progress).len(), 13);
    let progress = board(13);
    progress.round_started(Round(0));
    let lines = at_start(&progress);
    assert_eq!(lines.len(), 14);
    assert_eq!(lines[13], "  … 1 more: 1 waiting");
}

#[test]
fn elsewhere_each_round_is_a_line() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Auto, None);
    let progress = Progress::new(console.clone(), job(2));
    for round in 0..2 {
        progress.round_started(Round(round));
        for site in &job(2).sites {
            progress.site(site, SiteStage::Training);
        }
        let message = "ValueError: bad".into();
        progress.site(&job(2).sites[1], SiteStage::Failed { message });
        progress.round_done(done(round, 0.75, round == 1));
    }
    progress.tick();
    progress.finish("completed with 1 of 2 sites");
    assert!(console.flush(Duration::from_secs(10)));
    let text = tape.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "job digits: 2 sites, 10 rounds",
            "round 1/10: 2 of 2 sites, 1.2s, accuracy 0.7500",
            "round 2/10: 2 of 2 sites, 1.2s, accuracy 0.7500 (best so far)",
        ]
    );
    assert!(lines[3].starts_with("job digits: completed with 1 of 2 sites after 0."));
    assert_eq!(lines.len(), 4);
}

#[test]
fn the_end_stays_on_the_screen() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Auto, Some((100, 20)));
    let progress = Progress::new(console.clone(), job(3));
    for round in 0..500 {
        progress.round_started(Round(round));
        progress.round_done(done(round, 0.5, true));
    }
    console.line("a line".into());
    progress.finish("completed");
    assert!(console.flush(Duration::from_secs(10)));
    console.line("afterwards".into());
    assert!(console.flush(Duration::from_secs(10)));
    let rows = shown(&tape.text(), 100);
    // 500 rounds in a moment leave fewer lines than that.
    assert!(rows[0].starts_with("round 1/10: 2 of 3 sites"), "{rows:?}");
    let at = rows.iter().position(|row| row == "a line").unwrap();
    assert!(at < 100, "{rows:?}");
    assert!(
        rows[at + 1].starts_with("digits  completed after "),
        "{rows:?}"
    );
    assert_eq!(rows[at + 2..], ["afterwards"]);
}

#[test]
fn every_line_of_a_block_fits() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Auto, Some((30, 20)));
    let progress = Progress::new(console.clone(), job(3));
    progress.round_started(Round(0));
    let message = "東京 a very long message that cannot fit anywhere".into();
    progress.site(&job(3).sites[0], SiteStage::Failed { message });
    console.line("go".into());
    assert!(console.flush(Duration::from_secs(10)));
    let rows = shown(&tape.text(), 30);
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert!(rows.iter().all(|row| text::columns(row) < 30), "{rows:?}");
}

#[test]
fn reporting_is_cheap() {
    let progress = board(1000);
    let sites = job(1000).sites;
    let start = Instant::now();
    for _ in 0..100 {
        for site in &sites {
            progress.site(site, SiteStage::Training);
        }
    }
    // 100,000 calls; a debug build on a busy machine takes some 50 ms.
    assert!(start.elapsed() < Duration::from_secs(5));
}
