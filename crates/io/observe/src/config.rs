//! What is logged where: the log configuration, its file and its short words.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use firesteel_base::{Hint, limits};
use serde_json::{Map, Value, json};

use crate::logs::Level;

/// The file in a workspace that a person may write.
const FILE: &str = "log_config.json";
/// The file in a workspace that shows what holds without one.
const DEFAULT_FILE: &str = "log_config.json.default";
/// The most bytes read of either.
const FILE_LIMIT: u64 = 1024 * 1024;

/// What the console shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Lines of algorithms and trainers, short; of everything else only what is
    /// wrong.
    Concise,
    /// Every line, as in `log.txt`.
    Full,
    /// Every line's message alone.
    MsgOnly,
    /// Nothing.
    Off,
}

impl ConsoleMode {
    const ALL: [Self; 4] = [Self::Concise, Self::Full, Self::MsgOnly, Self::Off];

    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Concise => "concise",
            Self::Full => "full",
            Self::MsgOnly => "msg_only",
            Self::Off => "off",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
}

/// Which files are written, and how large they grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesConfig {
    /// `log.txt`.
    pub text: bool,
    /// `error_log.txt`.
    pub errors: bool,
    /// `log.json`.
    pub json: bool,
    /// `log_fl.txt`.
    pub fl: bool,
    /// `sites/<site>/log.txt`.
    pub sites: bool,
    /// Bytes at which a file is rotated.
    pub rotate_bytes: u64,
    /// Rotated files kept.
    pub rotate_keep: usize,
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self {
            text: true,
            errors: true,
            json: true,
            fl: true,
            sites: true,
            rotate_bytes: limits::LOG_FILE,
            rotate_keep: limits::LOG_FILES_KEPT,
        }
    }
}

/// What is logged where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What the console shows.
    pub console: ConsoleMode,
    /// The lowest level that is logged, by dotted prefix of the logger's name;
    /// the longest prefix counts, the empty one is for all.
    pub levels: BTreeMap<String, Level>,
    /// The files.
    pub files: FilesConfig,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            console: ConsoleMode::Concise,
            levels: BTreeMap::from([(String::new(), Level::Info)]),
            files: FilesConfig::default(),
        }
    }
}

/// A log configuration is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The short word means nothing.
    #[error("{from} is {given:?}, which is no log mode, level or file")]
    Word {
        /// Where it stood: `log_config` or an environment variable.
        from: &'static str,
        /// What stood there.
        given: String,
    },
    /// A file cannot be read or written.
    #[error("could not {doing} `{}`", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON.
    #[error("`{}` is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it stops being JSON.
        #[source]
        source: serde_json::Error,
    },
    /// A field holds what it cannot.
    #[error("`{}`: `{field}` is {given}, but {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted.
        field: String,
        /// What it holds.
        given: String,
        /// What it should hold.
        expected: String,
    },
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Word { .. } => Some(
                "use concise, full, verbose, msg_only, off, a level (DEBUG, INFO, WARNING, ERROR, CRITICAL or its number), or the path of a log_config.json".into(),
            ),
            Self::Json { .. } | Self::Field { .. } => Some(format!(
                "`{DEFAULT_FILE}` in the workspace shows every field; they are explained in docs/guides/logs.md"
            )),
            Self::File { .. } => None,
        }
    }
}

impl LogConfig {
    /// What holds for a run: the workspace's `log_config.json` where there is
    /// one, then `FL_LOG_LEVEL`, `FIRESTEEL_LOG_LEVEL`, and last the argument,
    /// each a short word or a path. A path replaces what was before it.
    ///
    /// Writes `log_config.json.default` into the workspace.
    ///
    /// # Errors
    /// [`ConfigError`] that names the file and field, or the word.
    pub fn resolve(
        workspace: Option<&Path>,
        argument: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(workspace) = workspace {
            Self::write_default(workspace)?;
            let own = workspace.join(FILE);
            if own.exists() {
                config = Self::read(&own)?;
            }
        }
        for variable in ["FL_LOG_LEVEL", "FIRESTEEL_LOG_LEVEL"] {
            if let Some(word) = env(variable).filter(|word| !word.trim().is_empty()) {
                config.apply(&word, variable)?;
            }
        }
        if let Some(word) = argument.filter(|word| !word.trim().is_empty()) {
            config.apply(word, "log_config")?;
        }
        Ok(config)
    }

