//! The Python environments of a site: what a job's `env` means here, and whether
//! its interpreter runs.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use firesteel_base::limits;
use firesteel_pki::{Environment, Secret};

/// The environment of jobs that name none, when the owner has given one this name.
const DEFAULT: &str = "default";

/// What an interpreter is asked: whether it runs, and whether Firesteel is there.
const QUESTION: &str = "import sys, importlib.util as u\n\
    print(sys.version.split()[0], 'yes' if u.find_spec('firesteel') else 'no')";

/// How long it may take to answer: starting Python from a cold disk has been seen
/// to take several seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes of its answer that are read.
const ANSWER_BYTES: u64 = 4096;

/// What an interpreter said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probed {
    pub(super) version: String,
    /// Whether the package is installed there.
    pub(super) firesteel: bool,
}

/// An environment, as a job runs in it.
#[derive(Clone)]
pub(super) struct Chosen {
    pub(super) name: String,
    pub(super) environment: Environment,
    pub(super) probed: Probed,
}

/// Why a job cannot have the environment it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) reason: String,
    pub(super) hint: String,
}

/// The environments of a site.
pub(super) struct Environments {
    all: BTreeMap<String, Environment>,
    /// What was asked already, with the interpreter's time of change.
    probed: Mutex<HashMap<String, (Option<SystemTime>, Probed)>>,
}

impl Environments {
    pub(super) fn new(all: &BTreeMap<String, Environment>) -> Arc<Self> {
        let mut all = all.clone();
        if all.is_empty() {
            // A site whose owner says nothing runs what the machine has.
            let python = Environment {
                python: PathBuf::from("python3"),
                variables: BTreeMap::new(),
                secrets: BTreeMap::new(),
                gpus: None,
            };
            all.insert(DEFAULT.to_owned(), python);
        }
        Arc::new(Self {
            all,
            probed: Mutex::default(),
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    /// The environment that a job asks for, or the one for those that ask for none,
    /// once its interpreter has shown that it runs. Blocks.
    pub(super) fn choose(&self, asked: Option<&str>) -> Result<Chosen, Unusable> {
        let (name, environment) = self.named(asked)?;
        let probed = self.probe(name, environment)?;
        Ok(Chosen {
            name: name.to_owned(),
            environment: environment.clone(),
            probed,
        })
    }

    fn named(&self, asked: Option<&str>) -> Result<(&str, &Environment), Unusable> {
        let names = || self.names().collect::<Vec<_>>().join(", ");
        let found = match asked {
            Some(name) => self.all.get_key_value(name),
            None => self.all.get_key_value(DEFAULT).or_else(|| {
                let mut all = self.all.iter();
                all.next().filter(|_| all.next().is_none())
            }),
        };
        let (name, environment) = found.ok_or_else(|| match asked {
            Some(name) => Unusable {
                reason: format!("the site has no environment `{name}`; it has {}", names()),
                hint: format!(
                    "ask the site's owner for [environments.{name}] in site.toml, or name another with env="
                ),
            },
            None => Unusable {
                reason: format!("the job names no environment, and the site has several: {}", names()),
                hint: format!("name one with env=, or ask the site's owner for one called `{DEFAULT}`"),
            },
        })?;
        Ok((name, environment))
    }

    /// Asks an interpreter, or finds that it was asked since it was changed last.
    pub(super) fn probe(&self, name: &str, environment: &Environment) -> Result<Probed, Unusable> {
        let changed = std::fs::metadata(&environment.python)
            .and_then(|found| found.modified())
            .ok();
        let known = {
            let probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
            probed.get(name).cloned()
        };
        if let Some((then, probed)) = known
            && then == changed
        {
            return Ok(probed);
        }
        let probed = ask(environment).map_err(|why| Unusable {
            reason: format!(
                "the interpreter `{}` of the site's environment `{name}` does not run: {why}",
                environment.python.display()
            ),
            hint: format!("the site's owner has to see to [environments.{name}] in site.toml"),
        })?;
        let mut all = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), (changed, probed.clone()));
        Ok(probed)
    }

    /// Asks every interpreter; what is wrong with which.
    pub(super) fn probe_all(&self) -> BTreeMap<String, Result<Probed, Unusable>> {
        self.all
            .iter()
            .map(|(name, environment)| (name.clone(), self.probe(name, environment)))
            .collect()
    }
}

impl Chosen {
    /// What its owner adds to the environment of trainers, secrets included.
    ///
    /// # Errors
    /// [`Unusable`] with the name of a secret that is not where it should be; never
    /// with its value.
    pub(super) fn variables(&self) -> Result<BTreeMap<String, String>, Unusable> {
        let mut variables = self.environment.variables.clone();
        for (name, secret) in &self.environment.secrets {
            let value = value_of(secret).map_err(|why| Unusable {
                reason: format!(
                    "the secret `{name}` of the site's environment `{}` cannot be had: {why}",
                    self.name
                ),
                hint: format!(
                    "the site's owner has to see to [environments.{}.secrets] in site.toml",
                    self.name
                ),
            })?;
            variables.insert(name.clone(), value);
        }
        Ok(variables)
    }
}

fn value_of(secret: &Secret) -> Result<String, String> {
    match secret {
        Secret::Env(variable) => std::env::var(variable)
            .map_err(|_| format!("the site's process has no variable `{variable}` of text")),
        Secret::File(path) => {
            let mut text = String::new();
            File::open(path)
                .and_then(|file| file.take(limits::SECRET + 1).read_to_string(&mut text))
                .map_err(|error| format!("`{}`: {error}", path.display()))?;
            if text.len() as u64 > limits::SECRET {
                return Err(format!(
                    "`{}` has more than {} bytes",
                    path.display(),
                    limits::SECRET
                ));
            }
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

/// Runs the interpreter and reads what it says.
fn ask(environment: &Environment) -> Result<Probed, String> {
    let mut child = Command::new(&environment.python)
        .args(["-c", QUESTION])
        .envs(&environment.variables)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        })?;
    let until = Instant::now() + ANSWER;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() > until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not answer within {} s", ANSWER.as_secs()));
            }
            // It writes less than a pipe holds, so it never waits for us.
            None => std::thread::sleep(LOOK),
        }
    };
    let read = |pipe: Option<&mut dyn io::Read>| {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(ANSWER_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let said = read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn io::Read));
    let complaint = read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn io::Read));
    if !status.success() {
        let last = complaint.lines().last().unwrap_or("it said nothing");
        return Err(format!("it ended with {status}: {last}"));
    }
    let mut words = said.split_whitespace();
    match (words.next(), words.next()) {
        (Some(version), Some(firesteel @ ("yes" | "no"))) => Ok(Probed {
            version: version.to_owned(),
            firesteel: firesteel == "yes",
        }),
        _ => Err("it is no Python: it did not answer as one".to_owned()),
    }
}

