//! What the three drivers cost: CPU seconds of either end per gigabyte, on loopback
//! and over a line of 1 Gbit/s; for the part `drivers` of `make bench`.
//!
//! Never: compares with a figure of another run; everything that is set beside
//! each other is measured in one.
//!
//! Start at [`main`]; the figures go to stdout as JSON.

#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use firesteel_net::dev::Authority;
use firesteel_net::{
    BoxStream, Entrance, Front, FrontOptions, Identity, Kind, Options, Scheme, Security, Session,
    Target, dial_with,
};
use firesteel_rig::{Link, Place, Space, Wan, isolate_process};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};

const USAGE: &str = "\
usage: firesteel-bench-drivers [--quick] [loopback] [gigabit]

  loopback   1 GB each way by tcp, grpc, http, and those two without their outer TLS
  gigabit    the same over 1 Gbit/s with 1 ms round trip";

const GB: u64 = 1_000_000_000;
const MS: Duration = Duration::from_millis(1);

/// Before the clock starts: the connection is made, and its windows are open.
const WARM_UP: u64 = 16 * 1024 * 1024;

/// How the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

fn main() -> ExitCode {
    // Before there is a second thread.
    let space = match isolate_process() {
        Ok(space) => space,
        Err(error) => return error.into(),
    };
    match run(&space) {
        Ok(figures) => {
            println!("{figures:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(space: &Space) -> Result<Value> {
    let (mut bytes, mut times) = (GB, 3);
    let mut parts = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => (bytes, times) = (GB / 10, 1),
            "loopback" | "gigabit" => parts.push(argument),
            other => bail!("`{other}` is nothing to measure\n\n{USAGE}"),
        }
    }
    if parts.is_empty() {
        parts = ["loopback", "gigabit"].map(str::to_owned).to_vec();
    }
    let mut figures = json!({"bytes": bytes});
    for part in parts {
        eprintln!("== {part}");
        let mut cases = json!({});
        for (name, scheme, security) in [
            ("tcp", Scheme::Tcp, Security::Mtls),
            ("grpc", Scheme::Grpc, Security::Tls),
            ("grpc, clear", Scheme::Grpc, Security::Clear),
            ("http", Scheme::Http, Security::Tls),
            ("http, clear", Scheme::Http, Security::Clear),
        ] {
            let bench = Bench::new(space, part == "gigabit", scheme, security)?;
            for (label, way) in [("up", Way::Up), ("down", Way::Down)] {
                let mut runs = Vec::new();
                for _ in 0..times {
                    runs.push(bench.measure(way, bytes)?);
                }
                runs.sort_by_key(|run| run.took);
                let middle = runs.get(runs.len() / 2).context("there is a run")?;
                let per_gb = |time: Duration| time.as_secs_f64() * GB as f64 / bytes as f64;
                cases[name][label] = json!({
                    "mbit": bytes as f64 * 8e-6 / middle.took.as_secs_f64(),
                    "site_cpu_s_per_gb": per_gb(middle.site),
                    "server_cpu_s_per_gb": per_gb(middle.server),
                });
                eprintln!("{name}, {label}: {}", cases[name][label]);
            }
        }
        figures[&part] = cases;
    }
    Ok(figures)
}

/// One transfer.
struct Run {
    took: Duration,
    site: Duration,
    server: Duration,
}

/// A session at whose ends everything happens in one thread each, so that the
/// thread's time is the end's.
struct Bench {
    session: Session,
    runtime: Runtime,
    far: Arc<Place>,
    /// Both stay as long as the line does.
    _near: Arc<Place>,
    _wan: Option<Wan>,
}

impl Bench {
    fn new(space: &Space, line: bool, scheme: Scheme, security: Security) -> Result<Self> {
        let near = Arc::new(space.need(Place::new()));
        // On loopback both are in one place.
        let (far, wan) = if line {
            let far = space.need(Place::new());
            let link = Link::round_trip(MS).rate(1_000_000_000, 20 * MS);
            let wan = space.need(Wan::join(&near, &far, link, 1));
            (Arc::new(far), Some(wan))
        } else {
            (Arc::clone(&near), None)
        };
        let authority = Authority::new("bench")?;
        let server = authority.server("server", &["server.test"])?.identity()?;
        let site = authority.site("site-1")?.identity()?;
        let ip = wan.as_ref().map_or(Ipv4Addr::LOCALHOST, Wan::near);
        let address = serve(&near, server, ip, security == Security::Clear)?;
        let runtime = far.run(runtime)?;
        let mut target = Target::new(scheme, &ip.to_string(), address.port(), "server.test", site);
        target.security = security;
        let mut options = Options::default();
        options.bulk_connections = 1;
        let session = far.run(|| runtime.block_on(dial_with(&target, options)))?;
        let bench = Self {
            session,
            runtime,
            far,
            _near: near,
            _wan: wan,
        };
        bench.measure(Way::Up, WARM_UP)?;
        bench.measure(Way::Down, WARM_UP)?;
        Ok(bench)
    }

    fn measure(&self, way: Way, bytes: u64) -> Result<Run> {
        self.far.run(|| {
            self.runtime.block_on(async {
                let mut stream = self.session.open(Kind::TRANSFER).await?;
                stream.write_all(&[u8::from(way == Way::Up)]).await?;
                stream.write_all(&bytes.to_le_bytes()).await?;
                stream.flush().await?;
                let (start, cpu) = (Instant::now(), thread_time());
                match way {
                    Way::Up => send(&mut stream, bytes).await?,
                    Way::Down => receive(&mut stream, bytes).await?,
                }
                let mut server = [0; 8];
                stream.read_exact(&mut server).await?;
                Ok(Run {
                    took: start.elapsed(),
                    site: thread_time() - cpu,
                    server: Duration::from_nanos(u64::from_le_bytes(server)),
                })
            })
        })
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Starts a server in a thread of its own; where it listens.
fn serve(place: &Place, identity: Identity, ip: Ipv4Addr, clear: bool) -> Result<SocketAddr> {
    let (told, address) = mpsc::sync_channel(1);
    place.spawn(move || {
        let served = runtime().context("a runtime").and_then(|runtime| {
            runtime.block_on(async {
                let mut entrance = Entrance::new((ip, 0).into());
                entrance.clear = clear;
                let options = FrontOptions::new(vec![entrance], identity, Options::default());
                let front = Front::bind(options).await?;
                let local = front.local_addresses().first().context("one entrance")?;
                told.send(*local)?;
                loop {
                    let session = front.accept().await?;
                    tokio::spawn(async move {
                        while let Some((_, stream)) = session.accept().await {
                            tokio::spawn(answer(stream));
                        }
                    });
                }
            })
        });
        let ended: Result<()> = served;
        if let Err(error) = ended {
            eprintln!("the server ended: {error:#}");
        }
    });
    address.recv().context("the server did not start")
}

/// One transfer at the server, and what it cost there.
async fn answer(mut stream: BoxStream) -> Result<()> {
    let up = stream.read_u8().await? == 1;
    let bytes = stream.read_u64_le().await?;
    let cpu = thread_time();
    if up {
        receive(&mut stream, bytes).await?;
    } else {
        send(&mut stream, bytes).await?;
    }
    let cost = u64::try_from((thread_time() - cpu).as_nanos())?;
    stream.write_all(&cost.to_le_bytes()).await?;
    stream.flush().await?;
    Ok(())
}

async fn send(stream: &mut BoxStream, bytes: u64) -> Result<()> {
    let piece = vec![0x5a; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let some = piece.len().min(usize::try_from(left)?);
        stream.write_all(piece.split_at(some).0).await?;
        left -= some as u64;
    }
    stream.flush().await?;
    Ok(())
}

async fn receive(stream: &mut BoxStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left)?);
        let got = stream.read(buffer.split_at_mut(most).0).await?;
        anyhow::ensure!(got > 0, "{left} bytes did not come");
        left -= got as u64;
    }
    Ok(())
}
