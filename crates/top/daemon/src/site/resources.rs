//! What a site has for jobs, and what is set aside for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use firesteel_pki::Resources;
use firesteel_wire::spec;
use serde_json::{Value, json};

/// What a job asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) gpus: usize,
    pub(super) mem_per_gpu_gib: f64,
    pub(super) cpus: u32,
    pub(super) memory_gib: f64,
    pub(super) custom: BTreeMap<String, u64>,
}

impl Wanted {
    /// What the server said is to be set aside; none when it said nothing.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let value = value.as_object().filter(|fields| !fields.is_empty())?;
        let whole = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        let number = |name: &str| value.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let custom = value.get("custom").and_then(Value::as_object);
        Some(Self {
            gpus: usize::try_from(whole("gpus")).unwrap_or(usize::MAX),
            mem_per_gpu_gib: number("mem_per_gpu_gib"),
            cpus: u32::try_from(whole("cpus")).unwrap_or(u32::MAX),
            memory_gib: number("memory_gib"),
            custom: custom
                .into_iter()
                .flatten()
                .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
                .collect(),
        })
    }
}

impl From<&spec::Resources> for Wanted {
    fn from(asked: &spec::Resources) -> Self {
        Self {
            gpus: asked.gpus as usize,
            mem_per_gpu_gib: f64::from(asked.mem_per_gpu_gib),
            cpus: asked.cpus,
            memory_gib: f64::from(asked.memory_gib),
            custom: asked.custom.clone(),
        }
    }
}

/// What a site has. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Stock(Arc<Mutex<Shelf>>);

#[derive(Debug)]
struct Shelf {
    all: Resources,
    max_jobs: u32,
    cpus: u32,
    memory_gib: f64,
    jobs: u32,
    gpus: Vec<String>,
    used_cpus: u32,
    used_memory_gib: f64,
    used_custom: BTreeMap<String, u64>,
}

/// What is set aside for a job, given back when dropped.
#[derive(Debug)]
pub(super) struct Allotment {
    stock: Stock,
    wanted: Wanted,
    gpus: Vec<String>,
}

impl Stock {
    /// What the owner says there is; cores and memory of the machine where nothing
    /// is said of them.
    pub(super) fn new(all: &Resources, max_jobs: u32) -> Self {
        let cores = u32::try_from(firesteel_node::parts::cores()).unwrap_or(u32::MAX);
        Self(Arc::new(Mutex::new(Shelf {
            max_jobs,
            cpus: all.cpus.unwrap_or(cores),
            memory_gib: all.memory_gib.unwrap_or_else(machine_memory_gib),
            jobs: 0,
            gpus: all.gpus.clone(),
            used_cpus: 0,
            used_memory_gib: 0.0,
            used_custom: BTreeMap::new(),
            all: all.clone(),
        })))
    }

    /// Sets something aside, of GPUs only those in `among`.
    ///
    /// # Errors
    /// A word for programs and a sentence that says what there is too little of.
    pub(super) fn take(
        &self,
        wanted: &Wanted,
        among: Option<&[String]>,
    ) -> Result<Allotment, (&'static str, String)> {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.jobs >= shelf.max_jobs {
            return Err((
                "no_room",
                format!(
                    "the site runs {} jobs already, and its max_jobs is {}",
                    shelf.jobs, shelf.max_jobs
                ),
            ));
        }
        let mut short = Vec::new();
        let allowed = |gpu: &&String| among.is_none_or(|among| among.contains(gpu));
        let gpus: Vec<String> = shelf
            .gpus
            .iter()
            .filter(allowed)
            .take(wanted.gpus)
            .cloned()
            .collect();
        if gpus.len() < wanted.gpus {
            let all = shelf.all.gpus.iter().filter(allowed).count();
            short.push(format!(
                "{} GPUs, of which {} of {all} are free",
                wanted.gpus,
                gpus.len()
            ));
        }
        let each = shelf.all.mem_per_gpu_gib.unwrap_or(f64::INFINITY);
        if wanted.gpus > 0 && wanted.mem_per_gpu_gib > each {
            short.push(format!(
                "{} GiB of memory on each GPU, which have {each}",
                wanted.mem_per_gpu_gib
            ));
        }
        let cpus = shelf.cpus.saturating_sub(shelf.used_cpus);
        if wanted.cpus > cpus {
            short.push(format!("{} cores, of which {cpus} are free", wanted.cpus));
        }
        let memory = shelf.memory_gib - shelf.used_memory_gib;
        if wanted.memory_gib > memory {
            short.push(format!(
                "{} GiB of memory, of which {memory:.1} are free",
                wanted.memory_gib
            ));
        }
        for (name, count) in &wanted.custom {
            let all = shelf.all.custom.get(name).copied().unwrap_or(0);
            let used = shelf.used_custom.get(name).copied().unwrap_or(0);
            let free = all.saturating_sub(used);
            if *count > free {
                short.push(format!("{count} of `{name}`, of which {free} are free"));
            }
        }
        if !short.is_empty() {
            return Err(("resources", format!("the job needs {}", short.join("; "))));
        }
        shelf.jobs += 1;
        shelf.gpus.retain(|gpu| !gpus.contains(gpu));
        shelf.used_cpus += wanted.cpus;
        shelf.used_memory_gib += wanted.memory_gib;
        for (name, count) in &wanted.custom {
            *shelf.used_custom.entry(name.clone()).or_default() += count;
        }
        Ok(Allotment {
            stock: self.clone(),
            wanted: wanted.clone(),
            gpus,
        })
    }

    /// What there is and what of it is free, by name.
    pub(super) fn amounts(&self) -> Vec<(String, f64, f64)> {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let mut amounts = vec![
            (
                "jobs".to_owned(),
                f64::from(shelf.max_jobs),
                f64::from(shelf.max_jobs - shelf.jobs),
            ),
            (
                "cpus".to_owned(),
                f64::from(shelf.cpus),
                f64::from(shelf.cpus - shelf.used_cpus),
            ),
            (
                "memory_gib".to_owned(),
                shelf.memory_gib,
                shelf.memory_gib - shelf.used_memory_gib,
            ),
        ];
        if !shelf.all.gpus.is_empty() {
            let (all, free) = (count(shelf.all.gpus.len()), count(shelf.gpus.len()));
            amounts.push(("gpus".to_owned(), all, free));
        }
        for (name, all) in &shelf.all.custom {
            let used = shelf.used_custom.get(name).copied().unwrap_or(0);
            let [all, used] = [*all, used].map(|count| count as f64);
            amounts.push((name.clone(), all, all - used));
        }
        amounts
    }

    /// What there is, as the server is told.
    pub(super) fn facts(&self) -> Value {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "gpus": shelf.all.gpus.len(),
            "gpu_names": shelf.all.gpus,
            "mem_per_gpu_gib": shelf.all.mem_per_gpu_gib,
            "cpus": shelf.cpus,
            "memory_gib": (shelf.memory_gib * 10.0).floor() / 10.0,
            "custom": shelf.all.custom,
        })
    }

    /// Whether the owner says anything of GPUs: then jobs see those they asked for,
    /// and no others.
    pub(super) fn knows_gpus(&self) -> bool {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !shelf.all.gpus.is_empty()
    }
}

