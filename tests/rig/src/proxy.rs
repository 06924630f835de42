//! A TCP proxy that treats connections badly: cuts, stalls, slows, refuses them,
//! or closes one half. In this process, unprivileged.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::Direction;

/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;

/// Bytes that the kernel may hold for a connection to those who dial: what is in
/// there when it is cut is lost.
const SOCKET_BUFFER: u32 = 128 * 1024;

/// The same towards the server: a long line may lie behind it, whose round trip
/// this fills up to 400 Mbit/s at 20 ms.
const UPSTREAM_BUFFER: u32 = 1024 * 1024;

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both ends are told at once that it is gone, as by a firewall or a crash.
    Reset,
    /// Both ends see the other one close it.
    Close,
}

/// A running proxy; its connections end when it is dropped.
///
/// [`Direction::There`] is from those who dial the proxy to whom it dials.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    there: Lane,
    back: Lane,
    accepted: AtomicU64,
    open: AtomicU64,
    /// The number of cuts, and how the last one is made.
    cuts: watch::Sender<(u64, Cut)>,
    /// Whether to listen, and whether it does.
    listen: watch::Sender<bool>,
    listens: watch::Sender<bool>,
}

/// One direction of all connections.
#[derive(Debug)]
struct Lane {
    flow: watch::Sender<Flow>,
    passed: Mutex<Passed>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flow {
    pace: Pace,
    /// How often this direction was closed, for those who were open then.
    closes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pace {
    #[default]
    Free,
    Slow(u64),
    Stalled,
}

#[derive(Debug, Default)]
struct Passed {
    bytes: u64,
    /// Counts at which everything is cut, the next one first.
    cuts: VecDeque<u64>,
}

impl Proxy {
    /// A proxy on a loopback port, in front of an address.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::bind((Ipv4Addr::LOCALHOST, 0).into(), upstream).await
    }

    /// A proxy on an address.
    pub async fn bind(address: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let listener = listen(address)?;
        let address = listener.local_addr()?;
        let lane = || Lane {
            flow: watch::Sender::new(Flow::default()),
            passed: Mutex::default(),
        };
        let shared = Arc::new(Shared {
            upstream,
            there: lane(),
            back: lane(),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            cuts: watch::Sender::new((0, Cut::Reset)),
            listen: watch::Sender::new(true),
            listens: watch::Sender::new(true),
        });
        let task = tokio::spawn(accept(Arc::clone(&shared), address, listener));
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection now. New ones are taken.
    pub fn cut(&self, how: Cut) {
        self.shared.cut(how);
    }

    /// Resets every connection as soon as so many bytes have passed in a
    /// direction, over all connections since the start; for each of the counts,
    /// of which those that have been reached already are left out.
    pub fn cut_at(&self, direction: Direction, counts: impl IntoIterator<Item = u64>) {
        let mut passed = self.shared.lane(direction).passed();
        let bytes = passed.bytes;
        let mut cuts: Vec<u64> = counts.into_iter().filter(|&at| at > bytes).collect();
        cuts.sort_unstable();
        passed.cuts = cuts.into();
    }

    /// Lets nothing through in a direction until [`Proxy::free`]: what the sender
    /// sees is a peer that has stopped reading.
    pub fn stall(&self, direction: Direction) {
        self.pace(direction, Pace::Stalled);
    }

    /// Lets at most so many bytes per second through, per connection.
    pub fn slow(&self, direction: Direction, bytes_per_second: u64) {
        self.pace(direction, Pace::Slow(bytes_per_second.max(1)));
    }

    /// Lets everything through again.
    pub fn free(&self, direction: Direction) {
        self.pace(direction, Pace::Free);
    }

    /// Closes a direction of every open connection, as `shutdown` does: the
    /// receiver sees the end of the stream, and can still send.
    pub fn half_close(&self, direction: Direction) {
        self.shared
            .lane(direction)
            .flow
            .send_modify(|flow| flow.closes += 1);
    }

    /// Has new connections refused, until [`Proxy::admit`]. Those that are open
    /// stay.
    pub async fn refuse(&self) {
        self.listening(false).await;
    }

    /// Takes connections again, at the same address.
    pub async fn admit(&self) {
        self.listening(true).await;
    }

    /// Bytes that were passed on in a direction, over all connections.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.lane(direction).passed().bytes
    }

    /// Connections that were taken since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// How often everything was cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.borrow().0
    }

    fn pace(&self, direction: Direction, pace: Pace) {
        self.shared
            .lane(direction)
            .flow
            .send_modify(|flow| flow.pace = pace);
    }

    async fn listening(&self, wanted: bool) {
        let mut listens = self.shared.listens.subscribe();
        self.shared.listen.send_replace(wanted);
        listens
            .wait_for(|listens| *listens == wanted)
            .await
            .expect("the proxy holds the other end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::There => &self.there,
            Direction::Back => &self.back,
        }
    }