/// Whether a script that is taken as installed is there.
pub(super) fn installed(script: &Path) -> bool {
    script.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt as _;

    fn environment(python: &Path) -> Environment {
        Environment {
            python: python.to_owned(),
            variables: BTreeMap::from([("PLAIN".to_owned(), "seen".to_owned())]),
            secrets: BTreeMap::new(),
            gpus: None,
        }
    }

    fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    }

    fn all(entries: &[(&str, &Path)]) -> Arc<Environments> {
        let map = entries
            .iter()
            .map(|(name, path)| ((*name).to_owned(), environment(path)))
            .collect();
        Environments::new(&map)
    }

    #[test]
    fn an_interpreter_is_asked_once_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let text = format!(
            "echo x >> {}\necho 3.12.1 $PLAIN | sed s/seen/yes/",
            count.display()
        );
        let path = program(dir.path(), "python", &text);
        let all = all(&[("torch", &path)]);
        for _ in 0..3 {
            let chosen = all.choose(Some("torch")).unwrap_or_else(|_| panic!());
            assert_eq!(chosen.probed.version, "3.12.1");
            assert!(chosen.probed.firesteel);
        }
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
        // The one environment is the default.
        assert!(all.choose(None).is_ok());
        let later = SystemTime::now() + Duration::from_secs(5);
        File::open(&path).unwrap().set_modified(later).unwrap();
        assert!(all.choose(None).is_ok());
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\nx\n");
    }

    #[test]
    fn what_does_not_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let fails = program(dir.path(), "fails", "echo broken library >&2; exit 3");
        let other = program(dir.path(), "other", "echo hello");
        let all = all(&[("a", &missing), ("b", &fails), ("c", &other)]);
        let reason = |asked| all.choose(asked).err().map(|error| error.reason).unwrap();
        assert!(reason(Some("a")).ends_with("there is no such file"));
        assert!(reason(Some("b")).contains("exit status: 3: broken library"));
        assert!(reason(Some("c")).contains("is no Python"));
        assert_eq!(
            reason(Some("x")),
            "the site has no environment `x`; it has a, b, c"
        );
        assert!(reason(None).contains("names no environment"));
    }

    #[test]
    fn secrets_come_from_where_they_lie_and_are_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "hidden\n").unwrap();
        let mut with = environment(Path::new("python3"));
        with.secrets = BTreeMap::from([
            ("TOKEN".to_owned(), Secret::File(file.clone())),
            ("HOME_DIR".to_owned(), Secret::Env("PATH".to_owned())),
        ]);
        let chosen = Chosen {
            name: "torch".into(),
            environment: with,
            probed: Probed {
                version: "3".into(),
                firesteel: true,
            },
        };
        let variables = chosen.variables().unwrap();
        assert_eq!(variables["TOKEN"], "hidden");
        assert_eq!(variables["PLAIN"], "seen");
        assert_eq!(variables["HOME_DIR"], std::env::var("PATH").unwrap());
        std::fs::write(&file, "x".repeat(100_000)).unwrap();
        let error = chosen.variables().unwrap_err();
        assert!(error.reason.contains("more than 65536 bytes"), "{error:?}");
        std::fs::remove_file(&file).unwrap();
        let error = chosen.variables().unwrap_err();
        assert!(error.reason.contains("`TOKEN`"), "{error:?}");
        assert!(!error.reason.contains("hidden"));
    }
}
