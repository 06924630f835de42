//! A relay's process between a server and a site, with kits as they are made.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::Durations;
use firesteel_carry::Connection;
use firesteel_daemon::relay::{
    self, RelayError, RelayRun, Uplink, UplinkError, answer_tunnel, join,
};
use firesteel_net::{
    Entrance, Front, FrontOptions, Kind, Options, Reader, Scheme, Session, Target, Writer, split,
};
use firesteel_observe::ConsoleStyle;
use firesteel_pki::{Kit, Project, provision};
use firesteel_wire::control::{ToServer, to_server};
use firesteel_wire::node::{self, ToNode, to_node};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);

const PROJECT: &str = "
api_version: 3
name: study
participants:
  - {name: server.test, type: server, org: example, fed_learn_port: SERVER, host_names: [localhost, 127.0.0.1]}
  - {name: north, type: relay, org: example, listening_host: {host_names: [localhost, 127.0.0.1], port: RELAY}}
  - {name: site-1, type: client, org: north, connect_to: north}
  - {name: ann@north.org, type: admin, org: north, role: lead}
";

struct Bench {
    dir: tempfile::TempDir,
    relay: SocketAddr,
    joined: mpsc::Receiver<Connection>,
    stop: watch::Sender<Option<String>>,
    running: JoinHandle<Result<(), RelayError>>,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server_port, relay_port) = (free_port(), free_port());
        let text = PROJECT
            .replace("SERVER", &server_port.to_string())
            .replace("RELAY", &relay_port.to_string());
        let project = Project::parse(&text, Path::new("project.yml")).unwrap();
        let kits = dir.path().join("kits");
        provision(&project, &kits, &dir.path().join("state")).unwrap();
        let joined = server(&kits.join("server.test"), server_port).await;
        let own = format!(
            "workspace = {:?}\n[network]\nhost = \"127.0.0.1\"\nport = {server_port}\n",
            dir.path().join("relay")
        );
        std::fs::write(kits.join("north/relay.toml"), own).unwrap();
        let (stop, stopped) = watch::channel(None);
        let (tell, mut told) = mpsc::channel(1);
        let run = RelayRun {
            kit: Kit::open(kits.join("north")).unwrap(),
            log: Some("debug".to_owned()),
            console: ConsoleStyle::Off,
            durations: Durations {
                connect: CONNECT,
                ..Durations::default()
            },
            net: Options::default(),
        };
        let running = tokio::spawn(relay::run(
            run,
            move |addresses| tell.try_send(addresses[0]).unwrap(),
            stopped,
        ));
        let relay = told.recv().await.expect("the relay listens");
        Self {
            dir,
            relay,
            joined,
            stop,
            running,
        }
    }

    fn kit(&self, name: &str) -> Kit {
        Kit::open(self.dir.path().join("kits").join(name)).unwrap()
    }

    async fn uplink(&self) -> Uplink {
        let kit = self.kit("site-1");
        let way = &kit.connect()[0];
        assert_eq!(way.through_relay.as_deref(), Some("north"));
        let target = Target::new(
            Scheme::Tcp,
            "127.0.0.1",
            self.relay.port(),
            &way.server_name,
            kit.identity().clone(),
        );
        Uplink::dial(target, Options::default()).await.unwrap()
    }
}

/// A server that welcomes relays, answers streams of sites in capitals, and runs
/// the job `job-1`.
async fn server(kit: &Path, port: u16) -> mpsc::Receiver<Connection> {
    let kit = Kit::open(kit).unwrap();
    let entrance = Entrance::new((Ipv4Addr::LOCALHOST, port).into());
    let identity = kit.identity().clone();
    let front = Front::bind(FrontOptions::new(
        vec![entrance],
        identity,
        Options::default(),
    ));
    let front = Arc::new(front.await.unwrap());
    let (connections, joined) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            if let Ok(session) = front.accept().await {
                let (front, connections) = (Arc::clone(&front), connections.clone());
                tokio::spawn(serve(front, session, connections));
            }
        }
    });
    joined
}

async fn serve(front: Arc<Front>, session: Session, connections: mpsc::Sender<Connection>) {
    if session.peer().role.as_deref() == Some("relay") {
        let (mut reader, mut writer): (Reader, Writer) = split(session.control().unwrap());
        let hello = reader.next::<node::ToServer>("ToServer").await.unwrap();
        assert!(hello.is_some());
        let body = Some(to_node::Body::Welcome(node::Welcome::default()));
        writer.send(&ToNode { body }).await.unwrap();
        tokio::spawn(async move {
            let _keep = writer;
            while let Ok(Some(_)) = reader.next::<node::ToServer>("ToServer").await {}
        });
    }
    while let Some((kind, mut stream)) = session.accept().await {
        let (front, session, connections) =
            (Arc::clone(&front), session.clone(), connections.clone());
        tokio::spawn(async move {
            if kind == Kind::TUNNEL {
                if let Some(stream) = answer_tunnel(stream, CONNECT).await {
                    front.serve_stream(stream, session.address());
                }
            } else if kind == Kind::BELOW {
                let find = |job: String| async move {
                    match &*job {
                        "job-1" => Ok(connections),
                        _ => Err(format!("no job {job} is running")),
                    }
                };
                join(stream, session, CONNECT, find).await;
            } else {
                let mut all = String::new();
                stream.read_to_string(&mut all).await.unwrap();
                stream
                    .write_all(all.to_uppercase().as_bytes())
                    .await
                    .unwrap();
                stream.shutdown().await.unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_speaks_with_its_server_through_a_relays_process() {
    let bench = Bench::new().await;
    let uplink = bench.uplink().await;
    let kit = bench.kit("site-1");
    let server = &kit.config().server;
    let session = uplink
        .server(server, kit.identity(), Options::default())
        .await
        .unwrap();
    assert_eq!(session.peer().name.as_str(), "server.test");
    let mut stream = session.open(Kind::other(0)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO");
    bench.stop.send_replace(Some("the test is over".to_owned()));
    let ended = tokio::time::timeout(LIMIT, bench.running).await.unwrap();
    ended.unwrap().unwrap();
    tokio::time::timeout(LIMIT, session.closed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_joins_a_job_for_its_sites_and_no_other() {
    let mut bench = Bench::new().await;
    let uplink = bench.uplink().await;
    match uplink.job("job-2", 0).await {
        Err(UplinkError::Refused { why }) => assert_eq!(why, "no job job-2 is running"),
        other => panic!("{other:?}"),
    }
    match uplink.job("../job", 0).await {
        Err(UplinkError::Refused { .. }) => {}
        other => panic!("{other:?}"),
    }
    let scope = uplink.job("job-1", 0).await.unwrap();
    let joined = tokio::time::timeout(LIMIT, bench.joined.recv())
        .await
        .unwrap();
    let Connection { control, way } = joined.unwrap();
    assert_eq!(way.peer(), Some("north"));
    let (mut reader, _writer) = split(control);
    let hello = reader.next::<ToServer>("ToServer").await.unwrap().unwrap();
    match hello.body {
        Some(to_server::Body::Hello(hello)) => {
            assert!(hello.relay);
            assert_eq!(hello.site, "north");
        }
        other => panic!("{other:?}"),
    }
    drop(scope);
}
