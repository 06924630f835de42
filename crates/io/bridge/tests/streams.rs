//! Offers and fetches of trainers over a real socket.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use firesteel_base::Hint;
use firesteel_bridge::stream::{Exchange, StreamKind};
use firesteel_bridge::{
    BridgeClient, BridgeListener, ClientError, Dial, Expected, Fetched, Interrupted,
};
use firesteel_wire::bridge::{Fetch, Offer};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

const PATIENCE: Duration = Duration::from_secs(20);

/// Two sites on one machine, each with a listener of its own.
struct Setup {
    exchange: Exchange,
    listener: BridgeListener,
    rejections: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rejections = Arc::new(Mutex::new(Vec::new()));
        let seen = rejections.clone();
        let listener = BridgeListener::bind(Some(folder.path()), PATIENCE, move |rejection| {
            seen.lock().unwrap().push(rejection.to_string());
        })
        .unwrap();
        Self {
            exchange: Exchange::new(),
            listener,
            rejections,
            folder,
        }
    }

    async fn trainer(&self, site: &str) -> Trainer {
        let desk = self.exchange.desk(site);
        let expected = self.listener.expect_with(Some(desk)).unwrap();
        let socket = self.listener.path().to_owned();
        let client = connect(socket.clone(), expected.token().to_owned()).await;
        Trainer {
            client: Arc::new(client.unwrap()),
            socket,
            expected,
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> File {
        let path = self.folder.path().join(name);
        File::create(&path).unwrap().write_all(content).unwrap();
        File::open(path).unwrap()
    }
}

struct Trainer {
    client: Arc<BridgeClient>,
    socket: PathBuf,
    expected: Expected,
}

impl Trainer {
    async fn offer(&self, name: &str, file: File) -> Result<String, ClientError> {
        let length = file.metadata().unwrap().len();
        let offer = Offer {
            name: name.into(),
            kind: StreamKind::File.into(),
            length,
            ..Offer::default()
        };
        let client = self.client.clone();
        within(spawn_blocking(move || {
            client.offer(offer, file.as_fd(), &mut || Ok(()))
        }))
        .await
        .unwrap()
    }

    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, ClientError> {
        let client = self.client.clone();
        within(spawn_blocking(move || client.fetch(fetch, &mut || Ok(()))))
            .await
            .unwrap()
    }
}

async fn connect(socket: PathBuf, token: String) -> Result<BridgeClient, ClientError> {
    let connecting = spawn_blocking(move || {
        let dial = Dial {
            socket: &socket,
            token: &token,
            rank: 0,
            version: "0.1.0",
            connect: PATIENCE,
        };
        BridgeClient::connect_streams(dial, &mut || Ok(()))
    });
    within(connecting).await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it did not happen in time")
}

fn by_name(site: &str, name: &str) -> Fetch {
    Fetch {
        site: site.into(),
        name: name.into(),
        ..Fetch::default()
    }
}

fn content(fetched: Fetched) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(fetched.about.length).unwrap()];
    File::from(fetched.file)
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    bytes
}

#[tokio::test]
async fn one_site_offers_and_another_fetches_the_very_file() {
    let setup = Setup::new();
    let (one, two) = (setup.trainer("site-1").await, setup.trainer("site-2").await);
    let id = one.offer("x", setup.file("x", b"hello")).await.unwrap();
    let named = two.fetch(by_name("site-1", "x")).await.unwrap();
    assert_eq!((&*named.about.id, named.about.length), (&*id, 5));
    assert_eq!(content(named), b"hello");
    let fetch = Fetch {
        site: "site-1".into(),
        id: id.clone(),
        ..Fetch::default()
    };
    assert_eq!(content(two.fetch(fetch.clone()).await.unwrap()), b"hello");
    let client = one.client.clone();
    within(spawn_blocking(move || client.withdraw(id, &mut || Ok(()))))
        .await
        .unwrap()
        .unwrap();
    let error = two.fetch(fetch).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "not-offered"));
    assert_eq!(
        error.to_string(),
        "site site-1 offers nothing under this ref to this site"
    );
    assert!(error.hint().unwrap().contains("stream.offer"));
}

#[tokio::test]
async fn an_offer_outlives_its_trainer_and_ends_with_the_job() {
    let setup = Setup::new();
    let one = setup.trainer("site-1").await;
    one.offer("x", setup.file("x", b"hello")).await.unwrap();
    drop(one);
    let two = setup.trainer("site-2").await;
    let fetched = two.fetch(by_name("site-1", "x")).await.unwrap();
    assert_eq!(content(fetched), b"hello");
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let setup = Setup::new();
    let one = setup.trainer("site-1").await;
    for name in ["../x", "/etc/passwd", "a\0b", &"x".repeat(5000)] {
        let error = one.fetch(by_name("site-1", name)).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Refused { code, .. } if code == "bad-name"),
            "{error:?}"
        );
    }
    let error = one.offer("a/b", setup.file("x", b"1")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"a/b\" cannot be asked for: a name has no slash"
    );
    one.offer("ab", setup.file("x", b"1")).await.unwrap();
}

#[tokio::test]
async fn a_trainer_that_leaves_gives_up_its_fetch() {
    let setup = Setup::new();
    let one = setup.trainer("site-1").await;
    let client = one.client.clone();
    let mut calls = 0;
    let given_up = within(spawn_blocking(move || {
        let fetch = Fetch {
            wait: 3_600_000_000,
            ..by_name("site-1", "never")
        };
        client.fetch(fetch, &mut || {
            calls += 1;
            if calls > 2 { Err(Interrupted) } else { Ok(()) }
        })
    }))
    .await
    .unwrap();
    assert!(matches!(given_up, Err(ClientError::Interrupted)));
    drop(one.client);
    // The place is free again: as many as are allowed may connect.
    let mut open = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while open.len() < firesteel_base::limits::STREAM_CONNECTIONS {
        match connect(one.socket.clone(), one.expected.token().to_owned()).await {
            Ok(client) => open.push(client),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
    let error = connect(one.socket.clone(), one.expected.token().to_owned())
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("connections for streams"),
        "{error}"
    );
}

#[tokio::test]
async fn the_connection_ends_when_the_trainer_is_no_longer_expected() {
    let setup = Setup::new();
    let Trainer {
        client,
        socket,
        expected,
    } = setup.trainer("site-1").await;
    let token = expected.token().to_owned();
    drop(expected);
    let ended = within(spawn_blocking(move || {
        client.fetch(by_name("site-1", "x"), &mut || Ok(()))
    }))
    .await
    .unwrap();
    assert!(matches!(ended, Err(ClientError::Lost)), "{ended:?}");
    let error = connect(socket, token).await.err().unwrap();
    assert!(error.to_string().contains("token is not valid"), "{error}");
}

#[tokio::test]
async fn a_site_without_streams_says_so() {
    let setup = Setup::new();
    let expected = setup.listener.expect().unwrap();
    let socket: &Path = setup.listener.path();
    let error = connect(socket.to_owned(), expected.token().to_owned())
        .await
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "this site's agent serves no streams");
    assert_eq!(setup.rejections.lock().unwrap().len(), 1);
}
