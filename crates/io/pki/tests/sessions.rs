//! Kits at work: who can connect to whom with what provisioning made.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod common;

use std::time::Duration;

use common::{Made, explained};
use firesteel_net::{DialError, Listener, Options, Session, dial};

/// What comes of a dial from one kit to another that listens: what either end
/// knows of the other.
async fn meet(
    made: &Made,
    listens: &str,
    dials: &str,
    name: &str,
) -> Result<(Session, Session), DialError> {
    let identity = made.kit(listens).identity().clone();
    let options = Options::default();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), identity, options.clone())
        .await
        .unwrap();
    let address = listener.local_address().to_string();
    let dialing = made.kit(dials).identity().clone();
    let accept = tokio::spawn(async move { listener.accept().await });
    let dialed = dial(&address, name, &dialing, options).await?;
    let accepted = tokio::time::timeout(Duration::from_secs(20), accept)
        .await
        .expect("it is accepted when the dial succeeded")
        .unwrap()
        .unwrap();
    Ok((dialed, accepted))
}

#[tokio::test]
async fn everybody_reaches_the_server_and_is_known_by_name_and_role() {
    let made = Made::new();
    for (who, role, org) in [
        ("site-1", "site", "north"),
        ("relay-1", "relay", "example"),
        ("lead@north.org", "lead", "north"),
    ] {
        for name in ["server1.example.com", "localhost", "127.0.0.1"] {
            let (server, peer) = meet(&made, "server1.example.com", who, name).await.unwrap();
            assert_eq!(server.peer().name.as_str(), "server1.example.com");
            assert_eq!(server.peer().role.as_deref(), Some("server"));
            assert_eq!(peer.peer().name.as_str(), who);
            assert_eq!(peer.peer().role.as_deref(), Some(role));
            assert_eq!(peer.peer().organization.as_deref(), Some(org));
        }
    }
}

#[tokio::test]
async fn a_site_reaches_its_relay_by_the_name_in_its_kit() {
    let made = Made::new();
    let way = made.kit("site-2").connect().remove(0);
    let (relay, site) = meet(&made, "relay-1", "site-2", &way.server_name)
        .await
        .unwrap();
    assert_eq!(relay.peer().role.as_deref(), Some("relay"));
    assert_eq!(site.peer().name.as_str(), "site-2");
}

#[tokio::test]
async fn names_of_relays_need_not_be_those_of_hosts() {
    for name in ["relay_1", "Relay.north", "7.relay"] {
        let text = common::PROJECT.replace("relay-1", name);
        let made = Made::of(&text);
        let way = made.kit("site-2").connect().remove(0);
        assert_eq!(way.server_name, name);
        let (relay, _) = meet(&made, name, "site-2", name).await.unwrap();
        assert_eq!(relay.peer().name.as_str(), name);
    }
}

#[tokio::test]
async fn certificates_are_good_for_what_they_are_for_only() {
    let made = Made::new();
    // A site's cannot stand in for the server's, nor the server's for a site's.
    for (listens, dials, name) in [
        ("site-1", "site-2", "site-1"),
        ("server1.example.com", "server1.example.com", "localhost"),
        ("relay-1", "site-1", "server1.example.com"),
    ] {
        let error = meet(&made, listens, dials, name).await.err();
        assert!(error.is_some(), "{dials} reached {listens} as {name}");
    }
    let other = Made::new();
    let identity = other.kit("server1.example.com").identity().clone();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), identity, Options::default())
        .await
        .unwrap();
    let address = listener.local_address().to_string();
    let site = made.kit("site-1").identity().clone();
    let error = dial(&address, "localhost", &site, Options::default())
        .await
        .unwrap_err();
    let text = explained(&error);
    assert!(text.contains("authority.pem"), "{text}");
}
