//! Snapshots of every released version are read as they were meant.

use std::fmt::Write;

use expect_test::{expect, expect_file};
use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, SiteName, TaskKey, Time};

use crate::fedavg::{FedAvg, FedAvgConfig, KeyMetric, LatePolicy, MetricMode};
use crate::{
    Event, FoldKey, ModelHandle, ParamsType, Restore, RestoreError, TaskStage, UpdateInfo, Workflow,
};

const NAMES: [&str; 7] = [
    "done", "failed", "lost", "training", "late", "excluded", "absent",
];

fn config() -> FedAvgConfig {
    let sites = NAMES.map(|name| SiteName::new(name).unwrap()).to_vec();
    let mut config = FedAvgConfig::new(sites, 5);
    config.min_clients = 1;
    config.max_failures = 1;
    config.round = Some(std::time::Duration::from_secs(60));
    config.task = Some(std::time::Duration::from_secs(30));
    config.grace = Some(std::time::Duration::from_secs(20));
    config.late = LatePolicy::CountNextRound;
    config.key_metric = Some(KeyMetric {
        name: "accuracy".to_owned(),
        mode: MetricMode::Max,
    });
    config
}

/// A job in its second round with a site in each state there is.
fn job() -> FedAvg {
    let mut flow = FedAvg::new(config()).unwrap();
    let site = |name: &str| SiteName::new(name).unwrap();
    let key = |name: &str, round| TaskKey {
        round: Round(round),
        site: site(name),
        attempt: Attempt(0),
    };
    let update = |name: &str, round, model| Event::UpdateReady {
        key: key(name, round),
        update: UpdateInfo {
            model: Some(ModelHandle(model)),
            params_type: ParamsType::Diff,
            steps: Some(12.0),
            metrics: vec![("accuracy".to_owned(), 0.75), ("loss".to_owned(), f64::NAN)],
        },
    };
    let mut failure = Failure::new(FailureCode::Raised, Phase::Train, "raised ValueError: x")
        .with_hint("see the traceback");
    failure.traceback = Some("Traceback …\nValueError: x".to_owned());
    failure.log_tail = vec!["epoch 1".to_owned(), "epoch 2".to_owned()];
    let gone = Failure::new(FailureCode::Disconnected, Phase::Train, "was not heard of");
    let log = [
        (
            0,
            Event::Started {
                sites: NAMES[..6].iter().map(|name| site(name)).collect(),
                model: Some(ModelHandle(1)),
            },
        ),
        (1, update("done", 0, 2)),
        (2, update("failed", 0, 3)),
        (3, update("lost", 0, 4)),
        (
            4,
            Event::TaskFailed {
                key: key("excluded", 0),
                failure: failure.clone(),
            },
        ),
        (5, update("training", 0, 5)),
        (21, Event::Tick),
        (
            22,
            Event::Folded {
                key: FoldKey {
                    round: Round(0),
                    attempt: Attempt(0),
                },
                model: ModelHandle(9),
                notes: Vec::new(),
            },
        ),
        (
            23,
            Event::TaskProgress {
                key: key("training", 1),
                stage: TaskStage::Training,
            },
        ),
        (24, update("done", 1, 10)),
        (
            25,
            Event::TaskFailed {
                key: key("failed", 1),
                failure,
            },
        ),
        (
            26,
            Event::SiteLeft {
                site: site("lost"),
                failure: gone,
            },
        ),
    ];
    for (second, event) in log {
        flow.handle(event, Time::from_secs(second));
    }
    flow
}

#[test]
fn version_1_is_read() {
    let job = job();
    let bytes = job.snapshot();
    // A change here is a change of the format: it needs another version, and
    // this file must go on being read.
    expect_file!["../../../testdata/fedavg-v1.hex"].assert_eq(&to_hex(&bytes));
    let text = include_str!("../../../testdata/fedavg-v1.hex");
    let flow = FedAvg::restore(config(), &from_hex(text)).unwrap();
    let status = flow.status();
    let mut told = format!("{status}\n");
    for one in &status.sites {
        writeln!(told, "{one}").unwrap();
    }
    expect![[r#"
        round 2 of 5: 1 in, 1 needed; waiting for training: training since 23.0s; waiting for late: not acknowledged since 0.0s
        done: in
        failed: excluded: raised ValueError: x [raised, during train]
        lost: failed: was not heard of [disconnected, during train]
        training: training since 23.0s
        late: not acknowledged since 0.0s
        excluded: excluded: raised ValueError: x [raised, during train]
        absent: not connected
    "#]].assert_eq(&told);
    assert_eq!(flow.snapshot(), bytes);
    assert_eq!(flow.next_wakeup(), job.next_wakeup());
    assert_eq!(flow.models(), job.models());
}

#[test]
fn every_cut_is_damage() {
    let bytes = job().snapshot();
    for end in 0..bytes.len() {
        assert!(matches!(
            FedAvg::restore(config(), &bytes[..end]),
            Err(RestoreError::Damaged { .. })
        ));
    }
}

#[test]
fn the_sites_must_be_the_same() {
    let bytes = job().snapshot();
    let mut other = config();
    other.num_rounds = 50;
    assert!(FedAvg::restore(other.clone(), &bytes).is_ok());
    other.sites.swap(0, 1);
    let error = FedAvg::restore(other.clone(), &bytes).unwrap_err();
    expect!["the snapshot's list of sites is another: done then, failed now"]
        .assert_eq(&error.to_string());
    other.sites.swap(0, 1);
    other.sites.pop();
    let error = FedAvg::restore(other.clone(), &bytes).unwrap_err();
    expect!["the snapshot's list of sites is another: 7 sites then, 6 now"]
        .assert_eq(&error.to_string());
    other.min_clients = 0;
    let error = FedAvg::restore(other, &bytes).unwrap_err();
    expect!["the configuration is refused: the quorum per round is 0, and the job has 6 sites"]
        .assert_eq(&error.to_string());
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}
