//! What several tests need: a federation on loopback, and patience.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "helpers of tests are tests, too, and each test uses some of them"
)]

pub mod door;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firesteel_net::dev::Authority;
use firesteel_net::{BoxStream, DialError, Identity, Listener, Options, Session, dial};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// No test waits longer than this for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it should have happened by now")
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub struct Federation {
    pub authority: Authority,
    pub listener: Arc<Listener>,
    pub options: Options,
}

impl Federation {
    pub async fn new(options: Options) -> Self {
        let authority = Authority::new("test").unwrap();
        let server = authority.server("server", &["localhost", "127.0.0.1", "::1"]);
        let identity = server.unwrap().identity().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(address, identity, options.clone())
            .await
            .unwrap();
        Self {
            authority,
            listener: Arc::new(listener),
            options,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    pub fn site(&self, name: &str) -> Identity {
        self.authority.site(name).unwrap().identity().unwrap()
    }

    pub async fn dial(&self, identity: &Identity) -> Result<Session, DialError> {
        let address = self.address().to_string();
        within(dial(&address, "localhost", identity, self.options.clone())).await
    }

    /// A session of `site-1`: the site's end, the server's end.
    pub async fn session(&self) -> (Session, Session) {
        let identity = self.site("site-1");
        let (near, far) = tokio::join!(self.dial(&identity), within(self.listener.accept()));
        (near.unwrap(), far.unwrap())
    }
}

/// Sends bytes one way, and their beginning back.
pub async fn exchange(mut near: BoxStream, mut far: BoxStream, size: usize) {
    let sent: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        let mut back = Vec::new();
        near.read_to_end(&mut back).await.unwrap();
        back
    });
    let mut got = Vec::new();
    within(far.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    far.write_all(&got[..got.len().min(1000)]).await.unwrap();
    // As a socket: what was written before the drop is still read.
    drop(far);
    let back = within(writing).await.unwrap();
    assert_eq!(back, expected[..expected.len().min(1000)]);
}
