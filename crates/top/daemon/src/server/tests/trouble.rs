//! Sites that do not answer, and jobs that are ended.

use std::time::Duration;

use firesteel_api::problem::Code;
use firesteel_api::{JobState, SiteState};
use firesteel_base::Durations;
use firesteel_rig::wait::{until, within};

use super::bed::{Bed, Manner, lead, patient, spec};

/// Durations after which silence is an answer.
fn short() -> Durations {
    Durations {
        idle: Duration::from_millis(1500),
        trainer_start: Duration::from_millis(1500),
        ..patient()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_that_never_answer_are_left_out_by_name() {
    let bed = Bed::with(short(), 4).await;
    let _good = bed.sites(3).await;
    let _deaf = bed.site(4, Manner::Deaf).await;
    let _lame = bed.site(5, Manner::Lame).await;
    let _declines = bed.site(6, Manner::Declines).await;
    let job = bed.submit(&spec(&[1, 2, 3, 4, 5, 6], 3, 2)).await;
    let detail = bed.ended(&job).await;
    assert_eq!(
        detail.summary.state,
        JobState::CompletedWithLosses,
        "{detail:#?}"
    );
    assert!(
        detail
            .summary
            .status
            .starts_with("completed with 3 of 6 sites")
    );
    assert_eq!(detail.losses, ["site-4", "site-5", "site-6"]);
    let failure = |site: &str| {
        let mut failures = detail.failures.iter();
        let found = failures.find(|one| one.site.as_deref() == Some(site));
        found.unwrap_or_else(|| panic!("{detail:#?}")).clone()
    };
    assert!(
        failure("site-4")
            .message
            .contains("never answered the order to make ready")
    );
    assert!(
        failure("site-5")
            .message
            .contains("never answered the order to start")
    );
    assert_eq!(failure("site-6").message, "it has no data `digits`");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_that_is_needed_ends_the_job_and_so_does_a_required_one() {
    let bed = Bed::with(short(), 4).await;
    let _good = bed.sites(3).await;
    let _deaf = bed.site(4, Manner::Deaf).await;
    let _declines = bed.site(6, Manner::Declines).await;
    let job = bed.submit(&spec(&[1, 2, 3, 4], 4, 1)).await;
    let detail = bed.ended(&job).await;
    assert_eq!(detail.summary.state, JobState::Failed);
    let status = &detail.summary.status;
    assert!(
        status
            .starts_with("failed during deploy: 3 of 4 sites can make ready, 4 are needed: site-4"),
        "{status}"
    );
    let mut wanted = spec(&[1, 2, 6], 1, 1);
    wanted["policy"] = serde_json::json!({"required_sites": ["site-6"]});
    let job = bed.submit(&wanted).await;
    let detail = bed.ended(&job).await;
    let status = &detail.summary.status;
    assert!(
        status.starts_with("failed during deploy: site-6, which is required, takes no part"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_ends_the_job_in_every_state() {
    let bed = Bed::with(patient(), 8).await;
    let slow = bed.site(1, Manner::Slow).await;
    let _deaf = bed.site(2, Manner::Deaf).await;
    let _lame = bed.site(3, Manner::Lame).await;
    let cases = [
        (JobState::Queued, vec![7]),
        (JobState::Deploying, vec![1, 2]),
        (JobState::Starting, vec![1, 3]),
        (JobState::Running, vec![1]),
    ];
    for (state, sites) in cases {
        let job = bed.submit(&spec(&sites, sites.len(), 3)).await;
        bed.in_state(&job, state).await;
        within(bed.hub.abort(&job, "tested", &lead()))
            .await
            .unwrap();
        let detail = bed.ended(&job).await;
        assert_eq!(
            detail.summary.state,
            JobState::Aborted,
            "{state}: {detail:#?}"
        );
        assert!(detail.summary.status.contains("tested (by lead@lab.test)"));
        assert!(detail.pending.is_empty(), "{state}: {:?}", detail.pending);
        assert!(!slow.holds(&job), "{state}");
        // What has ended stays so.
        let again = bed.hub.abort(&job, "", &lead()).await.unwrap_err();
        assert_eq!(again.code, Code::WrongState);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_is_pending_and_stops_when_it_comes_back() {
    let bed = Bed::new().await;
    let stays = bed.site(1, Manner::Slow).await;
    let goes = bed.site(2, Manner::Slow).await;
    let job = bed.submit(&spec(&[1, 2], 2, 3)).await;
    bed.in_state(&job, JobState::Running).await;
    goes.cut().await;
    until(|| {
        let site = bed.hub.site("site-2").unwrap();
        (site.state == SiteState::Away).then_some(())
    })
    .await;
    bed.hub.abort(&job, "tested", &lead()).await.unwrap();
    let detail = bed.ended(&job).await;
    assert_eq!(detail.summary.state, JobState::Aborted);
    assert_eq!(detail.pending, ["site-2"]);
    assert!(!stays.holds(&job) && goes.holds(&job));
    let refused = bed.hub.delete(&job, &lead()).await.unwrap_err();
    assert!(
        refused
            .message
            .contains("site-2 may still have something of it"),
        "{refused}"
    );
    // Also when the server is another process then.
    let bed = bed.again().await;
    assert_eq!(bed.job(&job).await.pending, ["site-2"]);
    let goes = goes.back(Some(bed.address)).await;
    bed.until(&job, |detail| detail.pending.is_empty()).await;
    assert!(!goes.holds(&job));
    bed.hub.delete(&job, &lead()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_confirm_is_pending_after_the_limit() {
    let durations = Durations {
        stop_grace: Duration::from_millis(300),
        ..patient()
    };
    let bed = Bed::with(durations, 4).await;
    let stubborn = bed.site(1, Manner::Stubborn).await;
    let _lame = bed.site(3, Manner::Lame).await;
    let job = bed.submit(&spec(&[1, 3], 2, 3)).await;
    bed.in_state(&job, JobState::Starting).await;
    bed.hub.abort(&job, "tested", &lead()).await.unwrap();
    let detail = bed.ended(&job).await;
    assert_eq!(detail.pending, ["site-1"]);
    // A process that is new has nothing of it.
    let _new = stubborn.afresh(Manner::Good).await;
    bed.until(&job, |detail| detail.pending.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_line_is_no_failure() {
    let bed = Bed::new().await;
    let one = bed.site(1, Manner::Slow).await;
    let _two = bed.site(2, Manner::Good).await;
    let job = bed.submit(&spec(&[1, 2], 2, 2)).await;
    bed.in_state(&job, JobState::Running).await;
    one.cut().await;
    let one = one.back(None).await;
    // Its process is replaced by one that works.
    let _one = one.afresh(Manner::Good).await;
    let detail = bed.ended(&job).await;
    assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_joins_a_job_that_runs() {
    let durations = Durations {
        connect: Duration::from_millis(500),
        ..patient()
    };
    let bed = Bed::with(durations, 4).await;
    let _slow = bed.site(1, Manner::Slow).await;
    let job = bed.submit(&spec(&[1, 2], 1, 1)).await;
    bed.in_state(&job, JobState::Running).await;
    let _two = bed.site(2, Manner::Good).await;
    bed.until(&job, |detail| {
        detail
            .at
            .iter()
            .any(|site| site.site == "site-2" && site.state == "working")
    })
    .await;
    bed.hub.abort(&job, "", &lead()).await.unwrap();
    bed.ended(&job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_with_a_sentence() {
    use firesteel_net::{Options, split};
    use firesteel_wire::node::{Hello, ToNode, ToServer, to_node, to_server};
    let bed = Bed::new().await;
    let cases: [(&str, &str, u32); 3] = [
        ("site-1", "it claims to be `site-2`", 1),
        ("site-2", "upgrade the older of the two", 9),
        ("lead@lab.test", "sites and relays make sessions", 1),
    ];
    for (kit, words, protocol) in cases {
        let kit = super::bed::kit(kit);
        let server = kit.config().server.clone();
        let address = bed.address.to_string();
        let dialed = firesteel_net::dial(&address, &server, kit.identity(), Options::default());
        let session = within(dialed).await.unwrap();
        let (mut reader, mut writer) = split(session.control().unwrap());
        let hello = Hello {
            protocol_min: protocol,
            protocol_max: protocol,
            name: "site-2".to_owned(),
            ..Hello::default()
        };
        let body = Some(to_server::Body::Hello(hello));
        within(writer.send(&ToServer { body })).await.unwrap();
        let answer = within(reader.next::<ToNode>("ToNode"))
            .await
            .unwrap()
            .unwrap();
        match answer.body {
            Some(to_node::Body::Refused(refused)) => {
                assert!(refused.reason.contains(words), "{}", refused.reason);
                assert!(!refused.retry);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(bed.hub.sites().is_empty());
}
