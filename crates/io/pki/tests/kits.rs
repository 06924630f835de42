//! Kits: made, opened, and refused when anything about them is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Made, PROJECT, explained, project};
use firesteel_pki::project::Adding;
use firesteel_pki::provision::{How, next_folder, state_folder};
use firesteel_pki::{
    AdminRole, Kit, Own, Project, Purpose, Role, Scheme, Secret, Security, Signer, provision,
    verify,
};

#[test]
fn every_kit_opens_and_says_who_it_is() {
    let made = Made::new();
    for (name, role, org) in [
        ("server1.example.com", Role::Server, "example"),
        ("site-1", Role::Site, "north"),
        ("relay-1", Role::Relay, "example"),
        (
            "admin@example.com",
            Role::Admin(AdminRole::ProjectAdmin),
            "example",
        ),
        ("lead@north.org", Role::Admin(AdminRole::Lead), "north"),
    ] {
        let kit = made.kit(name);
        assert_eq!((kit.name(), kit.role(), kit.org()), (name, role, org));
        assert_eq!(kit.project(), "example_project");
        assert_eq!(kit.config().server, "server1.example.com");
        assert_eq!(kit.identity().own().name.as_str(), name);
        let mode = fs::metadata(&kit.identity_files().key)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn kits_say_where_to_connect_and_listen() {
    let made = Made::new();
    let listen = made.kit("server1.example.com").listen().unwrap();
    assert_eq!((listen.port, listen.admin_port), (8002, Some(8003)));
    assert_eq!(
        listen.host_names,
        ["server1.example.com", "localhost", "127.0.0.1"]
    );
    assert_eq!(listen.sockets().len(), 2);

    let direct = made.kit("site-1").connect();
    let [way] = direct.as_slice() else {
        panic!("{direct:?}")
    };
    assert_eq!((way.host.as_str(), way.port), ("server1.example.com", 8002));
    assert_eq!((way.scheme, way.security), (Scheme::Grpc, Security::Mtls));
    assert_eq!(way.through_relay, None);

    let below = made.kit("site-2").connect();
    let [way] = below.as_slice() else {
        panic!("{below:?}")
    };
    assert_eq!((way.host.as_str(), way.port), ("relay.example.com", 8102));
    assert_eq!(way.server_name, "relay-1");
    assert_eq!(way.through_relay.as_deref(), Some("relay-1"));

    // Admins use the admin port.
    assert_eq!(made.kit("admin@example.com").connect()[0].port, 8003);
}

#[test]
fn the_owners_file_is_read_and_paths_in_it_are_the_kits() {
    let made = Made::new();
    let folder = made.folder("site-1");
    fs::write(
        folder.join("site.toml"),
        r#"
max_jobs = 2
allow_code = false
workspace = "/scratch"
[resources]
gpus = ["0", "1"]
custom = { licenses = 3 }
[environments.torch]
python = "venv/bin/python"
secrets = { HF_TOKEN = { file = "hf" }, DB = { env = "DB_PASSWORD" } }
[data.digits]
path = "data/digits"
[data.scans]
path = "s3://bucket/scans"
read_only = false
[network]
proxy = "http://proxy:3128"
scheme = "http"
[policy.lead]
operate = ["none"]
"#,
    )
    .unwrap();
    let kit = Kit::open(&folder).unwrap();
    let site = kit.site().unwrap();
    assert_eq!((site.max_jobs, site.allow_code), (2, false));
    assert_eq!(site.workspace, Path::new("/scratch"));
    let torch = &site.environments["torch"];
    assert_eq!(torch.python, folder.join("venv/bin/python"));
    assert_eq!(torch.secrets["HF_TOKEN"], Secret::File(folder.join("hf")));
    assert_eq!(torch.secrets["DB"], Secret::Env("DB_PASSWORD".to_owned()));
    let digits = &site.data["digits"];
    assert_eq!(Path::new(&digits.path_or_uri), folder.join("data/digits"));
    assert!(digits.read_only);
    assert_eq!(site.data["scans"].path_or_uri, "s3://bucket/scans");
    let way = &kit.connect()[0];
    assert_eq!(way.proxy.as_deref(), Some("http://proxy:3128"));
    assert_eq!(way.scheme, Scheme::Http);
    assert!(matches!(kit.own(), Own::Site(_)));
    assert!(kit.server().is_err());
}

#[test]
fn a_proxys_password_is_not_shown() {
    let made = Made::new();
    let folder = made.folder("site-1");
    let own = "[network]\nproxy = \"http://me:hush@proxy:3128\"\n";
    fs::write(folder.join("site.toml"), own).unwrap();
    let kit = Kit::open(&folder).unwrap();
    assert_eq!(
        kit.connect()[0].proxy.as_deref(),
        Some("http://me:hush@proxy:3128")
    );
    let shown = format!("{kit:?} {:?}", kit.connect());
    assert!(shown.contains("http://…@proxy:3128"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn samples_of_owners_files_say_what_the_project_said() {
    let made = Made::new();
    let kit = made.kit("site-2");
    let site = kit.site().unwrap();
    assert_eq!(site.resources.gpus, ["0", "1"]);
    assert_eq!(site.resources.mem_per_gpu_gib, Some(24.0));
    assert!(!site.allow_log_streaming);
    assert!(made.kit("site-1").site().unwrap().allow_log_streaming);
    // What is commented out is right, too.
    for name in [
        "server1.example.com",
        "site-1",
        "relay-1",
        "admin@example.com",
    ] {
        let folder = made.folder(name);
        let kit = Kit::open(&folder).unwrap();
        let file = match kit.role() {
            Role::Server => "server.toml",
            Role::Site => "site.toml",
            Role::Relay => "relay.toml",
            Role::Admin(_) => "admin.toml",
        };
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let bare: Vec<&str> = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                // Sentences start with a capital, settings do not.
                Some(rest) if rest.starts_with(|c: char| c.is_lowercase() || c == '[') => rest,
                _ => line,
            })
            .collect();
        fs::write(folder.join(file), bare.join("\n")).unwrap();
        Kit::open(&folder).unwrap_or_else(|error| panic!("{name}: {}", explained(&error)));
    }
}

/// What a change to a site's kit makes of opening it: text, causes and hint.
fn check(change: impl FnOnce(&Path), words: &[&str]) {
    let made = Made::new();
    let folder = made.folder("site-1");
    Kit::open(&folder).unwrap();
    change(&folder);
    let error = Kit::open(&folder).unwrap_err();
    let text = explained(&error);
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    let key = fs::read_to_string(folder.join("key.pem")).unwrap_or_default();
    for line in key
        .lines()
        .filter(|line| line.len() > 20 && !line.starts_with('-'))
    {
        assert!(!text.contains(line), "the key is in: {text}");
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_changed_byte_anywhere_is_noticed_and_the_file_named() {
    let made = Made::new();
    for name in [
        "kit.toml",
        "certificate.pem",
        "authority.pem",
        "manifest.json",
        "manifest.sig",
        "key.pem",
    ] {
        let folder = made.folder("site-1");
        let whole = fs::read(folder.join(name)).unwrap();
        let step = (whole.len() / 24).max(1);
        for at in (0..whole.len()).step_by(step) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x04;
            fs::write(folder.join(name), &bytes).unwrap();
            match Kit::open(&folder) {
                Ok(_) => {
                    // Text around a PEM section means nothing.
                    assert!(
                        name == "key.pem" && at == whole.len() - 1,
                        "byte {at} of {name} may be changed"
                    );
                }
                Err(error) => {
                    let text = explained(&error);
                    // The list is about all files, so it is the kit that is named.
                    assert!(
                        text.contains(folder.to_str().unwrap()),
                        "{name} {at}: {text}"
                    );
                }
            }
        }
        fs::write(folder.join(name), &whole).unwrap();
    }
    Kit::open(made.folder("site-1")).unwrap();
}

#[test]
fn a_changed_configuration_says_where_settings_belong() {
    check(
        |kit| replace(&kit.join("kit.toml"), "8002", "9999"),
        &["kit.toml", "changed after", "site.toml"],
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    for mode in [0o644, 0o640, 0o604] {
        check(
            |kit| fs::set_permissions(kit.join("key.pem"), Permissions::from_mode(mode)).unwrap(),
            &[
                "key.pem",
                "read by others",
                &format!("{mode:04o}"),
                "chmod 600",
            ],
        );
    }
}

#[test]
fn missing_files_are_named() {
    for name in [
        "kit.toml",
        "certificate.pem",
        "authority.pem",
        "manifest.json",
        "manifest.sig",
        "key.pem",
    ] {
        check(|kit| fs::remove_file(kit.join(name)).unwrap(), &[name]);
    }
    check(
        |kit| fs::remove_dir_all(kit).unwrap(),
        &["kit.toml", "firesteel provision"],
    );
    // The owner's file may be missing.
    let made = Made::new();
    fs::remove_file(made.folder("site-1").join("site.toml")).unwrap();
    assert_eq!(made.kit("site-1").site().unwrap().max_jobs, 4);
}

#[test]
fn files_of_another_kit_do_not_fit() {
    let other = Made::new();
    for name in ["certificate.pem", "kit.toml"] {
        check(
            |kit| {
                fs::copy(other.folder("site-2").join(name), kit.join(name)).unwrap();
            },
            &[name, "changed"],
        );
    }
    check(
        |kit| {
            fs::copy(
                other.folder("site-1").join("authority.pem"),
                kit.join("authority.pem"),
            )
            .unwrap();
        },
        &["was not signed by its authority"],
    );
    check(
        |kit| {
            fs::remove_file(kit.join("key.pem")).unwrap();
            fs::copy(other.folder("site-1").join("key.pem"), kit.join("key.pem")).unwrap();
        },
        &["does not belong to the certificate of `site-1`"],
    );
}

#[test]
fn a_kit_whose_time_is_over_says_when() {
    let made = Made::of(&PROJECT.replace("root_valid_days: 3650", "root_valid_days: 1"));
    let kit = made.kit("site-1");
    let before = kit.holder().starts - Duration::from_secs(60);
    let after = kit.expires() + Duration::from_secs(60);
    let chain = fs::read(&kit.identity_files().certificates).unwrap();
    let error = kit.authority().check(&chain, after).unwrap_err();
    assert!(
        explained(&error).contains("`site-1` expired on 20"),
        "{error}"
    );
    assert!(explained(&error).contains("provision again"), "{error}");
    let error = kit.authority().check(&chain, before).unwrap_err();
    assert!(explained(&error).contains("clock"), "{error}");
    kit.authority()
        .check(&chain, kit.holder().starts + Duration::from_secs(60))
        .unwrap();
}

#[test]
fn mistakes_in_the_owners_file_are_named() {
    for (text, words) in [
        ("max_job = 3", &["site.toml", "max_job"][..]),
        ("max_jobs = 0", &["max_jobs", "at least 1"]),
        ("[resources]\nmemory_gib = -1.0", &["resources.memory_gib"]),
        ("[policy.boss]\nview = [\"any\"]", &["policy", "boss"]),
        (
            "[environments.x]\npython = \"p\"\nvariables = { A = \"1\" }\nsecrets = { A = { env = \"B\" } }",
            &["environments.x", "`A`"],
        ),
        ("[data.x]\nread_only = true", &["path"]),
    ] {
        check(|kit| fs::write(kit.join("site.toml"), text).unwrap(), words);
    }
}

#[test]
fn a_signature_is_worth_something_for_its_purpose_and_project_only() {
    let made = Made::new();
    let lead = made.kit("lead@north.org");
    let signer = Signer::from_kit(&lead).unwrap();
    let signature = signer.sign(Purpose::Bundle, b"list").unwrap();
    let check = |authority, purpose, bytes: &[u8], signature: &[u8]| {
        verify(signer.chain_pem(), authority, purpose, bytes, signature)
    };
    let signed = check(lead.authority(), Purpose::Bundle, b"list", &signature).unwrap();
    assert_eq!(
        (signed.name.as_str(), signed.org.as_str()),
        ("lead@north.org", "north")
    );
    assert_eq!(signed.role, Role::Admin(AdminRole::Lead));
    check(lead.authority(), Purpose::Login, b"list", &signature).unwrap_err();
    check(lead.authority(), Purpose::Bundle, b"lisp", &signature).unwrap_err();
    check(lead.authority(), Purpose::Bundle, b"list", b"").unwrap_err();
    let other = Made::new();
    let error = check(
        other.kit("site-1").authority(),
        Purpose::Bundle,
        b"list",
        &signature,
    )
    .unwrap_err();
    assert!(explained(&error).contains("not issued by this project's authority"));
    // Machines can sign as well; what they may is another question.
    let server = Signer::from_kit(&made.kit("server1.example.com")).unwrap();
    let signature = server.sign(Purpose::Login, b"x").unwrap();
    let by = verify(
        server.chain_pem(),
        lead.authority(),
        Purpose::Login,
        b"x",
        &signature,
    )
    .unwrap();
    assert_eq!(by.role, Role::Server);
}

#[test]
fn identities_stay_the_next_time() {
    let made = Made::new();
    let next = made.root.path().join("next");
    let again = provision(&project(PROJECT), &next, &made.state()).unwrap();
    assert!(again.kits.iter().all(|kit| kit.how == How::Known));
    for name in ["site-1", "server1.example.com"] {
        for file in ["key.pem", "certificate.pem", "authority.pem"] {
            assert_eq!(
                fs::read(made.folder(name).join(file)).unwrap(),
                fs::read(next.join(name).join(file)).unwrap()
            );
        }
    }
    // What says something else now gets another certificate for the same key.
    let changed = PROJECT.replace("org: north\n    capacity", "org: west\n    capacity");
    let changed = changed.replace(
        "host_names: [localhost, 127.0.0.1]",
        "host_names: [localhost]",
    );
    let third = made.root.path().join("third");
    let again = provision(&project(&changed), &third, &made.state()).unwrap();
    let new: Vec<_> = again
        .kits
        .iter()
        .filter(|kit| kit.how == How::New)
        .map(|kit| kit.name.as_str())
        .collect();
    assert_eq!(new, ["server1.example.com", "site-2"]);
    let (old, new) = (made.kit("site-2"), Kit::open(third.join("site-2")).unwrap());
    assert_eq!(new.org(), "west");
    let key = |kit: &Kit| fs::read(&kit.identity_files().key).unwrap();
    assert_eq!(key(&old), key(&new));
    new.authority()
        .check(
            &fs::read(&old.identity_files().certificates).unwrap(),
            std::time::SystemTime::now(),
        )
        .unwrap();
}

#[test]
fn one_can_be_added_and_the_others_stay_as_they_are() {
    let made = Made::new();
    let mut more = project(PROJECT);
    more.add(
        "name: site-9\norg: east\n",
        Path::new("site-9.yml"),
        Adding::Client,
    )
    .unwrap();
    more.add(
        "name: m@east.org\norg: east\nrole: member\n",
        Path::new("m.yml"),
        Adding::User,
    )
    .unwrap();
    let before = fs::read(made.folder("site-1").join("kit.toml")).unwrap();
    let again = provision(&more, &made.out(), &made.state()).unwrap();
    let fresh: Vec<_> = again
        .kits
        .iter()
        .filter(|kit| kit.how != How::Kept)
        .map(|kit| kit.name.as_str())
        .collect();
    assert_eq!(fresh, ["site-9", "m@east.org"]);
    assert_eq!(
        fs::read(made.folder("site-1").join("kit.toml")).unwrap(),
        before
    );
    assert_eq!(made.kit("site-9").org(), "east");
    made.kit("m@east.org");
    made.nothing_half();
}

#[test]
fn a_kit_that_is_there_is_never_overwritten() {
    let made = Made::new();
    let other = project(&PROJECT.replace("fed_learn_port: 8002", "fed_learn_port: 8012"));
    let mut more = other.clone();
    more.add(
        "name: site-9\norg: east\n",
        Path::new("site-9.yml"),
        Adding::Client,
    )
    .unwrap();
    let error = provision(&more, &made.out(), &made.state()).unwrap_err();
    assert!(explained(&error).contains("never overwritten"), "{error}");
    // Nor was the new one made beside it.
    assert!(!made.folder("site-9").exists());
    assert_eq!(made.kit("site-1").connect()[0].port, 8002);
    made.nothing_half();
}

#[test]
fn a_failure_leaves_no_kit_behind() {
    let root = tempfile::tempdir().unwrap();
    let broken = PROJECT.replace(
        "name: site-1\n    type: client\n    org: north",
        "name: site-1\n    type: client\n    org: north\n    connection_security: tls\n    custom_ca_cert: nowhere.pem",
    );
    let error = provision(
        &project(&broken),
        &root.path().join("kits"),
        &root.path().join("state"),
    )
    .unwrap_err();
    assert!(explained(&error).contains("nowhere.pem"), "{error}");
    assert!(!root.path().join("kits").exists());
}

#[test]
fn a_proxys_authority_travels_in_the_kit() {
    let proxy = Made::new();
    let root = tempfile::tempdir().unwrap();
    fs::copy(
        proxy.folder("site-1").join("authority.pem"),
        root.path().join("proxy-ca.pem"),
    )
    .unwrap();
    let text = PROJECT.replace(
        "name: site-1\n    type: client\n    org: north",
        "name: site-1\n    type: client\n    org: north\n    connection_security: tls\n    custom_ca_cert: proxy-ca.pem",
    );
    let project = Project::parse(&text, &root.path().join("project.yml")).unwrap();
    let kits = root.path().join("kits");
    provision(&project, &kits, &root.path().join("state")).unwrap();
    let kit = Kit::open(kits.join("site-1")).unwrap();
    let way = &kit.connect()[0];
    assert_eq!(way.security, Security::Tls);
    let file = way.authority.as_ref().unwrap();
    assert_eq!(file, &kits.join("site-1/outer-authority.pem"));
    fs::write(file, "else").unwrap();
    assert!(
        explained(&Kit::open(kits.join("site-1")).unwrap_err()).contains("outer-authority.pem")
    );
}

#[test]
fn state_is_for_its_owner_only_and_for_one_at_a_time() {
    let made = Made::new();
    for entry in walk(&made.state()) {
        let mode = fs::metadata(&entry).unwrap().permissions().mode();
        // Folders within are closed by the outermost.
        if entry.is_file() || entry == made.state() {
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.display());
        }
    }
    let lock = fs::File::open(made.state().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = provision(
        &project(PROJECT),
        &made.root.path().join("b"),
        &made.state(),
    )
    .unwrap_err();
    assert!(
        explained(&error).contains("another `firesteel provision`"),
        "{error}"
    );
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn damaged_state_is_named_and_not_replaced() {
    let made = Made::new();
    let key = made.state().join("authority.key.pem");
    let whole = fs::read(&key).unwrap();
    fs::write(&key, "nonsense").unwrap();
    let error = provision(
        &project(PROJECT),
        &made.root.path().join("b"),
        &made.state(),
    )
    .unwrap_err();
    assert!(explained(&error).contains("authority.key.pem"), "{error}");
    fs::remove_file(&key).unwrap();
    let error = provision(
        &project(PROJECT),
        &made.root.path().join("b"),
        &made.state(),
    )
    .unwrap_err();
    assert!(explained(&error).contains("backup"), "{error}");
    fs::write(&key, whole).unwrap();
    provision(
        &project(PROJECT),
        &made.root.path().join("b"),
        &made.state(),
    )
    .unwrap();
}

#[test]
fn runs_are_numbered() {
    let root = tempfile::tempdir().unwrap();
    let project = project(PROJECT);
    let state = state_folder(root.path(), &project);
    assert_eq!(state, root.path().join("example_project/state"));
    for expected in ["prod_00", "prod_01", "prod_02"] {
        let out = next_folder(root.path(), &project).unwrap();
        assert_eq!(out, root.path().join("example_project").join(expected));
        provision(&project, &out, &state).unwrap();
    }
    fs::create_dir(root.path().join("example_project/prod_41")).unwrap();
    assert!(
        next_folder(root.path(), &project)
            .unwrap()
            .ends_with("prod_42")
    );
}

#[test]
fn a_hundred_sites_are_made_at_once() {
    let sites: String = (100..200)
        .map(|site| format!("  - {{name: site-{site}, type: client, org: north}}\n"))
        .collect();
    let text = PROJECT.replace("builders:", &format!("{sites}builders:"));
    let root = tempfile::tempdir().unwrap();
    let project = project(&text);
    let start = Instant::now();
    let made = provision(
        &project,
        &root.path().join("kits"),
        &root.path().join("state"),
    )
    .unwrap();
    println!("{} kits in {:?}", made.kits.len(), start.elapsed());
    assert_eq!(made.kits.len(), 106);
    for kit in made.kits.iter().step_by(17) {
        Kit::open(&kit.folder).unwrap();
    }
}
