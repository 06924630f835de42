//! Scopes of a session: streams of their own, ends of their own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use common::{Federation, exchange, until, within};
use firesteel_net::{CloseReason, Kind, Options, ScopeError, Session, SessionError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn options() -> Options {
    Options::default()
}

fn hasty() -> Options {
    let mut options = options();
    options.durations.connect = Duration::from_millis(300);
    options
}

/// Both ends of a scope.
fn scoped(near: &Session, far: &Session, name: &str) -> (Session, Session) {
    (near.scope(name).unwrap(), far.scope(name).unwrap())
}

async fn check_streams(options: Options) {
    let federation = Federation::new(options).await;
    let (near, far) = federation.session().await;
    let (near_a, far_a) = scoped(&near, &far, "a");
    let (near_b, far_b) = scoped(&near, &far, "b");
    assert_eq!(near_a.scope_name(), Some("a"));
    assert_eq!(near.scope_name(), None);
    assert_eq!(near_a.peer(), near.peer());
    assert_eq!(near_a.address(), near.address());

    // The accepting end opens, too; and each stream comes out where it belongs.
    let pairs = [
        (&near, &far),
        (&near_a, &far_a),
        (&far_b, &near_b),
        (&far_a, &near_a),
        (&near_b, &far_b),
    ];
    for (number, (opener, _)) in (0..).zip(&pairs) {
        let mut stream = within(opener.open(Kind::other(number))).await.unwrap();
        stream.write_all(&[number]).await.unwrap();
        stream.shutdown().await.unwrap();
    }
    for (number, (_, taker)) in (0..).zip(&pairs) {
        let (kind, mut stream) = within(taker.accept()).await.unwrap();
        assert_eq!(kind, Kind::other(number));
        let mut got = Vec::new();
        within(stream.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, [number]);
    }
    let opened = within(near_b.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far_b.accept()).await.unwrap();
    exchange(opened, taken, 3_000_000).await;
    within(near_a.ping()).await.unwrap();
    assert!(near_a.round_trip().is_some());
}

#[tokio::test]
async fn streams_come_out_in_the_scope_that_they_were_opened_in() {
    check_streams(options()).await;
    check_streams(options().single_connection()).await;
}

#[tokio::test]
async fn each_scope_has_a_control_stream_of_its_own() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    for name in ["job-1", "job-2"] {
        let (near, far) = scoped(&near, &far, name);
        assert!(near.control().is_none());
        let (opened, taken) =
            within(async { tokio::join!(near.open_control(), far.accept_control()) }).await;
        exchange(opened.unwrap(), taken.unwrap(), 1000).await;
        assert!(far.control().is_none());
    }
    // That of the session is still to be had, and once only.
    let opened = near.open_control().await.unwrap();
    let taken = far.accept_control().await.unwrap();
    exchange(opened, taken, 1000).await;
    let error = near.open_control().await.err().unwrap();
    assert!(
        matches!(error, SessionError::ControlTaken { .. }),
        "{error}"
    );
    assert!(far.accept_control().await.is_none());
}

#[tokio::test]
async fn a_stream_waits_for_a_scope_that_is_made_later() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let early = near.scope("late").unwrap();
    let control = within(early.open_control()).await.unwrap();
    let opened = within(early.open(Kind::LOGS)).await.unwrap();
    // Others pass it meanwhile.
    let plain = within(near.open(Kind::BUNDLE)).await.unwrap();
    let (kind, taken) = within(far.accept()).await.unwrap();
    assert_eq!(kind, Kind::BUNDLE);
    exchange(plain, taken, 10).await;

    let late = far.scope("late").unwrap();
    exchange(control, within(late.accept_control()).await.unwrap(), 100).await;
    let (kind, taken) = within(late.accept()).await.unwrap();
    assert_eq!(kind, Kind::LOGS);
    exchange(opened, taken, 100).await;
    assert_eq!(far.refused_streams(), 0);
}

#[tokio::test]
async fn a_stream_whose_scope_is_never_made_is_refused_and_counted() {
    let federation = Federation::new(hasty()).await;
    let (near, far) = federation.session().await;
    let alone = near.scope("alone").unwrap();
    let mut opened = within(alone.open(Kind::TRANSFER)).await.unwrap();
    let error = within(opened.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert_eq!(far.refused_streams(), 1);
    // The session and other scopes go on.
    let (near, far) = scoped(&near, &far, "both");
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 100).await;
}