    /// The same after a short word (`debug`, `concise`, …), or what a
    /// configuration file holds, by its path.
    ///
    /// # Errors
    /// [`ConfigError`] that names the file and field, or the word.
    pub fn with_word(&self, word: &str) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        config.apply(word, "log_config")?;
        Ok(config)
    }

    /// Reads the text of a configuration file that came from somewhere else.
    ///
    /// # Errors
    /// [`ConfigError`] that names the field.
    pub fn from_text(text: &str) -> Result<Self, ConfigError> {
        let path = Path::new(FILE);
        let value = serde_json::from_str(text).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })?;
        Reader { path }.config(&value)
    }

    /// The lowest level that is logged, in a word, and what the console shows.
    pub fn summary(&self) -> String {
        let level = self.level_of("");
        format!("{level} ({})", self.console)
    }

    /// Applies a short word, or a configuration file by its path.
    fn apply(&mut self, word: &str, from: &'static str) -> Result<(), ConfigError> {
        let word = word.trim();
        match word {
            "concise" => self.show(ConsoleMode::Concise, Level::Info),
            "full" => self.show(ConsoleMode::Full, Level::Info),
            "verbose" => self.show(ConsoleMode::Full, Level::Debug),
            "msg_only" => self.show(ConsoleMode::MsgOnly, Level::Info),
            "off" => self.console = ConsoleMode::Off,
            _ => {
                if let Some(level) = Level::parse(word) {
                    self.show(ConsoleMode::Full, level);
                } else if word.contains('/') || word.ends_with(".json") || Path::new(word).is_file()
                {
                    *self = Self::read(Path::new(word))?;
                } else {
                    return Err(ConfigError::Word {
                        from,
                        given: word.chars().take(100).collect(),
                    });
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, mode: ConsoleMode, level: Level) {
        self.console = mode;
        self.levels.insert(String::new(), level);
    }

    /// Reads a configuration file. What it leaves out is as by default.
    ///
    /// # Errors
    /// [`ConfigError`] that names the field.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        io::Read::read_to_string(&mut io::Read::take(file, FILE_LIMIT), &mut text)
            .map_err(failed)?;
        let value = serde_json::from_str(&text).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })?;
        Reader { path }.config(&value)
    }

    /// Writes `log_config.json.default`, for a person to copy and change.
    fn write_default(workspace: &Path) -> Result<(), ConfigError> {
        let path = workspace.join(DEFAULT_FILE);
        let text = format!("{:#}\n", Self::default().to_json());
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // Two runs may start at once: each writes aside under its own name.
        let aside = workspace.join(format!(".{DEFAULT_FILE}.{}", std::process::id()));
        std::fs::create_dir_all(workspace)
            .and_then(|()| std::fs::write(&aside, &text))
            .and_then(|()| std::fs::rename(&aside, &path))
            .map_err(|source| {
                let _ = std::fs::remove_file(&aside);
                ConfigError::File {
                    doing: "write",
                    path,
                    source,
                }
            })
    }

    /// The configuration as its file.
    pub fn to_json(&self) -> Value {
        let levels: Map<String, Value> = self
            .levels
            .iter()
            .map(|(prefix, level)| (prefix.clone(), json!(level.as_str())))
            .collect();
        json!({
            "version": 1,
            "console": {"mode": self.console.as_str()},
            "levels": levels,
            "files": {
                "log.txt": self.files.text,
                "error_log.txt": self.files.errors,
                "log.json": self.files.json,
                "log_fl.txt": self.files.fl,
                "sites": self.files.sites,
                "rotate_bytes": self.files.rotate_bytes,
                "rotate_keep": self.files.rotate_keep,
            },
        })
    }

    /// Whether a line of this level and logger is logged at all.
    pub fn enabled(&self, level: Level, logger: &str) -> bool {
        level >= self.level_of(logger)
    }

    fn level_of(&self, logger: &str) -> Level {
        let mut prefix = logger;
        loop {
            if let Some(&level) = self.levels.get(prefix) {
                return level;
            }
            match prefix.rsplit_once('.') {
                Some((shorter, _)) => prefix = shorter,
                None => return self.levels.get("").copied().unwrap_or(Level::Info),
            }
        }
    }
}

