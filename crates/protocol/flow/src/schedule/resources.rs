//! Amounts of things that jobs take at sites.

use std::collections::BTreeMap;
use std::fmt;

/// Amounts by name, in whole units: `gpus`, `memory_mib`, `cpus`, and whatever
/// else a site has to give. What is not named is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, u64>);

impl Resources {
    /// None of anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with this much of one thing.
    #[must_use]
    pub fn with(mut self, name: &str, amount: u64) -> Self {
        self.set(name, amount);
        self
    }

    /// Sets the amount of one thing.
    pub fn set(&mut self, name: &str, amount: u64) {
        if amount == 0 {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), amount);
        }
    }

    /// How much of one thing.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Everything of which there is some, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Whether there is none of anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds to each amount.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            self.set(name, self.get(name).saturating_add(amount));
        }
    }

    /// Takes from each amount, down to zero.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            self.set(name, self.get(name).saturating_sub(amount));
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (at, (name, amount)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {amount}")?;
        }
        Ok(())
    }
}

/// What a site has to give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Amounts of which jobs take a part. A kind in [`Capacity::unlimited`] is
    /// not counted.
    pub amounts: Resources,
    /// Kinds that the site does not account for: whoever asks has them.
    pub unlimited: Vec<String>,
    /// Sizes that are there for every job at once, as the memory of each GPU is.
    pub sizes: Resources,
    /// Jobs at a time; none: as many as there is room for.
    pub jobs: Option<usize>,
}

impl Capacity {
    /// The first kind of which there is less than `need`, `taken` being in use.
    pub(super) fn lacks(&self, need: &Resources, taken: &Resources) -> Option<Lack> {
        let short = |(name, wanted): (&str, u64)| {
            if self.unlimited.iter().any(|kind| kind == name) {
                return None;
            }
            let total = self.amounts.get(name);
            let free = total.saturating_sub(taken.get(name));
            (wanted > free).then(|| Lack {
                name: name.to_owned(),
                wanted,
                free,
                total,
            })
        };
        need.iter().find_map(short)
    }

    /// The first size that is too small.
    pub(super) fn too_small(&self, sizes: &Resources) -> Option<Lack> {
        let short = |(name, wanted): (&str, u64)| {
            let total = self.sizes.get(name);
            let known = !self.unlimited.iter().any(|kind| kind == name);
            (known && wanted > total).then(|| Lack {
                name: name.to_owned(),
                wanted,
                free: total,
                total,
            })
        };
        sizes.iter().find_map(short)
    }
}

/// Something of which a site has too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) name: String,
    pub(super) wanted: u64,
    pub(super) free: u64,
    pub(super) total: u64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            wanted,
            free,
            total,
        } = self;
        write!(f, "{wanted} {name} wanted, {free} of {total} free")
    }
}
