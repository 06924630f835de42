//! Sessions over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::{Hint as _, limits};
use firesteel_net::dev::{Authority, Issued};
use firesteel_net::{
    AcceptError, BoxStream, CloseReason, DialError, HandshakeError, Identity, Kind, Listener,
    Options, Session, SessionError, dial,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer than this for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it should have happened by now")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Federation {
    authority: Authority,
    listener: Arc<Listener>,
    options: Options,
}

impl Federation {
    async fn new(options: Options) -> Self {
        Self::on("127.0.0.1:0", options).await
    }

    async fn on(address: &str, options: Options) -> Self {
        let authority = Authority::new("test").unwrap();
        let server = authority.server("server", &["localhost", "127.0.0.1", "::1"]);
        let identity = server.unwrap().identity().unwrap();
        let listener = Listener::bind(address.parse().unwrap(), identity, options.clone())
            .await
            .unwrap();
        Self {
            authority,
            listener: Arc::new(listener),
            options,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    fn site(&self, name: &str) -> Identity {
        self.authority.site(name).unwrap().identity().unwrap()
    }

    async fn dial(&self, identity: &Identity) -> Result<Session, DialError> {
        let address = self.address().to_string();
        within(dial(&address, "localhost", identity, self.options.clone())).await
    }

    /// A session of `site-1`: the site's end, the server's end.
    async fn session(&self) -> (Session, Session) {
        let identity = self.site("site-1");
        let (near, far) = tokio::join!(self.dial(&identity), within(self.listener.accept()));
        (near.unwrap(), far.unwrap())
    }
}

fn options() -> Options {
    Options::default()
}

fn single() -> Options {
    options().single_connection()
}

/// Connect in a moment, give up silence soon.
fn hasty() -> Options {
    let mut options = options();
    options.durations.connect = Duration::from_millis(300);
    options
}

async fn exchange(mut near: BoxStream, mut far: BoxStream, size: usize) {
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

#[tokio::test]
async fn both_ends_know_each_other_by_their_certificates() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    assert_eq!(near.peer().name.as_str(), "server");
    assert_eq!(near.peer().role.as_deref(), Some("server"));
    assert_eq!(far.peer().name.as_str(), "site-1");
    assert_eq!(far.peer().role.as_deref(), Some("site"));
    assert_eq!(far.peer().organization.as_deref(), Some("test"));
    assert_eq!(near.address(), federation.address());
}

#[tokio::test]
async fn control_streams_meet_and_are_given_once() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    exchange(near.control().unwrap(), far.control().unwrap(), 100).await;
    assert!(near.control().is_none() && far.control().is_none());
}

async fn check_streams(options: Options, bulk: usize) {
    let federation = Federation::new(options).await;
    let (near, far) = federation.session().await;
    for (opener, taker) in [(&near, &far), (&far, &near)] {
        let mut pairs = Vec::new();
        for number in 0..12 {
            let kind = Kind::other(number);
            let opened = within(opener.open(kind)).await.unwrap();
            let (taken, stream) = within(taker.accept()).await.unwrap();
            assert_eq!(taken, kind);
            pairs.push((opened, stream));
        }
        let size = 300_000;
        let all = pairs
            .into_iter()
            .map(|(a, b)| tokio::spawn(exchange(a, b, size)));
        for done in all.collect::<Vec<_>>() {
            within(done).await.unwrap();
        }
    }
    assert_eq!(near.bulk_connections(), bulk);
    assert_eq!(far.bulk_connections(), bulk);
}

#[tokio::test]
async fn either_end_opens_streams_on_bulk_connections() {
    check_streams(options(), 2).await;
}

#[tokio::test]
async fn either_end_opens_streams_where_one_connection_is_allowed() {
    check_streams(single(), 0).await;
}

#[tokio::test]
async fn the_smaller_number_of_bulk_connections_counts() {
    let mut federation = Federation::new(options()).await;
    federation.options.bulk_connections = 1;
    let (near, far) = federation.session().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(within(near.open(Kind::TRANSFER)).await.unwrap());
        streams.push(within(far.open(Kind::TRANSFER)).await.unwrap());
    }
    assert_eq!((near.bulk_connections(), far.bulk_connections()), (1, 1));
}

