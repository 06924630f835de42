//! Settings that are refused, and why.

use expect_test::{Expect, expect};
use firesteel_base::{Hint, Round, SiteName};

use crate::fedavg::{ConfigError, FedAvg, FedAvgConfig, KeyMetric, MetricMode, StopCondition};

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

fn check_refused(change: impl FnOnce(&mut FedAvgConfig), expect: Expect) {
    let mut config = FedAvgConfig::new(vec![site("a"), site("b")], 3);
    assert!(FedAvg::new(config.clone()).is_ok());
    change(&mut config);
    check_error(FedAvg::new(config).map(|_| ()), expect);
}

fn check_error(result: Result<(), ConfigError>, expect: Expect) {
    let error = result.unwrap_err();
    expect.assert_eq(&format!(
        "{error}; hint: {}",
        error.hint().unwrap_or_default()
    ));
}

#[test]
fn sites_and_rounds() {
    check_refused(
        |config| config.sites.clear(),
        expect!["the job has no sites; hint: name at least one site"],
    );
    check_refused(
        |config| config.sites.push(site("a")),
        expect!["a is listed twice; hint: give each site a name of its own"],
    );
    check_refused(
        |config| config.num_rounds = 0,
        expect!["num_rounds is 0; hint: set num_rounds to at least 1"],
    );
    check_refused(
        |config| config.start_round = Round(u32::MAX),
        expect![
            "start_round 4294967295 plus num_rounds 3 is beyond the last round number; hint: lower start_round or num_rounds"
        ],
    );
}

#[test]
fn quorums_and_policies() {
    check_refused(
        |config| config.min_clients = 0,
        expect![
            "the quorum per round is 0, and the job has 2 sites; hint: set it between 1 and the number of sites"
        ],
    );
    check_refused(
        |config| config.min_clients = 3,
        expect![
            "the quorum per round is 3, and the job has 2 sites; hint: set it between 1 and the number of sites"
        ],
    );
    check_refused(
        |config| config.quorum_start = Some(3),
        expect![
            "the quorum to start is 3, and the job has 2 sites; hint: set it between 1 and the number of sites"
        ],
    );
    check_refused(
        |config| config.quorum_round = Some(0),
        expect![
            "the quorum per round is 0, and the job has 2 sites; hint: set it between 1 and the number of sites"
        ],
    );
    check_refused(
        |config| config.required_sites = vec![site("c")],
        expect![
            "required_sites names c, which is not a site of the job; hint: check the spelling against the job's list of sites"
        ],
    );
    check_refused(
        |config| config.max_failures = 0,
        expect!["max_failures is 0; hint: set max_failures to at least 1"],
    );
}

#[test]
fn weights() {
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e13] {
        let mut config = FedAvgConfig::new(vec![site("a")], 1);
        config.site_weights.insert(site("a"), weight);
        assert!(matches!(
            FedAvg::new(config),
            Err(ConfigError::Weight { .. })
        ));
    }
    check_refused(
        |config| {
            config.site_weights.insert(site("c"), 1.0);
        },
        expect![
            "site_weights names c, which is not a site of the job; hint: check the spelling against the job's list of sites"
        ],
    );
}

#[test]
fn patience() {
    check_refused(
        |config| config.patience = Some(2),
        expect![
            "patience is set without a key metric; hint: set key_metric to the metric that should improve"
        ],
    );
    check_refused(
        |config| {
            config.key_metric = Some(KeyMetric {
                name: "loss".to_owned(),
                mode: MetricMode::Min,
            });
            config.patience = Some(0);
        },
        expect!["patience is 0; hint: set patience to at least 1, or leave it out"],
    );
}

#[test]
fn stop_conditions() {
    for (text, met, not_met) in [
        ("accuracy >= 0.95", 0.95, 0.94),
        ("accuracy > 0.95", 0.96, 0.95),
        ("loss <= 1e-3", 0.001, 0.002),
        ("loss < 0", -0.1, 0.0),
        ("epoch == 3", 3.0, 3.5),
        ("val accuracy >= 0.5", 0.5, 0.4),
    ] {
        let stop: StopCondition = text.parse().unwrap();
        assert!(stop.is_met_by(met), "{text}");
        assert!(!stop.is_met_by(not_met), "{text}");
        assert!(!stop.is_met_by(f64::NAN), "{text}");
        assert_eq!(stop.to_string().parse(), Ok(stop));
    }
    let parse = |text: &str| text.parse::<StopCondition>().map(|_| ());
    check_error(
        parse(""),
        expect![
            "stop condition ``: it has fewer than three parts; hint: write it as in `accuracy >= 0.95`"
        ],
    );
    check_error(
        parse(">= 0.5"),
        expect![
            "stop condition `>= 0.5`: it has fewer than three parts; hint: write it as in `accuracy >= 0.95`"
        ],
    );
    check_error(
        parse("accuracy >=0.5"),
        expect![
            "stop condition `accuracy >=0.5`: it has fewer than three parts; hint: write it as in `accuracy >= 0.95`"
        ],
    );
    check_error(
        parse("accuracy ≥ 0.5"),
        expect![
            "stop condition `accuracy ≥ 0.5`: the comparison is none of >=, >, <=, <, ==; hint: write it as in `accuracy >= 0.95`"
        ],
    );
    check_error(
        parse("accuracy >= high"),
        expect![
            "stop condition `accuracy >= high`: the value is not a finite number; hint: write it as in `accuracy >= 0.95`"
        ],
    );
    check_error(
        parse("accuracy >= nan"),
        expect![
            "stop condition `accuracy >= nan`: the value is not a finite number; hint: write it as in `accuracy >= 0.95`"
        ],
    );
}
