//! Random numbers that are a function of their place, so that any cut into
//! windows and any thread draws the same ones.

/// The random numbers of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dice {
    seed: u64,
}

/// The dice of up to 2^32 elements that follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Throw {
    first: u32,
    keys: [u32; 2],
}

impl Dice {
    /// Dice for a tensor: other tensors and other seeds have others.
    pub(crate) fn new(seed: u64, tensor: &str) -> Self {
        let mut hash = scramble(seed ^ 0x6669_7265_7374_6565);
        for chunk in tensor.as_bytes().chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            hash = scramble(hash ^ u64::from_le_bytes(word));
        }
        // The length, because the last word is filled up with zeros.
        Self {
            seed: scramble(hash ^ tensor.len() as u64),
        }
    }

    /// The dice from the element `first` on, up to the next multiple of 2^32.
    pub(crate) fn from(self, first: u64) -> Throw {
        let key = scramble(self.seed ^ (first >> 32));
        Throw {
            first: first as u32,
            keys: [key as u32, (key >> 32) as u32],
        }
    }
}

impl Throw {
    /// The number of the element `at` behind the first: 32 random bits. The
    /// mixing is `triple32` of Chris Wellons' hash prospector, keyed twice.
    #[inline(always)]
    pub(crate) fn bits(self, at: u32) -> u32 {
        let mut x = self.first.wrapping_add(at) ^ self.keys[0];
        x ^= x >> 17;
        x = x.wrapping_mul(0xed5a_d4bb);
        x ^= x >> 11;
        x = x.wrapping_mul(0xac4c_1b51).wrapping_add(self.keys[1]);
        x ^= x >> 15;
        x = x.wrapping_mul(0x3184_8bab);
        x ^ (x >> 14)
    }

    /// A number from 0 to under 1, one of 2^24.
    #[inline(always)]
    pub(crate) fn unit(self, at: u32) -> f32 {
        // As an i32: the conversion is one instruction where a u32's is many.
        (self.bits(at) >> 8) as i32 as f32 * (1.0 / 16_777_216.0)
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
fn scramble(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_their_place() {
        let dice = Dice::new(7, "layer.weight");
        let all: Vec<u32> = (0..1000).map(|at| dice.from(5000).bits(at)).collect();
        for cut in [1u64, 64, 999] {
            assert_eq!(dice.from(5000 + cut).bits(0), all[cut as usize]);
        }
        assert_ne!(Dice::new(8, "layer.weight").from(5000).bits(0), all[0]);
        assert_ne!(Dice::new(7, "layer.weighT").from(5000).bits(0), all[0]);
        assert_ne!(dice.from(5000 + (1 << 32)).bits(0), all[0]);
        assert_ne!(Dice::new(7, "a"), Dice::new(7, "a\0"));
    }

    /// Mean, variance and correlation of neighbors, as a coin's should be; the
    /// bounds are five deviations wide and the seed is fixed.
    #[test]
    fn numbers_are_spread_evenly() {
        let throw = Dice::new(1, "w").from(0);
        let count = 1 << 20;
        let units: Vec<f64> = (0..count).map(|at| f64::from(throw.unit(at))).collect();
        let mean = units.iter().sum::<f64>() / f64::from(count);
        let of = |shift: usize| {
            let pairs = units.iter().zip(&units[shift..]);
            let sum: f64 = pairs.map(|(a, b)| (a - 0.5) * (b - 0.5)).sum();
            sum / f64::from(count) * 12.0
        };
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 1024.0, "{mean}");
        assert!((of(0) - 1.0).abs() < 0.005, "{}", of(0));
        for shift in [1, 2, 8, 64, 4096] {
            assert!(of(shift).abs() < 5.0 / 1024.0, "{shift}: {}", of(shift));
        }
        assert!(units.iter().all(|u| (0.0..1.0).contains(u)));
    }
}
