//! The least that it takes to bring a file from one process to another: mapped
//! and warm at one end, written over a warm one at the other, no digest, no
//! protocol, one thread each.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::clock::{Spent, Watch};
use crate::files::{self, WINDOW};
use crate::tls::{Secret, Tls};

/// The file's name.
const SOURCE: &str = "bare-from";

/// How a file is copied.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where both files are made.
    #[arg(long)]
    folder: PathBuf,
    /// Size of the file.
    #[arg(long, default_value_t = 1024)]
    megabytes: u64,
    /// How often it is copied, over one connection.
    #[arg(long, default_value_t = 4)]
    passes: usize,
    /// The congestion control of both ends; the system's where none is named.
    #[arg(long, default_value = "")]
    congestion: String,
}

/// Which end of which copy.
#[derive(Debug, clap::Args)]
pub struct EndOptions {
    #[arg(long)]
    side: Side,
    #[arg(long)]
    carrier: Carrier,
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    bytes: u64,
    #[arg(long)]
    passes: usize,
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[arg(long, default_value = "")]
    congestion: String,
}

/// The end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    Send,
    Receive,
}

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Carrier {
    Tcp,
    Tls,
}

/// One copy of the file, both ends together.
#[derive(Debug, Serialize)]
struct Pass {
    cpu_s_per_gb: f64,
    send_cpu_s_per_gb: f64,
    receive_cpu_s_per_gb: f64,
    gb_per_s: f64,
}

/// What one end prints.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    spent: Vec<Spent>,
}

/// Copies over TCP and over TLS and prints what each pass took.
pub fn run(options: &Options) -> Result<()> {
    let (from, to) = (options.folder.join(SOURCE), options.folder.join("bare-to"));
    let bytes = files::mapped_model(&options.folder, SOURCE, options.megabytes << 20)
        .context("the source")?
        .len();
    drop(files::warm_output(&to, bytes).context("the target")?);
    let mut found = serde_json::Map::new();
    for carrier in [Carrier::Tcp, Carrier::Tls] {
        let end = |side, file, port| EndOptions {
            side,
            carrier,
            file,
            bytes,
            passes: options.passes,
            port,
            congestion: options.congestion.clone(),
        };
        let (receiver, port) = End::start(&end(Side::Receive, to.clone(), 0))?;
        let port = port.trim().parse().context("the receiver's port")?;
        let (sender, _) = End::start(&end(Side::Send, from.clone(), port))?;
        let (sent, received) = (sender.told()?, receiver.told()?);
        let gigabytes = bytes as f64 / 1e9;
        let passes: Vec<Pass> = sent
            .spent
            .iter()
            .zip(&received.spent)
            .map(|(send, receive)| Pass {
                cpu_s_per_gb: (send.cpu_s + receive.cpu_s) / gigabytes,
                send_cpu_s_per_gb: send.cpu_s / gigabytes,
                receive_cpu_s_per_gb: receive.cpu_s / gigabytes,
                gb_per_s: gigabytes / receive.wall_s,
            })
            .collect();
        found.insert(
            serde_json::to_value(carrier)?
                .as_str()
                .context("a carrier's name")?
                .to_owned(),
            serde_json::to_value(passes)?,
        );
    }
    compare(&from, &to)?;
    std::fs::remove_file(&from)?;
    std::fs::remove_file(&to)?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// A copy that is not equal says nothing about speed.
fn compare(from: &PathBuf, to: &PathBuf) -> Result<()> {
    let (mut one, mut two) = (File::open(from)?, File::open(to)?);
    let (mut left, mut right) = (vec![0; WINDOW], vec![0; WINDOW]);
    loop {
        let got = one.read(&mut left)?;
        if got == 0 {
            return Ok(());
        }
        two.read_exact(&mut right[..got])?;
        ensure!(left[..got] == right[..got], "the copy differs");
    }
}

/// A process that runs one end.
struct End {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// Closed, it tells the end to go.
    _told: ChildStdin,
}

impl End {
    /// Starts it; with the first line that it prints.
    fn start(options: &EndOptions) -> Result<(Self, String)> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bare-end")
            .args([
                "--side",
                match options.side {
                    Side::Send => "send",
                    Side::Receive => "receive",
                },
            ])
            .args([
                "--carrier",
                match options.carrier {
                    Carrier::Tcp => "tcp",
                    Carrier::Tls => "tls",
                },
            ])
            .arg("--file")
            .arg(&options.file)
            .args(["--bytes", &options.bytes.to_string()])
            .args(["--passes", &options.passes.to_string()])
            .args(["--port", &options.port.to_string()])
            .args(["--congestion", &options.congestion])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let told = child.stdin.take().context("its input")?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let end = Self {
            child,
            lines,
            _told: told,
        };
        Ok((end, line))
    }

    /// What it prints at its end.
    fn told(mut self) -> Result<Told> {
        let mut text = String::new();
        self.lines.read_to_string(&mut text)?;
        ensure!(self.child.wait()?.success(), "one end failed");
        Ok(serde_json::from_str(&text)?)
    }
}

