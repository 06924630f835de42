use firesteel_base::{FailureCode, Phase};

use super::*;

fn record(round: u32) -> RoundRecord {
    RoundRecord {
        round: Round(round),
        seconds: 1.25,
        sites: vec![
            SiteRecord {
                site: SiteName::new("site-1").unwrap(),
                state: "done",
                weight: Some(100.0),
                metrics: vec![("accuracy".into(), 0.5), ("loss".into(), f64::NAN)],
                failure: None,
                received: Some(Received {
                    bytes: 1000,
                    travelled: 10,
                    seconds: 0.5,
                }),
            },
            SiteRecord {
                site: SiteName::new("site-2").unwrap(),
                state: "failed",
                weight: None,
                metrics: vec![],
                failure: Some(
                    Failure::new(FailureCode::Raised, Phase::Train, "ValueError: no")
                        .with_hint("look"),
                ),
                received: None,
            },
        ],
        metrics: vec![("accuracy".into(), 0.5)],
        best: round == 1,
    }
}

fn rounds(dir: &Path) -> Vec<u64> {
    std::fs::read_to_string(dir.join(ROUNDS))
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["round"]
                .as_u64()
                .unwrap()
        })
        .collect()
}

#[test]
fn a_round_is_one_line_of_json() {
    assert_eq!(
        record(1).to_json(),
        json!({
            "round": 1,
            "seconds": 1.25,
            "sites": [
                {"site": "site-1", "state": "done", "weight": 100.0,
                 "metrics": {"accuracy": 0.5, "loss": null},
                 "received": {"bytes": 1000, "travelled": 10, "seconds": 0.5}},
                {"site": "site-2", "state": "failed", "weight": null, "metrics": {},
                 "failure": {"code": "raised", "phase": "train", "message": "ValueError: no", "hint": "look"}},
            ],
            "metrics": {"accuracy": 0.5},
            "best": true,
        })
    );
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MetricsWriter::open(dir.path(), Round(0)).unwrap();
    for round in 0..3 {
        writer.round(&record(round)).unwrap();
    }
    assert_eq!(rounds(dir.path()), [0, 1, 2]);
}

#[test]
fn a_resumed_run_writes_its_rounds_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MetricsWriter::open(dir.path(), Round(0)).unwrap();
    for round in 0..5 {
        writer.round(&record(round)).unwrap();
    }
    drop(writer);
    // The last line was cut by a kill.
    let path = dir.path().join(ROUNDS);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 30]).unwrap();
    let mut writer = MetricsWriter::open(dir.path(), Round(3)).unwrap();
    assert_eq!(rounds(dir.path()), [0, 1, 2]);
    writer.round(&record(3)).unwrap();
    drop(writer);
    let mut writer = MetricsWriter::open(dir.path(), Round(9)).unwrap();
    assert_eq!(rounds(dir.path()), [0, 1, 2, 3]);
    writer.round(&record(4)).unwrap();
    assert_eq!(rounds(dir.path()), [0, 1, 2, 3, 4]);
}

#[test]
fn the_summary_says_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let writer = MetricsWriter::open(dir.path(), Round(0)).unwrap();
    let summary = Summary {
        job: "digits".into(),
        status: RunStatus::CompletedWithFailures,
        message: "completed with 1 of 2 sites".into(),
        key_metric: "accuracy".into(),
        key_metric_mode: "max",
        aggregation: "mean".into(),
        seconds: 12.5,
        sites_total: 2,
        final_round: Some(Round(9)),
        final_metrics: vec![("accuracy".into(), 0.75), ("loss".into(), 0.5)],
        best_round: Some(Round(7)),
        best_metrics: vec![("accuracy".into(), 0.875)],
        models: vec![("last".into(), "models/last.safetensors".into())],
        failures: vec![(
            Round(3),
            SiteName::new("site-2").unwrap(),
            Failure::new(FailureCode::Exited, Phase::Start, "it exited"),
        )],
    };
    writer.summary(&summary).unwrap();
    let text = std::fs::read_to_string(dir.path().join(SUMMARY)).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({
            "schema_version": "1",
            "job_name": "digits",
            "status": "completed_with_failures",
            "message": "completed with 1 of 2 sites",
            "seconds": 12.5,
            "sites_total": 2,
            "aggregation": "mean",
            "key_metric": "accuracy",
            "key_metric_mode": "max",
            "final_round": 9,
            "final_key_metric": 0.75,
            "final_aggregated_metrics": [
                {"name": "accuracy", "value": 0.75}, {"name": "loss", "value": 0.5}],
            "best_round": 7,
            "best_key_metric": 0.875,
            "best_aggregated_metrics": [{"name": "accuracy", "value": 0.875}],
            "round_metrics_file": "rounds.jsonl",
            "models": {"last": "models/last.safetensors"},
            "failures": [{"round": 3, "site": "site-2", "code": "exited", "phase": "start",
                          "message": "it exited", "hint": ""}],
        })
    );
    // Without any round there are nulls, not missing fields.
    let nothing = Summary {
        final_round: None,
        final_metrics: vec![],
        best_round: None,
        best_metrics: vec![],
        ..summary
    };
    assert_eq!(nothing.to_json()["final_round"], Value::Null);
    assert_eq!(nothing.to_json()["best_key_metric"], Value::Null);
    writer.summary(&nothing).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "nothing is left aside");
}
