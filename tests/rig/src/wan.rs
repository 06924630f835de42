//! An emulated long line between two places: delay, jitter, loss, rate and a
//! bounded queue per direction, all of which can be changed while it runs.
//!
//! The kernels that tests meet often lack netem, so each end is a TUN device
//! whose packets a thread carries to the other one. What a packet meets is
//! decided by [`Lane`], a value that is told the time.

mod lane;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use self::lane::{Counts, Link};
use self::lane::{Fate, Lane};
use crate::{Place, RigError, sys};

/// Bytes of an IP packet, as on Ethernet.
const MTU: u16 = 1500;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first place to the second.
    There,
    /// From the second place to the first.
    Back,
}

/// A line between two places; it is cut and its devices are gone when this is
/// dropped.
#[derive(Debug)]
pub struct Wan {
    near: Ipv4Addr,
    far: Ipv4Addr,
    there: Carrier,
    back: Carrier,
}

/// Distinguishes the lines of a process: a place may be at the end of several.
static LINES: AtomicU16 = AtomicU16::new(0);

impl Wan {
    /// Joins two places by a line that is the same both ways. All that is random
    /// follows from `seed`.
    pub fn join(near: &Place, far: &Place, link: Link, seed: u64) -> Result<Self, RigError> {
        let [high, low] = LINES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        // 10.64.0.0/10, two addresses each, as private as the namespaces.
        let base =
            u32::from(Ipv4Addr::new(10, 64, 0, 0)) + 4 * u32::from(u16::from_be_bytes([high, low]));
        let (first, second) = (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2));
        let name = format!("wan{}", u16::from_be_bytes([high, low]));
        let device = |place: &Place, own, peer| -> Result<File, RigError> {
            let made = place.run(|| {
                let device = sys::tun(&name)?;
                sys::configure(&name, own, peer, MTU)?;
                Ok(device)
            });
            made.map_err(|source: io::Error| RigError::of("a TUN device", source))
        };
        let (one, other) = (device(near, first, second)?, device(far, second, first)?);
        let twin = |file: &File| {
            file.try_clone()
                .map_err(|source| RigError::of("a second handle to a TUN device", source))
        };
        let (one_again, other_again) = (twin(&one)?, twin(&other)?);
        Ok(Self {
            near: first,
            far: second,
            there: Carrier::start(one, other_again, Lane::new(link, seed))?,
            back: Carrier::start(other, one_again, Lane::new(link, !seed))?,
        })
    }

    /// The address of the first place.
    pub fn near(&self) -> Ipv4Addr {
        self.near
    }

    /// The address of the second place.
    pub fn far(&self) -> Ipv4Addr {
        self.far
    }

    /// Changes the line in both directions.
    pub fn set(&self, link: Link) {
        self.set_one(Direction::There, link);
        self.set_one(Direction::Back, link);
    }

    /// Changes one direction. Packets on their way keep the time at which they
    /// arrive.
    pub fn set_one(&self, direction: Direction, link: Link) {
        self.lane(direction).set(link);
    }

    /// What went through one direction since the line exists.
    pub fn counts(&self, direction: Direction) -> Counts {
        self.lane(direction).counts()
    }

    fn lane(&self, direction: Direction) -> MutexGuard<'_, Lane> {
        match direction {
            Direction::There => lock(&self.there.lane),
            Direction::Back => lock(&self.back.lane),
        }
    }
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread of one direction.
#[derive(Debug)]
struct Carrier {
    lane: Arc<Mutex<Lane>>,
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    fn start(from: File, to: File, lane: Lane) -> Result<Self, RigError> {
        let failed = |source| RigError::of("the thread of an emulated line", source);
        let lane = Arc::new(Mutex::new(lane));
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let end = Arc::new(end);
        let (its_lane, its_end) = (Arc::clone(&lane), Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("wan".into())
            .spawn(move || {
                be_punctual();
                carry(&from, &to, &its_lane, &its_end);
            })
            .map_err(failed)?;
        Ok(Self {
            lane,
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// A line that is late because its thread sleeps long is a longer line.
fn be_punctual() {
    // Both are better, neither is needed: a nicer priority is root's to give.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -10);
}

/// Carries packets until the end is told.
fn carry(from: &File, to: &File, lane: &Mutex<Lane>, end: &OwnedFd) {
    let origin = Instant::now();
    let mut on_the_way: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    // Buffers of packets that have arrived serve again.
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        let now = origin.elapsed();
        while on_the_way.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = on_the_way.pop_front() else {
                break;
            };
            // A device that is down or full loses packets: so do real ones.
            let arrived = (&*to).write_all(&packet).is_ok();
            lock(lane).arrived(packet.len(), arrived);
            spare.push(packet);
        }
        let wait = on_the_way
            .front()
            .map(|(due, _)| due.saturating_sub(origin.elapsed()));
        let timeout = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut ready = [
            PollFd::new(from, PollFlags::IN),
            PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        // At most one burst at a time, so that what is due is not kept waiting.
        for _ in 0..64 {
            let mut packet = spare.pop().unwrap_or_default();
            packet.resize(usize::from(MTU), 0);
            match (&*from).read(&mut packet) {
                Ok(length) => packet.truncate(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    spare.push(packet);
                    break;
                }
                // The place and its device are gone.
                Err(_) => return,
            }
            // The kernel's own word to its IPv6 neighbors, whenever it likes; it
            // would take the fate of a packet that a test has sent.
            if packet.first().is_some_and(|first| first >> 4 == 6) {
                spare.push(packet);
                continue;
            }
            let fate = lock(lane).offer(origin.elapsed(), packet.len());
            match fate {
                Fate::Arrives(at) => on_the_way.push_back((at, packet)),
                Fate::Lost | Fate::Overflowed => spare.push(packet),
            }
        }
    }
}
