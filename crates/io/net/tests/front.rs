//! One port for sessions by every driver, and for the web.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use common::door::{House, SCHEMES, clear, get_at};
use common::{exchange, until, within};
use firesteel_base::Hint as _;
use firesteel_net::{
    CloseReason, DialError, Entrance, Kind, Opener, Options, Proxy, Scheme, Security, Serves,
    Session, dial_over, dial_through, dial_with, pipe,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn options() -> Options {
    Options::default()
}

/// Streams both ways, small and large, in a scope and outside.
async fn check_session(near: &Session, far: &Session) {
    assert_eq!(near.peer().name.as_str(), "server");
    assert_eq!(far.peer().name.as_str(), "site-1");
    exchange(near.control().unwrap(), far.control().unwrap(), 100).await;
    for (opener, taker) in [(near, far), (far, near)] {
        let opened = within(opener.open(Kind::TRANSFER)).await.unwrap();
        let (kind, taken) = within(taker.accept()).await.unwrap();
        assert_eq!(kind, Kind::TRANSFER);
        exchange(opened, taken, 5_000_000).await;
    }
    let (a, b) = (near.scope("job").unwrap(), far.scope("job").unwrap());
    let (opened, taken) = tokio::join!(within(a.open_control()), within(b.accept_control()));
    exchange(opened.unwrap(), taken.unwrap(), 1000).await;
    within(near.ping()).await.unwrap();
}

#[tokio::test]
async fn every_driver_makes_sessions_at_one_port_beside_the_web() {
    let house = House::new(options()).await;
    for scheme in SCHEMES {
        let (near, far) = house.session(&house.target(scheme)).await;
        check_session(&near, &far).await;
        assert!(near.bulk_connections() > 0, "{scheme}");
        assert_eq!(near.bulk_connections(), far.bulk_connections());
        let (status, text) = house.get("/v1/jobs").await;
        assert_eq!(status, 200);
        assert!(text.starts_with("GET /v1/jobs 127.0.0.1:"), "{text}");
        within(near.close("done")).await;
        let reason = within(far.closed()).await;
        assert_eq!(reason, CloseReason::Peer("done".into()), "{scheme}");
    }
}

#[tokio::test]
async fn one_connection_is_enough_for_every_driver() {
    let house = House::new(options().single_connection()).await;
    for scheme in SCHEMES {
        let (near, far) = house.session(&house.target(scheme)).await;
        check_session(&near, &far).await;
        assert_eq!(near.bulk_connections(), 0);
    }
}

#[tokio::test]
async fn every_driver_over_ipv6() {
    let address = "[::1]:0".parse().unwrap();
    let house = House::with(options(), |made| {
        made.entrances = vec![Entrance::new(address)]
    })
    .await;
    for scheme in SCHEMES {
        let (near, far) = house.session(&house.target(scheme)).await;
        assert!(near.address().is_ipv6() && far.address().is_ipv6());
        check_session(&near, &far).await;
    }
}

#[tokio::test]
async fn behind_an_ingress_that_ends_tls_the_port_is_clear() {
    let address = "127.0.0.1:0".parse().unwrap();
    let mut inner = Entrance::new(address);
    inner.clear = true;
    let house = House::with(options(), |made| made.entrances.push(inner)).await;
    let behind = house.front.local_addresses()[1];
    for scheme in SCHEMES {
        let target = clear(house.target_at(scheme, behind, house.site("site-1")));
        let (near, far) = house.session(&target).await;
        check_session(&near, &far).await;
    }
    let target = clear(house.target_at(Scheme::Http, behind, house.site("site-1")));
    let (status, text) = get_at(&target, &options(), "/x", &[]).await;
    assert_eq!((status, text.starts_with("GET /x")), (200, true));
    // TLS is taken there, too; but nothing clear where TLS is expected.
    let target = house.target_at(Scheme::Grpc, behind, house.site("site-1"));
    let (near, far) = house.session(&target).await;
    check_session(&near, &far).await;
    for scheme in [Scheme::Grpc, Scheme::Http] {
        let error = house.dial(&clear(house.target(scheme))).await.unwrap_err();
        assert!(matches!(error, DialError::Link { .. }), "{error}");
        within(house.front.accept()).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_port_may_be_for_the_web_or_for_sessions_alone() {
    let address = "127.0.0.1:0".parse().unwrap();
    let mut web = Entrance::new(address);
    web.serves = Serves::Web;
    let mut sessions = Entrance::new(address);
    sessions.serves = Serves::Sessions;
    let house = House::with(options(), |made| made.entrances = vec![web, sessions]).await;
    let [web, sessions] = house.front.local_addresses() else {
        panic!("two ports");
    };
    for scheme in SCHEMES {
        let target = house.target_at(scheme, *sessions, house.site("site-1"));
        let (near, far) = house.session(&target).await;
        check_session(&near, &far).await;
        let target = house.target_at(scheme, *web, house.site("site-1"));
        let error = house.dial(&target).await.unwrap_err();
        let text = error.to_string();
        match scheme {
            Scheme::Tcp => {
                assert!(text.contains("not Firesteel's protocol"), "{text}");
                within(house.front.accept()).await.unwrap_err();
            }
            _ => assert!(text.contains("404"), "{text}"),
        }
    }
    let target = house.target_at(Scheme::Http, *web, house.site("site-1"));
    assert_eq!(get_at(&target, &options(), "/", &[]).await.0, 200);
    let target = house.target_at(Scheme::Http, *sessions, house.site("site-1"));
    let (status, text) = get_at(&target, &options(), "/", &[]).await;
    assert_eq!((status, text.contains("sites")), (404, true), "{text}");
}

#[tokio::test]
async fn a_cut_link_ends_the_session_at_both_ends() {
    for scheme in SCHEMES {
        let house = House::new(options().single_connection()).await;
        let (near, far) = house.session(&house.target(scheme)).await;
        let mut opened = within(near.open(Kind::TRANSFER)).await.unwrap();
        opened.write_all(b"x").await.unwrap();
        opened.flush().await.unwrap();
        let (_, mut taken) = within(far.accept()).await.unwrap();
        within(taken.read_exact(&mut [0])).await.unwrap();
        drop(near);
        assert_eq!(within(far.closed()).await, CloseReason::Peer(String::new()));
        within(taken.read(&mut [0])).await.unwrap_err();
    }
}

#[tokio::test]
async fn quiet_links_are_kept_and_used_again() {
    let mut options = options();
    options.durations.idle = Duration::from_millis(400);
    let house = House::new(options).await;
    for scheme in SCHEMES {
        let (near, far) = house.session(&house.target(scheme)).await;
        let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
        let (_, taken) = within(far.accept()).await.unwrap();
        let start = Instant::now();
        // Nothing but pings, for much longer than a silent peer is waited for.
        until("time passes", || {
            start.elapsed() > Duration::from_millis(1600)
        })
        .await;
        exchange(opened, taken, 1000).await;
        within(near.ping()).await.unwrap();
    }
}

#[tokio::test]
async fn sessions_through_streams_of_somebody_else() {
    let house = House::new(options()).await;
    let from: SocketAddr = "192.0.2.9:700".parse().unwrap();
    let identity = house.site("site-1");
    let (near, far) = pipe(64 * 1024);
    house.front.serve_stream(far, from);
    let (near, far) = tokio::join!(
        within(dial_over(near, "localhost", &identity, options())),
        within(house.front.accept())
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(far.address(), from);
    assert_eq!(near.bulk_connections(), 0);
    check_session(&near, &far).await;

    // One stream for each connection, where there may be several.
    let front = Arc::clone(&house.front);
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let opener: Opener = Arc::new(move || {
        let (near, far) = pipe(64 * 1024);
        front.serve_stream(far, from);
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(near) })
    });
    let (near, far) = tokio::join!(
        within(dial_through(opener, "localhost", &identity, options())),
        within(house.front.accept())
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    check_session(&near, &far).await;
    assert_eq!(made.load(Ordering::Relaxed), 1 + near.bulk_connections());
    assert!(near.bulk_connections() > 0);
    let error = within(dial_through(
        Arc::new(|| Box::pin(async { Err(std::io::ErrorKind::HostUnreachable.into()) })),
        "localhost",
        &identity,
        options(),
    ))
    .await
    .unwrap_err();
    assert!(matches!(error, DialError::Tunnel { .. }), "{error}");
}

/// A proxy that knows `me` with the password `p@ss`; how many it let through.
async fn proxy(refuse: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&passed);
    let expected = base64::engine::general_purpose::STANDARD.encode("me:p@ss");
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (count, expected) = (Arc::clone(&count), expected.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head
                    .strip_prefix("CONNECT ")
                    .and_then(|rest| rest.split_once(' '))
                    .unwrap()
                    .0
                    .to_owned();
                let known =
                    head.lines()
                        .filter_map(|line| line.split_once(": "))
                        .any(|(name, value)| {
                            name.eq_ignore_ascii_case("proxy-authorization")
                                && value == format!("Basic {expected}")
                        });
                if !known {
                    let answer = "HTTP/1.1 407 Who are you?\r\ncontent-length: 0\r\n\r\n";
                    near.write_all(answer.as_bytes()).await.unwrap();
                    return;
                }
                if refuse {
                    let answer = "HTTP/1.1 403 Never\r\ncontent-length: 0\r\n\r\n";
                    near.write_all(answer.as_bytes()).await.unwrap();
                    return;
                }
                let mut far = TcpStream::connect(&target).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                near.write_all(b"HTTP/1.1 200 There you are\r\n\r\n")
                    .await
                    .unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, passed)
}

#[tokio::test]
async fn every_driver_goes_through_a_proxy_with_all_its_connections() {
    let house = House::new(options()).await;
    let (address, passed) = proxy(false).await;
    for scheme in SCHEMES {
        let before = passed.load(Ordering::Relaxed);
        let mut target = house.target(scheme);
        let url = format!("http://me:p%40ss@{address}");
        target.proxy = Some(Proxy::parse(&url).unwrap());
        let (near, far) = house.session(&target).await;
        check_session(&near, &far).await;
        let connections = 1 + near.bulk_connections();
        assert_eq!(passed.load(Ordering::Relaxed) - before, connections);
        assert!(connections > 1);
        assert_eq!(near.address(), address);
        let (status, _) = get_at(&target, &options(), "/", &[]).await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_without_the_password() {
    let house = House::new(options()).await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let strict = proxy(true).await.0;
    let cases = [
        (
            proxy(false).await.0,
            "me:wrong-one",
            "407",
            "user and password",
        ),
        (strict, "me:p%40ss", "403", "allowed"),
        (nobody, "me:p%40ss", "cannot be reached", "host and port"),
        (house.address(), "me:p%40ss", "proxy", "host and port"),
    ];
    for (address, credentials, words, hint) in cases {
        let mut target = house.target(Scheme::Tcp);
        let url = format!("http://{credentials}@{address}");
        target.proxy = Some(Proxy::parse(&url).unwrap());
        let error = house.dial(&target).await.unwrap_err();
        let text = format!("{error} {}", error.hint().unwrap());
        for word in [words, hint, &address.to_string()] {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        for secret in ["wrong-one", "p@ss", "p%40ss"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn the_outer_tls_is_checked_by_its_own_authority_and_name() {
    // The server's own certificate stands for an ingress's of another authority.
    let house = House::new(options()).await;
    let ours = house.authority.site("x").unwrap().authority;
    let other = firesteel_net::dev::Authority::new("elsewhere").unwrap();
    let other = other.site("x").unwrap().authority;
    for scheme in [Scheme::Grpc, Scheme::Http] {
        let mut target = house.target(scheme);
        target.host = "localhost".to_owned();
        target.security = Security::Tls;
        target.outer_authority = Some(ours.clone().into_bytes());
        let (near, far) = house.session(&target).await;
        check_session(&near, &far).await;

        target.outer_authority = Some(other.clone().into_bytes());
        let error = house.dial(&target).await.unwrap_err();
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(matches!(error, DialError::Outer { .. }), "{text}");
        assert!(text.contains("outer"), "{text}");
        within(house.front.accept()).await.unwrap_err();

        target.outer_authority = Some(ours.clone().into_bytes());
        target.outer_name = Some("elsewhere.example".to_owned());
        let error = house.dial(&target).await.unwrap_err();
        assert!(error.to_string().contains("elsewhere.example"), "{error}");
        within(house.front.accept()).await.unwrap_err();

        target.outer_authority = Some(b"nothing".to_vec());
        let error = house.dial(&target).await.unwrap_err();
        assert!(matches!(error, DialError::OuterAuthority { .. }), "{error}");
    }
}

#[tokio::test]
async fn many_sessions_at_once_by_all_drivers() {
    let house = House::new(options()).await;
    let mut dialing = tokio::task::JoinSet::new();
    for number in 0..12 {
        let target = house.target(SCHEMES[number % 3]);
        let options = options();
        dialing.spawn(async move { dial_with(&target, options).await.unwrap() });
    }
    let mut far = Vec::new();
    for _ in 0..12 {
        far.push(within(house.front.accept()).await.unwrap());
    }
    while let Some(near) = within(dialing.join_next()).await {
        drop(near.unwrap());
    }
    for far in far {
        assert_eq!(within(far.closed()).await, CloseReason::Peer(String::new()));
    }
}