/// A connection of either kind.
enum Link {
    Tcp(TcpStream, Vec<u8>),
    Tls(Box<Tls>),
}

impl Link {
    fn new(socket: TcpStream, options: &EndOptions) -> Result<Self> {
        socket.set_nodelay(true)?;
        if !options.congestion.is_empty() {
            rustix::net::sockopt::set_tcp_congestion(&socket, &options.congestion)?;
        }
        let mut socket = socket;
        Ok(match (options.carrier, options.side) {
            (Carrier::Tcp, _) => Self::Tcp(socket, vec![0; WINDOW]),
            // The sender dials, and hears the certificate first.
            (Carrier::Tls, Side::Receive) => {
                let secret = Secret::new()?;
                for part in [&secret.certificate, &secret.key] {
                    socket.write_all(&u32::try_from(part.len())?.to_be_bytes())?;
                    socket.write_all(part)?;
                }
                Self::Tls(Box::new(Tls::server(socket, &secret)?))
            }
            (Carrier::Tls, Side::Send) => {
                let mut part = || -> Result<Vec<u8>> {
                    let mut length = [0; 4];
                    socket.read_exact(&mut length)?;
                    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
                    socket.read_exact(&mut bytes)?;
                    Ok(bytes)
                };
                let secret = Secret {
                    certificate: part()?,
                    key: part()?,
                };
                Self::Tls(Box::new(Tls::client(socket, &secret)?))
            }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(socket, _) => Ok(socket.write_all(bytes)?),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn read(&mut self, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        match self {
            Self::Tcp(socket, window) => {
                let got = socket.read(window)?;
                ensure!(got > 0, "the other end closed the connection");
                Ok(take(&window[..got])?)
            }
            Self::Tls(tls) => tls.read(take),
        }
    }

    /// One byte from the other end.
    fn turn(&mut self) -> Result<()> {
        self.read(|_| Ok(()))
    }
}

/// Runs one end.
pub fn end(options: &EndOptions) -> Result<()> {
    let spent = match options.side {
        Side::Receive => receive(options)?,
        Side::Send => send(options)?,
    };
    println!("{}", serde_json::to_string(&Told { spent })?);
    Ok(())
}

fn send(options: &EndOptions) -> Result<Vec<Spent>> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, options.port))?;
    println!("connected");
    let mut link = Link::new(socket, options)?;
    let folder = options.file.parent().context("the source's folder")?;
    let model = files::mapped_model(folder, SOURCE, options.bytes)?;
    let mut spent = Vec::new();
    for _ in 0..options.passes {
        link.turn()?;
        let watch = Watch::start();
        for window in model.bytes().chunks(WINDOW) {
            link.write(window)?;
        }
        spent.push(watch.read());
    }
    // The receiver says when it has the last byte.
    link.turn()?;
    Ok(spent)
}

fn receive(options: &EndOptions) -> Result<Vec<Spent>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let (socket, _) = listener.accept()?;
    let mut link = Link::new(socket, options)?;
    let file = files::warm_output(&options.file, options.bytes)?;
    let mut spent = Vec::new();
    for _ in 0..options.passes {
        let mut at = 0;
        let watch = Watch::start();
        link.write(b".")?;
        while at < options.bytes {
            link.read(|bytes| {
                file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok(())
            })?;
        }
        spent.push(watch.read());
    }
    link.write(b".")?;
    Ok(spent)
}
