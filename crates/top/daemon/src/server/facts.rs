//! What sites say of themselves and what jobs ask for, as amounts.

use std::collections::BTreeMap;

use firesteel_api::site::Amount;
use firesteel_base::SiteName;
use firesteel_flow::schedule::{Capacity, Needs, Resources, SiteUse};
use firesteel_wire::spec::{self, JobSpec};
use serde_json::{Map, Value, json};

/// Kinds that a site that says nothing of them does not account for.
const COUNTED: [&str; 2] = [MEMORY, CPUS];

const GPUS: &str = "gpus";
const CPUS: &str = "cpus";
/// In MiB, so that a site's fractions of a GiB count.
const MEMORY: &str = "memory_mib";
const GPU_MEMORY: &str = "mem_per_gpu_mib";

/// Kinds of a site's own that are taken from its facts.
const CUSTOM: usize = 64;

/// What a site has to give, as its facts say. What they do not say, or not
/// sensibly, counts as not said.
pub(crate) fn capacity(facts: &Value) -> Capacity {
    let resources = facts.get("resources").unwrap_or(&Value::Null);
    let mut amounts = Resources::new();
    let mut unlimited = Vec::new();
    amounts.set(GPUS, whole(resources.get(GPUS)).unwrap_or(0));
    let counted = [
        (CPUS, whole(resources.get(CPUS))),
        (MEMORY, mebibytes(resources.get("memory_gib"))),
    ];
    for (name, amount) in counted {
        match amount {
            Some(amount) => amounts.set(name, amount),
            None if COUNTED.contains(&name) => unlimited.push(name.to_owned()),
            None => {}
        }
    }
    if let Some(Value::Object(custom)) = resources.get("custom") {
        for (name, amount) in custom.iter().take(CUSTOM) {
            amounts.set(&custom_name(name), whole(Some(amount)).unwrap_or(0));
        }
    }
    let mut sizes = Resources::new();
    match mebibytes(resources.get("mem_per_gpu_gib")) {
        Some(size) => sizes.set(GPU_MEMORY, size),
        None => unlimited.push(GPU_MEMORY.to_owned()),
    }
    let jobs = whole(facts.get("max_jobs")).and_then(|jobs| usize::try_from(jobs).ok());
    Capacity {
        amounts,
        unlimited,
        sizes,
        jobs,
    }
}

/// The name under which a site's own kind is counted: never that of another kind.
fn custom_name(name: &str) -> String {
    format!("custom.{name}")
}

fn whole(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    value
        .as_u64()
        .or_else(|| value.as_f64().map(|value| value.max(0.0).floor() as u64))
}

fn mebibytes(value: Option<&Value>) -> Option<u64> {
    let gib = value?.as_f64().filter(|gib| gib.is_finite())?;
    Some((gib.max(0.0) * 1024.0).floor() as u64)
}

fn amounts(asked: &spec::Resources) -> (Resources, Resources) {
    let mut take = Resources::new();
    take.set(GPUS, u64::from(asked.gpus));
    take.set(CPUS, u64::from(asked.cpus));
    take.set(MEMORY, u64::from(asked.memory_gib) * 1024);
    for (name, amount) in &asked.custom {
        take.set(&custom_name(name), *amount);
    }
    let mut sizes = Resources::new();
    sizes.set(GPU_MEMORY, u64::from(asked.mem_per_gpu_gib) * 1024);
    (take, sizes)
}

/// What a job asks of the sites.
pub(crate) fn needs(spec: &JobSpec) -> Needs {
    let name = |text: &String| SiteName::new(text).ok();
    let (take, sizes) = amounts(&spec.resources);
    let own = spec.site.iter().filter_map(|(site, settings)| {
        let own = settings.resources.as_ref()?;
        Some((name(site)?, amounts(own)))
    });
    let policy = &spec.policy;
    let least = policy.quorum_start.unwrap_or(spec.min_clients);
    Needs {
        sites: spec.sites.iter().filter_map(name).collect(),
        min_sites: least as usize,
        required: policy.required_sites.iter().filter_map(name).collect(),
        priority: i64::from(spec.priority),
        take,
        sizes,
        at: own.collect(),
        grace: policy.grace_s.map(spec::seconds),
    }
}

/// What a site is to set aside for a job, as [`Deploy`] says it.
///
/// [`Deploy`]: firesteel_wire::node::Deploy
pub(crate) fn allotted(spec: &JobSpec, site: &str) -> Value {
    let asked = spec.resources_at(site);
    let mut out = Map::new();
    let numbers = [
        (GPUS, asked.gpus),
        ("mem_per_gpu_gib", asked.mem_per_gpu_gib),
        (CPUS, asked.cpus),
        ("memory_gib", asked.memory_gib),
    ];
    for (name, amount) in numbers {
        if amount > 0 {
            out.insert(name.to_owned(), json!(amount));
        }
    }
    if !asked.custom.is_empty() {
        out.insert("custom".to_owned(), json!(asked.custom));
    }
    Value::Object(out)
}

/// What a site has and how much of it is free, for lists.
pub(crate) fn shown(used: &SiteUse) -> BTreeMap<String, Amount> {
    let kinds = used.capacity.amounts.iter();
    kinds
        .map(|(name, total)| {
            let free = total.saturating_sub(used.used.get(name));
            let (name, unit) = match name {
                MEMORY => ("memory_gib", 1024.0),
                other => (other.strip_prefix("custom.").unwrap_or(other), 1.0),
            };
            let amount = Amount {
                total: total as f64 / unit,
                free: free as f64 / unit,
            };
            (name.to_owned(), amount)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_site_does_not_say_is_not_counted_but_for_gpus_and_its_own_kinds() {
        let none = capacity(&json!({}));
        assert_eq!(none.amounts, Resources::new());
        assert_eq!(none.unlimited, [CPUS, MEMORY, GPU_MEMORY]);
        assert_eq!(none.jobs, None);
        let some = capacity(&json!({
            "max_jobs": 3,
            "resources": {
                "gpus": 2, "mem_per_gpu_gib": 79.5, "cpus": 8, "memory_gib": 1.5,
                "custom": {"licenses": 4, "gpus": 9, "odd": "x"},
            },
        }));
        assert_eq!(some.amounts.get(GPUS), 2);
        assert_eq!(some.amounts.get(MEMORY), 1536);
        assert_eq!(some.amounts.get("custom.licenses"), 4);
        assert_eq!(some.amounts.get("custom.odd"), 0);
        assert_eq!(some.sizes.get(GPU_MEMORY), 81_408);
        assert_eq!(some.jobs, Some(3));
        assert!(some.unlimited.is_empty());
    }
}
