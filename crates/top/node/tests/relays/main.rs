//! Jobs whose updates are summed by relays: the same model comes out as without
//! them, records count sites, and relays may be killed in the middle.
#![allow(clippy::unwrap_used, reason = "a test")]

mod federation;

use federation::{Federation, LIMIT, SiteBehavior, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_give_the_model_that_sites_give_alone() {
    let names = ["a", "b", "c", "d", "e"];
    let federation = Federation::new(&names, 40_000, json!({})).await;
    let flat = federation.run_flat(3).await;
    let mut run = federation.start("aggregate", 3).await;
    let north = run.relay("north", run.server_address()).await;
    let south = run.relay("south", run.server_address()).await;
    for (name, relay) in [("a", &north), ("b", &north), ("c", &south), ("d", &south)] {
        run.site(name, relay, SiteBehavior::default());
    }
    // One has nobody between.
    run.site_at_server("e");
    let report = run.ended().await;
    assert_eq!(report.status(), "completed");
    assert!(federation.last_model(&report) == flat, "the bits differ");
    let rounds = federation.rounds(&report);
    assert_eq!(rounds.len(), 3);
    for round in &rounds {
        assert_eq!(round.matches("\"done\"").count(), names.len(), "{round}");
    }
    let log = federation.log(&report);
    for relay in ["north", "south"] {
        let note = format!("relay {relay} summed the updates of 2 sites");
        assert_eq!(log.matches(&note).count(), 3, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_below_a_relay_sums_for_it() {
    let names = ["a", "b", "c"];
    let federation = Federation::new(&names, 40_000, json!({})).await;
    let flat = federation.run_flat(2).await;
    let mut run = federation.start("aggregate", 2).await;
    let upper = run.relay("upper", run.server_address()).await;
    let lower = run.relay("lower", upper.address()).await;
    run.site("a", &upper, SiteBehavior::default());
    run.site("b", &lower, SiteBehavior::default());
    run.site("c", &lower, SiteBehavior::default());
    let report = run.ended().await;
    assert_eq!(report.status(), "completed");
    assert!(federation.last_model(&report) == flat, "the bits differ");
    let log = federation.log(&report);
    let note = "relay upper summed the updates of 3 sites";
    assert_eq!(log.matches(note).count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_in_the_middle_costs_nothing() {
    let names = ["a", "b", "c"];
    let federation = Federation::new(&names, 200_000, json!({})).await;
    let flat = federation.run_flat(2).await;
    let mut run = federation.start("aggregate", 2).await;
    let relay = run.relay("north", run.server_address()).await;
    let (slow, release) = SiteBehavior::held_back();
    run.site("a", &relay, SiteBehavior::default());
    run.site("b", &relay, SiteBehavior::default());
    run.site("c", &relay, slow);
    // Two updates are at the relay, and the third is not made yet.
    eventually("the server to have heard of two updates", || {
        run.done() == 2
    })
    .await;
    let relay = relay.killed_and_started_again().await;
    release.notify_one();
    let report = run.ended().await;
    drop(relay);
    assert_eq!(report.status(), "completed");
    assert!(federation.last_model(&report) == flat, "the bits differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_update_is_its_sites_failure_and_nobody_elses() {
    let names = ["a", "b", "c"];
    let policy = json!({"min_clients": 2, "policy": {"quorum_start": 3, "quorum_round": 2, "on_failure": "exclude"}});
    let federation = Federation::new(&names, 100, policy).await;
    let mut run = federation.start("aggregate", 2).await;
    let relay = run.relay("north", run.server_address()).await;
    run.site("a", &relay, SiteBehavior::default());
    run.site("b", &relay, SiteBehavior::default());
    let bad = SiteBehavior {
        poisoned: true,
        ..SiteBehavior::default()
    };
    run.site("c", &relay, bad);
    let report = run.ended().await;
    assert_eq!(report.status(), "completed with 2 of 3 sites");
    let failure = &report.failures[0];
    assert_eq!(failure.site, "c");
    assert!(
        failure.failure.message.contains("NaN or Inf"),
        "{}",
        failure.failure
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_turned_away_from_a_job_that_does_not_want_one() {
    let federation = Federation::new(&["a"], 100, json!({})).await;
    let mut run = federation.start("splice", 1).await;
    let refused = run.relay_refused("north", "relay").await;
    assert!(
        refused.contains("which the job's hierarchy does not allow"),
        "{refused}"
    );
    run.site_at_server("a");
    assert_eq!(run.ended().await.status(), "completed");
    // A certificate of a site makes nobody a relay.
    let mut run = federation.start("aggregate", 1).await;
    let refused = run.relay_refused("a", "site").await;
    assert!(refused.contains("its certificate does not"), "{refused}");
    run.site_at_server("a");
    assert_eq!(run.ended().await.status(), "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_relays_with_twelve_sites_each() {
    let names: Vec<String> = (0..144).map(|n| format!("site-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let federation = Federation::new(&names, 100, json!({})).await;
    let flat = federation.run_flat(2).await;
    let mut run = federation.start("aggregate", 2).await;
    let mut relays = Vec::new();
    for (n, group) in names.chunks(12).enumerate() {
        let relay = run
            .relay(&format!("relay-{n:02}"), run.server_address())
            .await;
        for name in group {
            run.site(name, &relay, SiteBehavior::default());
        }
        relays.push(relay);
    }
    let report = tokio::time::timeout(LIMIT, run.ended()).await.unwrap();
    assert_eq!(report.status(), "completed");
    assert!(federation.last_model(&report) == flat, "the bits differ");
    let rounds = federation.rounds(&report);
    assert_eq!(rounds[1].matches("\"done\"").count(), 144);
    let log = federation.log(&report);
    assert_eq!(log.matches("summed the updates of 12 sites").count(), 24);
}
