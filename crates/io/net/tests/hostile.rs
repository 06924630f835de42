//! What should not get in at the front door, and what it must not keep others from.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::door::{House, SCHEMES};
use common::{exchange, within};
use firesteel_base::Hint as _;
use firesteel_net::dev::{Authority, Subject};
use firesteel_net::{
    AcceptError, DialError, Entrance, Front, FrontOptions, HandshakeError, Identity, Kind, Options,
    Scheme, Target, dial_with,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn options() -> Options {
    Options::default()
}

/// Give up handshakes soon.
fn hasty() -> Options {
    let mut options = options();
    options.durations.connect = Duration::from_millis(400);
    options
}

/// The handshake's failure inside of an error of either end.
fn cause(error: &AcceptError) -> &HandshakeError {
    match error {
        AcceptError::Handshake { source, .. } => source,
        other => panic!("no failed handshake: {other}"),
    }
}

/// Neither end gets a session; the server's and the site's words.
async fn refused(house: &House, target: &Target) -> (AcceptError, DialError) {
    let (near, far) = tokio::join!(house.dial(target), within(house.front.accept()));
    (far.unwrap_err(), near.unwrap_err())
}

#[tokio::test]
async fn another_authority_is_refused_by_every_driver() {
    let house = House::new(options()).await;
    let stranger = Authority::new("elsewhere").unwrap().site("site-1").unwrap();
    let ours = house.authority.site("site-1").unwrap();
    // A stranger who believes our server.
    let identity = Identity::from_pem(
        stranger.certificates.as_bytes(),
        stranger.key.as_bytes(),
        ours.authority.as_bytes(),
    )
    .unwrap();
    for scheme in SCHEMES {
        let target = house.target_at(scheme, house.address(), identity.clone());
        let (far, near) = refused(&house, &target).await;
        assert!(
            matches!(cause(&far), HandshakeError::UnknownAuthority { shown: Some(name), .. } if name.as_str() == "site-1"),
            "{scheme}: {far}"
        );
        let text = format!("{near} {}", near.hint().unwrap_or_default());
        assert!(text.contains("authority"), "{scheme}: {text}");
    }
}

#[tokio::test]
async fn a_certificate_that_expired_is_refused_by_every_driver() {
    let house = House::new(options()).await;
    let late = house.authority.issue(&Subject {
        name: "site-1",
        role: "site",
        hosts: &[],
        starts: time::Duration::days(-3),
        ends: time::Duration::days(-2),
    });
    let identity = late.unwrap().identity().unwrap();
    for scheme in SCHEMES {
        let target = house.target_at(scheme, house.address(), identity.clone());
        let (far, near) = refused(&house, &target).await;
        assert!(far.to_string().contains("expired 2 days ago"), "{far}");
        assert!(near.to_string().contains("expired"), "{near}");
    }
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_a_session() {
    let house = House::new(options()).await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(&house))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"firesteel/1".to_vec()];
    let socket = TcpStream::connect(house.address()).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap();
    let far = within(house.front.accept()).await.unwrap_err();
    assert!(
        matches!(cause(&far), HandshakeError::NoCertificate { .. }),
        "{far}"
    );
    within(stream.read(&mut [0])).await.unwrap_err();
}

fn roots(house: &House) -> rustls::RootCertStore {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let any = house.authority.site("any").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(any.authority.as_bytes()).unwrap())
        .unwrap();
    roots
}

#[tokio::test]
async fn the_right_authority_with_the_wrong_role_is_refused() {
    let roles = Some(vec!["site".to_owned(), "relay".to_owned()]);
    let house = House::with(options(), |made| made.roles = roles).await;
    let member = house.authority.issue(&Subject {
        name: "ada",
        role: "member",
        hosts: &[],
        starts: time::Duration::HOUR * -1,
        ends: time::Duration::HOUR,
    });
    let member = member.unwrap().identity().unwrap();
    for scheme in SCHEMES {
        let target = house.target_at(scheme, house.address(), member.clone());
        let (far, near) = refused(&house, &target).await;
        let text = far.to_string();
        for words in ["`ada`", "of a member", "site and relay"] {
            assert!(text.contains(words), "{text}");
        }
        assert!(matches!(near, DialError::Refused { .. }), "{near}");
        assert!(near.to_string().contains("of a member"), "{near}");
        // A site is let in.
        let (near, far) = house.session(&house.target(scheme)).await;
        let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
        let (_, taken) = within(far.accept()).await.unwrap();
        exchange(opened, taken, 10).await;
    }
}

