//! What a packet meets on one direction of a line: a value, which is told the
//! time and reads no clock.

use std::time::Duration;

/// One direction of a line. The default is a perfect one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// The time a packet takes: half the round trip of a line that is the same
    /// both ways.
    pub delay: Duration,
    /// What it takes longer by chance, from nothing to this, evenly. Packets do
    /// not overtake each other.
    pub jitter: Duration,
    /// The share of packets that are lost by chance, 0 to 1.
    pub loss: f64,
    /// Bits per second, headers included; `None` for as fast as the machine.
    pub rate: Option<u64>,
    /// Bytes that wait for their turn where there is a rate; what comes when the
    /// queue is full is dropped.
    pub queue: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
            queue: 1024 * 1024,
        }
    }
}

impl Link {
    /// A line with this round trip, when it is the same both ways.
    pub fn round_trip(round_trip: Duration) -> Self {
        Self {
            delay: round_trip / 2,
            ..Self::default()
        }
    }

    /// The same line with random loss.
    pub fn loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// The same line with a rate in bits per second, and a queue that takes as
    /// long to drain as `drain`.
    pub fn rate(self, bits_per_second: u64, drain: Duration) -> Self {
        let bytes = bits_per_second as f64 / 8.0 * drain.as_secs_f64();
        Self {
            rate: Some(bits_per_second),
            queue: bytes as u64,
            ..self
        }
    }

    /// The same line with jitter.
    pub fn jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// A line on which nothing arrives: unplugged somewhere in the middle, which
    /// neither end is told.
    pub fn dead() -> Self {
        Self::default().loss(1.0)
    }
}

/// What went through one direction. `packets = lost + overflowed + arrived +
/// refused +` what is on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that were sent.
    pub packets: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Packets that were lost by chance.
    pub lost: u64,
    /// Packets for which the queue had no room.
    pub overflowed: u64,
    /// Packets that arrived.
    pub arrived: u64,
    /// Their bytes.
    pub arrived_bytes: u64,
    /// Packets that the other end's device did not take.
    pub refused: u64,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this time.
    Arrives(Duration),
    /// It is lost by chance.
    Lost,
    /// The queue is full.
    Overflowed,
}

/// Bytes that may be on their way at once, whatever rate and delay say: 10 Gbit/s
/// at 200 ms is 250 MB, and this is what such a line may cost in memory.
const ON_THE_WAY: u64 = 256 * 1024 * 1024;

/// One direction.
#[derive(Debug)]
pub struct Lane {
    link: Link,
    chance: Chance,
    counts: Counts,
    /// When the last byte that was admitted will have left the queue.
    free_at: Duration,
    /// When the last packet arrives: the next one does not overtake it.
    last_arrival: Duration,
    on_the_way: u64,
}

impl Lane {
    /// A direction whose losses follow from a seed.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            chance: Chance(seed),
            counts: Counts::default(),
            free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
            on_the_way: 0,
        }
    }

    /// Another line from here on.
    pub fn set(&mut self, link: Link) {
        self.link = link;
    }

    /// What went through.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet of so many bytes comes.
    pub fn offer(&mut self, now: Duration, bytes: usize) -> Fate {
        let bytes = bytes as u64;
        self.counts.packets += 1;
        self.counts.bytes += bytes;
        // Drawn for every packet, so that which ones are lost does not depend on
        // how full the queue was.
        let unlucky = self.chance.draw() < self.link.loss;
        let extra = self.link.jitter.mul_f64(self.chance.draw());
        if unlucky {
            self.counts.lost += 1;
            return Fate::Lost;
        }
        let mut leaves = now;
        if let Some(rate) = self.link.rate {
            let second =
                |bytes: u64| Duration::from_secs_f64(bytes as f64 * 8.0 / rate.max(1) as f64);
            let wait = self.free_at.saturating_sub(now);
            if wait > second(self.link.queue) {
                self.counts.overflowed += 1;
                return Fate::Overflowed;
            }
            leaves = now.max(self.free_at) + second(bytes);
            self.free_at = leaves;
        }
        if self.on_the_way + bytes > ON_THE_WAY {
            self.counts.overflowed += 1;
            return Fate::Overflowed;
        }
        self.on_the_way += bytes;
        let arrives = (leaves + self.link.delay + extra).max(self.last_arrival);
        self.last_arrival = arrives;
        Fate::Arrives(arrives)
    }

    /// A packet came to the end of its way, and the device took it or not.
    pub fn arrived(&mut self, bytes: usize, taken: bool) {
        self.on_the_way -= bytes as u64;
        if taken {
            self.counts.arrived += 1;
            self.counts.arrived_bytes += bytes as u64;
        } else {
            self.counts.refused += 1;
        }
    }
}

