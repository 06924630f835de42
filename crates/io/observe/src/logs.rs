//! Log lines: where they come from and the files they go to.

mod file;
mod level;

pub use level::Level;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use firesteel_base::{Moment, Round, SiteName};
use serde_json::{Map, Value, json};

use crate::config::{ConsoleMode, LogConfig};
use crate::console::Console;
use crate::text;
use file::LogFile;

/// Prefixes of the loggers whose lines are about the learning: what the user's
/// scripts say, and what the algorithm decides. Only these go to `log_fl.txt`
/// and to the concise console.
pub const FL_LOGGERS: &[&str] = &[
    "custom",
    "firesteel.flow",
    "firesteel.aggregate",
    "firesteel.job",
    "firesteel.server.round",
    "firesteel.server.model",
];

/// Prefixes of the loggers that speak of connections and transfers: never in
/// `log_fl.txt`, whatever they are called below that.
const COMMUNICATION: &[&str] = &[
    "firesteel.net",
    "firesteel.bridge",
    "firesteel.transfer",
    "firesteel.wire",
];

/// Open log files of sites; the one not used for longest is closed beyond that.
const OPEN_SITE_FILES: usize = 64;

/// Whether a logger's lines are about the learning.
pub fn is_fl_logger(name: &str) -> bool {
    FL_LOGGERS.iter().any(|prefix| is_below(name, prefix))
        && !COMMUNICATION.iter().any(|prefix| is_below(name, prefix))
}

fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// One line, before anybody decided where it goes.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// When it was said.
    pub time: SystemTime,
    /// How much it matters.
    pub level: Level,
    /// Who says it, dotted: `firesteel.net.tcp`, `custom.client`.
    pub logger: &'a str,
    /// The job it is about.
    pub job: Option<&'a str>,
    /// The site it is about or from.
    pub site: Option<&'a SiteName>,
    /// The round it is about.
    pub round: Option<Round>,
    /// What is said; may have several lines.
    pub message: &'a str,
    /// Named values beside it, for `log.json`.
    pub fields: &'a [(&'a str, Value)],
    /// Whether the console need not show it, because [`crate::Progress`] does.
    pub files_only: bool,
}

/// The logs of one run. A clone is another handle to the same.
///
/// Writing never fails and never panics: when the disk is full, lines are
/// counted instead and that is said once. Files are written by the caller's
/// thread, the console by its own.
#[derive(Clone)]
pub struct Logs(Arc<Shared>);

struct Shared {
    config: RwLock<Arc<LogConfig>>,
    console: Console,
    files: Mutex<Files>,
}

/// Who speaks, and about what: a handle that is cheap to clone.
#[derive(Clone)]
pub struct Logger {
    logs: Logs,
    name: Arc<str>,
    job: Option<Arc<str>>,
    site: Option<SiteName>,
    round: Option<Round>,
    files_only: bool,
}

impl Logs {
    /// Logs into the run's directory `dir` and to `console`.
    ///
    /// Opens no file yet: each is made with its first line.
    pub fn open(dir: &Path, config: LogConfig, console: Console) -> Self {
        Self(Arc::new(Shared {
            files: Mutex::new(Files::new(Some(dir), &config)),
            config: RwLock::new(Arc::new(config)),
            console,
        }))
    }

    /// Logs that go to the console alone.
    pub fn console_only(config: LogConfig, console: Console) -> Self {
        Self(Arc::new(Shared {
            files: Mutex::new(Files::new(None, &config)),
            config: RwLock::new(Arc::new(config)),
            console,
        }))
    }

    /// Logs that go nowhere.
    pub fn disabled() -> Self {
        let config = LogConfig {
            console: ConsoleMode::Off,
            ..LogConfig::default()
        };
        Self::console_only(config, Console::off())
    }

    /// A handle for who says `name`.
    pub fn logger(&self, name: &str) -> Logger {
        Logger {
            logs: self.clone(),
            name: name.into(),
            job: None,
            site: None,
            round: None,
            files_only: false,
        }
    }

    /// Whether such a line would be logged; to save the making of a costly one.
    pub fn enabled(&self, level: Level, logger: &str) -> bool {
        let config = self.0.config.read();
        let config = config.unwrap_or_else(PoisonError::into_inner);
        config.enabled(level, logger)
    }

    /// Logs one line.
    pub fn write(&self, record: &Record<'_>) {
        if !self.enabled(record.level, record.logger) {
            return;
        }
        let lost = {
            let mut files = self
                .0
                .files
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            files.write(record)
        };
        if let Some(complaint) = lost {
            self.0.console.complain(&complaint);
        }
        if let Some(line) = self.console_line(record) {
            self.0.console.line(line);
        }
    }

    /// Lines that could not be written so far.
    pub fn dropped(&self) -> u64 {
        self.0
            .files
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .dropped
    }

