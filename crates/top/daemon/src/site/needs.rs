//! Whether a site has what a job needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firesteel_base::{Hint as _, SiteName};
use firesteel_node::parts::sentence;
use firesteel_pki::bundle::Bundle;
use firesteel_pki::{Data, SiteConfig};
use firesteel_policy::{Action, Resource};
use firesteel_wire::spec::{JobSpec, Mode};

use super::environments::{Chosen, Environments, Unusable, installed};

/// Why a site takes no part in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declined {
    /// A word for programs.
    pub(super) code: &'static str,
    /// A sentence for whoever submitted it.
    pub(super) reason: String,
    /// What to do about it; may be empty.
    pub(super) hint: String,
}

impl Declined {
    pub(super) fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            hint: String::new(),
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// What a job has at this site.
pub(super) struct Ready {
    pub(super) spec: JobSpec,
    /// The folder of its code.
    pub(super) code: PathBuf,
    /// Its data by the names that the script uses.
    pub(super) data: BTreeMap<String, String>,
    /// None where nothing is run.
    pub(super) environment: Option<Chosen>,
    /// Who submitted it: name and organization.
    pub(super) submitter: (String, String),
}

/// The site, as far as jobs are checked against it.
pub(super) struct Checker<'a> {
    pub(super) site: &'a SiteName,
    pub(super) organization: &'a str,
    pub(super) project: &'a str,
    pub(super) config: &'a SiteConfig,
    pub(super) environments: &'a Environments,
}

