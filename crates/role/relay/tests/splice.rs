//! Sessions with a server through relays that cannot read them.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use firesteel_net::dev::{Authority, Subject};
use firesteel_net::{
    BoxStream, Entrance, Front, FrontOptions, Identity, Kind, Options, Session, dial,
};
use firesteel_relay::{Uplink, answer_tunnel, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

const CONNECT: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);
const SERVER: &str = "server.test";
const HOUR: time::Duration = time::Duration::HOUR;

struct World {
    authority: Authority,
}

impl World {
    fn new() -> Self {
        Self {
            authority: Authority::new("test").unwrap(),
        }
    }

    fn identity(&self, name: &str, role: &str, hosts: &[&str]) -> Identity {
        let subject = Subject {
            name,
            role,
            hosts,
            starts: -HOUR,
            ends: HOUR,
        };
        self.authority.issue(&subject).unwrap().identity().unwrap()
    }

    /// A server that answers every stream with what came on it, in capitals.
    async fn server(&self) -> SocketAddr {
        let identity = self.identity("server", "server", &[SERVER]);
        let front = Arc::new(front(identity, local()).await);
        let address = front.local_addresses()[0];
        tokio::spawn(async move {
            loop {
                if let Ok(session) = front.accept().await {
                    tokio::spawn(answers(Arc::clone(&front), session));
                }
            }
        });
        address
    }

    /// A relay below `above`, which shows the certificate of `host`.
    async fn relay(&self, name: &str, above: SocketAddr, host: &str, listen: SocketAddr) -> Relay {
        let identity = self.identity(name, "relay", &[]);
        let carried = Arc::new(AtomicU64::new(0));
        let spoils = Arc::new(AtomicBool::new(false));
        let (counted, spoiling) = (Arc::clone(&carried), Arc::clone(&spoils));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (tell, mut ready) = watch::channel(None);
        let own = self.identity(name, "relay", &[&format!("{name}.test")]);
        let host = host.to_owned();
        runtime.spawn(async move {
            let front = front(own, listen).await;
            let above = above.to_string();
            let up = dial(&above, &host, &identity, Options::default());
            let up = up.await.unwrap();
            tell.send_replace(Some(front.local_addresses()[0]));
            loop {
                if let Ok(session) = front.accept().await {
                    let (up, counted, spoils) =
                        (up.clone(), Arc::clone(&counted), Arc::clone(&spoiling));
                    tokio::spawn(carry(session, up, counted, spoils));
                }
            }
        });
        let ready = *ready.wait_for(Option::is_some).await.unwrap();
        Relay {
            address: ready.unwrap(),
            carried,
            spoils,
            runtime: Some(runtime),
        }
    }

