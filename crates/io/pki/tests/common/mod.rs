//! A project with one of each, and its kits in a temporary folder.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "helpers of tests are tests, too, and each test uses some of them"
)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use firesteel_base::Hint;
use firesteel_pki::{Kit, Project, provision};

pub const PROJECT: &str = r#"
api_version: 3
name: example_project
description: for tests
participants:
  - name: server1.example.com
    type: server
    org: example
    fed_learn_port: 8002
    admin_port: 8003
    host_names: [localhost, 127.0.0.1]
  - name: site-1
    type: client
    org: north
  - name: site-2
    type: client
    org: north
    capacity: {num_of_gpus: 2, mem_per_gpu_in_GiB: 24}
    allow_log_streaming: false
    connect_to: {name: relay-1}
  - name: relay-1
    type: relay
    org: example
    listening_host: {default_host: relay.example.com, port: 8102, scheme: tcp}
  - name: admin@example.com
    type: admin
    org: example
    role: project_admin
  - name: lead@north.org
    type: admin
    org: north
    role: lead
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {template_file: master_template.yml}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {config_folder: config, scheme: grpc}
  - path: nvflare.lighter.impl.cert.CertBuilder
    args: {root_valid_days: 3650}
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"#;

pub fn project(text: &str) -> Project {
    Project::parse(text, Path::new("project.yml"))
        .unwrap_or_else(|error| panic!("{}", explained(&error)))
}

pub struct Made {
    pub root: tempfile::TempDir,
}

impl Made {
    pub fn new() -> Self {
        Self::of(PROJECT)
    }

    pub fn of(text: &str) -> Self {
        let made = Self {
            root: tempfile::tempdir().unwrap(),
        };
        provision(&project(text), &made.out(), &made.state())
            .unwrap_or_else(|error| panic!("{}", explained(&error)));
        made
    }

    pub fn out(&self) -> PathBuf {
        self.root.path().join("kits")
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.out().join(name)
    }

    pub fn kit(&self, name: &str) -> Kit {
        Kit::open(self.folder(name)).unwrap_or_else(|error| panic!("{name}: {}", explained(&error)))
    }

    /// Nothing lies beside the kits.
    pub fn nothing_half(&self) {
        for folder in [self.root.path(), &self.out()] {
            for entry in fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(!name.starts_with('.'), "{name} was left");
            }
        }
    }
}

/// An error with its causes and its hint.
pub fn explained(error: &(impl Error + Hint)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("; hint: {hint}"));
    }
    text
}
