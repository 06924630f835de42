//! A disk that fills up costs log lines, never the job.

#![allow(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too"
)]

use std::process::Command;

use firesteel_base::Round;
use firesteel_observe::{Console, LogConfig, Logs, MetricsWriter, RoundRecord, TbWriter};

const DIR: &str = "FIRESTEEL_TEST_SMALL_FILES";

/// Runs the test again where no file may be larger than 64 KiB. A write beyond
/// that fails half way, just as on a disk that fills up.
fn again_with_small_files(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    // The signal that goes with the limit would end the process: it is ignored,
    // as Python does.
    let script = format!("trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact {test} --nocapture");
    let output = Command::new("bash")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{out}\n{err}"
    );
    if test == "log_lines_are_counted_and_the_rest_stays_whole" {
        assert_eq!(err.matches("log lines are being lost").count(), 1, "{err}");
    }
}

#[test]
fn log_lines_are_counted_and_the_rest_stays_whole() {
    let Some(dir) = std::env::var_os(DIR) else {
        return again_with_small_files("log_lines_are_counted_and_the_rest_stays_whole");
    };
    let dir = std::path::Path::new(&dir);
    let logs = Logs::open(dir, LogConfig::default(), Console::off());
    let logger = logs.logger("custom.client");
    for number in 0..1000 {
        logger.info(&format!("line {number:04} {}", "x".repeat(100)));
    }
    assert!(logs.dropped() > 0, "everything fitted into 64 KiB");
    for name in ["log.txt", "log.json", "log_fl.txt"] {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.len() > 32 * 1024, "{name}");
        assert!(text.ends_with('\n'), "{name} ends with half a line");
        for line in text.lines() {
            let whole = line.contains(&"x".repeat(100)) || line.contains("lines lost here: ");
            assert!(whole, "{name}: {line}");
        }
    }
}

#[test]
fn metrics_and_events_stay_whole() {
    let Some(dir) = std::env::var_os(DIR) else {
        return again_with_small_files("metrics_and_events_stay_whole");
    };
    let dir = std::path::Path::new(&dir);
    let mut metrics = MetricsWriter::open(&dir.join("metrics"), Round(0)).unwrap();
    let mut failed = 0;
    for round in 0..100 {
        let record = RoundRecord {
            round: Round(round),
            seconds: 0.5,
            sites: vec![],
            metrics: (0..100).map(|n| (format!("metric-{n}"), 0.5)).collect(),
            best: false,
        };
        failed += usize::from(metrics.round(&record).is_err());
    }
    assert!(failed > 0);
    let text = std::fs::read_to_string(dir.join("metrics/rounds.jsonl")).unwrap();
    assert!(text.lines().count() > 10 && text.ends_with('\n'));
    for line in text.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }

    let mut events = TbWriter::new(&dir.join("tb"));
    let now = std::time::SystemTime::now();
    let failed = (0..5000)
        .filter(|&step| events.add_scalar("loss", 0.5, step, now).is_err())
        .count();
    assert!(failed > 0 || events.flush().is_err());
    let file = std::fs::read_dir(dir.join("tb")).unwrap().next().unwrap();
    let bytes = std::fs::read(file.unwrap().path()).unwrap();
    let mut rest = &bytes[..];
    while let Some((length, _)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
        rest = rest
            .get(length + 16..)
            .expect("the file ends with half an event");
    }
    assert!(rest.is_empty());
}
