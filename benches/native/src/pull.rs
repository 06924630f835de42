//! A model brought from one process to another as roles do it: a session, a
//! manifest with digests, a pull into a received file, its header read.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use firesteel_base::Durations;
use firesteel_carry::{Carrier, Depot, Fetched, Offer, Order, Progress, Remote, Way};
use firesteel_net::dev::Authority;
use firesteel_net::pull::{FileSource, Known, Pull, Sink};
use firesteel_net::{
    Congestion, Identity, IdentityFiles, Kind, Listener, Options as Net, Session, dial,
};
use firesteel_store::{Objects, PartName};
use firesteel_transfer::{Budget, ObjectRef};
use firesteel_wire::control::Object;
use serde::{Deserialize, Serialize};

use crate::clock::{Spent, Watch};
use crate::files::{self, WINDOW};

/// The model's number on the wire.
const MODEL: Offer = Offer::Model { handle: 1 };

/// What is pulled.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where the model and both ends' files are.
    #[arg(long)]
    folder: PathBuf,
    /// Tensors of the model.
    #[arg(long, default_value_t = 64)]
    tensors: u64,
    /// Bytes of each.
    #[arg(long, default_value_t = 16 << 20)]
    each: u64,
    /// How often it is pulled, each time as if for the first time.
    #[arg(long, default_value_t = 4)]
    passes: usize,
    /// One connection's peers pull once more what they have already.
    #[arg(long)]
    again: bool,
    /// So many receivers pull at once, check it and throw it away.
    #[arg(long, default_value_t = 0)]
    receivers: usize,
    /// The congestion control of both ends; the default where none is named.
    #[arg(long, default_value = "")]
    congestion: String,
}

/// One end, started by `pull`.
#[derive(Debug, clap::Args)]
pub struct EndOptions {
    #[arg(long)]
    side: Side,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    passes: usize,
    #[arg(long)]
    again: bool,
    #[arg(long, default_value_t = 0)]
    receivers: usize,
    #[arg(long)]
    address: Option<SocketAddr>,
    #[arg(long, default_value = "")]
    congestion: String,
}

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    Send,
    Receive,
}

/// What a receiver's process tells.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    spent: Vec<Spent>,
    /// Bytes that travelled, of each pass.
    travelled: Vec<u64>,
    /// What was pulled once more.
    again: Option<Again>,
    /// When each of many receivers had it all, in seconds after their start.
    ended_s: Vec<f64>,
}

/// A model pulled that is there already.
#[derive(Debug, Serialize, Deserialize)]
struct Again {
    spent: Spent,
    travelled: u64,
}

/// Runs both ends and prints what each pass took.
pub fn run(options: &Options) -> Result<()> {
    let model = options.folder.join("pull-model.safetensors");
    let length = files::write_model(&model, options.tensors, options.each)?;
    let authority = Authority::new("firesteel bench")?;
    authority
        .server("server", &["localhost", "127.0.0.1"])?
        .save(&options.folder.join("server"))?;
    for number in 0..options.receivers.max(1) {
        authority
            .site(&format!("site-{number}"))?
            .save(&options.folder.join(format!("site-{number}")))?;
    }
    if options.receivers > 0 {
        // From the disk, so that it can be told how often it is read.
        forget_pages(&model)?;
    }
    let mut sender = End::start(options, Side::Send, None)?;
    let address = sender
        .line()?
        .trim()
        .parse()
        .context("the sender's address")?;
    let before = read_bytes(sender.child.id())?;
    let receiver = End::start(options, Side::Receive, Some(address))?;
    let received: Told = serde_json::from_str(&receiver.rest()?)?;
    let from_disk = read_bytes(sender.child.id())?.saturating_sub(before);
    let sent: Vec<Spent> = serde_json::from_str(&sender.rest()?)?;
    let gigabytes = length as f64 / 1e9;
    let passes: Vec<_> = sent
        .iter()
        .zip(&received.spent)
        .map(|(send, receive)| {
            serde_json::json!({
                "cpu_s_per_gb": (send.cpu_s + receive.cpu_s) / gigabytes,
                "send_cpu_s_per_gb": send.cpu_s / gigabytes,
                "receive_cpu_s_per_gb": receive.cpu_s / gigabytes,
                "gb_per_s": gigabytes / receive.wall_s,
                "wall_s": receive.wall_s,
                "cpu_s": send.cpu_s + receive.cpu_s,
            })
        })
        .collect();
    if options.receivers == 0 {
        compare(&model, &options.folder.join("received.safetensors"))?;
    }
    println!(
        "{}",
        serde_json::json!({
            "bytes": length,
            "passes": passes,
            "travelled": received.travelled,
            "again": received.again,
            "ended_s": received.ended_s,
            "read_from_disk": from_disk,
        })
    );
    Ok(())
}

