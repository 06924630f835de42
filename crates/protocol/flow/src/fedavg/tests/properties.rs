//! Whatever happens: every round closes, every contribution counts once, and a
//! kill changes nothing that was decided.

use std::time::Duration;

use firesteel_base::{Round, SiteName, Time};
use proptest::prelude::*;

use crate::fedavg::{
    FedAvg, FedAvgConfig, KeyMetric, LatePolicy, MetricMode, OnFailure, Returning,
};
use crate::testing::{Choices, Weather, World, essence, restore_hostile};
use crate::{Event, Outcome, SiteResult, Workflow};

fn sites(count: usize) -> Vec<SiteName> {
    (0..count)
        .map(|n| SiteName::new(&format!("site-{n}")).unwrap())
        .collect()
}

fn choices() -> impl Strategy<Value = Choices> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Choices::new)
}

fn seconds(range: std::ops::Range<u64>) -> impl Strategy<Value = Option<Duration>> {
    prop::option::of(range.prop_map(Duration::from_secs))
}

prop_compose! {
    fn any_config()(count in 1_usize..6)(
        count in Just(count),
        rounds in 1_u32..5,
        start_round in 0_u32..3,
        quorum_start in 1..=count,
        quorum_round in 1..=count,
        required in prop::option::of(0..count),
        limits in (seconds(5..80), seconds(5..40), seconds(0..20)),
        policies in (any::<bool>(), any::<bool>(), any::<bool>()),
        max_failures in 1_u32..4,
        patience in prop::option::of(1_u32..3),
    ) -> FedAvgConfig {
        let mut config = FedAvgConfig::new(sites(count), rounds);
        config.start_round = Round(start_round);
        config.quorum_start = Some(quorum_start);
        config.quorum_round = Some(quorum_round);
        config.required_sites = required.iter().map(|&at| config.sites[at].clone()).collect();
        (config.round, config.task, config.grace) = limits;
        let (late, exclude, next) = policies;
        if late {
            config.late = LatePolicy::CountNextRound;
        }
        if exclude {
            config.on_failure = OnFailure::Exclude;
        }
        if next {
            config.returning = Returning::NextRound;
        }
        config.max_failures = max_failures;
        config.patience = patience;
        config.key_metric = Some(KeyMetric {
            name: "accuracy".to_owned(),
            mode: MetricMode::Max,
        });
        config
    }
}

fn world(config: &FedAvgConfig, weather: Weather, choices: Choices) -> World<FedAvg> {
    World::new(config.clone(), config.sites.clone(), weather, choices)
}

fn contributed(result: &SiteResult) -> bool {
    matches!(result, SiteResult::Contributed { .. })
}

proptest! {
    /// Losses, failures, duplicates, late answers, failed folds and kills: the
    /// job ends, and every round that made a model had its quorum. What the
    /// world itself asserts: see [`World`].
    #[test]
    fn every_round_closes_and_every_contribution_counts_once(
        config in any_config(),
        choices in choices(),
        kills in prop::collection::vec(0_usize..60, 0..4),
    ) {
        let mut world = world(&config, Weather::Rough, choices);
        world.run(&kills);
        let mut expected = config.start_round;
        for record in &world.records {
            prop_assert_eq!(record.round, expected);
            let count = (record.sites.iter()).filter(|one| contributed(&one.result)).count();
            if record.result.is_some() {
                prop_assert!(count >= config.quorum_round());
                for required in &config.required_sites {
                    prop_assert!((record.sites.iter())
                        .any(|one| one.site == *required && contributed(&one.result)));
                }
                expected = Round(expected.0 + 1);
            }
        }
        match world.outcome.expect("it has ended") {
            Outcome::Completed { rounds, .. } => {
                prop_assert_eq!(config.start_round.0 + rounds, expected.0);
                let whole = (world.records.iter())
                    .filter(|record| record.result.is_some())
                    .all(|record| record.sites.iter().all(|one| contributed(&one.result)));
                prop_assert!(whole);
            }
            Outcome::CompletedWith { contributed, of, missed, .. } => {
                prop_assert_eq!(contributed + missed.len(), of);
            }
            Outcome::Failed { cause, .. } => prop_assert!(!cause.is_empty()),
            Outcome::Aborted { .. } => prop_assert!(false, "nobody aborted it"),
        }
    }

    /// Where every site answers in the end, kills change neither a round's
    /// contributions, weights and metrics nor how the job ends.
    #[test]
    fn kills_change_nothing_that_was_decided(
        count in 1_usize..6,
        rounds in 1_u32..5,
        order in choices(),
        other_order in choices(),
        kills in prop::collection::vec(0_usize..80, 1..8),
    ) {
        let mut config = FedAvgConfig::new(sites(count), rounds);
        config.key_metric = Some(KeyMetric {
            name: "accuracy".to_owned(),
            mode: MetricMode::Min,
        });
        let mut undisturbed = world(&config, Weather::Fair, order);
        undisturbed.run(&[]);
        let mut killed = world(&config, Weather::Fair, other_order);
        killed.run(&kills);
        prop_assert_eq!(
            essence(&killed.records, &killed.outcome),
            essence(&undisturbed.records, &undisturbed.outcome)
        );
    }

    /// A driver that is killed before each of its first events gets through.
    #[test]
    fn a_kill_before_every_event_is_survived(
        config in any_config(),
        choices in choices(),
        kills in 1_usize..60,
    ) {
        let kills: Vec<_> = (0..kills).collect();
        world(&config, Weather::Rough, choices).run(&kills);
    }

    /// No bytes make `restore` panic, nor what it accepts.
    #[test]
    fn hostile_snapshots_are_refused_or_harmless(
        config in any_config(),
        events in 0_usize..8,
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = some_snapshot(&config, events);
        restore_hostile::<FedAvg>(&config, &bytes[..cut.index(bytes.len())]);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        restore_hostile::<FedAvg>(&config, &bytes);
        bytes.extend(tail);
        restore_hostile::<FedAvg>(&config, &bytes);
    }
}

/// The snapshot of a job after so many events.
fn some_snapshot(config: &FedAvgConfig, events: usize) -> Vec<u8> {
    let mut flow = FedAvg::new(config.clone()).unwrap();
    let model = Some(crate::ModelHandle(1));
    let sites = config.sites.clone();
    let mut log = vec![Event::Started { sites, model }];
    for (at, site) in config.sites.iter().enumerate() {
        let key = firesteel_base::TaskKey {
            round: config.start_round,
            site: site.clone(),
            attempt: firesteel_base::Attempt(0),
        };
        log.push(Event::TaskProgress {
            key: key.clone(),
            stage: crate::TaskStage::Training,
        });
        log.push(Event::UpdateReady {
            key,
            update: crate::UpdateInfo {
                model: Some(crate::ModelHandle(at as u64 + 2)),
                params_type: crate::ParamsType::Full,
                steps: Some(3.0),
                metrics: vec![("accuracy".to_owned(), 0.5)],
            },
        });
    }
    for event in log.into_iter().take(events) {
        flow.handle(event, Time::from_secs(1));
    }
    flow.snapshot()
}
