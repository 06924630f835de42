//! The proxy is as bad as it is asked to be.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use firesteel_rig::wait::{until, within};
use firesteel_rig::{Cut, Direction, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy, and a listener behind it.
struct Setup {
    listener: TcpListener,
    proxy: Proxy,
}

impl Setup {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        Self { listener, proxy }
    }

    /// A connection through the proxy, from both ends.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let near = dial(self.proxy.address()).await;
        let (far, _) = within(self.listener.accept()).await.unwrap();
        (near, far)
    }
}

async fn dial(address: SocketAddr) -> TcpStream {
    within(TcpStream::connect(address)).await.unwrap()
}

async fn hear(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut heard = vec![0; bytes];
    within(stream.read_exact(&mut heard)).await.unwrap();
    heard
}

/// Both ends' last words: how many bytes still came, and the error with which it
/// ended.
async fn rest(stream: &mut TcpStream) -> (usize, Option<ErrorKind>) {
    let mut heard = Vec::new();
    let end = within(stream.read_to_end(&mut heard)).await;
    (heard.len(), end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn an_unasked_proxy_changes_nothing() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    near.write_all(&[1; 100_000]).await.unwrap();
    assert_eq!(hear(&mut far, 100_000).await, [1; 100_000]);
    near.shutdown().await.unwrap();
    assert_eq!(rest(&mut far).await, (0, None));
    far.write_all(b"answer").await.unwrap();
    drop(far);
    assert_eq!(rest(&mut near).await, (6, None));
    assert_eq!(setup.proxy.passed(Direction::There), 100_000);
    assert_eq!(setup.proxy.passed(Direction::Back), 6);
    until(|| (setup.proxy.open() == 0).then_some(())).await;
    assert_eq!(setup.proxy.accepted(), 1);
}

#[tokio::test]
async fn a_cut_ends_every_connection_and_takes_new_ones() {
    for (how, error) in [
        (Cut::Reset, Some(ErrorKind::ConnectionReset)),
        (Cut::Close, None),
    ] {
        let setup = Setup::new().await;
        let (mut one, mut one_far) = setup.pair().await;
        let (mut two, mut two_far) = setup.pair().await;
        setup.proxy.cut(how);
        for stream in [&mut one, &mut one_far, &mut two, &mut two_far] {
            assert_eq!(rest(stream).await, (0, error), "{how:?}");
        }
        let (mut near, mut far) = setup.pair().await;
        near.write_all(b"again").await.unwrap();
        assert_eq!(hear(&mut far, 5).await, b"again");
        assert_eq!(setup.proxy.cuts(), 1);
    }
}

#[tokio::test]
async fn it_cuts_where_it_is_told_to_the_byte() {
    let setup = Setup::new().await;
    setup.proxy.cut_at(Direction::There, [150_000, 100_000]);
    for expect in [100_000, 150_000] {
        let (mut near, mut far) = setup.pair().await;
        let writer = tokio::spawn(async move { near.write_all(&vec![7; 64_000_000]).await });
        rest(&mut far).await;
        assert!(within(writer).await.unwrap().is_err());
        assert_eq!(setup.proxy.passed(Direction::There), expect);
    }
    let (mut near, mut far) = setup.pair().await;
    near.write_all(&[7; 300_000]).await.unwrap();
    hear(&mut far, 300_000).await;
    assert_eq!(setup.proxy.cuts(), 2);
}

#[tokio::test]
async fn a_stall_holds_one_direction_and_lets_go() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    setup.proxy.stall(Direction::There);
    // More than all buffers hold.
    let writer = tokio::spawn(async move {
        near.write_all(&vec![7; 64_000_000]).await.unwrap();
        near
    });
    far.write_all(b"back").await.unwrap();
    until(|| (setup.proxy.passed(Direction::Back) == 4).then_some(())).await;
    assert!(!writer.is_finished());
    // What was in the proxy's hands as it was told may have passed.
    assert!(setup.proxy.passed(Direction::There) <= 16 * 1024);
    setup.proxy.free(Direction::There);
    hear(&mut far, 64_000_000).await;
    let mut near = within(writer).await.unwrap();
    assert_eq!(hear(&mut near, 4).await, b"back");
}

#[tokio::test]
async fn slow_is_not_faster_than_told_and_is_lifted() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    setup.proxy.slow(Direction::There, 10_000);
    let started = Instant::now();
    near.write_all(&[7; 100_000]).await.unwrap();
    // The last portion is not waited for.
    hear(&mut far, 5_000).await;
    assert!(started.elapsed() >= Duration::from_millis(400));
    setup.proxy.free(Direction::There);
    hear(&mut far, 95_000).await;
}

#[tokio::test]
async fn a_byte_at_a_time() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    setup.proxy.slow(Direction::There, 1);
    near.write_all(b"slowly").await.unwrap();
    let mut some = [0; 16];
    assert_eq!(within(far.read(&mut some)).await.unwrap(), 1);
    assert_eq!(within(far.read(&mut some)).await.unwrap(), 1);
    setup.proxy.free(Direction::There);
    assert_eq!(hear(&mut far, 4).await, b"owly");
}

#[tokio::test]
async fn refused_means_refused_and_open_connections_stay() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    setup.proxy.refuse().await;
    let error = TcpStream::connect(setup.proxy.address()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    near.write_all(b"still").await.unwrap();
    assert_eq!(hear(&mut far, 5).await, b"still");
    setup.proxy.admit().await;
    let _ = setup.pair().await;
}

#[tokio::test]
async fn one_half_is_closed_and_the_other_stays() {
    let setup = Setup::new().await;
    let (mut near, mut far) = setup.pair().await;
    setup.proxy.half_close(Direction::There);
    assert_eq!(rest(&mut far).await, (0, None));
    far.write_all(b"answer").await.unwrap();
    assert_eq!(hear(&mut near, 6).await, b"answer");
    let (mut near, mut far) = setup.pair().await;
    near.write_all(b"whole").await.unwrap();
    assert_eq!(hear(&mut far, 5).await, b"whole");
}

#[tokio::test]
async fn nobody_behind_it_is_told_at_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let proxy = Proxy::start(address).await.unwrap();
    let mut near = dial(proxy.address()).await;
    let (bytes, error) = rest(&mut near).await;
    assert_eq!((bytes, error), (0, Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn a_dropped_proxy_drops_its_connections() {
    let Setup { listener, proxy } = Setup::new().await;
    let address = proxy.address();
    let mut near = dial(address).await;
    let (mut far, _) = within(listener.accept()).await.unwrap();
    drop(proxy);
    rest(&mut near).await;
    rest(&mut far).await;
    until(|| std::net::TcpStream::connect(address).is_err().then_some(())).await;
}