    /// What holds for these logs.
    pub fn config(&self) -> Arc<LogConfig> {
        let config = self.0.config.read();
        Arc::clone(&config.unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on this holds for lines of every logger, of levels and console.
    /// Which files there are and when they are rotated stays as it was.
    pub fn set_config(&self, config: LogConfig) {
        let files = self.config().files;
        let config = Arc::new(LogConfig { files, ..config });
        let held = self.0.config.write();
        *held.unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The console they share with the live progress.
    pub fn console(&self) -> &Console {
        &self.0.console
    }

    fn console_line(&self, record: &Record<'_>) -> Option<String> {
        let severe = record.level >= Level::Error
            || (record.level >= Level::Warning
                && !COMMUNICATION
                    .iter()
                    .any(|prefix| is_below(record.logger, prefix)));
        match self.config().console {
            ConsoleMode::Off => None,
            _ if record.files_only && !severe => None,
            ConsoleMode::Concise if !severe && !is_fl_logger(record.logger) => None,
            ConsoleMode::Concise => Some(self.short(record)),
            ConsoleMode::Full => Some(self.colored(record.level, text_line(record))),
            ConsoleMode::MsgOnly => {
                let message = text::printable(record.message);
                Some(message.trim_end_matches('\n').to_owned())
            }
        }
    }

    /// `12:00:00 site-1: message`, with the level where something is wrong.
    fn short(&self, record: &Record<'_>) -> String {
        let mut line = Moment::of(record.time).clock();
        if record.level >= Level::Warning {
            let word = self.colored(record.level, record.level.to_string());
            let _ = write!(line, " {word}");
        }
        if let Some(site) = record.site {
            let _ = write!(line, " {site}:");
        }
        // What follows the first line of our own is a traceback, which the
        // script has printed already; the files have it whole.
        let own = is_below(record.logger, "firesteel");
        let message = match record.message.split_once('\n') {
            Some((first, _)) if own => first,
            _ => record.message,
        };
        let _ = write!(line, " {}", text::indented(message));
        line
    }

    fn colored(&self, level: Level, text: String) -> String {
        let code = match level {
            Level::Trace | Level::Debug => "2",
            Level::Info => return text,
            Level::Warning => "33",
            Level::Error | Level::Critical => "31",
        };
        if self.0.console.colored() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text
        }
    }
}

impl Logger {
    /// The same about a job.
    #[must_use]
    pub fn for_job(&self, job: &str) -> Self {
        Self {
            job: Some(job.into()),
            ..self.clone()
        }
    }

    /// The same about a site, or from it.
    #[must_use]
    pub fn for_site(&self, site: &SiteName) -> Self {
        Self {
            site: Some(site.clone()),
            ..self.clone()
        }
    }

    /// The same about a round.
    #[must_use]
    pub fn for_round(&self, round: Round) -> Self {
        Self {
            round: Some(round),
            ..self.clone()
        }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            ..self.clone()
        }
    }

    /// The same for what [`crate::Progress`] shows already: the console gets it
    /// only from WARNING on.
    #[must_use]
    pub fn files_only(&self) -> Self {
        Self {
            files_only: true,
            ..self.clone()
        }
    }

    /// The logs it writes to.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Whether a line of this level would be logged.
    pub fn enabled(&self, level: Level) -> bool {
        self.logs.enabled(level, &self.name)
    }

    /// Logs a message with named values beside it.
    pub fn log(&self, level: Level, message: &str, fields: &[(&str, Value)]) {
        if !self.enabled(level) {
            return;
        }
        self.logs.write(&Record {
            time: SystemTime::now(),
            level,
            logger: &self.name,
            job: self.job.as_deref(),
            site: self.site.as_ref(),
            round: self.round,
            message,
            fields,
            files_only: self.files_only,
        });
    }

    /// Per chunk; off unless asked for.
    pub fn trace(&self, message: &str) {
        self.log(Level::Trace, message, &[]);
    }

    /// Per round.
    pub fn debug(&self, message: &str) {
        self.log(Level::Debug, message, &[]);
    }

    /// A person's action took effect.
    pub fn info(&self, message: &str) {
        self.log(Level::Info, message, &[]);
    }

    /// Recovered, worth knowing.
    pub fn warning(&self, message: &str) {
        self.log(Level::Warning, message, &[]);
    }

    /// Data or a round was lost; someone must act.
    pub fn error(&self, message: &str) {
        self.log(Level::Error, message, &[]);
    }
}

struct Files {
    dir: Option<PathBuf>,
    text: Option<LogFile>,
    errors: Option<LogFile>,
    json: Option<LogFile>,
    fl: Option<LogFile>,
    sites: Option<SiteFiles>,
    /// Lines lost so far, and of those the ones that no file tells of yet.
    dropped: u64,
    untold: u64,
}

struct SiteFiles {
    root: PathBuf,
    rotation: file::Rotation,
    open: HashMap<SiteName, (u64, LogFile)>,
    uses: u64,
}

impl Files {
    fn new(dir: Option<&Path>, config: &LogConfig) -> Self {
        let rotation = file::Rotation {
            bytes: config.files.rotate_bytes,
            keep: config.files.rotate_keep,
        };
        let file = |wanted: bool, name: &str| {
            let dir = dir.filter(|_| wanted)?;
            Some(LogFile::new(dir.join(name), rotation))
        };
        let files = &config.files;
        Self {
            dir: dir.map(Path::to_owned),
            text: file(files.text, "log.txt"),
            errors: file(files.errors, "error_log.txt"),
            json: file(files.json, "log.json"),
            fl: file(files.fl, "log_fl.txt"),
            sites: dir.filter(|_| files.sites).map(|dir| SiteFiles {
                root: dir.join("sites"),
                rotation,
                open: HashMap::new(),
                uses: 0,
            }),
            dropped: 0,
            untold: 0,
        }
    }

