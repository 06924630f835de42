//! What the owner of a node says: `site.toml`, `server.toml`, `relay.toml`,
//! `admin.toml`. Not signed; theirs to edit.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use firesteel_policy::{Policy, PolicyError, Role};
use firesteel_wire::spec::Filters;
use serde::Deserialize;

use crate::config::{Scheme, without_password};

/// The owner's file, by what the node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Own {
    /// `server.toml`.
    Server(ServerConfig),
    /// `site.toml`.
    Site(SiteConfig),
    /// `relay.toml`.
    Relay(RelayConfig),
    /// `admin.toml`.
    Admin(AdminConfig),
}

/// `site.toml`: what a site has, and what it lets jobs do.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteConfig {
    /// Python environments by name: what a job's `env` means here.
    pub environments: BTreeMap<String, Environment>,
    /// Data by name: what a job's data names mean here.
    pub data: BTreeMap<String, Data>,
    /// What jobs may use together.
    pub resources: Resources,
    /// Jobs at a time.
    pub max_jobs: u32,
    /// Whether logs of running jobs are sent to the server.
    pub allow_log_streaming: bool,
    /// Whether jobs may bring code; otherwise they run what is installed here.
    pub allow_code: bool,
    /// Whether admins with the right may list and read files of the workspace.
    pub allow_files: bool,
    /// What models pass here, beside what the job says.
    pub filters: Filters,
    /// Rules of the site's own, by role and right: `lead.operate = ["none"]`.
    pub policy: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// How the site gets out.
    pub network: Network,
    /// Where jobs run and leave their files.
    pub workspace: PathBuf,
}

/// An interpreter and what it is started with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// The interpreter.
    pub python: PathBuf,
    /// Additions to its environment.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// The same, from where secrets lie.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// The GPUs that it may see; absent: all of the site's resources.
    #[serde(default)]
    pub gpus: Option<Vec<String>>,
}

/// Where a secret lies. Its value never stands in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// In a variable of the agent's environment.
    Env(String),
    /// In a file: its content, without a newline at the end.
    File(PathBuf),
}

/// Where data lies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A path, or a URI that the script understands.
    #[serde(rename = "path")]
    pub path_or_uri: String,
    /// Whether jobs may only read it.
    #[serde(default = "yes")]
    pub read_only: bool,
}

/// What jobs may use together.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
    /// Memory of each, GiB.
    pub mem_per_gpu_gib: Option<f64>,
    /// Cores; absent: those of the machine.
    pub cpus: Option<u32>,
    /// Memory, GiB; absent: that of the machine.
    pub memory_gib: Option<f64>,
    /// Anything else that can be counted.
    pub custom: BTreeMap<String, u64>,
}

/// How a node gets out.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The HTTP proxy on the way out: `http://user:password@proxy:3128`.
    pub proxy: Option<String>,
    /// Another scheme than the project's.
    pub scheme: Option<Scheme>,
    /// Another host or address than the project's.
    pub host: Option<String>,
    /// Another port than the project's.
    pub port: Option<u16>,
}

/// `server.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where jobs, their models and their logs are kept.
    pub workspace: PathBuf,
    /// Jobs at a time.
    pub max_jobs: u32,
    /// Sites that may be connected at a time.
    pub max_sites: u32,
    /// The address to bind; absent: the kit's.
    pub address: Option<IpAddr>,
    /// The port to bind; absent: the kit's.
    pub port: Option<u16>,
    /// The second port; absent: the kit's.
    pub admin_port: Option<u16>,
    /// Load balancers that say who connects by the PROXY protocol, beside the kit's.
    pub proxy_protocol_from: Vec<String>,
    /// Whether logs of running jobs are taken from sites that send them.
    pub accept_logs: bool,
    /// Environments for code that runs at the server.
    pub environments: BTreeMap<String, Environment>,
    /// Rules instead of the standard ones, by role and right.
    pub policy: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// `relay.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// Where model files are cached.
    pub workspace: PathBuf,
    /// GiB of them at most.
    pub cache_gib: f64,
    /// The address to bind; absent: the kit's.
    pub address: Option<IpAddr>,
    /// The port to bind; absent: the kit's.
    pub port: Option<u16>,
    /// Load balancers that say who connects by the PROXY protocol, beside the kit's.
    pub proxy_protocol_from: Vec<String>,
    /// How the relay gets out.
    pub network: Network,
}

/// `admin.toml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// How the admin's tools get out.
    pub network: Network,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("proxy", &self.proxy.as_deref().map(without_password))
            .field("scheme", &self.scheme)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish()
    }
}

