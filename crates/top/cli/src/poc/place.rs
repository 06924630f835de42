//! The folder of a deployment: its kits, its logs, what runs.
//!
//! | in it | what it is |
//! |---|---|
//! | `project.yml` | what was provisioned |
//! | `kits/`, `state/` | startup kits as in production, and the authority that signed them |
//! | `logs/` | what each process said |
//! | `work/` | what each process keeps |
//! | `poc.json` | the names of the processes, in the order in which they are started |
//! | `wanted.json`, `running.json`, `keeper.lock` | what is to run, what runs, and who keeps it |

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use firesteel_pki::provision::{Made, provision};
use firesteel_pki::{AdminRole, Kit, Project, Role};
use serde_json::{Value, json};

use super::options::{Options, Site};
use crate::talk::Trouble;

/// Lines of a process's log that are shown when it has ended.
const TAIL: usize = 15;

/// The folder of a deployment.
#[derive(Debug, Clone)]
pub(super) struct Place {
    folder: PathBuf,
    services: Vec<Service>,
    admin: PathBuf,
    port: u16,
}

/// One of the processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// Its name, which is its kit's.
    pub name: String,
    /// `server`, `relay` or `site`.
    pub kind: String,
    /// Where its kit lies.
    pub kit: PathBuf,
    /// Where it listens.
    pub port: Option<u16>,
}

impl Place {
    /// Whether there is a deployment in a folder.
    pub(super) fn is_there(folder: &Path) -> bool {
        folder.join("poc.json").is_file()
    }

    /// Makes kits, and everything else but processes.
    pub(super) fn make(folder: &Path, options: &Options) -> Result<Self, Trouble> {
        let failed = |error: io::Error| cannot_write(folder, &error);
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_ours(folder)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(folder)
                    .map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        for part in ["logs", "work"] {
            fs::create_dir_all(folder.join(part)).map_err(failed)?;
        }
        let project = folder.join("project.yml");
        let text = match &options.project {
            Some(given) => fs::read_to_string(given).map_err(|error| {
                Trouble::new(
                    format!("could not read `{}`: {error}", given.display()),
                    "name the project's file",
                )
            })?,
            None => project_text(options)?,
        };
        fs::write(&project, &text).map_err(failed)?;
        let parsed = Project::parse(&text, &project).map_err(|error| Trouble::of(&error))?;
        let made = provision(&parsed, &folder.join("kits"), &folder.join("state"))
            .map_err(|error| Trouble::of(&error))?;
        let mut services = Vec::new();
        let mut admin: Option<(u8, PathBuf)> = None;
        for Made { folder: path, .. } in made.kits {
            let kit = Kit::open(&path).map_err(|error| Trouble::of(&error))?;
            let kind = match kit.role() {
                Role::Admin(role) => {
                    let fits = options
                        .username
                        .as_ref()
                        .map_or_else(|| rank(role), |name| u8::from(kit.name() != name) * 9);
                    if fits < 9 && admin.as_ref().is_none_or(|(best, _)| fits < *best) {
                        admin = Some((fits, path));
                    }
                    continue;
                }
                role => role.as_str(),
            };
            let own = own_text(options, folder, kind, kit.name());
            write_private(&path.join(format!("{kind}.toml")), &own).map_err(failed)?;
            services.push(Service {
                name: kit.name().to_owned(),
                kind: kind.to_owned(),
                port: kit.listen().map(|listen| listen.port),
                kit: path,
            });
        }
        // Whoever is connected to is started first.
        let order = |kind: &str| match kind {
            "server" => 0,
            "relay" => 1,
            _ => 2,
        };
        services.sort_by(|a, b| (order(&a.kind), &a.name).cmp(&(order(&b.kind), &b.name)));
        let Some((_, admin)) = admin else {
            return Err(Trouble::new(
                match &options.username {
                    Some(name) => format!("the project has no admin `{name}`"),
                    None => "the project has no admin who may submit jobs".to_owned(),
                },
                "add a participant of the type admin, with the role lead",
            ));
        };
        let port = services
            .first()
            .filter(|one| one.kind == "server")
            .and_then(|server| server.port)
            .ok_or_else(|| {
                Trouble::new(
                    "the project has no server",
                    "add a participant of the type server",
                )
            })?;
        let made = Self {
            folder: folder.to_owned(),
            services,
            admin,
            port,
        };
        made.save()?;
        Ok(made)
    }

