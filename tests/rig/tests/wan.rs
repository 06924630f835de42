//! The emulated line is as long, as lossy and as narrow as it says.
//!
//! A delay can only be too long on a busy machine, and a rate only too low: the
//! bounds that a machine cannot break are asserted, the others are waited for.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use firesteel_rig::wait::{PATIENCE, block_until};
use firesteel_rig::{Direction, Link, Place, Space, Wan, own_space};

const MS: Duration = Duration::from_millis(1);

/// Two places and a line between them.
struct Line {
    near: Place,
    far: Place,
    wan: Wan,
}

impl Line {
    fn new(space: &Space, link: Link) -> Self {
        let near = space.need(Place::new());
        let far = space.need(Place::new());
        let wan = space.need(Wan::join(&near, &far, link, 1));
        Self { near, far, wan }
    }

    /// Two sockets, each connected to the other.
    fn pair(&self) -> (UdpSocket, UdpSocket) {
        let bind = |place: &Place, address| place.run(|| UdpSocket::bind((address, 0)).unwrap());
        let (near, far) = (
            bind(&self.near, self.wan.near()),
            bind(&self.far, self.wan.far()),
        );
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        (near, far)
    }

    fn listener(&self) -> (TcpListener, SocketAddr) {
        let address = (self.wan.far(), 0);
        let listener = self.far.run(|| TcpListener::bind(address).unwrap());
        let address = listener.local_addr().unwrap();
        (listener, address)
    }
}

/// The shortest of some round trips.
fn round_trip(near: &UdpSocket, far: &UdpSocket) -> Duration {
    let mut buffer = [0; 16];
    (0..5)
        .map(|_| {
            let sent = Instant::now();
            near.send(b"there").unwrap();
            far.recv(&mut buffer).unwrap();
            far.send(b"back").unwrap();
            near.recv(&mut buffer).unwrap();
            sent.elapsed()
        })
        .min()
        .unwrap()
}

/// Sends so many bytes over TCP; how long the receiver waited for the last one.
fn send(line: &Line, bytes: usize, prepare: impl FnOnce(&TcpStream)) -> Duration {
    let (listener, address) = line.listener();
    let mut stream = line.near.run(|| TcpStream::connect(address).unwrap());
    prepare(&stream);
    let sender = std::thread::spawn(move || stream.write_all(&vec![7; bytes]).unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let started = Instant::now();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), bytes);
    started.elapsed()
}

#[test]
fn a_round_trip_takes_its_time_and_follows_a_change() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let (near, far) = line.pair();
    for millis in [40, 10, 100] {
        let link = Link::round_trip(millis * MS);
        line.wan.set(link);
        block_until(|| {
            let took = round_trip(&near, &far);
            assert!(took >= millis * MS, "{took:?} for {millis} ms");
            eprintln!("round trip of {millis} ms: {took:?}");
            // A tenth more and what a busy machine takes for four wake-ups.
            (took <= (millis + millis / 10 + 3) * MS).then_some(())
        });
    }
}

#[test]
fn each_direction_is_a_line_of_its_own() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let (near, far) = line.pair();
    line.wan.set_one(Direction::Back, Link::dead());
    near.send(b"there").unwrap();
    far.recv(&mut [0; 16]).unwrap();
    far.send(b"back").unwrap();
    block_until(|| (line.wan.counts(Direction::Back).lost >= 1).then_some(()));
    assert_eq!(line.wan.counts(Direction::There).lost, 0);
    assert_eq!(line.wan.counts(Direction::Back).arrived, 0);
}

#[test]
fn a_rate_is_kept_and_reached() {
    let Some(space) = own_space!() else { return };
    // Round trips of 10 ms, 16 Mbit/s, and a queue of 50 ms.
    let line = Line::new(&space, Link::round_trip(10 * MS).rate(16_000_000, 50 * MS));
    let bytes = 1_000_000;
    block_until(|| {
        let before = line.wan.counts(Direction::There);
        let started = Instant::now();
        let took = send(&line, bytes, |_| {});
        let whole = started.elapsed();
        let after = line.wan.counts(Direction::There);
        let carried = after.arrived_bytes - before.arrived_bytes;
        // What arrived cannot have come faster than the rate allows, but for the
        // packet with which it begins.
        let fastest = Duration::from_secs_f64((carried - 1500) as f64 / 2_000_000.0);
        assert!(whole >= fastest, "{carried} bytes within {whole:?}");
        eprintln!("1 MB at 2 MB/s: {took:?}");
        // Headers are 4 %, and TCP takes some round trips to find the rate.
        (took <= 700 * MS).then_some(())
    });
    assert_eq!(line.wan.counts(Direction::There).lost, 0);
}

#[test]
fn losses_are_those_of_the_seed_and_are_counted() {
    let Some(space) = own_space!() else { return };
    let lost: Vec<Vec<u32>> = (0..2)
        .map(|_| {
            let line = Line::new(&space, Link::default().loss(0.1));
            let (near, far) = line.pair();
            let mut lost = Vec::new();
            for number in 0u32..500 {
                let before = line.wan.counts(Direction::There);
                near.send(&number.to_ne_bytes()).unwrap();
                let counts = block_until(|| {
                    let now = line.wan.counts(Direction::There);
                    (now.arrived + now.lost > before.arrived + before.lost).then_some(now)
                });
                if counts.lost > before.lost {
                    lost.push(number);
                    continue;
                }
                let mut heard = [0; 4];
                far.recv(&mut heard).unwrap();
                assert_eq!(u32::from_ne_bytes(heard), number);
            }
            let counts = line.wan.counts(Direction::There);
            assert_eq!(counts.packets, counts.lost + counts.arrived);
            assert_eq!(counts.lost, lost.len() as u64);
            lost
        })
        .collect();
    assert!((25..80).contains(&lost[0].len()), "{}", lost[0].len());
    assert_eq!(lost[0], lost[1]);
}

