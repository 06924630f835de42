use std::time::Duration;

use super::*;
use crate::console::ConsoleStyle;
use crate::console::tests::Tape;

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

fn at_noon<'a>(level: Level, logger: &'a str, message: &'a str) -> Record<'a> {
    Record {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_348_800_123),
        level,
        logger,
        job: None,
        site: None,
        round: None,
        message,
        fields: &[],
        files_only: false,
    }
}

fn open(dir: &Path) -> Logs {
    Logs::open(dir, LogConfig::default(), Console::off())
}

#[test]
fn a_line_goes_to_each_file_in_its_form() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path());
    let site = site("site-1");
    logs.write(&Record {
        job: Some("digits"),
        site: Some(&site),
        round: Some(Round(3)),
        fields: &[("bytes", json!(42))],
        ..at_noon(Level::Info, "firesteel.server", "it works")
    });
    logs.write(&at_noon(Level::Error, "firesteel.sim", "it broke"));
    let first = "2026-11-22 12:00:00,123 - firesteel.server - INFO - [job=digits round=3 site=site-1] - it works\n";
    let second = "2026-11-22 12:00:00,123 - firesteel.sim - ERROR - [] - it broke\n";
    assert_eq!(read(dir.path(), "log.txt"), format!("{first}{second}"));
    assert_eq!(read(dir.path(), "sites/site-1/log.txt"), first);
    assert_eq!(read(dir.path(), "error_log.txt"), second);
    let json = read(dir.path(), "log.json");
    let lines: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            json!({"schema": 1, "time": "2026-11-22T12:00:00.123000Z", "level": "INFO",
                   "logger": "firesteel.server", "job": "digits", "site": "site-1", "round": 3,
                   "message": "it works", "fields": {"bytes": 42}}),
            json!({"schema": 1, "time": "2026-11-22T12:00:00.123000Z", "level": "ERROR",
                   "logger": "firesteel.sim", "message": "it broke"}),
        ]
    );
    assert!(
        !dir.path().join("log_fl.txt").exists(),
        "neither is about learning"
    );
}

#[test]
fn the_fl_log_never_holds_a_communication_line() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path());
    let learning = [
        "custom",
        "custom.client",
        "firesteel.flow",
        "firesteel.flow.fedavg",
        "firesteel.aggregate",
        "firesteel.job",
        "firesteel.server.round",
        "firesteel.server.model.best",
    ];
    let others = [
        "firesteel",
        "firesteel.server",
        "firesteel.server.rounds",
        "firesteel.net",
        "firesteel.net.tcp",
        "firesteel.bridge",
        "firesteel.bridge.socket",
        "firesteel.transfer",
        "firesteel.wire",
        "firesteel.launch",
        "firesteel.agent",
        "firesteel.flows",
        "customs",
        "",
    ];
    for level in Level::ALL {
        for logger in learning.iter().chain(&others) {
            logs.write(&at_noon(level, logger, logger));
        }
    }
    let text = read(dir.path(), "log_fl.txt");
    for line in text.lines() {
        let logger = line.split(" - ").nth(1).unwrap();
        assert!(learning.contains(&logger), "{line}");
    }
    // INFO and above, of every learning logger.
    assert_eq!(text.lines().count(), learning.len() * 4);
    assert_eq!(
        read(dir.path(), "log.txt").lines().count(),
        (learning.len() + others.len()) * 4
    );
}

#[test]
fn levels_hold_for_dotted_prefixes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LogConfig::default();
    config.levels.insert("firesteel.net".into(), Level::Error);
    config.levels.insert("custom".into(), Level::Debug);
    let logs = Logs::open(dir.path(), config, Console::off());
    assert!(!logs.enabled(Level::Warning, "firesteel.net.tcp"));
    for (logger, level) in [
        ("firesteel.net.tcp", Level::Warning),
        ("firesteel.net.tcp", Level::Error),
        ("custom.client", Level::Debug),
        ("firesteel.server", Level::Debug),
    ] {
        logs.write(&at_noon(level, logger, "x"));
    }
    let text = read(dir.path(), "log.txt");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("firesteel.net.tcp - ERROR") && text.contains("custom.client - DEBUG"));
}

#[test]
fn a_logger_carries_what_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path());
    let logger = logs.logger("firesteel.agent").for_job("digits");
    let about = logger.for_site(&site("site-2")).for_round(Round(7));
    logger.info("job");
    about.warning("both");
    about.named("custom.client").error("script");
    about.debug("not shown");
    assert!(!about.enabled(Level::Debug));
    let text = read(dir.path(), "log.txt");
    let tails: Vec<_> = text.lines().map(|line| &line[26..]).collect();
    assert_eq!(
        tails,
        [
            "firesteel.agent - INFO - [job=digits] - job",
            "firesteel.agent - WARNING - [job=digits round=7 site=site-2] - both",
            "custom.client - ERROR - [job=digits round=7 site=site-2] - script",
        ]
    );
}