impl Default for SiteConfig {
    fn default() -> Self {
        Self {
            environments: BTreeMap::new(),
            data: BTreeMap::new(),
            resources: Resources::default(),
            max_jobs: 4,
            allow_log_streaming: true,
            allow_code: true,
            allow_files: true,
            filters: Filters::default(),
            policy: BTreeMap::new(),
            network: Network::default(),
            workspace: "workspace".into(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            workspace: "workspace".into(),
            max_jobs: 4,
            max_sites: 10_000,
            address: None,
            port: None,
            admin_port: None,
            proxy_protocol_from: Vec::new(),
            accept_logs: true,
            environments: BTreeMap::new(),
            policy: BTreeMap::new(),
        }
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            workspace: "workspace".into(),
            cache_gib: 16.0,
            address: None,
            port: None,
            proxy_protocol_from: Vec::new(),
            network: Network::default(),
        }
    }
}

fn yes() -> bool {
    true
}

/// The rules in an owner's file over the standard ones.
fn policy(own: &BTreeMap<String, BTreeMap<String, Vec<String>>>) -> Result<Policy, PolicyError> {
    let mut policy = Policy::standard();
    for (role, rights) in own {
        for (right, controls) in rights {
            policy.set(role, right, controls)?;
        }
    }
    Ok(policy)
}

impl Own {
    /// The file's name for a role.
    pub(crate) fn file(role: Role) -> &'static str {
        match role {
            Role::Server => "server.toml",
            Role::Site => "site.toml",
            Role::Relay => "relay.toml",
            Role::Admin(_) => "admin.toml",
        }
    }

    /// Reads the file's text; paths in it that are relative are `folder`'s.
    pub(crate) fn parse(role: Role, text: &str, folder: &Path) -> Result<Self, String> {
        let failed = |error: toml::de::Error| error.to_string().trim_end().to_owned();
        Ok(match role {
            Role::Server => {
                let mut own: ServerConfig = toml::from_str(text).map_err(failed)?;
                settle(&mut own.workspace, folder);
                for environment in own.environments.values_mut() {
                    environment.settle(folder);
                }
                policy(&own.policy).map_err(|error| format!("`policy`: {error}"))?;
                Self::Server(own)
            }
            Role::Site => {
                let mut own: SiteConfig = toml::from_str(text).map_err(failed)?;
                own.settle(folder);
                own.check()?;
                Self::Site(own)
            }
            Role::Relay => {
                let mut own: RelayConfig = toml::from_str(text).map_err(failed)?;
                settle(&mut own.workspace, folder);
                if !(own.cache_gib.is_finite() && own.cache_gib >= 0.0) {
                    return Err("`cache_gib` must be a number from 0".to_owned());
                }
                Self::Relay(own)
            }
            Role::Admin(_) => Self::Admin(toml::from_str(text).map_err(failed)?),
        })
    }

    /// How the node gets out; a server does not.
    pub(crate) fn network(&self) -> Option<&Network> {
        match self {
            Self::Server(_) => None,
            Self::Site(own) => Some(&own.network),
            Self::Relay(own) => Some(&own.network),
            Self::Admin(own) => Some(&own.network),
        }
    }
}

impl SiteConfig {
    /// The rules of this site: the standard ones, with its own over them.
    pub fn rules(&self) -> Policy {
        // Checked when the file was read.
        policy(&self.policy).unwrap_or_else(|_| Policy::nothing())
    }

    fn settle(&mut self, folder: &Path) {
        settle(&mut self.workspace, folder);
        for environment in self.environments.values_mut() {
            environment.settle(folder);
        }
        for data in self.data.values_mut() {
            if !data.path_or_uri.contains("://") {
                let mut path = PathBuf::from(&data.path_or_uri);
                settle(&mut path, folder);
                data.path_or_uri = path.display().to_string();
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        policy(&self.policy).map_err(|error| format!("`policy`: {error}"))?;
        if self.max_jobs == 0 {
            return Err("`max_jobs` must be at least 1".to_owned());
        }
        let positive = |name: &str, value: Option<f64>| match value {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                Err(format!("`resources.{name}` must be a number above 0"))
            }
            _ => Ok(()),
        };
        positive("mem_per_gpu_gib", self.resources.mem_per_gpu_gib)?;
        positive("memory_gib", self.resources.memory_gib)?;
        for (name, environment) in &self.environments {
            let both = environment
                .secrets
                .keys()
                .find(|key| environment.variables.contains_key(*key));
            if let Some(key) = both {
                return Err(format!(
                    "`environments.{name}`: `{key}` is among the variables and the secrets"
                ));
            }
        }
        Ok(())
    }
}

impl ServerConfig {
    /// The rules of this federation: the standard ones, with its own over them.
    pub fn rules(&self) -> Policy {
        policy(&self.policy).unwrap_or_else(|_| Policy::nothing())
    }
}

impl Environment {
    fn settle(&mut self, folder: &Path) {
        // `python3` alone is looked up in the path, `venv/bin/python` is the
        // kit's.
        if self.python.components().count() > 1 {
            settle(&mut self.python, folder);
        }
        for secret in self.secrets.values_mut() {
            if let Secret::File(path) = secret {
                settle(path, folder);
            }
        }
    }
}

fn settle(path: &mut PathBuf, folder: &Path) {
    if path.is_relative() {
        *path = folder.join(&*path);
    }
}