#[test]
fn what_the_queue_cannot_take_is_dropped_and_counted() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default().rate(80_000, 200 * MS));
    let (near, _far) = line.pair();
    for _ in 0..50 {
        near.send(&[0; 1000]).unwrap();
    }
    let counts = block_until(|| {
        let counts = line.wan.counts(Direction::There);
        (counts.packets >= 50).then_some(counts)
    });
    // 2 kB are queued and a packet is on its way; on a busy machine some have
    // arrived meanwhile.
    assert!(counts.overflowed >= 10, "{counts:?}");
    assert_eq!(counts.lost, 0);
}

#[test]
fn tcp_gets_through_a_lossy_line_with_every_congestion_control() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::round_trip(20 * MS).loss(0.02));
    let names = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let names = std::fs::read_to_string(names).unwrap();
    assert!(names.split_whitespace().count() > 0);
    for name in names.split_whitespace() {
        let took = send(&line, 300_000, |socket| {
            rustix::net::sockopt::set_tcp_congestion(socket, name).unwrap();
        });
        eprintln!("{name}: 300 kB with 2 % loss in {took:?}");
    }
    assert!(line.wan.counts(Direction::There).lost > 0);
}

#[test]
fn a_dead_line_comes_back() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let (listener, address) = line.listener();
    let mut near = line.near.run(|| TcpStream::connect(address).unwrap());
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    line.wan.set(Link::dead());
    near.write_all(b"late").unwrap();
    block_until(|| (line.wan.counts(Direction::There).lost >= 1).then_some(()));
    line.wan.set(Link::default());
    let mut heard = [0; 4];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"late");
}

#[test]
fn one_place_is_at_the_end_of_several_lines() {
    let Some(space) = own_space!() else { return };
    let server = space.need(Place::new());
    let listener = server.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let sites: Vec<(Place, Wan)> = (0..3u32)
        .map(|number| {
            let site = space.need(Place::new());
            let link = Link::round_trip(MS * number);
            let wan = space.need(Wan::join(&server, &site, link, number.into()));
            (site, wan)
        })
        .collect();
    for (site, wan) in &sites {
        let address = (wan.near(), port);
        let stream = site.run(|| TcpStream::connect(address).unwrap());
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), wan.far());
        drop(stream);
    }
    // Sites do not reach each other.
    let refused = sites[0]
        .0
        .run(|| TcpStream::connect((sites[1].1.far(), port)));
    assert!(refused.is_err());
}

#[test]
fn programs_run_in_their_place_and_end_with_it() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let mut command = Command::new("cat");
    command.arg("/proc/net/dev").stdout(Stdio::piped());
    let mut process = line.far.start(command).unwrap();
    let mut devices = String::new();
    let mut out = process.child().stdout.take().unwrap();
    out.read_to_string(&mut devices).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(devices.contains("wan"), "{devices}");
    let mut command = Command::new("sleep");
    command.arg("60");
    let process = line.far.start(command).unwrap();
    let pid = process.id();
    assert!(firesteel_rig::wait::alive(pid));
    drop(process);
    assert!(!firesteel_rig::wait::alive(pid));
}

#[test]
fn nothing_is_left_of_a_line_that_was_dropped() {
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let devices = |place: &Place| {
        let text = place.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        text.matches("wan").count()
    };
    let Line { near, far, wan } = line;
    assert_eq!((devices(&near), devices(&far)), (1, 1));
    drop(wan);
    assert_eq!((devices(&near), devices(&far)), (0, 0));
}

const KILLED: &str = "FIRESTEEL_RIG_TEST_KILLED";

/// Not a test by itself: the one below starts it and kills it.
#[test]
fn helper_that_is_killed_with_a_line_open() {
    if std::env::var_os(KILLED).is_none() {
        return;
    }
    let Some(space) = own_space!() else { return };
    let line = Line::new(&space, Link::default());
    let mut command = Command::new("sleep");
    command.arg("60");
    let process = line.far.start(command).unwrap();
    let text = format!("{} {}\n", std::process::id(), process.id());
    std::fs::write(std::env::var_os(KILLED).unwrap(), text).unwrap();
    std::thread::sleep(3 * PATIENCE);
}

#[test]
fn nothing_is_left_when_a_test_is_killed() {
    // Whether there can be a line at all is told by this.
    let Some(space) = own_space!() else { return };
    drop(Line::new(&space, Link::default()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["helper_that_is_killed_with_a_line_open", "--exact"])
        .env(KILLED, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids: Vec<u32> = block_until(|| {
        let text = std::fs::read_to_string(&file).ok()?;
        let line = text.strip_suffix('\n')?;
        Some(line.split(' ').map(|pid| pid.parse().unwrap()).collect())
    });
    let space = std::fs::read_link(format!("/proc/{}/ns/net", pids[1])).unwrap();
    test.kill().unwrap();
    test.wait().unwrap();
    block_until(|| {
        let gone = pids.iter().all(|&pid| !firesteel_rig::wait::alive(pid));
        gone.then_some(())
    });
    // No process is left in the namespace, and it has no name.
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(other) = std::fs::read_link(entry.path().join("ns/net")) {
            assert_ne!(other, space, "{:?}", entry.path());
        }
    }
}