/// A process that runs one end.
struct End {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl End {
    fn start(options: &Options, side: Side, address: Option<SocketAddr>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("pull-end")
            .args([
                "--side",
                match side {
                    Side::Send => "send",
                    Side::Receive => "receive",
                },
            ])
            .arg("--folder")
            .arg(&options.folder)
            .args(["--passes", &options.passes.to_string()])
            .args(["--receivers", &options.receivers.to_string()])
            .args(["--congestion", &options.congestion]);
        if options.again {
            command.arg("--again");
        }
        if let Some(address) = address {
            command.args(["--address", &address.to_string()]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line)
    }

    fn rest(mut self) -> Result<String> {
        let mut text = String::new();
        self.lines.read_to_string(&mut text)?;
        ensure!(self.child.wait()?.success(), "one end failed");
        Ok(text)
    }
}

fn forget_pages(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Bytes that a process made the kernel read from a disk.
fn read_bytes(pid: u32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let value = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "))
        .context("no `read_bytes`")?;
    Ok(value.parse()?)
}

fn compare(from: &Path, to: &Path) -> Result<()> {
    let (mut one, mut two) = (std::fs::File::open(from)?, std::fs::File::open(to)?);
    ensure!(
        one.metadata()?.len() == two.metadata()?.len(),
        "the lengths differ"
    );
    let (mut left, mut right) = (vec![0; WINDOW], vec![0; WINDOW]);
    loop {
        let got = one.read(&mut left)?;
        if got == 0 {
            return Ok(());
        }
        two.read_exact(&mut right[..got])?;
        ensure!(left[..got] == right[..got], "the model differs");
    }
}

/// Runs one end.
pub fn end(options: &EndOptions) -> Result<()> {
    // As many threads as a role has.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism()?.get().clamp(1, 8))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match options.side {
            Side::Send => send(options).await,
            Side::Receive if options.receivers > 0 => receive_at_once(options).await,
            Side::Receive => receive(options).await,
        }
    })
}

fn identity(dir: &Path) -> Result<Identity> {
    Ok(Identity::from_files(&IdentityFiles {
        certificates: dir.join("certificate.pem"),
        key: dir.join("key.pem"),
        authority: dir.join("authority.pem"),
    })?)
}

fn net(options: &EndOptions) -> Net {
    let mut net = Net::default();
    if !options.congestion.is_empty() {
        net.congestion = Congestion::Named(options.congestion.as_str().into());
    }
    net
}

async fn send(options: &EndOptions) -> Result<()> {
    let objects = Objects::open(&options.folder.join("sender"))?;
    let model = objects.import_kept(&options.folder.join("pull-model.safetensors"))?;
    let identity = identity(&options.folder.join("server"))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(address, identity, net(options)).await?;
    println!("{}", listener.local_address());
    let mut spent = Vec::new();
    if options.receivers > 0 {
        let depot = Depot::new(objects.clone(), None, Durations::default());
        let watch = Watch::start();
        let mut open = tokio::task::JoinSet::new();
        for _ in 0..options.receivers {
            let session = listener.accept().await?;
            let remote = Remote::new(&depot, session.peer().name.as_str());
            let _ = remote.offer(MODEL, &model);
            remote.connected(Way::Session(session.clone()));
            open.spawn(async move {
                session.closed().await;
                drop(remote);
            });
        }
        while open.join_next().await.is_some() {}
        spent.push(watch.read());
    }
    for _ in 0..options.passes {
        if options.receivers > 0 {
            break;
        }
        let session = listener.accept().await?;
        // A new depot: the manifest is made anew, its digests included.
        let depot = Depot::new(objects.clone(), None, Durations::default());
        let remote = Remote::new(&depot, "the receiver");
        let _ = remote.offer(MODEL, &model);
        let watch = Watch::start();
        remote.connected(Way::Session(session.clone()));
        session.closed().await;
        spent.push(watch.read());
    }
    println!("{}", serde_json::to_string(&spent)?);
    Ok(())
}