#[tokio::test]
async fn closing_a_scope_ends_its_streams_only_and_tells_the_peer() {
    for dropped in [false, true] {
        let federation = Federation::new(options()).await;
        let (near, far) = federation.session().await;
        let (near_a, far_a) = scoped(&near, &far, "a");
        let (near_b, far_b) = scoped(&near, &far, "b");
        let mut opened = within(near_a.open(Kind::TRANSFER)).await.unwrap();
        let (_, mut taken) = within(far_a.accept()).await.unwrap();
        let other = within(near_b.open(Kind::TRANSFER)).await.unwrap();
        let (_, other_taken) = within(far_b.accept()).await.unwrap();
        // What has been written before is still read.
        taken.write_all(b"last words").await.unwrap();
        taken.flush().await.unwrap();
        let mut got = [0; 10];
        within(opened.read_exact(&mut got[..4])).await.unwrap();

        let reading = tokio::spawn(async move {
            within(opened.read_exact(&mut got[..6])).await.unwrap();
            within(opened.read(&mut got)).await.unwrap_err()
        });
        if dropped {
            drop(far_a);
            let reason = within(near_a.closed()).await;
            assert_eq!(reason, CloseReason::Peer(String::new()));
        } else {
            within(far_a.close("the job has ended")).await;
            assert_eq!(far_a.closed().await, CloseReason::Here);
            let reason = within(near_a.closed()).await;
            assert_eq!(reason, CloseReason::Peer("the job has ended".into()));
        }
        within(reading).await.unwrap();
        // The peer may have hung up first.
        let end = within(taken.read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        within(taken.write_all(&[0; 100_000])).await.unwrap_err();
        assert!(within(near_a.accept()).await.is_none());
        assert!(within(near_a.accept_control()).await.is_none());
        let error = within(near_a.open(Kind::TRANSFER)).await.err().unwrap();
        assert!(matches!(error, SessionError::Over { .. }), "{error}");

        exchange(other, other_taken, 100_000).await;
        within(near.ping()).await.unwrap();
        let opened = within(far_b.open(Kind::TRANSFER)).await.unwrap();
        let (_, taken) = within(near_b.accept()).await.unwrap();
        exchange(opened, taken, 1000).await;
    }
}

#[tokio::test]
async fn a_name_can_be_used_again_at_once_after_closing() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    for round in 0..20_u8 {
        let (a, b) = scoped(&near, &far, "again");
        // Whoever opens and whoever closes changes; the other end learns of it
        // while the first has made the next one already.
        let (opener, taker) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let mut opened = within(opener.open(Kind::other(round))).await.unwrap();
        opened.write_all(&[round]).await.unwrap();
        opened.flush().await.unwrap();
        let (kind, mut taken) = within(taker.accept()).await.unwrap();
        assert_eq!(kind, Kind::other(round));
        let mut got = [0];
        within(taken.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, [round]);
        if round % 3 == 0 {
            drop(a);
            drop(b);
        } else if round % 3 == 1 {
            within(a.close("")).await;
            within(b.closed()).await;
        } else {
            drop(b);
            within(a.closed()).await;
        }
    }
}

#[tokio::test]
async fn names_are_checked_and_given_once() {
    let federation = Federation::new(options()).await;
    let (near, _far) = federation.session().await;
    let long = "x".repeat(64);
    for name in ["", "two words", "line\n", "ünder", &long] {
        let error = near.scope(name).err().unwrap();
        assert!(matches!(error, ScopeError::Name { .. }), "{error}");
    }
    let first = near.scope("one").unwrap();
    let error = near.scope("one").err().unwrap();
    assert!(matches!(error, ScopeError::Taken { .. }), "{error}");
    assert!(error.to_string().contains("`one`"), "{error}");
    // A clone is the same scope, and keeps it.
    let clone = first.clone();
    drop(first);
    near.scope("one").err().unwrap();
    drop(clone);
    near.scope("one").unwrap();
}

#[tokio::test]
async fn scopes_end_with_their_session() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let (near_a, far_a) = scoped(&near, &far, "a");
    let mut opened = within(near_a.open(Kind::TRANSFER)).await.unwrap();
    let (_, mut taken) = within(far_a.accept()).await.unwrap();
    within(far.close("maintenance")).await;
    let reason = CloseReason::Peer("maintenance".into());
    assert_eq!(within(near_a.closed()).await, reason);
    assert_eq!(within(far_a.closed()).await, CloseReason::Here);
    within(opened.read(&mut [0])).await.unwrap_err();
    within(taken.read(&mut [0])).await.unwrap_err();
    let error = near.scope("b").err().unwrap();
    assert!(matches!(error, ScopeError::Over { .. }), "{error}");
    within(near_a.close("too late")).await;
}

#[tokio::test]
async fn waiting_streams_are_bounded() {
    let federation = Federation::new(options()).await;
    let (near, far) = federation.session().await;
    let alone = near.scope("alone").unwrap();
    let mut streams = Vec::new();
    for _ in 0..firesteel_base::limits::WAITING_STREAMS + 4 {
        streams.push(within(alone.open(Kind::TRANSFER)).await.unwrap());
    }
    until("the rest is refused", || far.refused_streams() == 4).await;
    // Those are no burden to others.
    let opened = within(near.open(Kind::TRANSFER)).await.unwrap();
    let (_, taken) = within(far.accept()).await.unwrap();
    exchange(opened, taken, 100).await;
}
