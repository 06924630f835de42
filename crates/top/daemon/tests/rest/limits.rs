//! What strangers and stuck scripts can ask for.

use axum::body::Body;
use firesteel_base::limits;
use futures_util::stream;

use crate::common::*;

#[tokio::test]
async fn a_long_or_slow_body_is_refused() {
    let rest = interface(&Fake::new());
    let token = login(&rest, ADMIN).await;
    let long = vec![b' '; limits::REST_JSON + 1];
    for (path, who) in [("/v1/login", ""), ("/v1/sites/site-1/ask", token.as_str())] {
        let got = send(&rest, request("POST", path, who, long.clone())).await;
        assert_eq!(
            (got.status.as_u16(), got.code().as_str()),
            (413, "too-large"),
            "{path}"
        );
        let slow = Body::from_stream(stream::pending::<Result<&str, std::io::Error>>());
        let got = send(&rest, request("POST", path, who, slow)).await;
        assert_eq!(
            (got.status.as_u16(), got.code().as_str()),
            (408, "too-slow"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn one_persons_requests_do_not_keep_the_others_out() {
    let fake = Fake::new();
    let rest = interface(&fake);
    let anns = login(&rest, ANN).await;
    let mut waiting = Vec::new();
    for _ in 0..limits::REST_REQUESTS_EACH {
        let (rest, token) = (rest.clone(), anns.clone());
        waiting.push(tokio::spawn(async move {
            send(
                &rest,
                request("GET", "/v1/jobs/j-1/events?wait=30", &token, ""),
            )
            .await
        }));
    }
    while fake.changes.receiver_count() < limits::REST_REQUESTS_EACH {
        tokio::task::yield_now().await;
    }
    let more = send(&rest, request("GET", "/v1/status", &anns, "")).await;
    assert_eq!(
        (more.status.as_u16(), more.code().as_str()),
        (429, "too-many")
    );
    assert_eq!(more.headers["retry-after"], "1");
    let roots = login(&rest, ADMIN).await;
    let got = send(&rest, request("GET", "/v1/status", &roots, "")).await;
    assert_eq!(got.status, 200);
    fake.note("on");
    for one in waiting {
        assert_eq!(one.await.unwrap().status, 200);
    }
    let got = send(&rest, request("GET", "/v1/status", &anns, "")).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn a_turn_lasts_as_long_as_the_answer_is_sent() {
    let fake = Fake::new();
    std::fs::create_dir(fake.dir.path().join("job")).unwrap();
    std::fs::write(fake.dir.path().join("job/m"), vec![1; 4 << 20]).unwrap();
    let rest = interface(&fake);
    let mut held = Vec::new();
    let mut number = 0;
    while held.len() < limits::REST_REQUESTS {
        number += 1;
        let token = login(&rest, &format!("ann{number}@north north project_admin")).await;
        for _ in 0..limits::REST_REQUESTS_EACH {
            let ask = request("GET", "/v1/jobs/j-1/files/m", &token, "");
            held.push(rest.call(ask, from()).await);
        }
    }
    assert!(held.iter().all(|response| response.status() == 200));
    // Nobody gets a turn more, and everybody can still log in.
    let token = login(&rest, ADMIN).await;
    let got = send(&rest, request("GET", "/v1/status", &token, "")).await;
    assert_eq!(got.code(), "too-many");
    drop(held);
    let got = send(&rest, request("GET", "/v1/status", &token, "")).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn strangers_do_not_keep_out_whom_the_server_knows() {
    let rest = interface(&Fake::new());
    let token = login(&rest, ANN).await;
    let mut waiting = Vec::new();
    for _ in 0..limits::REST_STRANGERS {
        let rest = rest.clone();
        let slow = Body::from_stream(stream::pending::<Result<&str, std::io::Error>>());
        waiting.push(tokio::spawn(async move {
            send(&rest, request("POST", "/v1/login", "", slow)).await
        }));
    }
    loop {
        let got = send(&rest, request("POST", "/v1/login/nonce", "", "")).await;
        if got.status == 429 {
            break;
        }
        assert!(waiting.iter().any(|one| !one.is_finished()));
        tokio::task::yield_now().await;
    }
    let got = send(&rest, request("GET", "/v1/status", &token, "")).await;
    assert_eq!(got.status, 200);
    for one in waiting {
        assert_eq!(one.await.unwrap().code(), "too-slow");
    }
    let got = send(&rest, request("POST", "/v1/login/nonce", "", "")).await;
    assert_eq!(got.status, 200);
}
