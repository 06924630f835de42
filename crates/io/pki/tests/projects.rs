//! Project files: what is read, and what is refused with line and field.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::path::Path;

use common::{PROJECT, explained, project};
use firesteel_pki::project::{Adding, Part, SAMPLE};
use firesteel_pki::{AdminRole, Project, Role, Scheme, Security};
use proptest::prelude::*;

#[test]
fn every_field_is_read() {
    let project = project(PROJECT);
    assert_eq!(project.name, "example_project");
    assert_eq!(project.description, "for tests");
    assert_eq!((project.scheme, project.root_days), (Scheme::Grpc, 3650));
    assert_eq!(project.warnings, [""; 0]);
    let roles: Vec<_> = project
        .participants
        .iter()
        .map(|p| (p.name.as_str(), p.role()))
        .collect();
    assert_eq!(
        roles,
        [
            ("server1.example.com", Role::Server),
            ("site-1", Role::Site),
            ("site-2", Role::Site),
            ("relay-1", Role::Relay),
            ("admin@example.com", Role::Admin(AdminRole::ProjectAdmin)),
            ("lead@north.org", Role::Admin(AdminRole::Lead)),
        ]
    );
    let Part::Site(site) = &project.participants[2].part else {
        panic!()
    };
    assert_eq!((site.gpus, site.mem_per_gpu_gib), (2, Some(24.0)));
    assert!(!site.allow_log_streaming);
    assert_eq!(
        site.connect_to.as_ref().unwrap().relay.as_deref(),
        Some("relay-1")
    );
}

#[test]
fn the_sample_is_right() {
    let sample = project(SAMPLE);
    assert_eq!(sample.participants.len(), 5);
    assert_eq!(sample.scheme, Scheme::Tcp);
    // And what is commented out in it.
    let full = SAMPLE.replace("    # host_names:", "    host_names:");
    assert_ne!(full, SAMPLE);
    project(&full);
}

#[test]
fn shapes_that_other_files_have_are_read() {
    let text = r#"
api_version: 3
name: p
participants:
  - name: server
    type: server
    org: o
    host_names: one.example.com
    connection_security: clear
    default_host: proxy.example.com
  - name: r1
    type: relay
    org: o
    listening_host: r1.example.com
  - name: r2
    type: relay
    org: o
    connect_to: r1
    listening_host: {host_names: [r2.example.com], port: 9000}
  - name: site-1
    type: client
    org: o
    connect_to: 10.1.2.3
  - name: site-2
    type: client
    org: o
    connect_to: {host: "2001:db8::1", port: 443, scheme: http, connection_security: tls}
"#;
    let project = project(text);
    let to = |at: usize| match &project.participants[at].part {
        Part::Site(part) => part.connect_to.clone().unwrap(),
        Part::Relay(part) => part.connect_to.clone().unwrap(),
        _ => panic!(),
    };
    assert_eq!(
        to(2).relay.as_deref(),
        Some("r1"),
        "a relay's name alone means the relay"
    );
    assert_eq!(to(3).host.as_deref(), Some("10.1.2.3"));
    assert_eq!((to(4).port, to(4).scheme), (Some(443), Some(Scheme::Http)));
    assert_eq!(to(4).security, Some(Security::Tls));
    assert_eq!(project.participants[0].security, Security::Clear);
}

