//! What the server is told of a site. No path, no variable, no secret is among it.

use serde_json::{Value, json};

use super::desk::Desk;

/// The facts, with what is known of environments so far.
pub(super) fn json(desk: &Desk) -> Value {
    let environments: Vec<&str> = desk.environments.names().collect();
    json!({
        "organization": desk.kit.org(),
        "versions": versions(),
        "environments": environments,
        "data": desk.config.data.keys().collect::<Vec<_>>(),
        "resources": desk.stock.facts(),
        "max_jobs": desk.config.max_jobs,
        "log_streaming": desk.config.allow_log_streaming,
        "files": desk.config.allow_files,
        "brings_code": desk.config.allow_code,
    })
}

/// The same once every interpreter was asked. Blocks.
pub(super) fn probed(desk: &Desk) -> Value {
    let mut facts = json(desk);
    let probed = desk.environments.probe_all();
    let good: Vec<&String> = probed
        .iter()
        .filter_map(|(name, probed)| probed.is_ok().then_some(name))
        .collect();
    let pythons: serde_json::Map<String, Value> = probed
        .iter()
        .filter_map(|(name, probed)| Some((name.clone(), json!(probed.as_ref().ok()?.version))))
        .collect();
    let problems: serde_json::Map<String, Value> = probed
        .iter()
        .filter_map(|(name, probed)| Some((name.clone(), json!(probed.as_ref().err()?.reason))))
        .collect();
    for (_, problem) in &problems {
        if let Some(problem) = problem.as_str() {
            desk.logger.warning(problem);
        }
    }
    if let Some(fields) = facts.as_object_mut() {
        fields.insert("environments".to_owned(), json!(good));
        fields.insert("pythons".to_owned(), Value::Object(pythons));
        fields.insert("environment_problems".to_owned(), Value::Object(problems));
    }
    facts
}

/// The versions of this build and of the machine.
pub(super) fn versions() -> Value {
    let machine = rustix::system::uname();
    json!({
        "firesteel": env!("CARGO_PKG_VERSION"),
        "os": machine.sysname().to_string_lossy(),
        "kernel": machine.release().to_string_lossy(),
        "machine": machine.machine().to_string_lossy(),
    })
}