/// SplitMix64: the same losses for the same seed, on every machine.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    /// Evenly from 0 to 1, without 1.
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Packets as `(ms at which it comes, bytes)`; expected are the ms at which
    /// each arrives, -1 for lost, -2 for overflowed.
    fn check(link: Link, packets: &[(u32, usize)], expect: &[i64]) {
        let mut lane = Lane::new(link, 1);
        let fates: Vec<i64> = packets
            .iter()
            .map(|&(at, bytes)| match lane.offer(MS * at, bytes) {
                Fate::Arrives(at) => i64::try_from(at.as_millis()).unwrap(),
                Fate::Lost => -1,
                Fate::Overflowed => -2,
            })
            .collect();
        assert_eq!(fates, expect);
    }

    #[test]
    fn a_perfect_line_takes_no_time() {
        check(Link::default(), &[(0, 1500), (3, 40)], &[0, 3]);
    }

    #[test]
    fn a_delay_is_added_once() {
        let link = Link::round_trip(100 * MS);
        check(link, &[(0, 1500), (0, 1500), (7, 40)], &[50, 50, 57]);
    }

    #[test]
    fn a_rate_lets_packets_follow_each_other() {
        // 8 Mbit/s is one byte per microsecond.
        let link = Link::round_trip(20 * MS).rate(8_000_000, 100 * MS);
        check(
            link,
            &[(0, 1000), (0, 1000), (0, 2000), (10, 1000)],
            &[11, 12, 14, 21],
        );
    }

    #[test]
    fn what_finds_the_queue_full_is_dropped() {
        let link = Link::default().rate(8_000_000, 2 * MS);
        check(
            link,
            &[(0, 1000), (0, 1000), (0, 1000), (0, 1000), (2, 1000)],
            &[1, 2, 3, -2, 4],
        );
    }

    #[test]
    fn nothing_arrives_over_a_dead_line() {
        check(Link::dead(), &[(0, 1000), (9, 1)], &[-1, -1]);
    }

    #[test]
    fn a_shorter_line_does_not_let_packets_overtake() {
        let mut lane = Lane::new(Link::round_trip(200 * MS), 1);
        assert_eq!(lane.offer(MS, 100), Fate::Arrives(101 * MS));
        lane.set(Link::default());
        assert_eq!(lane.offer(2 * MS, 100), Fate::Arrives(101 * MS));
        assert_eq!(lane.offer(200 * MS, 100), Fate::Arrives(200 * MS));
    }

    #[test]
    fn losses_follow_from_the_seed_and_from_nothing_else() {
        let lost = |seed: u64, link: Link| -> Vec<u32> {
            let mut lane = Lane::new(link.loss(0.01), seed);
            (0..20_000)
                .filter(|&at| lane.offer(MS * at, 1000) == Fate::Lost)
                .collect()
        };
        let (slow, fast) = (Link::default().rate(80_000, MS), Link::default());
        assert_eq!(lost(1, slow), lost(1, fast));
        assert_ne!(lost(1, fast), lost(2, fast));
        // A binomial of mean 200 and deviation 14.
        for seed in 0..8 {
            let count = lost(seed, fast).len();
            assert!((130..270).contains(&count), "seed {seed}: {count}");
        }
    }

    #[test]
    fn jitter_stays_within_its_bound_and_keeps_the_order() {
        let mut lane = Lane::new(Link::round_trip(20 * MS).jitter(5 * MS), 3);
        let mut last = Duration::ZERO;
        let mut longest = Duration::ZERO;
        for at in 0..1000 {
            let Fate::Arrives(arrives) = lane.offer(MS * at, 100) else {
                panic!("lost on a line without loss");
            };
            assert!(arrives >= last && arrives <= MS * at + 15 * MS);
            assert!(arrives >= MS * at + 10 * MS);
            longest = longest.max(arrives - MS * at);
            last = arrives;
        }
        assert!(longest > 13 * MS, "{longest:?}");
    }

    #[test]
    fn memory_is_bounded_without_a_rate() {
        let mut lane = Lane::new(Link::round_trip(Duration::from_secs(60)), 1);
        let fates: Vec<Fate> = (0..300).map(|_| lane.offer(MS, 1024 * 1024)).collect();
        assert_eq!(
            fates
                .iter()
                .filter(|&&fate| fate == Fate::Overflowed)
                .count(),
            44
        );
        lane.arrived(1024 * 1024, true);
        assert_ne!(lane.offer(MS, 1024 * 1024), Fate::Overflowed);
    }
}