    /// Writes the record to the files that want it. The first one that is lost
    /// gives a complaint; once files can be written again, they say how many
    /// were.
    fn write(&mut self, record: &Record<'_>) -> Option<String> {
        let dir = self.dir.clone()?;
        let mut result = self.tell_lost();
        if result.is_ok() {
            result = self.append(record);
        }
        let error = result.err()?;
        self.dropped += 1;
        self.untold += 1;
        // Once per run: on a disk that is nearly full every other line fits.
        (self.dropped == 1).then(|| {
            format!(
                "WARNING log lines are being lost: cannot write the logs in `{}`: {error}",
                dir.display()
            )
        })
    }

    fn tell_lost(&mut self) -> io::Result<()> {
        if self.untold == 0 {
            return Ok(());
        }
        let message = format!("log lines lost here: {}", self.untold);
        self.append(&Record {
            time: SystemTime::now(),
            level: Level::Warning,
            logger: "firesteel.observe",
            job: None,
            site: None,
            round: None,
            message: &message,
            fields: &[],
            files_only: true,
        })?;
        self.untold = 0;
        Ok(())
    }

    /// Appends to every file that wants the record, whatever becomes of the
    /// others; the first error is returned.
    fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut line = text_line(record);
        line.push('\n');
        let mut result = Ok(());
        let mut keep = |one: io::Result<()>| {
            if result.is_ok() {
                result = one;
            }
        };
        if let Some(file) = &mut self.text {
            keep(file.append(&line));
        }
        if let Some(file) = self
            .errors
            .as_mut()
            .filter(|_| record.level >= Level::Error)
        {
            keep(file.append(&line));
        }
        if let Some(file) = self.fl.as_mut().filter(|_| is_fl_logger(record.logger)) {
            keep(file.append(&line));
        }
        if let Some(file) = &mut self.json {
            keep(file.append(&json_line(record)));
        }
        if let (Some(sites), Some(site)) = (&mut self.sites, record.site) {
            keep(sites.append(site, &line));
        }
        result
    }
}

impl SiteFiles {
    fn append(&mut self, site: &SiteName, line: &str) -> io::Result<()> {
        self.uses += 1;
        let uses = self.uses;
        if !self.open.contains_key(site) {
            if self.open.len() >= OPEN_SITE_FILES {
                let oldest = self.open.iter().min_by_key(|(_, (used, _))| *used);
                if let Some(oldest) = oldest.map(|(site, _)| site.clone()) {
                    self.open.remove(&oldest);
                }
            }
            // A `SiteName` is one plain component by construction.
            let path = self.root.join(site.as_str()).join("log.txt");
            let file = LogFile::new(path, self.rotation);
            self.open.insert(site.clone(), (uses, file));
        }
        match self.open.get_mut(site) {
            Some((used, file)) => {
                *used = uses;
                file.append(line)
            }
            None => Ok(()),
        }
    }
}

/// `2026-11-22 12:00:00,123 - firesteel.server - INFO - [job=digits round=3 site=site-1] - message`
fn text_line(record: &Record<'_>) -> String {
    let mut line = format!(
        "{} - {} - {} - [",
        Moment::of(record.time).plain(),
        text::printable(record.logger),
        record.level
    );
    let mut gap = "";
    if let Some(job) = record.job {
        let _ = write!(line, "job={}", text::printable(job));
        gap = " ";
    }
    if let Some(round) = record.round {
        let _ = write!(line, "{gap}round={}", round.0);
        gap = " ";
    }
    if let Some(site) = record.site {
        let _ = write!(line, "{gap}site={site}");
    }
    let _ = write!(line, "] - {}", text::indented(record.message));
    line
}

/// One line of `log.json`; its schema is `docs/reference/log-schema.md`.
fn json_line(record: &Record<'_>) -> String {
    let mut line = json!({
        "schema": 1,
        "time": Moment::of(record.time).rfc3339(),
        "level": record.level.as_str(),
        "logger": record.logger,
        "message": record.message,
    });
    if let Value::Object(map) = &mut line {
        if let Some(job) = record.job {
            map.insert("job".into(), json!(job));
        }
        if let Some(site) = record.site {
            map.insert("site".into(), json!(site.as_str()));
        }
        if let Some(round) = record.round {
            map.insert("round".into(), json!(round.0));
        }
        if !record.fields.is_empty() {
            let fields: Map<String, Value> = record
                .fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            map.insert("fields".into(), Value::Object(fields));
        }
    }
    format!("{line}\n")
}

#[cfg(test)]
mod tests;