#[tokio::test]
async fn the_accepting_end_opens_first() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let opened = within(far.open(Kind::TUNNEL)).await.unwrap();
    let (kind, taken) = within(near.accept()).await.unwrap();
    assert_eq!(kind, Kind::TUNNEL);
    exchange(opened, taken, 1_000_000).await;
}

#[tokio::test]
async fn sessions_over_ipv6() {
    let federation = Federation::on("[::1]:0", options()).await;
    let (near, far) = federation.session().await;
    assert!(near.address().is_ipv6() && far.address().is_ipv6());
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 10).await;
}

#[tokio::test]
async fn pings_are_measured() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    for session in [&near, &far] {
        let took = within(session.ping()).await.unwrap();
        assert!(took > Duration::ZERO && took < PATIENCE);
        assert!(session.round_trip().is_some());
    }
}

#[tokio::test]
async fn closing_tells_the_peer_why_and_ends_streams_in_mid_receive() {
    for options in [options(), single()] {
        let federation = Federation::new(options).await;
        for closer_dialed in [true, false] {
            let (near, far) = federation.session().await;
            let mut opened = within(near.open(Kind::TRANSFER)).await.unwrap();
            opened.write_all(b"half of").await.unwrap();
            opened.flush().await.unwrap();
            let (_, mut taken) = within(far.accept()).await.unwrap();
            let mut got = [0; 7];
            within(taken.read_exact(&mut got)).await.unwrap();
            let (closer, other) = if closer_dialed {
                (near, far)
            } else {
                (far, near)
            };
            within(closer.close("maintenance until noon")).await;
            let reason = within(other.closed()).await;
            assert_eq!(reason, CloseReason::Peer("maintenance until noon".into()));
            assert_eq!(closer.closed().await, CloseReason::Here);
            assert!(within(other.accept()).await.is_none());
            let error = within(other.open(Kind::TRANSFER)).await.err().unwrap();
            assert!(error.to_string().contains("maintenance"), "{error}");
            within(taken.read(&mut got)).await.unwrap_err();
            within(opened.read(&mut got)).await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_session() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let again = near.clone();
    drop(near);
    within(far.ping()).await.unwrap();
    drop(again);
    assert_eq!(within(far.closed()).await, CloseReason::Peer(String::new()));
}

#[tokio::test]
async fn a_dropped_stream_ends_for_the_peer_only_after_its_last_byte() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let mut opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    opened.write_all(&[1; 200_000]).await.unwrap();
    drop(opened);
    let (_, mut taken) = within(far.accept()).await.unwrap();
    let mut got = Vec::new();
    within(taken.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 200_000);
    // And writing to it fails rather than vanishing.
    let error = within(async {
        loop {
            if let Err(error) = taken.write_all(&[0; 1000]).await {
                break error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
}

#[tokio::test]
async fn a_peer_that_stops_reading_one_stream_holds_up_no_other() {
    for mut options in [options(), single()] {
        options.bulk_connections = options.bulk_connections.min(1);
        options.stream_window = 64 * 1024;
        let federation = Federation::new(options).await;
        let (near, far) = federation.session().await;
        let mut stuck = within(near.open(Kind::TRANSFER)).await.unwrap();
        let (_, unread) = within(far.accept()).await.unwrap();
        let mut written = 0;
        // What fits is bounded: the peer's window and one block.
        while let Ok(size) =
            tokio::time::timeout(Duration::from_millis(200), stuck.write(&[0; 16_384])).await
        {
            written += size.unwrap();
            assert!(written <= 64 * 1024, "{written} bytes nobody has read");
        }
        let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
        let (_, taken) = within(far.accept()).await.unwrap();
        exchange(opened, taken, 2_000_000).await;
        within(near.ping()).await.unwrap();
        exchange(near.control().unwrap(), far.control().unwrap(), 10_000).await;
        drop(unread);
    }
}

#[tokio::test]
async fn a_cut_bulk_connection_fails_its_streams_and_a_new_one_is_made() {
    let federation = Federation::new(options()).await;
    let proxy = Proxy::start(federation.address()).await;
    let identity = federation.site("site-1");
    let address = proxy.address.to_string();
    let (near, far) = tokio::join!(
        within(dial(&address, "localhost", &identity, options())),
        within(federation.listener.accept())
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    let mut opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, mut taken) = within(far.accept()).await.unwrap();
    opened.write_all(b"x").await.unwrap();
    within(taken.read_exact(&mut [0])).await.unwrap();
    // The first connection is control, the second bulk.
    proxy.cut(1);
    within(taken.read(&mut [0])).await.unwrap_err();
    within(opened.read(&mut [0])).await.unwrap_err();
    within(near.ping()).await.unwrap();
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 1000).await;

    proxy.cut(0);
    for session in [near, far] {
        let reason = within(session.closed()).await;
        assert!(matches!(reason, CloseReason::Lost(_)), "{reason:?}");
        let error = session.open(Kind::TRANSFER).await.err().unwrap();
        assert!(matches!(error, SessionError::Over { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let mut options = options();
    options.durations.idle = Duration::from_millis(400);
    let federation = Federation::new(options.clone()).await;
    let proxy = Proxy::start(federation.address()).await;
    let identity = federation.site("site-1");
    let address = proxy.address.to_string();
    let (near, far) = tokio::join!(
        within(dial(&address, "localhost", &identity, options)),
        within(federation.listener.accept())
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    within(near.ping()).await.unwrap();
    proxy.stall();
    for session in [near, far] {
        let reason = within(session.closed()).await;
        assert!(
            matches!(reason, CloseReason::Silent(_) | CloseReason::Lost(_)),
            "{reason:?}"
        );
    }
}

#[tokio::test]
async fn idle_bulk_connections_are_closed_and_come_back() {
    let mut options = options();
    options.durations.idle = Duration::from_millis(100);
    // Only the dialing end is in such a hurry.
    let mut federation = Federation::new(Options::default()).await;
    federation.options = options;
    let (near, far) = federation.session().await;
    let stream = within(near.open(Kind::TRANSFER)).await.unwrap();
    let taken = within(far.accept()).await.unwrap();
    assert_eq!(near.bulk_connections(), 1);
    drop((stream, taken));
    until("no bulk connection", || near.bulk_connections() == 0).await;
    until("none there either", || far.bulk_connections() == 0).await;
    let opened = within(far.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(near.accept()).await.unwrap();
    exchange(opened, taken, 10).await;
}

// What the certificates decide.

/// Both ends' errors when `identity` dials `federation` as `name`.
async fn refused(
    federation: &Federation,
    identity: &Identity,
    name: &str,
) -> (DialError, AcceptError) {
    let address = federation.address().to_string();
    let (near, far) = tokio::join!(
        within(dial(&address, name, identity, federation.options.clone())),
        within(federation.listener.accept())
    );
    (near.unwrap_err(), far.unwrap_err())
}

fn check_words(error: &(dyn std::error::Error + 'static), hint: Option<String>, words: &[&str]) {
    let text = format!("{error}; hint: {}", hint.unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[tokio::test]
async fn a_site_of_another_authority_is_refused_with_names() {
    let federation = Federation::new(options()).await;
    let elsewhere = Authority::new("elsewhere").unwrap();
    // It believes our server, but the server does not believe it.
    let own = elsewhere.site("intruder").unwrap();
    let ours = federation.authority.site("x").unwrap();
    let mixed = Issued {
        authority: ours.authority,
        ..own
    };
    let (near, far) = refused(&federation, &mixed.identity().unwrap(), "localhost").await;
    check_words(
        &near,
        near.hint(),
        &[
            "localhost",
            "127.0.0.1",
            "`intruder`",
            "not issued by the peer's authority",
            "same federation",
        ],
    );
    check_words(
        &far,
        far.hint(),
        &[
            "127.0.0.1",
            "`intruder`",
            "not issued by our authority",
            "same federation",
        ],
    );
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_with_names() {
    let federation = Federation::new(options()).await;
    let elsewhere = Authority::new("elsewhere").unwrap();
    let identity = elsewhere.site("site-1").unwrap().identity().unwrap();
    let (near, _) = refused(&federation, &identity, "localhost").await;
    check_words(
        &near,
        near.hint(),
        &["localhost", "`server`", "not issued by our authority"],
    );
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_dates() {
    let federation = Federation::new(options()).await;
    let expired = firesteel_net::dev::Subject {
        name: "site-9",
        role: "site",
        hosts: &[],
        starts: -time::Duration::days(9),
        ends: -time::Duration::days(3),
    };
    let expired = federation.authority.issue(&expired).unwrap();
    let (near, far) = refused(&federation, &expired.identity().unwrap(), "localhost").await;
    check_words(
        &near,
        near.hint(),
        &["`site-9`", "it has expired", "renewed"],
    );
    check_words(
        &far,
        far.hint(),
        &["`site-9`", "expired 3 days ago", "clock"],
    );
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let federation = Federation::new(options()).await;
    let identity = federation.site("site-1");
    let (near, _) = refused(&federation, &identity, "fl.example.org").await;
    check_words(
        &near,
        near.hint(),
        &["should be `fl.example.org`", "localhost"],
    );
}

#[tokio::test]
async fn a_site_cannot_pose_as_a_server() {
    let authority = Authority::new("test").unwrap();
    let site = authority.site("site-2").unwrap().identity().unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone(), options())
        .await
        .unwrap();
    let address = listener.local_address().to_string();
    let (near, _) = tokio::join!(
        within(dial(&address, "localhost", &site, options())),
        within(listener.accept())
    );
    let near = near.unwrap_err();
    let DialError::Handshake { source, .. } = &near else {
        panic!("{near}");
    };
    assert!(
        matches!(
            source,
            HandshakeError::WrongPurpose { .. } | HandshakeError::WrongName { .. }
        ),
        "{source}"
    );
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let federation = Federation::new(options()).await;
    let client = bare_client(&federation, &[b"firesteel/1"], true);
    let tcp = TcpStream::connect(federation.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client);
    let dialing = async {
        let mut stream = connector
            .connect("localhost".try_into().unwrap(), tcp)
            .await?;
        stream.read_u8().await
    };
    let (near, far) = tokio::join!(within(dialing), within(federation.listener.accept()));
    near.unwrap_err();
    let far = far.unwrap_err();
    check_words(&far, far.hint(), &["no certificate", "startup kit"]);
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let federation = Federation::new(options()).await;
    for protocols in [&[b"h2".as_slice()] as &[&[u8]], &[]] {
        let client = bare_client(&federation, protocols, false);
        let tcp = TcpStream::connect(federation.address()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(client);
        let dialing = async {
            let mut stream = connector
                .connect("localhost".try_into().unwrap(), tcp)
                .await?;
            stream.read_u8().await
        };
        let (near, far) = tokio::join!(within(dialing), within(federation.listener.accept()));
        near.unwrap_err();
        let far = far.unwrap_err();
        check_words(&far, far.hint(), &["firesteel/1", "check host and port"]);
    }
}

#[tokio::test]
async fn plain_text_is_refused() {
    let federation = Federation::new(options()).await;
    let mut tcp = TcpStream::connect(federation.address()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let far = within(federation.listener.accept()).await.unwrap_err();
    check_words(&far, far.hint(), &["does not speak TLS"]);
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        let mut sink = Vec::new();
        let _ = tcp.read_to_end(&mut sink).await;
    });
    let identity = Authority::new("a").unwrap().site("s").unwrap();
    let identity = identity.identity().unwrap();
    let error = within(dial(&address, "localhost", &identity, options())).await;
    let error = error.unwrap_err();
    check_words(&error, error.hint(), &["does not speak TLS", &address]);
    serving.abort();
}

#[tokio::test]
async fn nobody_listening_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let identity = Authority::new("a").unwrap().site("s").unwrap();
    let identity = identity.identity().unwrap();
    let error = within(dial(&address, "localhost", &identity, options())).await;
    let error = error.unwrap_err();
    check_words(&error, error.hint(), &[&address, "nothing listens there"]);
}

// Peers that are slow, greedy, or lie.

#[tokio::test]
async fn a_handshake_of_one_byte_at_a_time_ends_with_the_duration_connect() {
    let federation = Federation::new(hasty()).await;
    let mut tcp = TcpStream::connect(federation.address()).await.unwrap();
    let dripping = tokio::spawn(async move {
        // The head of a handshake record of 512 bytes, and then drops of it.
        for byte in [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1)) {
            if tcp.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let far = within(federation.listener.accept()).await.unwrap_err();
    assert!(matches!(far, AcceptError::TooSlow { .. }), "{far}");
    within(dripping).await.unwrap();
}

#[tokio::test]
async fn a_server_that_answers_one_byte_at_a_time_ends_with_the_duration_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        for byte in [22, 3, 3, 2, 0].into_iter().chain(std::iter::repeat(1)) {
            if tcp.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let identity = Authority::new("a").unwrap().site("s").unwrap();
    let identity = identity.identity().unwrap();
    let error = within(dial(&address, "localhost", &identity, hasty())).await;
    let error = error.unwrap_err();
    assert!(matches!(error, DialError::TooSlow { .. }), "{error}");
    check_words(
        &error,
        error.hint(),
        &["localhost", &address, "0.3 s", "firewall"],
    );
    serving.abort();
}

#[tokio::test]
async fn slow_handshakes_do_not_keep_others_out() {
    let mut patient = options();
    patient.durations.connect = Duration::from_secs(15);
    let federation = Federation::new(patient).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(federation.address()).await.unwrap());
    }
    federation.session().await;
}

/// A TLS connection of a site with nothing said yet.
async fn raw(federation: &Federation, site: &Issued) -> tokio_rustls::client::TlsStream<TcpStream> {
    let client = client(federation, Some(site), &[b"firesteel/1"], false);
    let tcp = TcpStream::connect(federation.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client);
    connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap()
}

#[tokio::test]
async fn nonsense_after_the_handshake_is_refused_by_name() {
    let federation = Federation::new(options()).await;
    let site = federation.authority.site("babbler").unwrap();
    let messages: [&[u8]; 4] = [
        // An over-long message, an empty one, no magic, an unknown purpose.
        &[0xff, 0xff],
        &[0, 0],
        &[4, 0, b'H', b'T', b'T', b'P'],
        &[7, 0, b'F', b'S', b'S', 0, 1, 1, 9],
    ];
    for message in messages {
        let mut stream = raw(&federation, &site).await;
        stream.write_all(message).await.unwrap();
        stream.flush().await.unwrap();
        let far = within(federation.listener.accept()).await.unwrap_err();
        assert!(matches!(far, AcceptError::Protocol { .. }), "{far}");
        check_words(&far, None, &["`babbler`", "127.0.0.1"]);
    }
}

#[tokio::test]
async fn versions_that_do_not_meet_are_told_on_both_ends() {
    let federation = Federation::new(options()).await;
    let site = federation.authority.site("newer").unwrap();
    let mut stream = raw(&federation, &site).await;
    let hello = [8, 0, b'F', b'S', b'S', 0, 7, 9, 0, 2];
    stream.write_all(&hello).await.unwrap();
    stream.flush().await.unwrap();
    let far = within(federation.listener.accept()).await.unwrap_err();
    check_words(&far, far.hint(), &["`newer`", "versions 7 to 9", "update"]);
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("speaks version 1"), "{text}");
}

#[tokio::test]
async fn a_bulk_connection_needs_the_token() {
    let federation = Federation::new(options()).await;
    let (_near, _far) = federation.session().await;
    let site = federation.authority.site("site-1").unwrap();
    let mut stream = raw(&federation, &site).await;
    let mut hello = vec![39, 0, b'F', b'S', b'S', 0, 1, 1, 1];
    hello.extend([0x5a; 32]);
    stream.write_all(&hello).await.unwrap();
    stream.flush().await.unwrap();
    let far = within(federation.listener.accept()).await.unwrap_err();
    assert!(matches!(far, AcceptError::Token { .. }), "{far}");
    check_words(&far, None, &["`site-1`"]);
}

#[tokio::test]
async fn a_stolen_token_is_useless_with_another_certificate() {
    let federation = Federation::new(options()).await;
    let owner = federation.authority.site("site-1").unwrap();
    let mut control = raw(&federation, &owner).await;
    let hello = [8, 0, b'F', b'S', b'S', 0, 1, 1, 0, 2];
    control.write_all(&hello).await.unwrap();
    control.flush().await.unwrap();
    let mut welcome = [0; 2 + 4 + 3 + 32];
    within(control.read_exact(&mut welcome)).await.unwrap();
    // The session comes up as with any client.
    let (arrivals, _incoming) = tokio::sync::mpsc::channel::<()>(1);
    drop(arrivals);
    let (send, connection) = h2::client::handshake(control).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut kept = Vec::new();
    for kind in [1, 2] {
        let request = http::Request::post("https://firesteel/").header("firesteel-kind", kind);
        let mut send = send.clone().ready().await.unwrap();
        kept.push(send.send_request(request.body(()).unwrap(), false).unwrap());
    }
    let session = within(federation.listener.accept()).await.unwrap();
    assert_eq!(session.peer().name.as_str(), "site-1");

    let mut hello = vec![39, 0, b'F', b'S', b'S', 0, 1, 1, 1];
    hello.extend(&welcome[9..]);
    // The same name even, of another key.
    let thief = federation.authority.site("site-1").unwrap();
    let mut stream = raw(&federation, &thief).await;
    stream.write_all(&hello).await.unwrap();
    stream.flush().await.unwrap();
    let far = within(federation.listener.accept()).await.unwrap_err();
    assert!(matches!(far, AcceptError::Token { .. }), "{far}");
    assert_eq!(session.bulk_connections(), 0);

    let mut stream = raw(&federation, &owner).await;
    stream.write_all(&hello).await.unwrap();
    stream.flush().await.unwrap();
    let mut welcome = [0; 2 + 4 + 1];
    within(stream.read_exact(&mut welcome)).await.unwrap();
    assert_eq!(welcome, [5, 0, b'F', b'S', b'S', 0, 1]);
    driving.abort();
}

#[tokio::test]
async fn a_peer_that_opens_no_streams_is_hung_up_on_with_the_duration_connect() {
    let federation = Federation::new(hasty()).await;
    let site = federation.authority.site("silent").unwrap();
    let mut control = raw(&federation, &site).await;
    let hello = [8, 0, b'F', b'S', b'S', 0, 1, 1, 0, 2];
    control.write_all(&hello).await.unwrap();
    control.flush().await.unwrap();
    let mut welcome = [0; 2 + 4 + 3 + 32];
    within(control.read_exact(&mut welcome)).await.unwrap();
    let (_send, connection) = h2::client::handshake(control).await.unwrap();
    let driving = tokio::spawn(connection);
    let far = within(federation.listener.accept()).await.unwrap_err();
    assert!(matches!(far, AcceptError::TooSlow { .. }), "{far}");
    // Nothing of it is left.
    let _ = within(driving).await.unwrap();
}

#[tokio::test]
async fn bulk_connections_that_come_at_once_are_no_more_than_agreed() {
    let federation = Federation::new(options()).await;
    let site = federation.authority.site("site-1").unwrap();
    let mut control = raw(&federation, &site).await;
    let hello = [8, 0, b'F', b'S', b'S', 0, 1, 1, 0, 1];
    control.write_all(&hello).await.unwrap();
    control.flush().await.unwrap();
    let mut welcome = [0; 2 + 4 + 3 + 32];
    within(control.read_exact(&mut welcome)).await.unwrap();
    let (send, connection) = h2::client::handshake(control).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut kept = Vec::new();
    for kind in [1, 2] {
        let request = http::Request::post("https://firesteel/").header("firesteel-kind", kind);
        let mut send = send.clone().ready().await.unwrap();
        kept.push(send.send_request(request.body(()).unwrap(), false).unwrap());
    }
    let session = within(federation.listener.accept()).await.unwrap();

    let mut hello = vec![39, 0, b'F', b'S', b'S', 0, 1, 1, 1];
    hello.extend(&welcome[9..]);
    let mut greeted = Vec::new();
    for _ in 0..4 {
        let mut stream = raw(&federation, &site).await;
        stream.write_all(&hello).await.unwrap();
        stream.flush().await.unwrap();
        let mut welcome = [0; 2 + 4 + 1];
        within(stream.read_exact(&mut welcome)).await.unwrap();
        assert_eq!(welcome, [5, 0, b'F', b'S', b'S', 0, 1]);
        greeted.push(stream);
    }
    let mut up = tokio::task::JoinSet::new();
    let mut senders = Vec::new();
    for stream in greeted {
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        senders.push(send);
        up.spawn(connection);
    }
    for _ in 0..3 {
        let _ = within(up.join_next()).await.unwrap();
    }
    assert_eq!(session.bulk_connections(), 1);
    driving.abort();
}

#[tokio::test]
async fn an_over_long_frame_ends_the_connection() {
    let federation = Federation::new(options()).await;
    let site = federation.authority.site("giant").unwrap();
    let mut control = raw(&federation, &site).await;
    let hello = [8, 0, b'F', b'S', b'S', 0, 1, 1, 0, 2];
    control.write_all(&hello).await.unwrap();
    control
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    // A settings frame, then a data frame of 16 MiB less one.
    control
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    control
        .write_all(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
        .await
        .unwrap();
    control.flush().await.unwrap();
    let far = within(federation.listener.accept()).await.unwrap_err();
    assert!(
        matches!(
            far,
            AcceptError::Handshake { .. } | AcceptError::Protocol { .. }
        ),
        "{far}"
    );
    let mut rest = Vec::new();
    let _ = within(control.read_to_end(&mut rest)).await;
    // FRAME_SIZE_ERROR is 6, in a frame of type 7 (GOAWAY).
    assert!(rest.windows(2).any(|pair| pair == [0, 6]), "{rest:?}");
    federation.session().await;
}

#[tokio::test]
async fn streams_that_nobody_takes_are_refused_beyond_the_limit() {
    let federation = Federation::new(single()).await;
    let (near, far) = federation.session().await;
    let mut streams = Vec::new();
    for _ in 0..limits::WAITING_STREAMS + 8 {
        streams.push(within(near.open(Kind::TRANSFER)).await.unwrap());
    }
    let mut refused = 0;
    let mut last = streams.pop().unwrap();
    if let Err(error) = within(last.read(&mut [0])).await {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{error}"
        );
        refused += 1;
    }
    assert_eq!(refused, 1);
    for _ in 0..limits::WAITING_STREAMS {
        within(far.accept()).await.unwrap();
    }
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 10).await;
}

#[tokio::test]
async fn an_unknown_congestion_control_is_told_with_those_there_are() {
    let mut options = options();
    options.congestion = firesteel_net::Congestion::Named("warp9".into());
    let authority = Authority::new("test").unwrap();
    let identity = authority.site("s").unwrap().identity().unwrap();
    let error = within(dial("127.0.0.1:1", "localhost", &identity, options.clone())).await;
    let error = error.unwrap_err();
    check_words(&error, error.hint(), &["`warp9`", "modprobe", "reno"]);
    let address = "127.0.0.1:0".parse().unwrap();
    let error = Listener::bind(address, identity, options)
        .await
        .err()
        .unwrap();
    check_words(&error, error.hint(), &["`warp9`"]);
}

fn bare_client(
    federation: &Federation,
    protocols: &[&[u8]],
    anonymous: bool,
) -> Arc<rustls::ClientConfig> {
    let site = federation.authority.site("other").unwrap();
    client(federation, (!anonymous).then_some(&site), protocols, false)
}

fn client(
    federation: &Federation,
    site: Option<&Issued>,
    protocols: &[&[u8]],
    _old: bool,
) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let any = federation.authority.site("any").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(any.authority.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match site {
        None => builder.with_no_client_auth(),
        Some(site) => {
            let chain = CertificateDer::from_pem_slice(site.certificates.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(site.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![chain], key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// Passes bytes on, until told otherwise.
struct Proxy {
    address: SocketAddr,
    connections: Arc<std::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>>,
    stalled: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(std::sync::Mutex::new(Vec::new()));
        let stalled = tokio::sync::watch::Sender::new(false);
        let (list, stall) = (Arc::clone(&connections), stalled.clone());
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(target).await.unwrap();
                let stall = stall.clone();
                let task = tokio::spawn(async move {
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::select! {
                        () = pump(near_read, far_write, stall.subscribe()) => {}
                        () = pump(far_read, near_write, stall.subscribe()) => {}
                    }
                });
                list.lock().unwrap().push(task);
            }
        });
        Self {
            address,
            connections,
            stalled,
        }
    }

    /// Ends the connection that came as number `index`.
    fn cut(&self, index: usize) {
        self.connections.lock().unwrap()[index].abort();
    }

    fn stall(&self) {
        self.stalled.send_replace(true);
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut stalled: tokio::sync::watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let _ = stalled.wait_for(|stalled| !stalled).await;
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(size) => {
                let _ = stalled.wait_for(|stalled| !stalled).await;
                if to.write_all(&buffer[..size]).await.is_err() {
                    return;
                }
            }
        }
    }
}