#[test]
fn no_message_forges_a_line_or_steers_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Plain, None);
    let config = LogConfig {
        console: ConsoleMode::Full,
        ..LogConfig::default()
    };
    let logs = Logs::open(dir.path(), config, console.clone());
    let message = "a\n2026-11-22 12:00:00,000 - firesteel.server - ERROR - [] - forged\x1b[2J";
    logs.write(&at_noon(Level::Info, "custom.client\nx", message));
    assert!(console.flush(Duration::from_secs(10)));
    for text in [read(dir.path(), "log.txt"), tape.text()] {
        assert!(!text.contains('\x1b'));
        assert!(text.contains("\n    2026-11-22 12:00:00,000"));
    }
    // JSON keeps the message as it was, escaped.
    let json = read(dir.path(), "log.json");
    assert_eq!(json.lines().count(), 1);
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["message"], message);
}

/// What the console shows of one line per logger, in this mode.
fn console_lines(mode: ConsoleMode, terminal: Option<(usize, usize)>) -> Vec<String> {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Plain, terminal);
    let config = LogConfig {
        console: mode,
        ..LogConfig::default()
    };
    let logs = Logs::console_only(config, console.clone());
    let site = site("site-1");
    for (level, logger, message) in [
        (Level::Info, "firesteel.server", "plumbing"),
        (Level::Warning, "firesteel.net.tcp", "reconnected"),
        (Level::Warning, "firesteel.launch", "odd"),
        (Level::Error, "firesteel.net.tcp", "broken"),
    ] {
        logs.write(&at_noon(level, logger, message));
    }
    logs.write(&Record {
        site: Some(&site),
        ..at_noon(Level::Info, "custom.client", "epoch 1\nloss 0.5\n")
    });
    logs.write(&Record {
        files_only: true,
        ..at_noon(
            Level::Info,
            "firesteel.server.round",
            "shown by the progress",
        )
    });
    assert!(console.flush(Duration::from_secs(10)));
    tape.text().lines().map(str::to_owned).collect()
}

#[test]
fn the_console_shows_what_its_mode_says() {
    assert_eq!(
        console_lines(ConsoleMode::Concise, None),
        [
            "12:00:00 WARNING odd",
            "12:00:00 ERROR broken",
            "12:00:00 site-1: epoch 1",
            "    loss 0.5",
        ]
    );
    assert_eq!(
        console_lines(ConsoleMode::MsgOnly, None),
        [
            "plumbing",
            "reconnected",
            "odd",
            "broken",
            "epoch 1",
            "loss 0.5"
        ]
    );
    let full = console_lines(ConsoleMode::Full, None);
    assert_eq!(full.len(), 6);
    assert_eq!(
        full[0],
        "2026-11-22 12:00:00,123 - firesteel.server - INFO - [] - plumbing"
    );
    assert_eq!(console_lines(ConsoleMode::Off, None), Vec::<String>::new());
    // Colors only on a terminal, and never instead of the word.
    let colored = console_lines(ConsoleMode::Concise, Some((80, 24)));
    assert_eq!(colored[0], "12:00:00 \x1b[33mWARNING\x1b[0m odd");
    assert_eq!(colored[1], "12:00:00 \x1b[31mERROR\x1b[0m broken");
}

#[test]
fn files_are_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LogConfig::default();
    config.files.rotate_bytes = 4096;
    config.files.rotate_keep = 2;
    let logs = Logs::open(dir.path(), config, Console::off());
    for number in 0..400 {
        logs.write(&at_noon(
            Level::Info,
            "custom",
            &format!("line {number:04}"),
        ));
    }
    let mut all = String::new();
    for name in ["log.txt.2", "log.txt.1", "log.txt"] {
        let text = read(dir.path(), name);
        assert!(!text.is_empty() && text.len() <= 4096, "{name}");
        all.push_str(&text);
    }
    assert!(!dir.path().join("log.txt.3").exists());
    let numbers: Vec<usize> = all
        .lines()
        .map(|line| line[line.len() - 4..].parse().unwrap())
        .collect();
    assert_eq!(*numbers.last().unwrap(), 399);
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    // A new handle goes on in the same file.
    drop(logs);
    let before = read(dir.path(), "log.txt").len();
    open(dir.path()).write(&at_noon(Level::Info, "custom", "more"));
    assert!(read(dir.path(), "log.txt").len() > before);
}