    fn cut(&self, how: Cut) {
        self.cuts.send_modify(|(count, last)| {
            *count += 1;
            *last = how;
        });
    }
}

impl Lane {
    fn passed(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Books bytes that are about to pass: how many of them do, and whether
    /// everything is cut behind them.
    fn book(&self, bytes: usize) -> (usize, Option<Cut>) {
        let mut passed = self.passed();
        let left = passed
            .cuts
            .front()
            .map_or(u64::MAX, |&at| at.saturating_sub(passed.bytes));
        if left > bytes as u64 {
            passed.bytes += bytes as u64;
            return (bytes, None);
        }
        passed.cuts.pop_front();
        passed.bytes += left;
        let left = usize::try_from(left).expect("not more than `bytes`");
        (left, Some(Cut::Reset))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // Those that are accepted inherit its buffers.
    let socket = socket(address, SOCKET_BUFFER)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

fn socket(towards: SocketAddr, buffer: u32) -> io::Result<TcpSocket> {
    let socket = match towards {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_recv_buffer_size(buffer)?;
    socket.set_send_buffer_size(buffer)?;
    Ok(socket)
}

/// Takes connections while it shall.
async fn accept(shared: Arc<Shared>, address: SocketAddr, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut wanted = shared.listen.subscribe();
    let mut listener = Some(listener);
    loop {
        let shall = *wanted.borrow_and_update();
        match (shall, &listener) {
            (true, None) => {
                // Somebody else may have the port for a moment.
                listener = listen(address).ok();
                if listener.is_none() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    continue;
                }
            }
            (false, Some(_)) => listener = None,
            _ => {}
        }
        shared.listens.send_replace(listener.is_some());
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            taken = next => if let Ok((stream, _)) = taken {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                // Counted and subscribed before the dialer can know that it is
                // through, so that a cut that follows finds it.
                let opened = Opened::new(&shared);
                connections.spawn(connect(opened, stream));
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// A connection, while it is counted as open.
struct Opened {
    shared: Arc<Shared>,
    cuts: watch::Receiver<(u64, Cut)>,
    /// How often either direction had been closed before.
    closes: [u64; 2],
}

impl Opened {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            cuts: shared.cuts.subscribe(),
            closes: [&shared.there, &shared.back].map(|lane| lane.flow.borrow().closes),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Carries one connection until it ends or is cut.
async fn connect(mut opened: Opened, mut near: TcpStream) {
    let shared = Arc::clone(&opened.shared);
    let dialed = async {
        let socket = socket(shared.upstream, UPSTREAM_BUFFER)?;
        socket.connect(shared.upstream).await
    };
    let Ok(mut far) = dialed.await else {
        let _ = near.set_zero_linger();
        return;
    };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let [there, back] = opened.closes;
    let how = {
        let (near_reader, near_writer) = near.split();
        let (far_reader, far_writer) = far.split();
        let both = async {
            tokio::try_join!(
                pump(&shared, &shared.there, there, near_reader, far_writer),
                pump(&shared, &shared.back, back, far_reader, near_writer),
            )
        };
        tokio::select! {
            biased;
            _ = opened.cuts.changed() => opened.cuts.borrow_and_update().1,
            ended = both => match ended {
                Ok(_) => Cut::Close,
                Err(_) => Cut::Reset,
            },
        }
    };
    if how == Cut::Reset {
        let _ = near.set_zero_linger();
        let _ = far.set_zero_linger();
    }
}

/// Carries one direction to its end, or until it is closed more than `closes` times.
async fn pump(
    shared: &Shared,
    lane: &Lane,
    closes: u64,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> io::Result<()> {
    let mut flow = lane.flow.subscribe();
    let mut buffer = vec![0; CHUNK];
    loop {
        let now = *flow
            .wait_for(|flow| flow.closes > closes || flow.pace != Pace::Stalled)
            .await
            .map_err(io::Error::other)?;
        if now.closes > closes {
            return to.shutdown().await;
        }
        // Twenty portions a second, or single bytes where it is slower.
        let some = match now.pace {
            Pace::Slow(rate) => usize::try_from(rate / 20).unwrap_or(CHUNK).clamp(1, CHUNK),
            Pace::Free | Pace::Stalled => CHUNK,
        };
        let (some, _) = buffer.split_at_mut(some);
        let read = tokio::select! {
            biased;
            _ = flow.changed() => continue,
            read = from.read(some) => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        let (pass, cut) = lane.book(read);
        to.write_all(some.split_at(pass).0).await?;
        if let Some(how) = cut {
            shared.cut(how);
            return std::future::pending().await;
        }
        if let Pace::Slow(rate) = now.pace {
            let pause = Duration::from_secs_f64(read as f64 / rate as f64);
            tokio::select! {
                _ = flow.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
