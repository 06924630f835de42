//! Jobs that go well.

use firesteel_api::JobState;
use firesteel_api::job::JobFilter;
use firesteel_api::problem::Code;
use firesteel_base::JobId;
use firesteel_rig::wait::{until, within};
use serde_json::json;

use super::bed::{Bed, Manner, Stub, lead, patient, spec, subject};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_deployed_started_run_and_its_result_is_kept() {
    let bed = Bed::new().await;
    let sites = bed.sites(2).await;
    let job = bed.submit(&spec(&[1, 2], 2, 3)).await;
    let detail = bed.ended(&job).await;
    assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
    assert_eq!((detail.summary.rounds_done, detail.summary.rounds), (3, 3));
    assert_eq!(detail.metrics.len(), 3);
    assert_eq!(detail.summary.submitter.name, "lead@lab.test");
    let run = bed.hub.run_dir(&job).unwrap();
    assert!(run.join("models/last.safetensors").exists());
    let states = bed.states(&job).await;
    let expected = [
        "submitted",
        "queued",
        "deploying",
        "starting",
        "running",
        "completed",
    ];
    assert_eq!(states, expected);
    for site in &sites {
        until(|| (!site.holds(&job)).then_some(())).await;
    }
    // And what is over can be deleted.
    bed.until(&job, |detail| {
        detail.at.iter().all(|site| site.state == "stopped")
    })
    .await;
    bed.hub.delete(&job, &lead()).await.unwrap();
    assert!(bed.hub.job(&job).await.unwrap().is_none());
    assert!(!bed.hub.job_dir(&job).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_share_the_sites_and_none_takes_more_than_there_is() {
    let bed = Bed::with(patient(), 6).await;
    let facts = json!({"resources": {"gpus": 2}, "max_jobs": 100});
    let mut sites = Vec::new();
    for number in 1..=3 {
        sites.push(Stub::connect(bed.address, number, Manner::Good, facts.clone()).await);
    }
    let mut jobs = Vec::new();
    for number in 0..12 {
        let mut spec = spec(&[1, 2, 3], 3, 2);
        spec["resources"] = json!({"gpus": 1 + number % 2});
        spec["priority"] = json!(number % 3);
        jobs.push(bed.submit(&spec).await);
    }
    let mut changes = bed.hub.watch();
    let ended = async {
        for job in &jobs {
            let detail = bed.ended(job).await;
            assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
        }
    };
    let watching = async {
        // Until the others have ended.
        while changes.changed().await.is_ok() {
            for site in bed.hub.sites() {
                let gpus = site.resources["gpus"];
                assert!(gpus.free >= 0.0 && site.jobs.len() <= 2, "{site:?}");
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = watching => unreachable!("the server has ended"),
    }
    // Everything is given back.
    until(|| {
        let free = |site: &firesteel_api::SiteInfo| site.resources["gpus"].free == 2.0;
        bed.hub.sites().iter().all(free).then_some(())
    })
    .await;
    let listed = bed.hub.jobs(&JobFilter::default()).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|job| job.id.clone()).collect();
    let expected: Vec<_> = jobs.iter().map(ToString::to_string).collect();
    assert_eq!(ids, expected, "oldest first");
    let newest = JobFilter {
        reverse: true,
        limit: Some(1),
        ..JobFilter::default()
    };
    assert_eq!(bed.hub.jobs(&newest).await.unwrap()[0].id, expected[11]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_submission_twice_is_one_job_and_a_clone_another() {
    let bed = Bed::new().await;
    let spec = spec(&[1], 1, 1);
    let first = bed.try_submit(&spec, Some("mine")).await.unwrap();
    let again = bed.try_submit(&spec, Some("mine")).await.unwrap();
    assert!(!first.existed && again.existed);
    assert_eq!(first.id, again.id);
    let (left, right) = tokio::join!(
        bed.try_submit(&spec, Some("both")),
        bed.try_submit(&spec, Some("both"))
    );
    let (left, right) = (left.unwrap(), right.unwrap());
    assert_eq!(left.id, right.id);
    assert!(left.existed != right.existed);
    let id = JobId::new(&first.id).unwrap();
    let clone = bed.hub.clone_job(&id, &lead()).await.unwrap();
    assert_ne!(clone.id, first.id);
    let clone = JobId::new(&clone.id).unwrap();
    let detail = bed.job(&clone).await;
    assert_eq!(detail.cloned_from.as_deref(), Some(first.id.as_str()));
    let _site = bed.site(1, Manner::Good).await;
    for job in [id, clone] {
        assert_eq!(bed.ended(&job).await.summary.state, JobState::Completed);
    }
    assert_eq!(bed.hub.jobs(&JobFilter::default()).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_is_refused_with_the_field() {
    let bed = Bed::new().await;
    let mut wrong = spec(&[1], 1, 1);
    wrong["min_clients"] = json!(2);
    let refused = bed.try_submit(&wrong, None).await.unwrap_err();
    assert_eq!(refused.code, Code::BundleRefused);
    assert_eq!(refused.field.as_deref(), Some("min_clients"), "{refused:?}");
    // Somebody else's signature, and somebody who may not.
    let file = bed.bundle(&spec(&[1], 1, 1), "member@lab.test");
    let refused = bed.hub.submit(file, &lead(), None).await.unwrap_err();
    assert!(
        refused.message.contains("signed by `member@lab.test`"),
        "{refused:?}"
    );
    let file = bed.bundle(&spec(&[1], 1, 1), "member@lab.test");
    let member = subject("member@lab.test");
    let refused = bed.hub.submit(file, &member, None).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    // A changed byte.
    let file = bed.bundle(&spec(&[1], 1, 1), "lead@lab.test");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|five| five == b"hello").unwrap();
    bytes[at] = b'j';
    std::fs::write(&file, bytes).unwrap();
    let refused = bed.hub.submit(file, &lead(), None).await.unwrap_err();
    assert_eq!(refused.code, Code::BundleRefused, "{refused:?}");
    assert!(
        bed.hub
            .jobs(&JobFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    let left = std::fs::read_dir(bed.dir.path().join("workspace/jobs")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_where_the_server_was_stopped() {
    let bed = Bed::new().await;
    let slow = bed.site(1, Manner::Slow).await;
    let running = bed.submit(&spec(&[1], 1, 2)).await;
    let waiting = bed.submit(&spec(&[2], 1, 1)).await;
    bed.in_state(&running, JobState::Running).await;
    bed.in_state(&waiting, JobState::Queued).await;
    let bed = bed.again().await;
    assert_eq!(bed.job(&running).await.summary.state, JobState::Running);
    assert_eq!(bed.job(&waiting).await.summary.state, JobState::Queued);
    // Its agent comes back to the run.
    let slow = slow.back(Some(bed.address)).await;
    // Its process is another one then, and has to be given the job anew.
    let _quick = slow.afresh(Manner::Good).await;
    let _other = bed.site(2, Manner::Good).await;
    for job in [&running, &waiting] {
        let detail = bed.ended(job).await;
        assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
    }
    let states = bed.states(&running).await;
    assert_eq!(states.iter().filter(|state| *state == "running").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_at_a_time_all_end_well() {
    let bed = Bed::with(patient(), 10).await;
    let _sites = bed.sites(8).await;
    let all: Vec<usize> = (1..=8).collect();
    let mut jobs = Vec::new();
    for _ in 0..30 {
        jobs.push(bed.submit(&spec(&all, 8, 1)).await);
    }
    for job in &jobs {
        let detail = bed.ended(job).await;
        assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
    }
    until(|| {
        let idle = |site: &firesteel_api::SiteInfo| site.jobs.is_empty();
        bed.hub.sites().iter().all(idle).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_runs_from_its_kit_and_ends_when_it_is_told_to() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("kit");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(super::bed::kit("server.test").folder()).unwrap() {
        let entry = entry.unwrap();
        // Modes are copied with it.
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let own = "address = \"127.0.0.1\"\nport = 0\nworkspace = \"work\"\n";
    std::fs::write(folder.join("server.toml"), own).unwrap();
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&folder, private).unwrap();
    let run = super::super::ServerRun {
        kit: firesteel_pki::Kit::open(&folder).unwrap(),
        log: None,
        console: firesteel_observe::ConsoleStyle::Off,
        durations: patient(),
        net: firesteel_net::Options::default(),
    };
    let (stop, stopped) = tokio::sync::watch::channel(None);
    let (told, listening) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(super::super::run(
        run,
        |addresses| told.send(addresses[0]).unwrap(),
        stopped,
    ));
    let address = within(listening).await.unwrap();
    let site = Stub::connect(address, 1, Manner::Good, json!({})).await;
    assert_eq!(site.name, "site-1");
    stop.send_replace(Some("tested".to_owned()));
    within(serving).await.unwrap().unwrap();
    let log = std::fs::read_to_string(folder.join("work/log.txt")).unwrap();
    assert!(log.contains("site-1 is connected from 127.0.0.1"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_of_its_own_kit_runs_a_job_from_deploy_to_end() {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::new().await;
    let folder = bed.dir.path().join("site-1");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(super::bed::kit("site-1").folder()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let port = bed.address.port();
    let own = format!("workspace = \"work\"\n[network]\nhost = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(folder.join("site.toml"), own).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let run = crate::site::SiteRun {
        kit: firesteel_pki::Kit::open(&folder).unwrap(),
        binary: "/none/firesteel".into(),
        log: None,
        console: firesteel_observe::ConsoleStyle::Off,
        durations: patient(),
        net: firesteel_net::Options::default(),
    };
    let (stop, stopped) = tokio::sync::watch::channel(None);
    let acting = tokio::spawn(crate::site::run(run, stopped));
    let mut wanted = spec(&[], 1, 3);
    wanted["trainer"] = json!({"mode": "noop", "script": ""});
    let job = bed.submit(&wanted).await;
    let detail = bed.ended(&job).await;
    assert_eq!(detail.summary.state, JobState::Completed, "{detail:#?}");
    assert_eq!(detail.summary.rounds_done, 3);
    bed.until(&job, |detail| {
        detail.at.iter().all(|site| site.state == "stopped")
    })
    .await;
    stop.send_replace(Some("tested".to_owned()));
    within(acting).await.unwrap().unwrap();
}
