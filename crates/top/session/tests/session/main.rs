//! The client against the real interface, over loopback, with real kits.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

#[path = "../../../daemon/tests/rest/common.rs"]
#[allow(dead_code, reason = "shared with the tests of the interface")]
mod common;
mod rig;

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use firesteel_api::event::EventQuery;
use firesteel_api::job::JobFilter;
use firesteel_api::logs::LogQuery;
use firesteel_api::{Ask, JobState, Target};
use firesteel_session::SessionError;

use common::JOB;
use rig::{Rig, pattern};

#[tokio::test]
async fn everything_that_is_asked_is_answered() {
    let rig = Rig::new().await;
    let session = rig.session("lead@north.org");
    assert_eq!(session.whoami().await.unwrap().role, "lead");
    assert_eq!(session.status().await.unwrap().sites_connected, 2);
    let filter = JobFilter {
        id: Some("j".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(session.jobs(&filter).await.unwrap()[0].id, JOB);
    assert_eq!(session.job(JOB).await.unwrap().summary.name, "digits");
    assert_eq!(session.sites().await.unwrap().len(), 2);
    assert_eq!(session.site("site-2").await.unwrap().org, "south");
    let site = Target::Site("site-1".to_owned());
    let answer = session.ask(&site, &Ask::Report).await.unwrap();
    assert_eq!(answer["level"], "info");
    rig.fake.note("one");
    let events = session.events(JOB, EventQuery::default()).await.unwrap();
    assert_eq!(events.next, 1);
    std::fs::write(rig.fake.dir.path().join("site-1.log"), "line\n").unwrap();
    let piece = session
        .job_log(JOB, "site-1", &LogQuery::default())
        .await
        .unwrap();
    assert_eq!(&piece.bytes[..], b"line\n");
    let job = session.abort(JOB, "enough").await.unwrap();
    assert_eq!(job.summary.state, JobState::Aborted);
    assert_eq!(session.clone_job(JOB).await.unwrap().id, "j-3");
    session.delete(JOB).await.unwrap();
    let gone = session.job(JOB).await.unwrap_err();
    assert_eq!(gone.code(), "job-not-found");
    // One login and one connection did for all of it.
    assert_eq!(rig.logins(), 1);
    assert_eq!(rig.line.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_token_that_is_not_known_any_more_is_renewed() {
    let rig = Rig::new().await;
    let session = rig.session("lead@north.org");
    session.status().await.unwrap();
    rig.restart();
    assert_eq!(session.status().await.unwrap().sites_known, 2);
    assert_eq!(rig.logins(), 1, "the new server had one login");
    session.close().await;
    session.status().await.unwrap();
    assert_eq!(rig.logins(), 2);
}

#[tokio::test]
async fn a_kit_of_another_project_or_server_opens_nothing() {
    let rig = Rig::new().await;
    let other = Rig::new().await;
    // A kit of the same names, from another authority.
    let stranger = rig.session_with(&other.kit("lead@north.org"), "server.north.org");
    let error = stranger.status().await.unwrap_err();
    assert_eq!(error.code(), "login-refused", "{error}");
    // A server that says it is another: nothing is signed for it.
    let lost = rig.session_with(&rig.kit("lead@north.org"), "server.south.org");
    let error = lost.status().await.unwrap_err();
    assert!(matches!(error, SessionError::OtherServer { .. }), "{error}");
    // A site's kit is no person's.
    let error = firesteel_session::Session::of(&rig.kit("site-1"))
        .err()
        .unwrap();
    assert!(matches!(error, SessionError::NotAdmin { .. }), "{error}");
    assert_eq!(rig.logins(), 0);
}

#[tokio::test]
async fn a_role_gets_what_it_may_and_a_refusal_says_why() {
    let rig = Rig::new().await;
    let member = rig.session("member@north.org");
    assert_eq!(member.job(JOB).await.unwrap().summary.id, JOB);
    let error = member.abort(JOB, "").await.unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.code.as_str(), "forbidden");
    assert!(rig.fake.memory.lock().unwrap().aborted.is_empty());
    // Also where the answer comes before all was sent.
    let bundle = rig.fake.dir.path().join("bundle.tar");
    std::fs::write(&bundle, pattern(32 << 20)).unwrap();
    let error = member.submit(&bundle, Some("k")).await.unwrap_err();
    assert_eq!(error.code(), "forbidden", "{error}");
    assert!(rig.fake.memory.lock().unwrap().bundles.is_empty());
    let reply = member
        .request("POST", "/v1/jobs/j-1/abort", Some(Bytes::new()))
        .await
        .unwrap();
    assert_eq!(reply.status, 403);
}

#[tokio::test]
async fn a_bundle_goes_up_in_pieces_and_again_after_a_cut() {
    let rig = Rig::new().await;
    let bundle = rig.fake.dir.path().join("bundle.tar");
    let bytes = pattern(5 << 20);
    std::fs::write(&bundle, &bytes).unwrap();
    let session = rig.session("lead@north.org");
    session.status().await.unwrap();
    // Without a key nothing is sent twice: who knows whether it arrived.
    rig.line.cut_up.store(1 << 20, Ordering::SeqCst);
    let error = session.submit(&bundle, None).await.unwrap_err();
    assert!(error.is_connection(), "{error}");
    rig.line.cut_up.store(2 << 20, Ordering::SeqCst);
    let made = session.submit(&bundle, Some("k-1")).await.unwrap();
    assert_eq!(made.id, "j-2");
    let memory = rig.fake.memory.lock().unwrap();
    assert_eq!(memory.bundles.len(), 1);
    assert!(memory.bundles[0].0 == bytes);
    assert_eq!(memory.bundles[0].2.as_deref(), Some("k-1"));
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_cut() {
    let rig = Rig::new().await;
    let dir = rig.fake.dir.path().join("job/models");
    std::fs::create_dir_all(&dir).unwrap();
    let bytes = pattern(6 << 20);
    std::fs::write(dir.join("best"), &bytes).unwrap();
    std::fs::write(dir.join("small"), "small").unwrap();
    let session = rig.session("lead@north.org");
    let files = session.files(JOB).await.unwrap();
    assert_eq!(files.len(), 2);
    let to = tempfile::tempdir().unwrap();
    let before = rig.line.down.load(Ordering::SeqCst);
    rig.line.cut_down.store(4 << 20, Ordering::SeqCst);
    session
        .download_job(JOB, &files, to.path(), |_| {})
        .await
        .unwrap();
    assert_eq!(rig.line.cut_down.load(Ordering::SeqCst), 0, "it was cut");
    assert!(std::fs::read(to.path().join("models/best")).unwrap() == bytes);
    assert_eq!(
        std::fs::read(to.path().join("models/small")).unwrap(),
        b"small"
    );
    assert_eq!(
        std::fs::read_dir(to.path().join("models")).unwrap().count(),
        2,
        "parts are left"
    );
    // What had come was not sent again: the file once, and what was under way.
    let moved = rig.line.down.load(Ordering::SeqCst) - before;
    assert!(moved < (8 << 20), "{moved} bytes for a file of 6 MiB");

    // Again: nothing moves.
    let before = rig.line.down.load(Ordering::SeqCst);
    session
        .download_job(JOB, &files, to.path(), |_| {})
        .await
        .unwrap();
    assert_eq!(rig.line.down.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_part_of_another_content_is_not_gone_on_from() {
    let rig = Rig::new().await;
    let dir = rig.fake.dir.path().join("job");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("m"), "the new content").unwrap();
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join(".m.1-2-3.part"), "the old").unwrap();
    let session = rig.session("lead@north.org");
    session
        .download("/v1/jobs/j-1/files/m", &to.path().join("m"), |_| {})
        .await
        .unwrap();
    let got = std::fs::read_to_string(to.path().join("m")).unwrap();
    assert_eq!(got, "the new content");
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::new().await;
    let session = rig.session_to(listener.local_addr().unwrap());
    let error = tokio::time::timeout(Duration::from_secs(60), session.status())
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_connection(), "{error}");
}

/// Descriptors and threads of this process.
fn held() -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(what).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
fn a_hundred_submits_to_a_dead_server_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let rig = Rig::new().await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        let bundle = rig.fake.dir.path().join("bundle.tar");
        std::fs::write(&bundle, pattern(1 << 20)).unwrap();
        let session = rig.session_to(address);
        let mut first = None;
        for _ in 0..100 {
            let error = session.submit(&bundle, Some("k")).await.unwrap_err();
            assert!(
                matches!(error, SessionError::NoConnection { .. }),
                "{error}"
            );
            first.get_or_insert_with(held);
        }
        assert_eq!(first, Some(held()));
    });
}