impl Checker<'_> {
    /// Sees whether the site has what the job needs, and lets it have it. Blocks.
    pub(super) fn check(&self, bundle: &Bundle) -> Result<Ready, Declined> {
        self.check_right(bundle)?;
        let spec = JobSpec::parse_submitted(&bundle.spec).map_err(|error| {
            Declined::new(
                "bundle",
                format!("its spec is refused: {}", sentence(&error)),
            )
            .hint(error.hint().unwrap_or_default())
        })?;
        let rooted = spec.clone().rooted(&bundle.code.to_string_lossy());
        let script = rooted.script_at(self.site.as_str());
        let runs = spec.trainer.mode != Mode::Noop;
        if runs && !installed(Path::new(script)) {
            return Err(self.no_script(bundle, script));
        }
        let data = self.data(&spec)?;
        let environment = if runs {
            Some(self.environment(&spec)?)
        } else {
            None
        };
        Ok(Ready {
            code: bundle.code.clone(),
            submitter: (bundle.submitter.name.clone(), bundle.submitter.org.clone()),
            spec,
            data,
            environment,
        })
    }

    /// Whether this site lets its submitter run it here.
    fn check_right(&self, bundle: &Bundle) -> Result<(), Declined> {
        if bundle.project != self.project {
            return Err(Declined::new(
                "not_allowed",
                format!(
                    "the job was made for the project `{}`, and the site is of `{}`",
                    bundle.project, self.project
                ),
            ));
        }
        let resource = Resource {
            site_org: Some(self.organization.to_owned()),
            ..Resource::job(&bundle.submitter.name, &bundle.submitter.org)
        };
        let rules = self.config.rules();
        let mut actions = vec![Action::SubmitJob];
        if bundle.brings_code {
            actions.push(Action::BringCode);
        }
        for action in actions {
            let decision = rules.decide(&bundle.submitter.subject(), action, &resource);
            if !decision.allowed {
                let reason = format!("the site's rules do not allow it: {}", decision.reason);
                return Err(Declined::new("not_allowed", reason));
            }
        }
        if bundle.brings_code && !self.config.allow_code {
            return Err(Declined::new(
                "not_allowed",
                "the site runs no code that jobs bring (allow_code = false)",
            )
            .hint("name a script that is installed at the site, by its absolute path"));
        }
        Ok(())
    }

    fn no_script(&self, bundle: &Bundle, script: &str) -> Declined {
        let own = bundle.code.to_string_lossy();
        let brought = script.strip_prefix(&*own);
        match brought.map(|path| path.trim_start_matches('/')) {
            Some(path) => Declined::new(
                "script_missing",
                format!("its bundle holds no script `{path}`"),
            )
            .hint("the script is named relative to the folder of the job's code"),
            None => Declined::new(
                "script_missing",
                format!("the script `{script}` is not installed at the site"),
            )
            .hint("a path that is absolute is taken as installed; one that is relative comes with the job"),
        }
    }

    /// Data by the names that the script uses. What is missing is named at once.
    fn data(&self, spec: &JobSpec) -> Result<BTreeMap<String, String>, Declined> {
        let mut asked = spec.data.clone();
        asked.extend(spec.settings(self.site).data);
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut absent = Vec::new();
        for (name, meaning) in asked {
            // A path or URI stands for itself, every other word for what the owner
            // has mapped it to.
            let known = self.config.data.get(&meaning);
            let place = match known {
                Some(Data { path_or_uri, .. }) => path_or_uri.clone(),
                None if meaning.contains('/') => meaning.clone(),
                None => {
                    unknown.push(format!("`{meaning}`"));
                    continue;
                }
            };
            if !place.contains("://") && !Path::new(&place).exists() {
                absent.push(match known {
                    Some(_) => format!("`{meaning}`"),
                    None => format!("`{place}`"),
                });
                continue;
            }
            found.insert(name, place);
        }
        if unknown.is_empty() && absent.is_empty() {
            return Ok(found);
        }
        let mut parts = Vec::new();
        if !unknown.is_empty() {
            parts.push(format!("the site has no data named {}", unknown.join(", ")));
        }
        if !absent.is_empty() {
            let parts_of = absent.join(", ");
            parts.push(format!("what {parts_of} stands for is not there"));
        }
        let names: Vec<&str> = self.config.data.keys().map(String::as_str).collect();
        let has = match names.as_slice() {
            [] => "it has none".to_owned(),
            names => format!("it has {}", names.join(", ")),
        };
        Err(
            Declined::new("data_missing", format!("{}; {has}", parts.join("; "))).hint(
                "ask the site's owner to map the names in [data] of site.toml, or leave the site out",
            ),
        )
    }

    fn environment(&self, spec: &JobSpec) -> Result<Chosen, Declined> {
        let missing =
            |Unusable { reason, hint }| Declined::new("environment_missing", reason).hint(hint);
        let asked = spec.env_at(self.site.as_str());
        let chosen = self.environments.choose(asked).map_err(missing)?;
        if spec.trainer.mode == Mode::Warm && !chosen.probed.firesteel {
            return Err(missing(Unusable {
                reason: format!(
                    "the site's environment `{}` (Python {}) has no package firesteel",
                    chosen.name, chosen.probed.version
                ),
                hint: format!(
                    "the site's owner has to run `{} -m pip install firesteel`",
                    chosen.environment.python.display()
                ),
            }));
        }
        // Before the job starts, not in the middle of its first round.
        chosen.variables().map_err(missing)?;
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use firesteel_pki::{Environment, Role, Signed};
    use firesteel_policy::AdminRole;
    use serde_json::json;

    struct Bench {
        dir: tempfile::TempDir,
        config: SiteConfig,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("code")).unwrap();
            std::fs::write(dir.path().join("code/client.py"), "").unwrap();
            let mut config = SiteConfig::default();
            config.data.insert(
                "digits".into(),
                Data {
                    path_or_uri: dir.path().display().to_string(),
                    read_only: true,
                },
            );
            config.data.insert(
                "gone".into(),
                Data {
                    path_or_uri: "/no/such/folder".into(),
                    read_only: true,
                },
            );
            let python = dir.path().join("python");
            std::fs::write(&python, "#!/bin/sh\necho 3.12.0 yes\n").unwrap();
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
            let environment = Environment {
                python,
                variables: BTreeMap::new(),
                secrets: BTreeMap::new(),
                gpus: None,
            };
            config.environments.insert("torch".into(), environment);
            Self { dir, config }
        }

        fn check(&self, spec: serde_json::Value) -> Result<Ready, Declined> {
            self.check_of(spec, AdminRole::Lead)
        }

        fn check_of(&self, spec: serde_json::Value, role: AdminRole) -> Result<Ready, Declined> {
            let bundle = Bundle {
                folder: self.dir.path().to_owned(),
                project: "study".into(),
                spec: spec.to_string().into_bytes(),
                submitter: Signed {
                    name: "ann@lab".into(),
                    org: "lab".into(),
                    role: Role::Admin(role),
                },
                submit_key: "1".into(),
                code: self.dir.path().join("code"),
                brings_code: true,
                initial: None,
            };
            let environments = Environments::new(&self.config.environments);
            let site = SiteName::new("site-1").unwrap();
            Checker {
                site: &site,
                organization: "hospital",
                project: "study",
                config: &self.config,
                environments: &environments,
            }
            .check(&bundle)
        }
    }

    fn spec() -> serde_json::Value {
        json!({
            "version": 1, "name": "digits",
            "algorithm": {"kind": "fedavg", "num_rounds": 1},
            "sites": [], "min_clients": 1,
            "trainer": {"script": "client.py"},
            "data": {"train": "digits"},
        })
    }

    fn code(result: Result<Ready, Declined>) -> (&'static str, String) {
        let declined = result.err().unwrap();
        (declined.code, declined.reason)
    }

    #[test]
    fn what_a_job_needs_is_found() {
        let bench = Bench::new();
        let ready = bench
            .check(spec())
            .unwrap_or_else(|declined| panic!("{declined:?}"));
        assert_eq!(ready.data["train"], bench.dir.path().display().to_string());
        assert_eq!(ready.environment.unwrap().name, "torch");
        assert_eq!(ready.submitter, ("ann@lab".to_owned(), "lab".to_owned()));
    }

    #[test]
    fn missing_data_is_named_all_at_once() {
        let bench = Bench::new();
        let mut job = spec();
        job["data"] = json!({
            "a": "digits", "b": "letters", "c": "gone", "d": "numbers", "e": "/no/where",
            "f": "s3://bucket/x",
        });
        let (code, reason) = code(bench.check(job));
        assert_eq!(code, "data_missing");
        assert_eq!(
            reason,
            "the site has no data named `letters`, `numbers`; what `gone`, `/no/where` stands for is not there; it has digits, gone"
        );
    }

    #[test]
    fn scripts_environments_and_rights_are_checked() {
        let bench = Bench::new();
        let mut job = spec();
        job["trainer"]["script"] = json!("other.py");
        assert_eq!(
            code(bench.check(job)),
            (
                "script_missing",
                "its bundle holds no script `other.py`".to_owned()
            )
        );
        let mut job = spec();
        job["trainer"]["script"] = json!("/opt/no/such.py");
        let (word, reason) = code(bench.check(job));
        assert_eq!(word, "script_missing");
        assert!(
            reason.contains("`/opt/no/such.py` is not installed"),
            "{reason}"
        );
        let mut job = spec();
        job["env"] = json!("jax");
        let (word, reason) = code(bench.check(job));
        assert_eq!(word, "environment_missing");
        assert!(
            reason.contains("no environment `jax`; it has torch"),
            "{reason}"
        );
        let (word, _) = code(bench.check_of(spec(), AdminRole::Member));
        assert_eq!(word, "not_allowed");
        let mut closed = Bench::new();
        closed.config.allow_code = false;
        let (word, reason) = code(closed.check(spec()));
        assert_eq!(word, "not_allowed");
        assert!(reason.contains("allow_code"), "{reason}");
    }

    #[test]
    fn what_runs_nothing_needs_nothing_to_run() {
        let mut bench = Bench::new();
        bench.config.environments.clear();
        let mut job = spec();
        job["trainer"] = json!({"script": "", "mode": "noop"});
        assert!(
            bench
                .check(job)
                .is_ok_and(|ready| ready.environment.is_none())
        );
    }
}
