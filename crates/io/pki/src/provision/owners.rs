//! The samples of the owners' files.

use std::fmt::Write as _;

use crate::project::{Part, Participant, SitePart};

/// The file that a participant's owner may edit, as it is first.
pub(super) fn sample(participant: &Participant) -> String {
    match &participant.part {
        Part::Server(_) => SERVER.to_owned(),
        Part::Site(part) => site(part),
        Part::Relay(_) => RELAY.to_owned(),
        Part::Admin(_) => format!("{ADMIN}{NETWORK}"),
    }
}

fn site(part: &SitePart) -> String {
    let mut text = SITE.to_owned();
    let _ = writeln!(text, "allow_log_streaming = {}", part.allow_log_streaming);
    text.push_str(SITE_RESOURCES);
    if part.gpus > 0 {
        let gpus: Vec<String> = (0..part.gpus).map(|gpu| format!("\"{gpu}\"")).collect();
        let _ = writeln!(text, "gpus = [{}]", gpus.join(", "));
    } else {
        text.push_str("# gpus = [\"0\", \"1\"]\n");
    }
    match part.mem_per_gpu_gib {
        Some(gib) => {
            let _ = writeln!(text, "mem_per_gpu_gib = {gib:?}");
        }
        None => text.push_str("# mem_per_gpu_gib = 24.0\n"),
    }
    text.push_str(SITE_REST);
    text.push_str(NETWORK);
    text
}

const SITE: &str = r#"# What this site has, and what it lets jobs do. Yours to edit; not signed.
# Every field: docs/reference/configuration.md. Relative paths start here.

# Where jobs run and leave their files.
# workspace = "workspace"

# Jobs at a time.
# max_jobs = 4

# Whether jobs may bring code. Without it, they run what is installed here.
# allow_code = true

# Whether admins with the right may list and read files of the workspace.
# allow_files = true

# Whether logs of running jobs are sent to the server.
"#;

const SITE_RESOURCES: &str = r#"
# What jobs may use together.
[resources]
"#;

const SITE_REST: &str = r#"# cpus = 16
# memory_gib = 64.0
# custom = { licenses = 2 }

# Environments by name: what a job's `env` means here.
# [environments.torch]
# python = "/opt/torch/bin/python"
# variables = { OMP_NUM_THREADS = "8" }
# secrets = { HF_TOKEN = { file = "/run/secrets/hf" }, DB = { env = "DB_PASSWORD" } }
# gpus = ["0"]

# Data by name: what a job's data names mean here.
# [data.digits]
# path = "/data/digits"
# read_only = true

# Rules of this site over the federation's, by role and right.
# [policy.lead]
# operate = ["none"]

"#;

const NETWORK: &str = r#"# How this node gets out.
# [network]
# proxy = "http://proxy.example.com:3128"
# scheme = "http"
"#;

const SERVER: &str = r#"# What the server's owner sets. Yours to edit; not signed.
# Every field: docs/reference/configuration.md. Relative paths start here.

# Where jobs, their models and their logs are kept.
# workspace = "workspace"

# Jobs at a time.
# max_jobs = 4

# Another address or port to bind than the kit's.
# address = "0.0.0.0"
# port = 8002

# Load balancers that say who connects by the PROXY protocol.
# proxy_protocol_from = ["10.0.0.0/8"]

# Whether logs of running jobs are taken from sites that send them.
# accept_logs = true

# Rules instead of the standard ones, by role and right.
# [policy.org_admin]
# submit_job = ["any"]
"#;

const RELAY: &str = r#"# What the relay's owner sets. Yours to edit; not signed.
# Every field: docs/reference/configuration.md. Relative paths start here.

# Where model files are cached, and how many GiB of them.
# workspace = "workspace"
# cache_gib = 16.0

# Another address or port to bind than the kit's.
# address = "0.0.0.0"
# port = 8002

# How this node gets out.
# [network]
# proxy = "http://proxy.example.com:3128"
"#;

const ADMIN: &str = r#"# What you set for your own tools. Yours to edit; not signed.

"#;
