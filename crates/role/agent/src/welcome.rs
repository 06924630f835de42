//! What a trainer is told when it connects: the JSON of `docs/specs/bridge.md`.

use std::collections::BTreeMap;
use std::path::Path;

use firesteel_base::SiteName;
use firesteel_wire::spec::{FilterDirection, JobSpec, Transfer};
use serde_json::json;

/// Sites that a trainer is told the names of; of more it knows the number. Every
/// trainer reads this list when it starts.
const NAMED_SITES: usize = 64;

/// The facts beside the job spec.
pub(crate) struct Facts<'a> {
    pub(crate) job: &'a str,
    pub(crate) site: &'a SiteName,
    pub(crate) outbox: &'a Path,
    /// What the names of data mean here, instead of what the spec says.
    pub(crate) data: Option<&'a BTreeMap<String, String>>,
    /// Whether the trainer may offer and fetch streams.
    pub(crate) streams: bool,
    pub(crate) state_file: Option<&'a Path>,
    /// Set when the script's random generators are to be seeded in every round.
    pub(crate) seed: Option<u64>,
}

/// The names of data and what they mean at this site.
pub(crate) fn data(spec: &JobSpec, site: &SiteName) -> BTreeMap<String, String> {
    let mut data = spec.data.clone();
    data.extend(spec.settings(site).data);
    data
}

/// The arguments of the script at this site.
pub(crate) fn args(spec: &JobSpec, site: &SiteName) -> Vec<String> {
    spec.settings(site)
        .args
        .unwrap_or_else(|| spec.trainer.args.clone())
}

pub(crate) fn json(spec: &JobSpec, facts: &Facts<'_>) -> String {
    let trainer = &spec.trainer;
    let transfer = match trainer.transfer {
        Transfer::Full => "FULL",
        Transfer::Diff => "DIFF",
    };
    json!({
        "job_id": facts.job,
        "job_name": spec.name,
        "site": facts.site.as_str(),
        "sites_total": spec.sites.len(),
        "framework": trainer.framework,
        "exchange_format": trainer.exchange,
        "params_transfer_type": transfer,
        "data": facts.data.cloned().unwrap_or_else(|| data(spec, facts.site)),
        "args": args(spec, facts.site),
        "outbox": facts.outbox,
        "streams": facts.streams,
        "state_file": facts.state_file,
        "seed": facts.seed,
        "gc_rounds": trainer.gc_rounds,
        "cuda_empty_cache": trainer.cuda_empty_cache,
        "log_level": "INFO",
        // Those that run in the trainer; the others run here.
        "filters": {
            "task_data": spec.filters.python(FilterDirection::TaskData, facts.site),
            "result": spec.filters.python(FilterDirection::Result, facts.site),
        },
        "config": {
            "key_metric": spec.selection.key_metric,
            "min_clients": spec.min_clients,
            "sites": spec.sites.iter().take(NAMED_SITES).collect::<Vec<_>>(),
        },
    })
    .to_string()
}
