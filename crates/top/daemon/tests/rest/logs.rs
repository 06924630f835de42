//! Logs as they grow.

use std::io::Write as _;

use firesteel_api::JobState;

use crate::common::*;

fn append(path: &std::path::Path, text: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_log_is_followed_to_its_end() {
    let fake = Fake::new();
    let log = fake.dir.path().join("site-1.log");
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let get = |query: String| {
        let (rest, token) = (rest.clone(), token.clone());
        let path = format!("/v1/jobs/j-1/logs/site-1?{query}");
        async move { send(&rest, request("GET", &path, &token, "")).await }
    };
    let next = |got: &Got| {
        got.headers["firesteel-log-next"]
            .to_str()
            .unwrap()
            .to_owned()
    };

    // There is no file yet: the first line is waited for.
    let waiting = tokio::spawn(get("wait=30".to_owned()));
    append(&log, "one\ntwo\n");
    let got = waiting.await.unwrap();
    assert_eq!(String::from_utf8(got.body.clone()).unwrap(), "one\ntwo\n");

    let got_then = get(format!("wait=0&after={}", next(&got))).await;
    assert_eq!((got_then.body.len(), next(&got_then)), (0, next(&got)));
    assert!(!got_then.headers.contains_key("firesteel-log-ended"));

    let waiting = tokio::spawn(get(format!("wait=30&after={}", next(&got))));
    append(&log, "three\n");
    let got = waiting.await.unwrap();
    assert_eq!(got.body, b"three\n");

    let waiting = tokio::spawn(get(format!("wait=30&after={}", next(&got))));
    fake.state(JobState::Completed);
    let got = waiting.await.unwrap();
    assert_eq!(got.headers["firesteel-log-ended"], "true");
    assert_eq!(got.body, b"");

    let got = get("tail=2".to_owned()).await;
    assert_eq!(got.body, b"two\nthree\n");
    assert_eq!(get("after=x".to_owned()).await.code(), "invalid");
}

#[tokio::test]
async fn a_log_that_never_came_is_said_not_to_be_there() {
    let fake = Fake::new();
    fake.state(JobState::Completed);
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let got = send(
        &rest,
        request("GET", "/v1/jobs/j-1/logs/site-1", &token, ""),
    )
    .await;
    assert_eq!(got.code(), "file-not-found");
    assert!(
        got.json()["hint"]
            .as_str()
            .unwrap()
            .contains("allow_log_streaming")
    );
}
