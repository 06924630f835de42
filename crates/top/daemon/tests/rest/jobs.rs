//! Submitting, events and files.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use firesteel_api::JobState;
use futures_util::stream;

use crate::common::*;

fn upload(token: &str, key: Option<&str>, body: Body) -> Request<Body> {
    let mut request = request("POST", "/v1/jobs", token, body);
    if let Some(key) = key {
        request
            .headers_mut()
            .insert("firesteel-submit-key", key.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_bundle_arrives_whole_and_leaves_no_file() {
    let fake = Fake::new();
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let pieces: Vec<_> = (0..50_u8).map(|n| vec![n; 70_000]).collect();
    let whole = pieces.concat();
    let body = Body::from_stream(stream::iter(
        pieces.into_iter().map(Ok::<_, std::io::Error>),
    ));
    let got = send(&rest, upload(&token, Some("k"), body)).await;
    assert_eq!(got.status, 201);
    assert_eq!(got.json()["id"], "j-2");
    let again = send(&rest, upload(&token, Some("k"), Body::from("x"))).await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["existed"]),
        (200, &true.into())
    );
    let memory = fake.memory.lock().unwrap();
    let (bytes, by, key) = &memory.bundles[0];
    assert!(*bytes == whole);
    assert_eq!(
        (by, key.as_deref()),
        (&person("ann@north", "north", "lead"), Some("k"))
    );
    assert_eq!(std::fs::read_dir(fake.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_that_breaks_off_or_stands_still_is_given_up() {
    let fake = Fake::new();
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let broken = stream::iter([Ok("a"), Err(std::io::Error::other("cut"))]);
    let got = send(&rest, upload(&token, None, Body::from_stream(broken))).await;
    assert_eq!(got.code(), "invalid");

    let stalls = stream::unfold(0, |n| async move {
        if n > 0 {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::io::Error>("a"), n + 1))
    });
    let got = send(&rest, upload(&token, None, Body::from_stream(stalls))).await;
    assert_eq!(got.code(), "too-slow");
    assert!(fake.memory.lock().unwrap().bundles.is_empty());
    assert_eq!(std::fs::read_dir(fake.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_submit_key_is_a_short_word() {
    let rest = interface(&Fake::new());
    let token = login(&rest, ANN).await;
    for key in ["", " ", &"x".repeat(300)] {
        let got = send(&rest, upload(&token, Some(key), Body::from("tar"))).await;
        assert_eq!(got.code(), "invalid", "{key}");
        assert_eq!(got.json()["field"], "firesteel-submit-key");
    }
}

#[tokio::test]
async fn events_are_waited_for_and_none_comes_twice() {
    let fake = Fake::new();
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    fake.note("one");
    fake.note("two");
    let path = |after: u64| format!("/v1/jobs/j-1/events?after={after}&wait=30");
    let got = send(&rest, request("GET", &path(0), &token, ""))
        .await
        .json();
    assert_eq!(
        (got["next"].as_u64(), &got["ended"]),
        (Some(2), &false.into())
    );
    assert_eq!(got["events"][1]["message"], "two");
    assert_eq!(got["events"][1]["kind"], "note");

    // Nothing new: the request waits until there is.
    let waiting = tokio::spawn({
        let (rest, token, path) = (rest.clone(), token.clone(), path(2));
        async move { send(&rest, request("GET", &path, &token, "")).await.json() }
    });
    while fake.changes.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    fake.note("three");
    let got = waiting.await.unwrap();
    assert_eq!(got["events"].as_array().unwrap().len(), 1);
    assert_eq!(got["events"][0]["seq"], 3);

    // The end is told at once.
    fake.state(JobState::Failed);
    let got = send(&rest, request("GET", &path(3), &token, ""))
        .await
        .json();
    assert_eq!(
        (&got["ended"], &got["state"]),
        (&true.into(), &"failed".into())
    );

    // Pieces, the last of which is the last.
    let got = send(
        &rest,
        request("GET", "/v1/jobs/j-1/events?limit=2", &token, ""),
    )
    .await
    .json();
    assert_eq!(
        (got["next"].as_u64(), &got["ended"]),
        (Some(2), &false.into())
    );
    let got = send(
        &rest,
        request("GET", "/v1/jobs/j-1/events?limit=2&after=2", &token, ""),
    )
    .await;
    assert_eq!(got.json()["ended"], true);
}

#[tokio::test]
async fn a_file_is_sent_from_any_byte_on() {
    let fake = Fake::new();
    let dir = fake.dir.path().join("job/models");
    std::fs::create_dir_all(&dir).unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(dir.join("best 1.safetensors"), &bytes).unwrap();
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let list = send(&rest, request("GET", "/v1/jobs/j-1/files", &token, ""))
        .await
        .json();
    assert_eq!(list["files"][0]["path"], "models/best 1.safetensors");
    assert_eq!(list["files"][0]["bytes"], 1_000_000);

    let path = "/v1/jobs/j-1/files/models/best%201.safetensors";
    let whole = send(&rest, request("GET", path, &token, "")).await;
    assert_eq!(whole.status, 200);
    assert!(whole.body == bytes);
    let tag = whole.headers["etag"].to_str().unwrap().to_owned();

    let ask = |range: &str, if_range: Option<&str>| {
        let mut request = request("GET", path, &token, "");
        request
            .headers_mut()
            .insert("range", range.parse().unwrap());
        if let Some(tag) = if_range {
            request
                .headers_mut()
                .insert("if-range", tag.parse().unwrap());
        }
        request
    };
    let part = send(&rest, ask("bytes=300000-", Some(&tag))).await;
    assert_eq!(part.status, 206);
    assert_eq!(part.headers["content-range"], "bytes 300000-999999/1000000");
    assert!(part.body == bytes[300_000..]);
    let part = send(&rest, ask("bytes=5-9", None)).await;
    assert_eq!(part.body, bytes[5..10]);
    // Of another content there is no rest: all of it, or nothing.
    let other = send(&rest, ask("bytes=300000-", Some("\"other\""))).await;
    assert_eq!(
        (other.status.as_u16(), other.body.len()),
        (200, bytes.len())
    );
    let outside = send(&rest, ask("bytes=1000000-", Some(&tag))).await;
    assert_eq!(
        (outside.status.as_u16(), outside.code().as_str()),
        (416, "range")
    );
    assert_eq!(outside.headers["content-range"], "bytes */1000000");

    let mut known = request("GET", path, &token, "");
    known
        .headers_mut()
        .insert("if-none-match", tag.parse().unwrap());
    assert_eq!(send(&rest, known).await.status, 304);

    let head = send(&rest, request("HEAD", path, &token, "")).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], "1000000");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let fake = Fake::new();
    std::fs::create_dir(fake.dir.path().join("job")).unwrap();
    std::fs::write(fake.dir.path().join("job/m"), vec![1; 8 << 20]).unwrap();
    let rest = interface(&fake);
    let token = login(&rest, ANN).await;
    let response = rest
        .call(request("GET", "/v1/jobs/j-1/files/m", &token, ""), from())
        .await;
    // Nothing is read for longer than `idle`; then whatever was read ahead comes,
    // and the end too early.
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::time::sleep(durations().idle * 3).await;
        let read = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        assert!(!read.is_ok_and(|bytes| bytes.len() == 8 << 20));
    })
    .await
    .unwrap();
}