/// Reads the file's value field by field.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn config(&self, value: &Value) -> Result<LogConfig, ConfigError> {
        let mut config = LogConfig::default();
        let top = self.object("the file", value)?;
        self.known("", top, &["version", "console", "levels", "files"])?;
        match top.get("version") {
            Some(version) if version.as_u64() == Some(1) => {}
            other => {
                let given = other.unwrap_or(&Value::Null);
                return Err(self.wrong("version", given, "only version 1 is known"));
            }
        }
        if let Some(console) = top.get("console") {
            let console = self.object("console", console)?;
            self.known("console.", console, &["mode"])?;
            if let Some(mode) = console.get("mode") {
                config.console = self.mode(mode, &mut config.levels)?;
            }
        }
        if let Some(levels) = top.get("levels") {
            for (prefix, level) in self.object("levels", levels)? {
                let level = self.level(prefix, level)?;
                config.levels.insert(prefix.clone(), level);
            }
        }
        if let Some(files) = top.get("files") {
            config.files = self.files(self.object("files", files)?)?;
        }
        Ok(config)
    }

    /// `verbose` is `full` with everything from DEBUG on.
    fn mode(
        &self,
        value: &Value,
        levels: &mut BTreeMap<String, Level>,
    ) -> Result<ConsoleMode, ConfigError> {
        let word = value.as_str().unwrap_or_default();
        if word == "verbose" {
            levels.insert(String::new(), Level::Debug);
            return Ok(ConsoleMode::Full);
        }
        ConsoleMode::parse(word).ok_or_else(|| {
            self.wrong(
                "console.mode",
                value,
                "it must be one of concise, full, verbose, msg_only, off",
            )
        })
    }

    fn level(&self, prefix: &str, value: &Value) -> Result<Level, ConfigError> {
        let level = match value {
            Value::String(word) => Level::parse(word),
            Value::Number(number) => Level::parse(&number.to_string()),
            _ => None,
        };
        level.ok_or_else(|| {
            self.wrong(
                &format!("levels.{prefix:?}"),
                value,
                "it must be one of TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL, or a number",
            )
        })
    }

    fn files(&self, given: &Map<String, Value>) -> Result<FilesConfig, ConfigError> {
        let mut files = FilesConfig::default();
        for (name, value) in given {
            let field = format!("files.{name:?}");
            let flag = || {
                value
                    .as_bool()
                    .ok_or_else(|| self.wrong(&field, value, "it must be true or false"))
            };
            let number = |least: u64, most: u64| {
                value
                    .as_u64()
                    .filter(|number| (least..=most).contains(number))
                    .ok_or_else(|| {
                        let expected = format!("it must be a whole number from {least} to {most}");
                        self.wrong(&field, value, &expected)
                    })
            };
            match name.as_str() {
                "log.txt" => files.text = flag()?,
                "error_log.txt" => files.errors = flag()?,
                "log.json" => files.json = flag()?,
                "log_fl.txt" => files.fl = flag()?,
                "sites" => files.sites = flag()?,
                "rotate_bytes" => files.rotate_bytes = number(4096, 1 << 40)?,
                "rotate_keep" => {
                    files.rotate_keep = usize::try_from(number(0, 1000)?).unwrap_or(1000);
                }
                _ => return Err(self.unknown(&field, FILE_FIELDS)),
            }
        }
        Ok(files)
    }

    fn object<'v>(
        &self,
        field: &str,
        value: &'v Value,
    ) -> Result<&'v Map<String, Value>, ConfigError> {
        value
            .as_object()
            .ok_or_else(|| self.wrong(field, value, "it must be an object, `{…}`"))
    }

    fn known(
        &self,
        prefix: &str,
        given: &Map<String, Value>,
        fields: &[&str],
    ) -> Result<(), ConfigError> {
        match given.keys().find(|key| !fields.contains(&key.as_str())) {
            Some(key) => Err(self.unknown(&format!("{prefix}{key}"), fields)),
            None => Ok(()),
        }
    }

    fn unknown(&self, field: &str, known: &[&str]) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            field: field.to_owned(),
            given: "not a field".into(),
            expected: format!("one of {} would be", known.join(", ")),
        }
    }

    fn wrong(&self, field: &str, given: &Value, expected: &str) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            field: field.to_owned(),
            given: given.to_string().chars().take(100).collect(),
            expected: expected.to_owned(),
        }
    }
}

const FILE_FIELDS: &[&str] = &[
    "log.txt",
    "error_log.txt",
    "log.json",
    "log_fl.txt",
    "sites",
    "rotate_bytes",
    "rotate_keep",
];