#[tokio::test]
async fn a_site_cannot_pose_as_the_server() {
    let authority = Authority::new("test").unwrap();
    let site = authority.site("site-1").unwrap().identity().unwrap();
    // Its certificate is one of a client; or it even has the server's host names.
    let named = authority.issue(&Subject {
        name: "site-1",
        role: "site",
        hosts: &["localhost"],
        starts: time::Duration::HOUR * -1,
        ends: time::Duration::HOUR,
    });
    let named = named.unwrap().identity().unwrap();
    for (identity, words) in [(site.clone(), "a server"), (named, "of a site")] {
        let entrance = Entrance::new("127.0.0.1:0".parse().unwrap());
        let made = FrontOptions::new(vec![entrance], identity, options());
        let front = Front::bind(made).await.unwrap();
        let address = front.local_addresses()[0];
        for scheme in SCHEMES {
            let target = Target::new(
                scheme,
                "127.0.0.1",
                address.port(),
                "localhost",
                site.clone(),
            );
            let error = within(dial_with(&target, options())).await.unwrap_err();
            assert!(error.to_string().contains(words), "{scheme}: {error}");
        }
    }
}

#[tokio::test]
async fn a_site_is_who_its_certificate_says_whatever_it_asks_for() {
    let house = House::new(options()).await;
    // It asks for the server by the name of another site; that is no server's.
    for scheme in SCHEMES {
        let mut target = house.target_at(scheme, house.address(), house.site("mallory"));
        let (_near, far) = house.session(&target).await;
        assert_eq!(far.peer().name.as_str(), "mallory");
        target.server_name = "site-1".to_owned();
        let (_, near) = refused(&house, &target).await;
        assert!(near.to_string().contains("`site-1`"), "{near}");
    }
}

/// Passes one connection on, and keeps what the client said, piece by piece.
async fn recording(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&said);
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        let back = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
        });
        let mut buffer = vec![0; 65_536];
        while let Ok(size @ 1..) = near_read.read(&mut buffer).await {
            kept.lock().unwrap().push(buffer[..size].to_vec());
            if far_write.write_all(&buffer[..size]).await.is_err() {
                break;
            }
        }
        back.abort();
    });
    (address, said)
}

#[tokio::test]
async fn a_handshake_that_is_replayed_or_reordered_makes_no_session() {
    for scheme in SCHEMES {
        let house = House::new(hasty()).await;
        let (address, said) = recording(house.address()).await;
        let target = house.target_at(scheme, address, house.site("site-1"));
        let (near, far) = house.session(&target).await;
        within(near.ping()).await.unwrap();
        drop((near, far));
        let said = said.lock().unwrap().clone();
        assert!(said.len() > 1);
        let mut reordered = said.clone();
        reordered.swap(0, 1);
        let mut twice = said.clone();
        twice.insert(0, said[0].clone());
        for bytes in [said, reordered, twice] {
            let mut socket = TcpStream::connect(house.address()).await.unwrap();
            for piece in bytes {
                if socket.write_all(&piece).await.is_err() {
                    break;
                }
            }
            let error = within(house.front.accept()).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    AcceptError::Handshake { .. }
                        | AcceptError::TooSlow { .. }
                        | AcceptError::Protocol { .. }
                ),
                "{error}"
            );
        }
    }
}

/// Everything that comes, until the other end hangs up.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = within(socket.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn http_without_tls_is_told_to_use_it() {
    let house = House::new(options()).await;
    for request in [
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(house.address()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.contains("https://"), "{answer}");
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{answer}");
        let error = within(house.front.accept()).await.unwrap_err();
        assert!(matches!(error, AcceptError::Plain { .. }), "{error}");
    }
    let mut socket = TcpStream::connect(house.address()).await.unwrap();
    socket.write_all(b"\x00\x01\x02").await.unwrap();
    assert_eq!(rest(&mut socket).await, "");
    let error = within(house.front.accept()).await.unwrap_err();
    assert!(matches!(cause(&error), HandshakeError::NotTls), "{error}");
}

#[tokio::test]
async fn a_look_whether_somebody_listens_is_no_news() {
    let house = House::new(options()).await;
    drop(TcpStream::connect(house.address()).await.unwrap());
    let mut socket = TcpStream::connect(house.address()).await.unwrap();
    socket.write_all(b"\x00").await.unwrap();
    // The second is what is told first.
    let error = within(house.front.accept()).await.unwrap_err();
    assert!(matches!(cause(&error), HandshakeError::NotTls), "{error}");
}

