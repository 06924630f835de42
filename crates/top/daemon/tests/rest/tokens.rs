//! Logging in.

use firesteel_api::login::signed_text;

use crate::common::*;

#[tokio::test]
async fn without_a_token_only_login_and_the_document_answer() {
    let fake = Fake::new();
    let rest = interface(&fake);
    for (method, path) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/j-1"),
        ("DELETE", "/v1/jobs/j-1"),
        ("POST", "/v1/jobs/j-1/abort"),
        ("POST", "/v1/jobs/j-1/clone"),
        ("GET", "/v1/jobs/j-1/events"),
        ("GET", "/v1/jobs/j-1/files"),
        ("GET", "/v1/jobs/j-1/files/a"),
        ("GET", "/v1/jobs/j-1/logs/server"),
        ("GET", "/v1/sites"),
        ("GET", "/v1/sites/site-1"),
        ("GET", "/v1/sites/site-1/log"),
        ("POST", "/v1/sites/site-1/ask"),
        ("POST", "/v1/logout"),
    ] {
        for token in ["", "x", &"x".repeat(5000)] {
            let got = send(&rest, request(method, path, token, "")).await;
            assert_eq!(got.status, 401, "{method} {path}");
            assert_eq!(got.code(), "unauthenticated");
            assert_eq!(got.headers["www-authenticate"], "Bearer");
        }
    }
    let got = send(&rest, request("GET", "/v1/openapi.json", "", "")).await;
    assert_eq!(got.status, 200);
    let memory = fake.memory.lock().unwrap();
    assert!(memory.bundles.is_empty() && memory.aborted.is_empty() && memory.asked.is_empty());
}

#[tokio::test]
async fn a_token_is_worth_nothing_after_logout() {
    let rest = interface(&Fake::new());
    let token = login(&rest, ANN).await;
    assert_eq!(
        send(&rest, request("GET", "/v1/status", &token, ""))
            .await
            .status,
        200
    );
    assert_eq!(
        send(&rest, request("POST", "/v1/logout", &token, ""))
            .await
            .status,
        204
    );
    assert_eq!(
        send(&rest, request("GET", "/v1/status", &token, ""))
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_nonce_is_good_for_one_login() {
    let rest = interface(&Fake::new());
    let nonce = nonce(&rest).await.nonce;
    let text = signed_text("server.p", &nonce);
    assert_eq!(try_login(&rest, ANN, &nonce, &text).await.status, 200);
    let again = try_login(&rest, ANN, &nonce, &text).await;
    assert_eq!(
        (again.status.as_u16(), again.code().as_str()),
        (401, "login-refused")
    );
    assert!(
        again.json()["message"]
            .as_str()
            .unwrap()
            .contains("used before")
    );
}

#[tokio::test]
async fn a_signature_is_for_one_server_one_nonce_and_one_certificate() {
    let rest = interface(&Fake::new());
    let one = nonce(&rest).await.nonce;
    let other = nonce(&rest).await.nonce;
    for (what, nonce, text) in [
        ("another server", &one, signed_text("server.q", &one)),
        ("another nonce", &one, signed_text("server.p", &other)),
        ("no text", &one, Vec::new()),
    ] {
        // The fake's signature covers what it is given, so what differs is the text.
        let got = try_login(&rest, ANN, nonce, &text).await;
        assert_eq!(
            (got.status.as_u16(), got.code().as_str()),
            (401, "login-refused"),
            "{what}"
        );
    }
    // A refused login takes the nonce from nobody.
    let right = signed_text("server.p", &one);
    assert_eq!(try_login(&rest, ANN, &one, &right).await.status, 200);
    // A nonce of another server, and none at all.
    let elsewhere = nonce_of_another().await;
    for bad in [elsewhere.as_str(), "", "x"] {
        let got = try_login(&rest, ANN, bad, &signed_text("server.p", bad)).await;
        assert_eq!(got.code(), "login-refused", "{bad}");
    }
}

async fn nonce_of_another() -> String {
    nonce(&interface(&Fake::new())).await.nonce
}

#[tokio::test]
async fn machines_do_not_log_in() {
    let rest = interface(&Fake::new());
    for role in ["site", "relay", "server"] {
        let nonce = nonce(&rest).await.nonce;
        let text = signed_text("server.p", &nonce);
        let got = try_login(&rest, &format!("m-1 north {role}"), &nonce, &text).await;
        assert_eq!(got.code(), "login-refused");
        assert!(got.json()["message"].as_str().unwrap().contains(role));
    }
}

#[tokio::test]
async fn a_login_that_is_no_login_says_which_field() {
    let rest = interface(&Fake::new());
    for (body, field) in [
        (
            r#"{"nonce": 7, "certificates": "", "signature": ""}"#,
            Some("nonce"),
        ),
        (r#"{"nonce": "x"}"#, None),
        (
            r#"{"nonce": "x", "certificates": "", "signature": "", "more": 1}"#,
            Some("more"),
        ),
        ("{", None),
        ("", None),
    ] {
        let got = send(&rest, request("POST", "/v1/login", "", body)).await;
        assert_eq!(
            (got.status.as_u16(), got.code().as_str()),
            (400, "invalid"),
            "{body}"
        );
        assert_eq!(got.json()["field"].as_str(), field, "{body}");
    }
}