impl fmt::Display for ConsoleMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_env(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_later_word_wins() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Some(dir.path());
        let resolve = |argument: Option<&str>, env: &[(&str, &str)]| {
            let env: Vec<(String, String)> = env
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let config = LogConfig::resolve(workspace, argument, |name| {
                env.iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            })
            .unwrap();
            (config.console, config.levels[""])
        };
        let (concise, full) = (ConsoleMode::Concise, ConsoleMode::Full);
        assert_eq!(resolve(None, &[]), (concise, Level::Info));
        std::fs::write(
            dir.path().join(FILE),
            r#"{"version":1,"console":{"mode":"full"},"levels":{"":"WARNING"}}"#,
        )
        .unwrap();
        assert_eq!(resolve(None, &[]), (full, Level::Warning));
        let fl = ("FL_LOG_LEVEL", "ERROR");
        let own = ("FIRESTEEL_LOG_LEVEL", "10");
        assert_eq!(resolve(None, &[fl]), (full, Level::Error));
        assert_eq!(resolve(None, &[fl, own]), (full, Level::Debug));
        assert_eq!(resolve(Some("concise"), &[fl, own]), (concise, Level::Info));
        assert_eq!(resolve(Some("verbose"), &[]), (full, Level::Debug));
        assert_eq!(
            resolve(Some("msg_only"), &[]),
            (ConsoleMode::MsgOnly, Level::Info)
        );
    }

    #[test]
    fn the_default_file_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::resolve(Some(dir.path()), None, no_env).unwrap();
        let written = LogConfig::read(&dir.path().join(DEFAULT_FILE)).unwrap();
        assert_eq!(written, config);
        // Copying it as it is changes nothing.
        std::fs::copy(dir.path().join(DEFAULT_FILE), dir.path().join(FILE)).unwrap();
        let again = LogConfig::resolve(Some(dir.path()), None, no_env).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn the_longest_prefix_counts() {
        let mut config = LogConfig::default();
        for (prefix, level) in [
            ("firesteel.net", Level::Warning),
            ("firesteel.net.tcp", Level::Trace),
        ] {
            config.levels.insert(prefix.into(), level);
        }
        for (logger, level) in [
            ("firesteel.server", Level::Info),
            ("firesteel.net", Level::Warning),
            ("firesteel.net.grpc", Level::Warning),
            ("firesteel.network", Level::Info),
            ("firesteel.net.tcp.frames", Level::Trace),
            ("", Level::Info),
        ] {
            assert_eq!(config.level_of(logger), level, "{logger}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.json");
        for (text, says) in [
            ("{", "is not JSON"),
            ("[]", "`the file` is [], but it must be an object"),
            ("{}", "`version` is null, but only version 1 is known"),
            (r#"{"version":2}"#, "`version` is 2"),
            (r#"{"version":1,"consol":{}}"#, "`consol` is not a field"),
            (
                r#"{"version":1,"console":{"mode":"loud"}}"#,
                r#"`console.mode` is "loud", but it must be one of concise"#,
            ),
            (
                r#"{"version":1,"levels":{"firesteel.net":"LOUD"}}"#,
                r#"`levels."firesteel.net"` is "LOUD""#,
            ),
            (
                r#"{"version":1,"files":{"log.txt":"yes"}}"#,
                r#"`files."log.txt"` is "yes", but it must be true or false"#,
            ),
            (
                r#"{"version":1,"files":{"rotate_bytes":-1}}"#,
                r#"`files."rotate_bytes"` is -1, but it must be a whole number"#,
            ),
            (
                r#"{"version":1,"files":{"log.xml":true}}"#,
                r#"`files."log.xml"` is not a field, but one of log.txt"#,
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = LogConfig::resolve(None, path.to_str(), no_env).unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(says), "{text}: {shown}");
            assert!(shown.contains("mine.json"), "{shown}");
        }
        let error = LogConfig::resolve(None, Some("loud"), no_env).unwrap_err();
        assert!(error.to_string().starts_with("log_config is \"loud\""));
        assert!(error.hint().unwrap().contains("concise"));
        let missing = LogConfig::resolve(None, Some("/no/such.json"), no_env).unwrap_err();
        assert!(
            missing
                .to_string()
                .contains("could not read `/no/such.json`")
        );
    }
}
