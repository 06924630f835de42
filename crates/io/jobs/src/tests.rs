use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn id(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

fn new(name: &str, key: Option<&str>) -> Change {
    Change::New(Box::new(NewJob {
        id: id(name),
        name: format!("{name}-name"),
        submitter: "ada".to_owned(),
        organization: "lab".to_owned(),
        role: "lead".to_owned(),
        key: key.map(str::to_owned),
        submitted: 7,
        priority: -3,
        state: "submitted".to_owned(),
        spec: "{}".to_owned(),
        bundle_length: u64::from(u32::MAX) + 1,
        bundle_sha256: vec![0, 255, 7],
        cloned_from: None,
    }))
}

fn event(job: &str, kind: &str) -> Change {
    Change::Event {
        job: id(job),
        time: 9,
        kind: kind.to_owned(),
        body: format!("{{\"kind\":\"{kind}\"}}"),
    }
}

#[expect(clippy::fn_params_excessive_bools, reason = "a row's two flags")]
fn state(job: &str, state: &str, over: bool, settled: bool) -> Change {
    Change::State {
        job: id(job),
        time: 11,
        state: state.to_owned(),
        over,
        settled,
        detail: "{\"a\":1}".to_owned(),
    }
}

async fn kinds(jobs: &Jobs, job: &str, after: u64) -> Vec<(u64, String)> {
    let events = jobs.events(&id(job), after, 1000).await.unwrap();
    let kinds = events.into_iter().map(|event| (event.number, event.kind));
    kinds.collect()
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    jobs.write(vec![new("one", Some("key")), event("one", "a")])
        .await
        .unwrap();
    jobs.write(vec![
        event("one", "b"),
        state("one", "running", false, false),
    ])
    .await
    .unwrap();
    let before = jobs.job(&id("one")).await.unwrap().unwrap();
    drop(jobs);
    let jobs = reopen(dir.path()).await;
    let row = jobs.job(&id("one")).await.unwrap().unwrap();
    assert_eq!(row, before);
    assert_eq!((row.number, row.changed), (1, 11));
    assert_eq!(row.job.state, "running");
    assert_eq!(row.job.bundle_length, u64::from(u32::MAX) + 1);
    assert_eq!(row.job.priority, -3);
    assert_eq!(row.detail, "{\"a\":1}");
    let expected = [(1, "a".to_owned()), (2, "b".to_owned())];
    assert_eq!(kinds(&jobs, "one", 0).await, expected);
    assert_eq!(kinds(&jobs, "one", 1).await, expected[1..]);
    assert_eq!(jobs.unsettled().await.unwrap().len(), 1);
}

/// Opens it once the tasks of the one before have ended.
async fn reopen(dir: &Path) -> Jobs {
    for _ in 0..1000 {
        match Jobs::open(dir).await {
            Ok(jobs) => return jobs,
            Err(JobsError::Busy { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it stays busy");
}

#[tokio::test]
async fn writes_at_the_same_time_are_all_or_nothing_each() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..200 {
        let jobs = jobs.clone();
        writing.spawn(async move {
            // Every third takes a key that is taken.
            let key = if number % 3 == 0 {
                "same".to_owned()
            } else {
                format!("key-{number}")
            };
            let name = format!("job-{number}");
            let written = jobs
                .write(vec![
                    new(&name, Some(&key)),
                    event(&name, "a"),
                    event(&name, "b"),
                ])
                .await;
            (number, written)
        });
    }
    let mut results = BTreeMap::new();
    while let Some(done) = writing.join_next().await {
        let (number, written) = done.unwrap();
        results.insert(number, written);
    }
    let with_key = results.iter().filter(|(number, _)| *number % 3 == 0);
    assert_eq!(with_key.filter(|(_, written)| written.is_ok()).count(), 1);
    for (number, written) in &results {
        let name = format!("job-{number}");
        let there = jobs.job(&id(&name)).await.unwrap().is_some();
        let events = kinds(&jobs, &name, 0).await.len();
        match written {
            Ok(()) => assert_eq!((there, events), (true, 2), "{name}"),
            Err(JobsError::Exists) => {
                assert_eq!(number % 3, 0);
                assert_eq!((there, events), (false, 0), "{name}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    let row = jobs.by_key("lab", "ada", "same").await.unwrap().unwrap();
    assert!(results[&row.job.id.as_str()[4..].parse::<i32>().unwrap()].is_ok());
    assert!(jobs.by_key("other", "ada", "same").await.unwrap().is_none());
    // Numbers go by time, and lists begin with the newest.
    let list = jobs.list(&Filter::default()).await.unwrap();
    assert_eq!(list.len(), 134);
    assert!(list.windows(2).all(|two| two[0].number > two[1].number));
}

#[tokio::test]
async fn an_event_of_no_job_is_refused_and_so_is_a_job_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    assert!(jobs.write(vec![event("none", "a")]).await.is_err());
    jobs.write(vec![new("one", None)]).await.unwrap();
    let again = jobs.write(vec![new("one", None)]).await.unwrap_err();
    assert!(matches!(again, JobsError::Exists), "{again}");
    // Without a key there is no limit to it.
    jobs.write(vec![new("two", None)]).await.unwrap();
}

#[tokio::test]
async fn a_list_holds_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    for name in ["a-1", "a-2", "b-1", "b_2", "b%3"] {
        if let Ok(id) = JobId::new(name) {
            jobs.write(vec![new(id.as_str(), None)]).await.unwrap();
        }
    }
    jobs.write(vec![state("a-2", "failed", true, true)])
        .await
        .unwrap();
    let find = async |filter: Filter| {
        let rows = jobs.list(&filter).await.unwrap();
        let names = rows.into_iter().map(|row| row.job.id.to_string());
        names.collect::<Vec<_>>()
    };
    let id = |start: &str| Filter {
        id: Some(start.to_owned()),
        ..Filter::default()
    };
    assert_eq!(find(id("a-")).await, ["a-2", "a-1"]);
    // What stands for anything in SQL stands for itself here.
    assert_eq!(find(id("b_")).await, ["b_2"]);
    assert!(find(id("%")).await.is_empty());
    let failed = Filter {
        state: Some("failed".to_owned()),
        ..Filter::default()
    };
    assert_eq!(find(failed).await, ["a-2"]);
    let page = Filter {
        most: 2,
        before: Some(4),
        ..Filter::default()
    };
    assert_eq!(find(page).await, ["b-1", "a-2"]);
    let unsettled = jobs.unsettled().await.unwrap();
    let unsettled: Vec<_> = unsettled.iter().map(|row| row.job.id.as_str()).collect();
    assert_eq!(unsettled, ["a-1", "b-1", "b_2"]);
}

#[tokio::test]
async fn a_deleted_job_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    jobs.write(vec![new("one", Some("key")), event("one", "a")])
        .await
        .unwrap();
    let place = jobs.job_dir(&id("one"));
    std::fs::create_dir_all(place.join("run")).unwrap();
    std::fs::write(place.join("run/model"), b"x").unwrap();
    assert_eq!(jobs.job_dirs().unwrap(), ["one"]);
    jobs.write(vec![Change::Delete { job: id("one") }])
        .await
        .unwrap();
    jobs.remove_files(&id("one")).await.unwrap();
    assert!(jobs.job(&id("one")).await.unwrap().is_none());
    assert!(kinds(&jobs, "one", 0).await.is_empty());
    assert!(jobs.job_dirs().unwrap().is_empty());
    assert!(!place.exists());
    // Twice is no more than once, and the key is free.
    jobs.remove_files(&id("one")).await.unwrap();
    jobs.write(vec![new("two", Some("key"))]).await.unwrap();
}

#[tokio::test]
async fn the_directory_is_its_owners_and_one_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("workspace");
    let jobs = Jobs::open(&place).await.unwrap();
    for path in [place.clone(), place.join("jobs"), jobs.incoming_dir()] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.display());
    }
    let busy = Jobs::open(&place).await.err().unwrap();
    assert!(matches!(busy, JobsError::Busy { .. }), "{busy}");
    // What was on its way in is swept away.
    let half = jobs.incoming_dir().join("half");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("part"), b"x").unwrap();
    drop(jobs);
    reopen(&place).await;
    assert!(!half.exists());
}

#[tokio::test]
async fn a_store_of_a_later_build_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Jobs::open(dir.path()).await.unwrap());
    let file = dir.path().join(schema::FILE);
    let mut writer = schema::open_writer(&file).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 99")
        .execute(&mut writer)
        .await
        .unwrap();
    drop(writer);
    let error = loop {
        match Jobs::open(dir.path()).await.err().unwrap() {
            JobsError::Busy { .. } => tokio::task::yield_now().await,
            error => break error,
        }
    };
    assert!(
        matches!(error, JobsError::Newer { found: 99, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn strange_text_is_kept_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).await.unwrap();
    let text = "'); DROP TABLE jobs; -- \u{0} \u{1F525} \"";
    let mut job = match new("one", None) {
        Change::New(job) => job,
        _ => unreachable!(),
    };
    job.name = text.to_owned();
    job.key = Some(text.to_owned());
    jobs.write(vec![Change::New(job)]).await.unwrap();
    let row = jobs.by_key("lab", "ada", text).await.unwrap().unwrap();
    assert_eq!(row.job.name, text);
}
