//! A server with the real front door, and kits that lead to it.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use firesteel_api::{EventKind, JobEvent, Stamp};
use firesteel_daemon::rest::{Rest, RestOptions, by_certificate};
use firesteel_net::{Entrance, Front, FrontOptions, Options};
use firesteel_observe::Logs;
use firesteel_pki::{Kit, Project, provision};
use firesteel_policy::Policy;
use tokio::runtime::Runtime;

use crate::common::Fake;

const PROJECT: &str = "
api_version: 3
name: p
participants:
  - {name: server.north.org, type: server, org: hq, fed_learn_port: 8002}
  - {name: site-1, type: client, org: north}
  - {name: admin@hq.org, type: admin, org: hq, role: project_admin}
  - {name: lead@north.org, type: admin, org: north, role: lead}
  - {name: member@north.org, type: admin, org: north, role: member}
";

pub struct Rig {
    pub fake: Arc<Fake>,
    pub folder: tempfile::TempDir,
    _front: Front,
    _runtime: Runtime,
}

impl Rig {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::parse(PROJECT, "project.yml".as_ref()).unwrap();
        let out = folder.path().join("kits");
        provision(&project, &out, &folder.path().join("state")).unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        let kit = Kit::open(out.join("server.north.org")).unwrap();
        let fake = Fake::new();
        let submitter = |memory: &mut crate::common::Memory| {
            let job = memory.jobs.get_mut(crate::JOB).unwrap();
            job.summary.submitter.name = "lead@north.org".to_owned();
        };
        submitter(&mut fake.memory.lock().unwrap());
        let options = RestOptions {
            server: kit.name().to_owned(),
            org: kit.org().to_owned(),
            project: kit.project().to_owned(),
            durations: firesteel_base::Durations::default(),
            policy: Policy::standard().clone(),
            verify: by_certificate(kit.authority().clone()),
            log: Logs::disabled().logger("firesteel.server.rest"),
        };
        let rest = Rest::new(fake.clone(), options).unwrap();
        let runtime = Runtime::new().unwrap();
        let entrance = Entrance::new(([127, 0, 0, 1], 0).into());
        let mut front =
            FrontOptions::new(vec![entrance], kit.identity().clone(), Options::default());
        front.web = Some(Arc::new(rest));
        let front = runtime.block_on(Front::bind(front)).unwrap();
        let address = front.local_addresses()[0];
        let rig = Self {
            fake,
            folder,
            _front: front,
            _runtime: runtime,
        };
        for name in ["admin@hq.org", "lead@north.org", "member@north.org"] {
            rig.point(name, address);
        }
        rig
    }

    pub fn kit(&self, name: &str) -> Kit {
        Kit::open(self.folder.path().join("kits").join(name)).unwrap()
    }

    /// Has an admin's kit lead there.
    pub fn point(&self, name: &str, address: SocketAddr) {
        let (host, port) = (address.ip(), address.port());
        let text = format!("[network]\nhost = \"{host}\"\nport = {port}\n");
        let file = self
            .folder
            .path()
            .join("kits")
            .join(name)
            .join("admin.toml");
        std::fs::write(file, text).unwrap();
    }

    pub fn event(&self, what: EventKind) {
        let mut memory = self.fake.memory.lock().unwrap();
        let seq = memory.events.len() as u64 + 1;
        memory.events.push(JobEvent {
            seq,
            at: Stamp::of(SystemTime::now()),
            what,
        });
    }

    /// Runs the binary with a kit: its exit code, output and error output.
    pub fn run(&self, name: &str, args: &[&str]) -> (i32, String, String) {
        let kit = self.folder.path().join("kits").join(name);
        self.start(
            Command::new(env!("CARGO_BIN_EXE_firesteel")).env("FIRESTEEL_KIT", kit),
            args,
        )
    }

    pub fn run_without_kit(&self, args: &[&str]) -> (i32, String, String) {
        self.start(
            Command::new(env!("CARGO_BIN_EXE_firesteel")).env_remove("FIRESTEEL_KIT"),
            args,
        )
    }

    fn start(&self, command: &mut Command, args: &[&str]) -> (i32, String, String) {
        let output = command
            .args(args)
            .current_dir(self.folder.path())
            .env("TMPDIR", self.folder.path().join("tmp"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}