impl Allotment {
    /// The GPUs, as in `CUDA_VISIBLE_DEVICES`; none where the owner says nothing of
    /// any.
    pub(super) fn visible(&self) -> Option<String> {
        self.stock.knows_gpus().then(|| self.gpus.join(","))
    }

    /// Cores; 0 when the job did not say.
    pub(super) fn cpus(&self) -> u32 {
        self.wanted.cpus
    }
}

impl Drop for Allotment {
    fn drop(&mut self) {
        let mut shelf = self.stock.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.jobs -= 1;
        let shelf = &mut *shelf;
        shelf.gpus.append(&mut self.gpus);
        // In the owner's order, so that a job gets the same ones each time.
        let place = |gpu: &String| shelf.all.gpus.iter().position(|known| known == gpu);
        shelf.gpus.sort_by_key(place);
        shelf.used_cpus -= self.wanted.cpus;
        shelf.used_memory_gib = (shelf.used_memory_gib - self.wanted.memory_gib).max(0.0);
        for (name, count) in &self.wanted.custom {
            if let Some(used) = shelf.used_custom.get_mut(name) {
                *used -= count;
            }
        }
    }
}

/// Memory of the machine; more than anybody asks for where it cannot be known.
fn machine_memory_gib() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(1e6, |kib| kib / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock() -> Stock {
        let all = Resources {
            gpus: vec!["0".into(), "1".into(), "2".into()],
            mem_per_gpu_gib: Some(80.0),
            cpus: Some(8),
            memory_gib: Some(16.0),
            custom: BTreeMap::from([("licenses".to_owned(), 2)]),
        };
        Stock::new(&all, 3)
    }

    fn wanted(text: &str) -> Wanted {
        Wanted::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_set_aside_is_nobody_elses_and_comes_back() {
        let stock = stock();
        let before = stock.amounts();
        let all = r#"{"gpus": 2, "cpus": 4, "memory_gib": 10, "custom": {"licenses": 1}}"#;
        let first = stock.take(&wanted(all), None).unwrap();
        assert_eq!(first.visible().as_deref(), Some("0,1"));
        let (code, why) = stock.take(&wanted(all), None).unwrap_err();
        assert_eq!(code, "resources");
        assert_eq!(
            why,
            "the job needs 2 GPUs, of which 1 of 3 are free; 10 GiB of memory, of which 6.0 are free"
        );
        let second = stock.take(&wanted(r#"{"gpus": 1}"#), None).unwrap();
        assert_eq!(second.visible().as_deref(), Some("2"));
        let third = stock.take(&Wanted::default(), None).unwrap();
        assert_eq!(third.visible().as_deref(), Some(""));
        let (code, why) = stock.take(&Wanted::default(), None).unwrap_err();
        assert_eq!((code, why.contains("max_jobs is 3")), ("no_room", true));
        drop((first, second, third));
        assert_eq!(stock.amounts(), before);
    }

    #[test]
    fn what_is_not_there_is_told_at_once() {
        let all = r#"{"gpus": 4, "mem_per_gpu_gib": 96, "cpus": 9, "custom": {"licenses": 3, "tpus": 1}}"#;
        let (_, why) = stock().take(&wanted(all), None).unwrap_err();
        for part in [
            "3 of 3",
            "which have 80",
            "9 cores",
            "3 of `licenses`",
            "1 of `tpus`",
        ] {
            assert!(why.contains(part), "{part} in {why}");
        }
        let among = ["1".to_owned()];
        let one = stock();
        let taken = one.take(&wanted(r#"{"gpus": 1}"#), Some(&among)).unwrap();
        assert_eq!(taken.visible().as_deref(), Some("1"));
        assert!(one.take(&wanted(r#"{"gpus": 1}"#), Some(&among)).is_err());
    }

    #[test]
    fn a_site_that_names_no_gpus_hides_none() {
        let stock = Stock::new(&Resources::default(), 1);
        assert_eq!(
            stock.take(&Wanted::default(), None).unwrap().visible(),
            None
        );
        assert_eq!(Wanted::parse(b""), None);
        assert_eq!(Wanted::parse(b"{}"), None);
        assert_eq!(Wanted::parse(b"[1]"), None);
    }
}