#[test]
fn what_has_no_effect_is_said() {
    let text = PROJECT.replace(
        "  - path: nvflare.lighter.impl.signature.SignatureBuilder",
        "  - path: nvflare.lighter.impl.he.HEBuilder\n    args: {poly_modulus_degree: 8192}",
    );
    let text = text.replace(
        "fed_learn_port: 8002",
        "fed_learn_port: 8002\n    use_aio: true",
    );
    let text = text.replace(
        "scheme: grpc}",
        "scheme: grpc, require_signed_jobs: false, overseer_agent: {overseer_exists: false}}",
    );
    let warnings = project(&text).warnings;
    let said = warnings.join("\n");
    assert_eq!(warnings.len(), 3, "{said}");
    for word in [
        "use_aio",
        "project.yml:10",
        "HEBuilder",
        "homomorphic",
        "require_signed_jobs",
    ] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

/// What a change of the file makes of reading it: text with hint.
fn check(from: &str, to: &str, words: &[&str]) {
    assert!(PROJECT.contains(from), "{from}");
    let text = PROJECT.replacen(from, to, 1);
    let error = Project::parse(&text, Path::new("project.yml")).unwrap_err();
    let text = explained(&error);
    assert!(text.starts_with("project.yml"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn mistakes_are_named_with_line_and_field() {
    check(
        "fed_learn_port: 8002",
        "fed_learn_port: eighty",
        &["project.yml:9", "participants[0].fed_learn_port"],
    );
    check(
        "fed_learn_port: 8002",
        "fed_learn_port: 80020",
        &["project.yml:9", "participants[0].fed_learn_port"],
    );
    check(
        "fed_learn_port: 8002",
        "fed_learn_port: 0",
        &["project.yml:9", "1 to 65535"],
    );
    check(
        "fed_learn_port: 8002",
        "fed_lern_port: 8002",
        &["project.yml:9", "fed_lern_port"],
    );
    check(
        "type: client",
        "type: clinet",
        &[
            "project.yml:13",
            "participants[1].type",
            "`clinet`",
            "`client`",
        ],
    );
    check("type: client\n", "kind: client\n", &["kind"]);
    check("    org: north\n", "", &["org"]);
    check(
        "org: north",
        "org: no/rth",
        &["project.yml:14", "participants[1].org", "no/rth"],
    );
    check(
        "role: lead",
        "role: boss",
        &["participants[5].role", "`boss`", "org_admin"],
    );
    check("    role: lead\n", "", &["participants[5].role", "missing"]);
    check(
        "role: lead",
        "role: lead\n    admin_port: 1",
        &["admin_port", "says nothing of the type admin"],
    );
    check(
        "host_names: [localhost, 127.0.0.1]",
        "host_names: [\"bad host\"]",
        &["project.yml:11", "host_names", "bad host"],
    );
    check(
        "connect_to: {name: relay-1}",
        "connect_to: {name: relay-2}",
        &["`relay-2`", "`site-2`", "`relay-1`"],
    );
    check(
        "connect_to: {name: relay-1}",
        "connect_to: {port: x}",
        &["project.yml:20", "connect_to"],
    );
    check(
        "connect_to: {name: relay-1}",
        "connect_to: {nam: relay-1}",
        &["project.yml:20", "nam"],
    );
    check(
        "    listening_host: {default_host: relay.example.com, port: 8102, scheme: tcp}\n",
        "",
        &["listening_host", "missing"],
    );
    check(
        "scheme: tcp",
        "scheme: udp",
        &["listening_host.scheme", "`udp`"],
    );
    check(
        "scheme: grpc",
        "scheme: udp",
        &["builders[1].args.scheme", "`udp`"],
    );
    check(
        "root_valid_days: 3650",
        "root_valid_days: forever",
        &["builders[2].args.root_valid_days", "days"],
    );
    check(
        "api_version: 3",
        "api_version: 2",
        &["project.yml:2", "api_version", "--sample"],
    );
    check(
        "participants:\n",
        "participants: {}\nothers:\n",
        &["participants"],
    );
    check(
        "name: example_project",
        "name: ../x",
        &["project.yml:3", "`name`", "../x"],
    );
    check(
        "description: for tests",
        "description: [1",
        &["project.yml"],
    );
    check(
        "    capacity: {num_of_gpus: 2",
        "    capacity: {num_of_gpus: -2",
        &["capacity"],
    );
    check(
        "    type: relay",
        "    type: relay\n    custom_ca_cert: ca.pem",
        &["custom_ca_cert", "mtls"],
    );
    check(
        "    type: relay",
        "    type: relay\n    connection_security: ssl",
        &["connection_security", "`ssl`"],
    );
}

#[test]
fn the_words_are_those_of_who_writes_the_file() {
    check("8002", "eighty", &["must be a number from 0 to 65535"]);
    check(
        "org: north",
        "org:",
        &["project.yml:14", "`participants[1].org`: is empty"],
    );
    check(
        "name: example_project",
        "name: a\nname: b",
        &["project.yml:4", "`name` is there twice"],
    );
    check(
        "allow_log_streaming: false",
        "allow_log_streaming: maybe",
        &["`true` or `false`"],
    );
    check(
        "host_names: [localhost, 127.0.0.1]",
        "host_names: [{}]",
        &["host_names[0]", "must be a text"],
    );
}

#[test]
fn names_that_could_be_paths_are_refused() {
    for bad in [
        "../x",
        "a/b",
        ".hidden",
        "-rf",
        "\"a b\"",
        "server",
        "\"\"",
        "\"a\\0b\"",
    ] {
        check(
            "name: site-1",
            &format!("name: {bad}"),
            &["project.yml:12", "participants[1].name"],
        );
    }
    for bad in [
        "../x@y.org",
        "admin",
        ".@y.org",
        "a@../b",
        "\"a b@y.org\"",
        "a@b@c",
        "@y.org",
    ] {
        check(
            "name: lead@north.org",
            &format!("name: \"{}\"", bad.trim_matches('"')),
            &["participants[5].name", "e-mail"],
        );
    }
    for bad in ["\"7\"", "relay-", "\"10.0\"", "a.0x1"] {
        check(
            "name: relay-1\n",
            &format!("name: {bad}\n"),
            &["participants[3].name", "host name"],
        );
    }
    for bad in ["10.0.0.1", "a..b", "bad_/x", "-x.org", "host.7"] {
        check(
            "name: server1.example.com",
            &format!("name: {bad}"),
            &["participants[0].name"],
        );
    }
}

#[test]
fn what_firesteel_does_otherwise_is_refused_with_what_replaces_it() {
    check(
        "  - name: site-1\n    type: client",
        "  - name: server2.example.com\n    type: server",
        &[
            "second server",
            "`server1.example.com`",
            "survive a restart",
        ],
    );
    check(
        "type: relay\n",
        "type: overseer\n",
        &["overseer", "restart"],
    );
    check(
        "scheme: grpc}",
        "scheme: grpc, overseer_agent: {overseer_exists: true}}",
        &["overseer", "restart"],
    );
    check(
        "api_version: 3",
        "api_version: 4\nstudies: {one: {sites: [site-1]}}",
        &["project.yml:3", "studies", "project of its own"],
    );
    check(
        "nvflare.lighter.impl.signature.SignatureBuilder",
        "my.own.MyBuilder",
        &["builders[3].path", "my.own.MyBuilder", "not run"],
    );
    check(
        "type: relay\n",
        "type: relay\n    cc_config: cc.yml\n",
        &["cc_config", "confidential"],
    );
    check(
        "name: server1.example.com\n    type: server",
        "name: s\n    type: client",
        &["says nothing of the type client"],
    );
    check("  - name: lead@north.org", "  - name: Site-1", &["name"]);
    check(
        "name: site-2",
        "name: SITE-1",
        &["`SITE-1`", "another participant"],
    );
    check(
        "name: site-2",
        "name: relay-1",
        &["`relay-1`", "another participant"],
    );
}

#[test]
fn a_project_needs_a_server() {
    let text = "api_version: 3\nname: p\nparticipants:\n  - {name: site-1, type: client, org: o}\n";
    let error = Project::parse(text, Path::new("p.yml")).unwrap_err();
    assert!(explained(&error).contains("no server"), "{error}");
}

#[test]
fn relays_in_a_circle_are_named() {
    let text = r"
api_version: 3
name: p
participants:
  - {name: s.example.com, type: server, org: o}
  - {name: r1, type: relay, org: o, listening_host: r1, connect_to: {name: r2}}
  - {name: r2, type: relay, org: o, listening_host: r2, connect_to: {name: r1}}
";
    let error = Project::parse(text, Path::new("p.yml")).unwrap_err();
    let text = explained(&error);
    assert!(
        text.contains("circle") && text.contains("r1 -> r2 -> r1"),
        "{text}"
    );
}

#[test]
fn what_is_added_is_checked_like_the_rest() {
    let mut known = project(PROJECT);
    for (text, what, word) in [
        (
            "name: site-1\norg: o\n",
            Adding::Client,
            "another participant",
        ),
        ("name: ../x\norg: o\n", Adding::Client, "`name`"),
        (
            "name: s2.example.com\norg: o\ntype: server\n",
            Adding::Client,
            "cannot be added",
        ),
        ("name: x@y.org\norg: o\n", Adding::User, "role"),
        (
            "name: site-7\norg: o\nconnect_to: {name: nobody}\n",
            Adding::Client,
            "`nobody`",
        ),
    ] {
        let error = known
            .clone()
            .add(text, Path::new("one.yml"), what)
            .unwrap_err();
        let text = explained(&error);
        assert!(text.starts_with("one.yml") && text.contains(word), "{text}");
    }
    known
        .add(
            "name: r9\ntype: relay\norg: o\nlistening_host: r9.example.com\n",
            Path::new("one.yml"),
            Adding::Client,
        )
        .unwrap();
    assert_eq!(known.participants.len(), 7);
}

#[test]
fn a_file_that_explodes_is_refused() {
    let mut bomb = String::from("api_version: 3\nname: &a p\ndescription: x\nparticipants:\n");
    bomb.push_str("  - &b0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*b{}", level - 1);
        bomb.push_str(&format!("  - &b{level} [{}]\n", vec![below; 10].join(", ")));
    }
    Project::parse(&bomb, Path::new("p.yml")).unwrap_err();
    let deep = format!("participants: {}", "[".repeat(100_000));
    Project::parse(&deep, Path::new("p.yml")).unwrap_err();
    Project::parse(&" ".repeat(5 * 1024 * 1024), Path::new("p.yml")).unwrap_err();
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in "(?s).{0,200}") {
        let _ = Project::parse(&text, Path::new("p.yml"));
    }

    #[test]
    fn a_project_with_a_piece_cut_out_is_read_or_named(
        from in any::<prop::sample::Index>(), length in 1..40usize
    ) {
        let from = from.index(PROJECT.len());
        let to = (from + length).min(PROJECT.len());
        let text = format!("{}{}", &PROJECT[..from], &PROJECT[to..]);
        if let Err(error) = Project::parse(&text, Path::new("p.yml")) {
            let text = explained(&error);
            prop_assert!(text.starts_with("p.yml") && text.lines().count() == 1, "{}", text);
        }
    }
}