#[tokio::test]
async fn those_who_dawdle_are_hung_up_on_and_keep_nobody_out() {
    let house = House::new(hasty()).await;
    // Nothing, a byte of TLS, a request that never ends.
    let mut slow = Vec::new();
    for start in [&b""[..], b"\x16", b"\x16\x03\x01\x02"] {
        let mut socket = TcpStream::connect(house.address()).await.unwrap();
        socket.write_all(start).await.unwrap();
        slow.push(socket);
    }
    let target = house.target(Scheme::Http);
    let mut web = within(firesteel_net::stream_with(&target, &house.options))
        .await
        .unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
        .await
        .unwrap();
    web.flush().await.unwrap();
    let dribbling = tokio::spawn(async move {
        // A byte at a time, for as long as the server listens.
        loop {
            if web.write_all(b"a").await.is_err() || web.flush().await.is_err() {
                return;
            }
            let mut answer = [0; 64];
            let waited = Duration::from_millis(20);
            let read = tokio::time::timeout(waited, web.read(&mut answer)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    });
    for scheme in SCHEMES {
        let target = house.target(scheme);
        let near = house.dial(&target).await.unwrap();
        within(near.ping()).await.unwrap();
    }
    assert_eq!(house.get("/").await.0, 200);
    for mut socket in slow {
        assert_eq!(rest(&mut socket).await, "");
    }
    within(dribbling).await.unwrap();
}

#[tokio::test]
async fn over_long_headers_are_refused() {
    let house = House::new(options()).await;
    let long = "x".repeat(100_000);
    let (status, _) = house.get_with("/", &[("x-long", &long)]).await;
    assert_eq!(status, 431);
    let many: Vec<(String, String)> = (0..500)
        .map(|number| (format!("x-{number}"), "y".to_owned()))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (&**a, &**b)).collect();
    let (status, _) = house.get_with("/", &many).await;
    assert_eq!(status, 431);
    assert_eq!(house.get("/").await.0, 200);
}

#[tokio::test]
async fn a_link_with_nonsense_inside_is_dropped() {
    let house = House::new(hasty()).await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(&house))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(house.address()).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let bodies: [&[u8]; 3] = [
        b"no gRPC at all",
        &[0, 0, 0, 0, 5, 0x0a, 3, 1, 2, 3],
        &[0, 0xff, 0xff, 0xff, 0xff, 0x0a],
    ];
    for body in bodies {
        let request = http::Request::post("https://localhost/firesteel.v1.Link/Connect")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (answer, mut stream) = send.send_request(request, false).unwrap();
        stream
            .send_data(bytes::Bytes::copy_from_slice(body), false)
            .unwrap();
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let error = within(house.front.accept()).await.unwrap_err();
        assert!(matches!(error, AcceptError::Handshake { .. }), "{error}");
    }
    // What is no gRPC call, and no WebSocket, is answered.
    let request = http::Request::post("https://localhost/firesteel.v1.Link/Connect");
    let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
    assert_eq!(within(answer).await.unwrap().status(), 415);
    assert_eq!(house.get("/v1/link").await.0, 426);
    driving.abort();
}

/// A session whose connection a load balancer introduces with `header`.
async fn introduced(house: &House, header: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let to = house.address();
    let balancer = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            far.write_all(header).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let target = house.target_at(Scheme::Grpc, address, house.site("site-1"));
    let (near, far) = house.session(&target).await;
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 1000).await;
    balancer.abort();
    far.address()
}

#[tokio::test]
async fn a_load_balancer_says_who_connects_and_others_cannot() {
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let house = House::with(hasty(), |made| made.proxy_protocol_from = trusted).await;
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n";
    let from = introduced(&house, v1).await;
    assert_eq!(from, "192.0.2.7:5555".parse().unwrap());
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x15\xb3\x01\xbb";
    let from = introduced(&house, v2).await;
    assert_eq!(from, "192.0.2.7:5555".parse().unwrap());
    let from = introduced(&house, b"PROXY UNKNOWN\r\n").await;
    assert!(from.ip().is_loopback());

    // From there it must be, and from elsewhere it must not.
    let mut socket = TcpStream::connect(house.address()).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = within(house.front.accept()).await.unwrap_err();
    assert!(matches!(error, AcceptError::Header { .. }), "{error}");
    assert!(error.hint().unwrap().contains("proxy_protocol_from"));
    let house = House::new(options()).await;
    let mut socket = TcpStream::connect(house.address()).await.unwrap();
    socket.write_all(v1).await.unwrap();
    let error = within(house.front.accept()).await.unwrap_err();
    assert!(matches!(error, AcceptError::Plain { .. }), "{error}");
}