    async fn uplink(&self, site: &str, relay: &Relay, name: &str) -> Uplink {
        let identity = self.identity(site, "site", &[]);
        let host = format!("{name}.test");
        let until = Instant::now() + LIMIT;
        loop {
            let address = relay.address.to_string();
            match dial(&address, &host, &identity, Options::default()).await {
                Ok(session) => return Uplink::over(session, CONNECT),
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Relay {
    address: SocketAddr,
    /// Bytes that went up.
    carried: Arc<AtomicU64>,
    /// Whether it changes a byte of what it carries from now on.
    spoils: Arc<AtomicBool>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn local() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn front(identity: Identity, listen: SocketAddr) -> Front {
    let until = Instant::now() + LIMIT;
    loop {
        let entrances = vec![Entrance::new(listen)];
        let options = FrontOptions::new(entrances, identity.clone(), Options::default());
        match Front::bind(options).await {
            Ok(front) => return front,
            // One that was killed may hold the port a moment longer.
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The server's part: tunnels are fresh connections, other streams are answered.
async fn answers(front: Arc<Front>, session: Session) {
    while let Some((kind, mut stream)) = session.accept().await {
        let (front, from) = (Arc::clone(&front), session.address());
        tokio::spawn(async move {
            if kind == Kind::TUNNEL {
                if let Some(stream) = answer_tunnel(stream, CONNECT).await {
                    front.serve_stream(stream, from);
                }
                return;
            }
            let mut all = String::new();
            if stream.read_to_string(&mut all).await.is_ok() {
                let _ = stream.write_all(all.to_uppercase().as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
    }
}

/// A relay's part.
async fn carry(session: Session, up: Session, carried: Arc<AtomicU64>, spoils: Arc<AtomicBool>) {
    let mut open = JoinSet::new();
    while let Some((kind, stream)) = session.accept().await {
        assert_eq!(kind, Kind::TUNNEL);
        let (up, carried, spoils) = (up.clone(), Arc::clone(&carried), Arc::clone(&spoils));
        open.spawn(async move {
            let above = || async {
                let stream = up
                    .open(Kind::TUNNEL)
                    .await
                    .map_err(|error| error.to_string())?;
                Ok(spoiled(stream, carried, spoils))
            };
            let _ = tunnel::pass(stream, above, CONNECT).await;
        });
    }
}

/// A stream that counts what goes up, and changes a byte of it when it is told to.
fn spoiled(stream: BoxStream, carried: Arc<AtomicU64>, spoils: Arc<AtomicBool>) -> BoxStream {
    let (near, far) = firesteel_net::pipe(64 * 1024);
    tokio::spawn(async move {
        let (mut down_read, mut down_write) = tokio::io::split(far);
        let (mut up_read, mut up_write) = tokio::io::split(stream);
        let upwards = async {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let count = down_read.read(&mut buffer).await?;
                if count == 0 {
                    return up_write.shutdown().await;
                }
                if spoils.load(Ordering::Relaxed) {
                    buffer[count / 2] ^= 1;
                }
                carried.fetch_add(count as u64, Ordering::Relaxed);
                up_write.write_all(&buffer[..count]).await?;
                up_write.flush().await?;
            }
        };
        let downwards = async {
            tokio::io::copy(&mut up_read, &mut down_write).await?;
            down_write.shutdown().await
        };
        let _: (std::io::Result<()>, std::io::Result<()>) = tokio::join!(upwards, downwards);
    });
    near
}

async fn ask(session: &Session, text: &str) -> std::io::Result<String> {
    let mut stream = session
        .open(Kind::other(0))
        .await
        .map_err(std::io::Error::other)?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_sees_the_servers_certificate_through_two_relays() {
    let world = World::new();
    let server = world.server().await;
    let upper = world.relay("upper", server, SERVER, local()).await;
    let lower = world
        .relay("lower", upper.address, "upper.test", local())
        .await;
    let uplink = world.uplink("site-1", &lower, "lower").await;
    assert_eq!(uplink.session().peer().name.as_str(), "lower");
    let identity = world.identity("site-1", "site", &[]);
    let session = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    assert_eq!(session.peer().name.as_str(), "server");
    assert_eq!(session.peer().role.as_deref(), Some("server"));
    assert_eq!(
        ask(&session, "in plain words").await.unwrap(),
        "IN PLAIN WORDS"
    );
    // Large enough for bulk connections, which are tunnels, too.
    let long = "words ".repeat(500_000);
    assert_eq!(ask(&session, &long).await.unwrap(), long.to_uppercase());
    assert!(upper.carried.load(Ordering::Relaxed) > 3_000_000);
    // The relay cannot be taken for the server.
    let other = uplink
        .server("lower.test", &identity, Options::default())
        .await;
    assert!(other.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_changes_a_byte_ends_the_connection() {
    let world = World::new();
    let server = world.server().await;
    let relay = world.relay("north", server, SERVER, local()).await;
    let uplink = world.uplink("site-1", &relay, "north").await;
    let identity = world.identity("site-1", "site", &[]);
    let session = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    assert_eq!(ask(&session, "fine").await.unwrap(), "FINE");
    relay.spoils.store(true, Ordering::Relaxed);
    let answer = tokio::time::timeout(LIMIT, ask(&session, "spoiled"));
    assert!(
        answer.await.unwrap().is_err(),
        "what was changed got through"
    );
    relay.spoils.store(false, Ordering::Relaxed);
    let again = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    assert_eq!(ask(&again, "again").await.unwrap(), "AGAIN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_goes_on_through_the_next_process_of_its_relay() {
    let world = World::new();
    let server = world.server().await;
    let relay = world.relay("north", server, SERVER, local()).await;
    let uplink = world.uplink("site-1", &relay, "north").await;
    let identity = world.identity("site-1", "site", &[]);
    let session = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    let address = relay.address;
    drop(relay);
    tokio::time::timeout(LIMIT, session.closed()).await.unwrap();
    let relay = world.relay("north", server, SERVER, address).await;
    let uplink = world.uplink("site-1", &relay, "north").await;
    let session = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    assert_eq!(ask(&session, "there again").await.unwrap(), "THERE AGAIN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_the_server_cannot_be_reached_comes_down() {
    let world = World::new();
    let server = world.server().await;
    let relay = world.relay("north", server, SERVER, local()).await;
    let uplink = world.uplink("site-1", &relay, "north").await;
    let identity = world.identity("site-1", "site", &[]);
    let stranger = Authority::new("other").unwrap();
    let other = stranger.site("site-1").unwrap().identity().unwrap();
    // A certificate of another authority comes to the server, and no further.
    let refused = uplink.server(SERVER, &other, Options::default()).await;
    assert!(refused.is_err());
    let session = uplink
        .server(SERVER, &identity, Options::default())
        .await
        .unwrap();
    assert_eq!(ask(&session, "still here").await.unwrap(), "STILL HERE");
}