async fn receive(options: &EndOptions) -> Result<()> {
    let objects = Objects::open(&options.folder.join("receiver"))?;
    let identity = identity(&options.folder.join("site-0"))?;
    let address = options.address.context("an address")?.to_string();
    let length = std::fs::metadata(options.folder.join("pull-model.safetensors"))?.len();
    let kept = options.folder.join("received.safetensors");
    let mut told = Told {
        spent: Vec::new(),
        travelled: Vec::new(),
        again: None,
        ended_s: Vec::new(),
    };
    for pass in 0..options.passes {
        let session = dial(&address, "localhost", &identity, net(options)).await?;
        let depot = Depot::new(objects.clone(), None, Durations::default());
        let remote = Remote::new(&depot, "the sender");
        remote.connected(Way::Session(session.clone()));
        let progress = Arc::new(Progress::new(length));
        let watch = Watch::start();
        let fetched = remote
            .fetch(Order {
                object: Object {
                    inline: None,
                    id: MODEL.id(),
                    length,
                },
                name: "the model".to_owned(),
                part: PartName::of_digest(&[0; 32]),
                whole: true,
                progress: Arc::clone(&progress),
            })
            .await?;
        told.spent.push(watch.read());
        told.travelled.push(progress.travelled());
        let Fetched::Here(model) = fetched else {
            bail!("the model did not come");
        };
        if pass + 1 == options.passes {
            let path = model.path().context("the received file")?;
            let _ = std::fs::remove_file(&kept);
            std::fs::hard_link(path, &kept)?;
            if options.again {
                told.again = Some(again(&session, &kept, length).await?);
            }
        }
        session.close("it is done").await;
    }
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

/// Pulls the model into another file, with the one that is there to take from.
async fn again(session: &Session, kept: &Path, length: u64) -> Result<Again> {
    let object = ObjectRef::new(MODEL.id(), length)?;
    let budget = Budget::default();
    let pull = |sink: Arc<dyn Sink>| Pull::new("the sender", "the model", object, sink, &budget);
    let first = pull(Arc::new(Nowhere))
        .retrying(|| session.open(Kind::TRANSFER))
        .await?;
    let known = Arc::new(Known::default());
    known.add(Arc::new(FileSource::open(kept)?), first.manifest);
    let path = kept.with_extension("again");
    let sink = Arc::new(Plain(files::warm_output(&path, length)?));
    let watch = Watch::start();
    let pulled = pull(sink)
        .known(known)
        .retrying(|| session.open(Kind::TRANSFER))
        .await?;
    let spent = watch.read();
    compare(kept, &path)?;
    let counted = pulled.counters;
    Ok(Again {
        spent,
        travelled: counted.pulled + counted.manifest + counted.surplus,
    })
}

/// A file, and nothing more.
struct Plain(std::fs::File);

impl Sink for Plain {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn save(&self, _note: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn forget(&self, _range: std::ops::Range<u64>) {}
}

/// Receivers in one process, each with a session of its own.
async fn receive_at_once(options: &EndOptions) -> Result<()> {
    let address = options.address.context("an address")?.to_string();
    let length = std::fs::metadata(options.folder.join("pull-model.safetensors"))?.len();
    let watch = Watch::start();
    let started = Instant::now();
    let mut open = tokio::task::JoinSet::new();
    for number in 0..options.receivers {
        let identity = identity(&options.folder.join(format!("site-{number}")))?;
        let (address, net) = (address.clone(), net(options));
        open.spawn(async move {
            let session = dial(&address, "localhost", &identity, net).await?;
            let object = ObjectRef::new(MODEL.id(), length)?;
            let budget = Budget::default();
            let mut pull = Pull::new(
                "the sender",
                "the model",
                object,
                Arc::new(Nowhere),
                &budget,
            );
            pull.retrying(|| session.open(Kind::TRANSFER)).await?;
            let ended = started.elapsed().as_secs_f64();
            session.close("it is done").await;
            anyhow::Ok(ended)
        });
    }
    let mut ended_s = Vec::new();
    while let Some(ended) = open.join_next().await {
        ended_s.push(ended??);
    }
    let told = Told {
        spent: vec![watch.read()],
        travelled: Vec::new(),
        again: None,
        ended_s,
    };
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

/// Takes bytes and forgets them; they were checked before.
struct Nowhere;

impl Sink for Nowhere {
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn save(&self, _note: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn forget(&self, _range: std::ops::Range<u64>) {}
}