#[test]
fn a_thousand_sites_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path());
    for _ in 0..2 {
        for number in 0..300 {
            let site = site(&format!("site-{number}"));
            logs.write(&Record {
                site: Some(&site),
                ..at_noon(Level::Info, "custom.client", "here")
            });
        }
    }
    let open_files = logs
        .0
        .files
        .lock()
        .unwrap()
        .sites
        .as_ref()
        .unwrap()
        .open
        .len();
    assert_eq!(open_files, OPEN_SITE_FILES);
    for number in [0, 150, 299] {
        let text = read(dir.path(), &format!("sites/site-{number}/log.txt"));
        assert_eq!(text.lines().count(), 2);
    }
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Plain, None);
    let logs = Logs::open(
        &dir.path().join("run"),
        LogConfig::default(),
        console.clone(),
    );
    // A file in the place of the directory: nothing can be opened.
    std::fs::write(dir.path().join("run"), b"").unwrap();
    for _ in 0..5 {
        logs.write(&at_noon(Level::Info, "custom", "lost"));
    }
    assert_eq!(logs.dropped(), 5);
    assert!(console.flush(Duration::from_secs(10)));
    let told = "log lines are being lost: cannot write the logs in `";
    assert_eq!(tape.text().matches(told).count(), 1, "{}", tape.text());
    // Once it works again, the files say so themselves.
    std::fs::remove_file(dir.path().join("run")).unwrap();
    logs.write(&at_noon(Level::Info, "custom", "found"));
    let text = read(dir.path(), "run/log.txt");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with("log lines lost here: 5"));
    assert!(lines[1].ends_with("found"));
    assert_eq!(logs.dropped(), 5);
}

#[test]
fn many_threads_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path());
    std::thread::scope(|scope| {
        for number in 0..4 {
            let logger = logs.logger("custom").for_site(&site(&format!("s{number}")));
            scope.spawn(move || (0..200).for_each(|line| logger.info(&format!("line {line}"))));
        }
    });
    let text = read(dir.path(), "log.txt");
    assert_eq!(text.lines().count(), 800);
    assert!(
        text.lines()
            .all(|line| line.contains(" - custom - INFO - [site=s"))
    );
    assert_eq!(read(dir.path(), "log.json").lines().count(), 800);
    assert_eq!(read(dir.path(), "sites/s3/log.txt").lines().count(), 200);
}

#[test]
fn what_is_switched_off_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LogConfig::default();
    config.files.json = false;
    config.files.sites = false;
    let logs = Logs::open(dir.path(), config, Console::off());
    logs.logger("custom").for_site(&site("a")).info("x");
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["log.txt", "log_fl.txt"]);
    Logs::disabled().logger("custom").error("nowhere");
}

#[test]
fn the_schema_page_tells_of_every_field() {
    let page = include_str!("../../../../../docs/reference/log-schema.md");
    let site = site("site-1");
    let full = Record {
        job: Some("digits"),
        site: Some(&site),
        round: Some(Round(3)),
        fields: &[("weight", json!(360.0))],
        ..at_noon(Level::Info, "firesteel.server.round", "update taken")
    };
    let bare = at_noon(Level::Info, "custom", "x");
    let keys = |record: &Record<'_>| -> Vec<String> {
        let value: Value = serde_json::from_str(&json_line(record)).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    };
    let documented = |column: &str| -> Vec<String> {
        let mut fields: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split_once("` | "))
            .filter(|(_, rest)| {
                rest.split(" | ")
                    .nth(1)
                    .is_some_and(|is| column.contains(is))
            })
            .map(|(field, _)| field.to_owned())
            .collect();
        fields.sort();
        fields
    };
    assert_eq!(keys(&full), documented("yes no"));
    assert_eq!(keys(&bare), documented("yes"));
    // The example is one that the code could have written.
    let example = page.lines().find(|line| line.starts_with('{')).unwrap();
    let example: Value = serde_json::from_str(example).unwrap();
    let mut written: Value = serde_json::from_str(&json_line(&full)).unwrap();
    written["time"] = example["time"].clone();
    assert_eq!(written, example);
    for logger in FL_LOGGERS.iter().chain(COMMUNICATION) {
        assert!(page.contains(&format!("`{logger}`")), "{logger}");
    }
    for level in Level::ALL {
        assert!(
            page.contains(&format!("| `{level}` | {} |", level as i64)),
            "{level}"
        );
    }
}

#[test]
fn what_is_logged_changes_while_it_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), LogConfig::default(), Console::off());
    let logger = logs.logger("firesteel.site");
    logger.debug("unseen");
    let debug = logs.config().with_word("debug").unwrap();
    logs.set_config(debug);
    assert!(logs.config().summary().starts_with("DEBUG"));
    logger.debug("seen");
    let text = r#"{"version":1,"levels":{"firesteel.site":"ERROR"},"files":{"log.txt":false}}"#;
    logs.set_config(LogConfig::from_text(text).unwrap());
    logger.warning("unseen");
    // Which files there are stays as it was.
    logger.error("seen too");
    let log = std::fs::read_to_string(dir.path().join("log.txt")).unwrap();
    assert!(!log.contains("unseen"), "{log}");
    assert!(log.contains("seen") && log.contains("seen too"), "{log}");
    let wrong = LogConfig::from_text(r#"{"version":2}"#).unwrap_err();
    assert!(wrong.to_string().contains("`version` is 2"), "{wrong}");
}