    /// Finds what was made.
    pub(super) fn open(folder: &Path) -> Result<Self, Trouble> {
        check_ours(folder)?;
        let spoiled = || {
            Trouble::new(
                format!("`{}` is no deployment of this version", folder.display()),
                "make it anew: firesteel poc clean, then firesteel poc prepare",
            )
        };
        let value = read(&folder.join("poc.json")).ok_or_else(spoiled)?;
        let text = |value: &Value, key: &str| {
            let text = value.get(key).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(spoiled)
        };
        let port = |value: &Value| {
            let port = value.get("port").and_then(Value::as_u64)?;
            u16::try_from(port).ok()
        };
        let services = value.get("services").and_then(Value::as_array);
        let services = services.ok_or_else(spoiled)?.iter().map(|one| {
            Ok(Service {
                name: text(one, "name")?,
                kind: text(one, "kind")?,
                kit: text(one, "kit")?.into(),
                port: port(one),
            })
        });
        Ok(Self {
            folder: folder.to_owned(),
            services: services.collect::<Result<_, Trouble>>()?,
            admin: text(&value, "admin")?.into(),
            port: port(&value).ok_or_else(spoiled)?,
        })
    }

    fn save(&self) -> Result<(), Trouble> {
        let services: Vec<Value> = self
            .services
            .iter()
            .map(
                |one| json!({"name": one.name, "kind": one.kind, "kit": one.kit, "port": one.port}),
            )
            .collect();
        let value = json!({"services": services, "admin": self.admin, "port": self.port});
        self.put("poc.json", &value)
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The processes, in the order in which they are started.
    pub(super) fn services(&self) -> &[Service] {
        &self.services
    }

    /// The kit of the admin who submits jobs.
    pub(super) fn admin(&self) -> &Path {
        &self.admin
    }

    /// The server's port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What a process says.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        let logs = self.folder.join("logs");
        if name.is_empty() {
            return logs;
        }
        logs.join(format!("{name}.txt"))
    }

    /// The names that were chosen, all of them where none was.
    pub(super) fn chosen(&self, only: &[String], but: &[String]) -> Result<Vec<String>, Trouble> {
        let all = || self.services.iter().map(|one| one.name.clone());
        for name in only.iter().chain(but) {
            if name != "all" && !all().any(|known| known == *name) {
                return Err(Trouble::new(
                    format!("there is no process `{name}`"),
                    format!("there are {}", all().collect::<Vec<_>>().join(", ")),
                ));
            }
        }
        let every = only.is_empty() || only.iter().any(|name| name == "all");
        let chosen = all().filter(|name| (every || only.contains(name)) && !but.contains(name));
        Ok(chosen.collect())
    }

    /// What is to run.
    pub(super) fn wanted(&self) -> Vec<String> {
        let list = read(&self.folder.join("wanted.json"));
        let names = list.as_ref().and_then(Value::as_array);
        let text = |name: &Value| name.as_str().map(str::to_owned);
        names.into_iter().flatten().filter_map(text).collect()
    }

    /// Says what is to run.
    pub(super) fn want(&self, names: &[String]) -> Result<(), Trouble> {
        self.put("wanted.json", &json!(names))
    }

    /// What runs, as the keeper says.
    pub(super) fn running(&self) -> Value {
        if self.keeper().is_none() {
            return json!({"services": {}});
        }
        read(&self.folder.join("running.json")).unwrap_or_else(|| json!({"services": {}}))
    }

    /// Writes what runs.
    pub(super) fn put(&self, name: &str, value: &Value) -> Result<(), Trouble> {
        let path = self.folder.join(name);
        let aside = self.folder.join(format!(".{name}.{}", std::process::id()));
        fs::write(&aside, value.to_string())
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(|error| cannot_write(&path, &error))
    }

    /// Makes this process the keeper, for as long as it holds the file.
    pub(super) fn keep(&self) -> Result<File, Trouble> {
        let path = self.folder.join("keeper.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| cannot_write(&path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Trouble::new(
                    format!("the deployment in `{}` runs", self.folder.display()),
                    "end it first: firesteel poc stop",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(cannot_write(&path, &error)),
        }
        fs::write(&path, std::process::id().to_string())
            .map_err(|error| cannot_write(&path, &error))?;
        Ok(file)
    }

    /// The process that keeps the others, if there is one.
    pub(super) fn keeper(&self) -> Option<u32> {
        let path = self.folder.join("keeper.lock");
        let file = File::open(&path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => fs::read_to_string(&path).ok()?.trim().parse().ok(),
            _ => None,
        }
    }

    /// That a process has ended, and its last lines.
    pub(super) fn ended(&self, name: &str) -> Trouble {
        let log = self.log(name);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or(&[]);
        let mut message = format!("{name} has ended");
        for line in last {
            let _ = write!(message, "\n  | {line}");
        }
        Trouble::new(message, format!("all it said is in `{}`", log.display()))
    }

