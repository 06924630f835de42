//! Who may do what: every route, every role.

use firesteel_api::JobState;

use crate::common::*;

/// The answer to each of `PEOPLE`.
struct Case(&'static str, &'static str, &'static str, [u16; 7]);

const PEOPLE: [&str; 7] = [
    ADMIN,
    "boss@north north org_admin",
    "boss@south south org_admin",
    ANN,
    "bob@north north lead",
    "cat@south south lead",
    "dan@north north member",
];

/// The job is Ann's of north; site-1 is north's, site-2 south's, the server hq's.
const CASES: [Case; 25] = [
    Case("GET", "/v1/status", "", [200, 200, 200, 200, 200, 200, 200]),
    Case("GET", "/v1/sites", "", [200, 200, 200, 200, 200, 200, 200]),
    Case(
        "GET",
        "/v1/sites/site-2",
        "",
        [200, 200, 200, 200, 200, 200, 200],
    ),
    Case("GET", "/v1/jobs", "", [200, 200, 200, 200, 200, 200, 200]),
    Case(
        "GET",
        "/v1/jobs/j-1",
        "",
        [200, 200, 200, 200, 200, 200, 200],
    ),
    Case(
        "GET",
        "/v1/jobs/j-1/events",
        "",
        [200, 200, 200, 200, 200, 200, 200],
    ),
    Case(
        "POST",
        "/v1/jobs",
        "tar",
        [201, 403, 403, 201, 201, 201, 403],
    ),
    Case(
        "POST",
        "/v1/jobs/j-1/clone",
        "",
        [201, 403, 403, 201, 403, 403, 403],
    ),
    Case(
        "GET",
        "/v1/jobs/j-1/files",
        "",
        [200, 200, 403, 200, 403, 403, 403],
    ),
    Case(
        "GET",
        "/v1/jobs/j-1/files/m",
        "",
        [200, 200, 403, 200, 403, 403, 403],
    ),
    Case(
        "GET",
        "/v1/jobs/j-1/logs/server",
        "",
        [200, 200, 403, 200, 403, 403, 403],
    ),
    Case(
        "POST",
        "/v1/jobs/j-1/abort",
        "",
        [200, 200, 403, 200, 403, 403, 403],
    ),
    Case(
        "GET",
        "/v1/sites/site-1/log",
        "",
        [200, 200, 403, 200, 200, 403, 403],
    ),
    Case(
        "GET",
        "/v1/sites/server/log",
        "",
        [200, 403, 403, 403, 403, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-1/ask",
        LS,
        [200, 200, 403, 200, 200, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-2/ask",
        LS,
        [200, 403, 200, 403, 403, 200, 403],
    ),
    Case(
        "POST",
        "/v1/sites/server/ask",
        LS,
        [200, 403, 403, 403, 403, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-1/ask",
        LS_JOB,
        [200, 200, 403, 200, 200, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-1/ask",
        LEVEL,
        [200, 200, 403, 200, 200, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/server/ask",
        LEVEL,
        [200, 403, 403, 403, 403, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-2/ask",
        LEVEL_JOB,
        [200, 200, 403, 200, 403, 403, 403],
    ),
    Case(
        "POST",
        "/v1/sites/site-1/ask",
        REPORT,
        [200, 200, 403, 200, 200, 403, 403],
    ),
    Case(
        "DELETE",
        "/v1/jobs/j-1",
        "",
        [204, 204, 403, 204, 403, 403, 403],
    ),
    Case(
        "GET",
        "/v1/openapi.json",
        "",
        [200, 200, 200, 200, 200, 200, 200],
    ),
    Case(
        "POST",
        "/v1/sites/server/ask",
        LS_JOB,
        [200, 200, 403, 200, 403, 403, 403],
    ),
];

const LS: &str = r#"{"what": "files", "op": "ls"}"#;
const LS_JOB: &str = r#"{"what": "files", "job": "j-1", "op": "ls"}"#;
const LEVEL: &str = r#"{"what": "log_level", "level": "debug"}"#;
const LEVEL_JOB: &str = r#"{"what": "log_level", "job": "j-1", "level": "debug"}"#;
const REPORT: &str = r#"{"what": "report"}"#;

#[tokio::test]
async fn every_role_may_what_the_policy_says() {
    for Case(method, path, body, answers) in CASES {
        for (who, wanted) in PEOPLE.into_iter().zip(answers) {
            let fake = Fake::new();
            std::fs::create_dir(fake.dir.path().join("job")).unwrap();
            std::fs::write(fake.dir.path().join("job/m"), "model").unwrap();
            std::fs::write(fake.dir.path().join("server.log"), "line\n").unwrap();
            if method == "DELETE" {
                fake.state(JobState::Completed);
            }
            let rest = interface(&fake);
            let token = login(&rest, who).await;
            let got = send(&rest, request(method, path, &token, body)).await;
            assert_eq!(got.status, wanted, "{who}: {method} {path} {body}");
            if wanted == 403 {
                assert_eq!(got.code(), "forbidden");
                let memory = fake.memory.lock().unwrap();
                assert!(
                    memory.bundles.is_empty()
                        && memory.aborted.is_empty()
                        && memory.asked.is_empty()
                        && memory.jobs.contains_key(JOB),
                    "{who}: {method} {path} was refused and done"
                );
            }
        }
    }
}

#[tokio::test]
async fn every_route_of_the_document_is_in_the_table() {
    let document: serde_json::Value =
        serde_json::from_str(&firesteel_daemon::rest::document()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        if path.starts_with("/v1/login") || path == "/v1/logout" {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let fits = |case: &Case| {
                let names = case.1.split('/').zip(path.split('/'));
                case.0.eq_ignore_ascii_case(method)
                    && case.1.split('/').count() == path.split('/').count()
                    && names.into_iter().all(|(a, b)| a == b || b.starts_with('{'))
            };
            assert!(
                CASES.iter().any(fits),
                "{method} {path} is tested for no role"
            );
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_so() {
    let rest = interface(&Fake::new());
    let token = login(&rest, ADMIN).await;
    for (method, path, body, code) in [
        ("GET", "/v1/jobs/none", "", "job-not-found"),
        ("POST", "/v1/jobs/none/abort", "", "job-not-found"),
        ("GET", "/v1/jobs/j-1/files/none", "", "file-not-found"),
        (
            "GET",
            "/v1/jobs/j-1/files/..%2f..%2fetc%2fpasswd",
            "",
            "file-not-found",
        ),
        ("GET", "/v1/jobs/j-1/logs/site-9", "", "site-not-found"),
        ("GET", "/v1/sites/none", "", "site-not-found"),
        ("POST", "/v1/sites/none/ask", REPORT, "site-not-found"),
        (
            "POST",
            "/v1/sites/site-1/ask",
            r#"{"what": "rm"}"#,
            "invalid",
        ),
        ("GET", "/v1/none", "", "no-route"),
        ("GET", "/", "", "no-route"),
        ("PUT", "/v1/jobs", "", "method"),
        ("GET", "/v1/jobs?stat=running", "", "invalid"),
        ("GET", "/v1/jobs?limit=x", "", "invalid"),
        ("DELETE", "/v1/jobs/j-1", "", "wrong-state"),
    ] {
        let got = send(&rest, request(method, path, &token, body)).await;
        assert_eq!(got.code(), code, "{method} {path}");
        let problem: firesteel_api::Problem = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(got.status, problem.code.status());
        assert!(!problem.message.is_empty() && !problem.message.ends_with('.'));
    }
}
