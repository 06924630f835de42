//! A server on loopback behind a line that counts and cuts, and kits for it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firesteel_api::Stamp;
use firesteel_base::Durations;
use firesteel_daemon::rest::{Rest, RestOptions, Verify, by_certificate};
use firesteel_net::BoxStream;
use firesteel_observe::Logs;
use firesteel_pki::{Kit, Project, Signer, provision};
use firesteel_policy::Policy;
use firesteel_session::{Connect, Connecting, Login, Session};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

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

/// What goes over the line.
#[derive(Default)]
pub struct Line {
    pub connections: AtomicU64,
    /// Bytes from the server.
    pub down: AtomicU64,
    /// The connection is cut, once, after so many bytes from or to the server.
    pub cut_down: AtomicU64,
    pub cut_up: AtomicU64,
}

pub struct Rig {
    pub fake: Arc<Fake>,
    pub line: Arc<Line>,
    rest: Arc<Mutex<Rest>>,
    verify: Verify,
    logins: Arc<AtomicU64>,
    address: SocketAddr,
    kits: tempfile::TempDir,
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

fn durations() -> Durations {
    Durations {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(2),
        ..Durations::default()
    }
}

impl Rig {
    pub async fn new() -> Self {
        let kits = tempfile::tempdir().unwrap();
        let project = Project::parse(PROJECT, Path::new("project.yml")).unwrap();
        let out = kits.path().join("kits");
        provision(&project, &out, &kits.path().join("state")).unwrap();
        let server = Kit::open(out.join("server.north.org")).unwrap();
        let logins = Arc::new(AtomicU64::new(0));
        let inner = by_certificate(server.authority().clone());
        let count = Arc::clone(&logins);
        let verify: Verify = Arc::new(move |chain, text, signature| {
            let subject = inner(chain, text, signature)?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(subject)
        });
        let fake = Fake::new();
        {
            let mut memory = fake.memory.lock().unwrap();
            let job = memory.jobs.get_mut(crate::JOB).unwrap();
            job.summary.submitter.name = "lead@north.org".to_owned();
            job.summary.submitted = Stamp::of(std::time::SystemTime::now());
        }
        let line = Arc::new(Line::default());
        let rest = Arc::new(Mutex::new(interface(&fake, &verify)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::clone(&rest), Arc::clone(&line)));
        Self {
            fake,
            line,
            rest,
            verify,
            logins,
            address,
            kits,
        }
    }

    /// Logins that held, since the last start.
    pub fn logins(&self) -> u64 {
        self.logins.load(Ordering::SeqCst)
    }

    /// The same federation behind a server that knows no token.
    pub fn restart(&self) {
        *self.rest.lock().unwrap() = interface(&self.fake, &self.verify);
        self.logins.store(0, Ordering::SeqCst);
    }

    pub fn kit(&self, name: &str) -> Kit {
        Kit::open(self.kits.path().join("kits").join(name)).unwrap()
    }

    pub fn session(&self, name: &str) -> Session {
        self.session_with(&self.kit(name), "server.north.org")
    }

    pub fn session_to(&self, address: SocketAddr) -> Session {
        session(&self.kit("lead@north.org"), "server.north.org", address)
    }

    pub fn session_with(&self, kit: &Kit, server: &str) -> Session {
        session(kit, server, self.address)
    }
}

fn session(kit: &Kit, server: &str, address: SocketAddr) -> Session {
    let login = Login {
        signer: Signer::from_kit(kit).unwrap(),
        server: server.to_owned(),
        project: kit.project().to_owned(),
    };
    Session::new(login, Arc::new(Direct(address)), durations())
}

fn interface(fake: &Arc<Fake>, verify: &Verify) -> Rest {
    let options = RestOptions {
        server: "server.north.org".to_owned(),
        org: "hq".to_owned(),
        project: "p".to_owned(),
        durations: durations(),
        policy: Policy::standard().clone(),
        verify: Arc::clone(verify),
        log: Logs::disabled().logger("firesteel.server.rest"),
    };
    Rest::new(fake.clone(), options).unwrap()
}

struct Direct(SocketAddr);

impl Connect for Direct {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let stream = TcpStream::connect(self.0).await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }

    fn address(&self) -> String {
        self.0.to_string()
    }
}

/// Serves each connection through a pipe that counts and cuts.
async fn serve(listener: TcpListener, rest: Arc<Mutex<Rest>>, line: Arc<Line>) {
    while let Ok((outside, from)) = listener.accept().await {
        line.connections.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let rest = Arc::clone(&rest);
        let service = hyper::service::service_fn(move |request| {
            let rest = rest.lock().unwrap().clone();
            async move { Ok::<_, std::convert::Infallible>(rest.call(request, from).await) }
        });
        let line = Arc::clone(&line);
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(near), service);
            let (from_client, to_client) = outside.into_split();
            let (from_server, to_server) = tokio::io::split(far);
            // Whichever ends first ends the connection.
            tokio::select! {
                _ = serving => {}
                _ = pass(from_client, to_server, &line.cut_up, None) => {}
                _ = pass(from_server, to_client, &line.cut_down, Some(&line.down)) => {}
            }
        });
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cut: &AtomicU64,
    count: Option<&AtomicU64>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        if let Some(count) = count {
            count.fetch_add(read as u64, Ordering::SeqCst);
        }
        let left = cut.load(Ordering::SeqCst);
        if left > 0 {
            let left = left.saturating_sub(read as u64);
            cut.store(left, Ordering::SeqCst);
            if left == 0 {
                return Ok(());
            }
        }
    }
}