    /// For programs.
    pub(super) fn summary(&self) -> Value {
        let running = self.running();
        let one = |service: &Service| {
            let state = running.pointer(&format!("/services/{}/state", service.name));
            let pid = running.pointer(&format!("/services/{}/pid", service.name));
            let state = state.and_then(Value::as_str).unwrap_or("stopped");
            json!({
                "name": service.name, "kind": service.kind, "kit": service.kit,
                "port": service.port, "state": state, "pid": pid, "log": self.log(&service.name),
            })
        };
        json!({
            "workspace": self.folder,
            "status": if self.keeper().is_some() { "running" } else { "stopped" },
            "server": format!("localhost:{}", self.port),
            "admin": self.admin,
            "services": self.services.iter().map(one).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(super) fn described(&self) -> String {
        let summary = self.summary();
        let width = self.services.iter().map(|one| one.name.len()).max();
        let width = width.unwrap_or(0);
        let mut shown = String::new();
        for one in summary["services"].as_array().into_iter().flatten() {
            let text = |key: &str| one[key].as_str().unwrap_or("");
            let pid = one["pid"].as_u64().map(|pid| format!("  process {pid}"));
            let _ = writeln!(
                shown,
                "{:width$}  {:6}  {}{}",
                text("name"),
                text("kind"),
                text("state"),
                pid.unwrap_or_default()
            );
        }
        let _ = writeln!(shown, "\nserver     localhost:{}", self.port);
        let _ = writeln!(shown, "admin kit  {}", self.admin.display());
        let _ = writeln!(shown, "logs       {}", self.log("").display());
        shown
    }
}

/// Removes a deployment's folder.
pub(super) fn remove(folder: &Path) -> Result<(), Trouble> {
    check_ours(folder)?;
    fs::remove_dir_all(folder).map_err(|error| cannot_write(folder, &error))
}

/// A folder in a place where everybody may write must be one of ours: there are
/// private keys in it.
fn check_ours(folder: &Path) -> Result<(), Trouble> {
    let meta = fs::symlink_metadata(folder).map_err(|error| cannot_write(folder, &error))?;
    let ours = meta.uid() == rustix::process::getuid().as_raw();
    if meta.is_dir() && ours && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Trouble::new(
        format!(
            "`{}` is no folder that only you may write to",
            folder.display()
        ),
        "name another one: --workspace DIR",
    ))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(&aside, path)
}

/// Who is taken first to submit jobs; 9 is for those who may not.
fn rank(role: AdminRole) -> u8 {
    match role {
        AdminRole::Lead => 0,
        AdminRole::ProjectAdmin => 1,
        _ => 9,
    }
}

/// A project of one server, the sites, and an admin of each role.
fn project_text(options: &Options) -> Result<String, Trouble> {
    let mut ports = free_ports(1 + options.relays.len())?.into_iter();
    let mut port = || ports.next().unwrap_or_default();
    let mut text = String::from(
        "# Made by `firesteel poc`: a deployment on one machine.\n\
         api_version: 3\nname: poc\ndescription: processes on this machine\nparticipants:\n",
    );
    let _ = write!(
        text,
        "  - name: server\n    type: server\n    org: poc\n    fed_learn_port: {}\n    \
         default_host: localhost\n    host_names: [localhost]\n",
        port()
    );
    for relay in &options.relays {
        let _ = write!(
            text,
            "  - name: {relay}\n    type: relay\n    org: poc\n    listening_host:\n      \
             default_host: localhost\n      host_names: [localhost]\n      port: {}\n",
            port()
        );
    }
    for (at, Site { name, .. }) in options.sites.iter().enumerate() {
        let _ = write!(text, "  - name: {name}\n    type: client\n    org: poc\n");
        if let Some(relay) = options.relays.get(at % options.relays.len().max(1)) {
            let _ = write!(text, "    connect_to:\n      name: {relay}\n");
        }
    }
    for (name, role) in [
        ("admin@poc.local", "project_admin"),
        ("org-admin@poc.local", "org_admin"),
        ("lead@poc.local", "lead"),
        ("member@poc.local", "member"),
    ] {
        let _ = write!(
            text,
            "  - name: {name}\n    type: admin\n    org: poc\n    role: {role}\n"
        );
    }
    let _ = write!(
        text,
        "builders:\n  - path: nvflare.lighter.impl.static_file.StaticFileBuilder\n    args:\n      \
         scheme: {}\n",
        options.scheme
    );
    Ok(text)
}

/// Ports that nobody listens on, all different.
fn free_ports(count: usize) -> Result<Vec<u16>, Trouble> {
    // All are held until the last one was found.
    let held: io::Result<Vec<_>> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect();
    held.and_then(|held| {
        held.iter()
            .map(|one| Ok(one.local_addr()?.port()))
            .collect()
    })
    .map_err(|error| {
        Trouble::new(
            format!("there is no free port on this machine: {error}"),
            "see who listens: ss -ltn",
        )
    })
}

/// The owner's file of a node.
fn own_text(options: &Options, folder: &Path, kind: &str, name: &str) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let path = |path: &Path| quoted(&path.display().to_string());
    let mut text = format!("workspace = {}\n", path(&folder.join("work").join(name)));
    match kind {
        "server" => text.push_str("address = \"127.0.0.1\"\nmax_jobs = 1000\n"),
        "relay" => text.push_str("address = \"127.0.0.1\"\n"),
        _ => {
            text.push_str("max_jobs = 1000\n");
            let site = options.sites.iter().find(|site| site.name == name);
            if let Some(site) = site {
                let gpus: Vec<_> = site.gpus.iter().map(|gpu| quoted(gpu)).collect();
                let _ = write!(text, "\n[resources]\ngpus = [{}]\n", gpus.join(", "));
                for (name, place) in &site.data {
                    let _ = write!(
                        text,
                        "\n[data.{}]\npath = {}\n",
                        quoted(name),
                        quoted(place)
                    );
                }
            }
            let _ = write!(
                text,
                "\n[environments.default]\npython = {}\n\n[environments.default.variables]\n",
                path(&options.python)
            );
            for (name, value) in &options.variables {
                let _ = writeln!(text, "{} = {}", quoted(name), quoted(value));
            }
        }
    }
    text
}

fn cannot_write(path: &Path, error: &io::Error) -> Trouble {
    Trouble::new(
        format!("could not use `{}`: {error}", path.display()),
        "see whether you may write there, and whether the disk is full",
    )
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn options() -> Options {
        let mut lyon = Site::named("lyon".to_owned());
        lyon.data.insert("points".into(), "/data/\"x\".npz".into());
        lyon.gpus.push("1".into());
        Options {
            sites: vec![lyon, Site::named("oslo".into()), Site::named("rome".into())],
            relays: vec!["north".into(), "south".into()],
            scheme: "http".into(),
            python: "/usr/bin/python3".into(),
            variables: [("PYTHONPATH".to_owned(), "/x:/y".to_owned())].into(),
            ..Options::default()
        }
    }

    #[test]
    fn a_deployment_is_made_of_kits_that_open() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("poc");
        let place = Place::make(&folder, &options()).unwrap();
        let names: Vec<_> = place
            .services()
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["server", "north", "south", "lyon", "oslo", "rome"]);
        let ports: std::collections::BTreeSet<_> =
            place.services().iter().filter_map(|one| one.port).collect();
        assert_eq!(ports.len(), 3);
        let lyon = Kit::open(folder.join("kits/lyon")).unwrap();
        let own = lyon.site().unwrap();
        assert_eq!(own.data["points"].path_or_uri, "/data/\"x\".npz");
        assert_eq!(own.resources.gpus, ["1"]);
        assert_eq!(own.environments["default"].variables["PYTHONPATH"], "/x:/y");
        let through = |name: &str| {
            let kit = Kit::open(folder.join("kits").join(name)).unwrap();
            kit.connect()[0].through_relay.clone()
        };
        assert_eq!(through("lyon").as_deref(), Some("north"));
        assert_eq!(through("oslo").as_deref(), Some("south"));
        assert_eq!(through("rome").as_deref(), Some("north"));
        let admin = Kit::open(place.admin()).unwrap();
        assert_eq!(admin.role(), Role::Admin(AdminRole::Lead));
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(Place::open(&folder).unwrap().services(), place.services());
    }

    #[test]
    fn a_name_that_is_none_is_told() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::make(&root.path().join("poc"), &options()).unwrap();
        let error = place
            .chosen(&["rom".to_owned()], &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("there is no process `rom`"), "{error}");
        assert!(error.contains("rome"), "{error}");
        let but = place.chosen(&[], &["lyon".to_owned()]).unwrap();
        assert_eq!(but, ["server", "north", "south", "oslo", "rome"]);
        let username = Options {
            username: Some("nobody@x.org".into()),
            ..options()
        };
        let error = Place::make(&root.path().join("other"), &username).unwrap_err();
        assert!(
            error.to_string().contains("no admin `nobody@x.org`"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("poc");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Place::make(&folder, &options()).is_err());
        assert!(remove(&folder).is_err());
        assert!(folder.exists());
    }

    #[test]
    fn there_is_one_keeper_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::make(&root.path().join("poc"), &options()).unwrap();
        assert_eq!(place.keeper(), None);
        let held = place.keep().unwrap();
        assert_eq!(place.keeper(), Some(std::process::id()));
        assert!(place.keep().is_err());
        drop(held);
        assert_eq!(place.keeper(), None);
    }
}
