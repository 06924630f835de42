//! A real nginx in front of a server: it ends TLS for gRPC and for WebSockets, and
//! the mutual TLS of sessions passes through it unread.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use firesteel_net::dev::{Authority, Issued};
use firesteel_net::{
    BoxStream, DialError, Entrance, Front, FrontOptions, Kind, Options, Scheme, Security, Session,
    Target, dial_with,
};
use firesteel_rig::refuse_or_skip;
use firesteel_rig::wait::{until, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A running nginx; it ends with this.
struct Nginx {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The workers end with their master's orderly end only.
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}

/// Where an nginx is, or that the test cannot be made.
fn program() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/nginx.py");
    let found = Command::new("python3").arg(script).output().unwrap();
    if !found.status.success() {
        refuse_or_skip(&String::from_utf8_lossy(&found.stderr));
        return None;
    }
    let path = String::from_utf8(found.stdout).unwrap();
    Some(PathBuf::from(path.trim()))
}

/// A port that nobody has now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Nginx {
    /// In front of `server`, to which it speaks with TLS or without; the
    /// configuration is that of the guide.
    async fn start(program: &Path, certificate: &Issued, server: SocketAddr, tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        fs::write(folder.path().join("chain.pem"), &certificate.certificates).unwrap();
        fs::write(folder.path().join("key.pem"), &certificate.key).unwrap();
        let port = free_port();
        let (grpc, http) = if tls {
            ("grpcs", "https")
        } else {
            ("grpc", "http")
        };
        let root = rustix::process::geteuid().is_root();
        let user = if root { "user root;" } else { "" };
        let text = format!(
            r#"
{user}
daemon off;
worker_processes 1;
pid {at}/pid;
error_log {at}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log {at}/access.log;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        ''      close;
    }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate     {at}/chain.pem;
        ssl_certificate_key {at}/key.pem;
        ssl_protocols       TLSv1.3;
        client_max_body_size 0;

        location /firesteel.v1.Link/ {{
            grpc_pass            {grpc}://{server};
            grpc_ssl_protocols   TLSv1.3;
            grpc_socket_keepalive on;
            grpc_read_timeout    5m;
            grpc_send_timeout    5m;
            client_body_timeout  5m;
        }}
        location / {{
            proxy_pass           {http}://{server};
            proxy_ssl_protocols  TLSv1.3;
            proxy_http_version   1.1;
            proxy_set_header     Host $host;
            proxy_set_header     Upgrade $http_upgrade;
            proxy_set_header     Connection $connection_upgrade;
            proxy_socket_keepalive on;
            proxy_request_buffering off;
            proxy_buffering      off;
            proxy_read_timeout   5m;
            proxy_send_timeout   5m;
        }}
    }}
}}
"#
        );
        let configuration = folder.path().join("nginx.conf");
        fs::write(&configuration, text).unwrap();
        let child = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&configuration)
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            child,
            port,
            folder,
        };
        until(|| std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
        nginx
    }

    /// What it wrote.
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

async fn send(mut from: BoxStream, mut to: BoxStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        from.write_all(&sent).await.unwrap();
        from.shutdown().await.unwrap();
        let mut end = Vec::new();
        from.read_to_end(&mut end).await.unwrap();
        assert_eq!(end, b"got it");
    });
    let mut got = Vec::new();
    within(to.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected, "{} of {bytes} bytes", got.len());
    to.write_all(b"got it").await.unwrap();
    drop(to);
    within(writing).await.unwrap();
}

async fn check(near: &Session, far: &Session) {
    // Behind nginx the ends are still each other's.
    assert_eq!(near.peer().name.as_str(), "server");
    assert_eq!(far.peer().name.as_str(), "site-1");
    send(near.control().unwrap(), far.control().unwrap(), 1000).await;
    for (opener, taker) in [(near, far), (far, near)] {
        let opened = within(opener.open(Kind::TRANSFER)).await.unwrap();
        let (_, taken) = within(taker.accept()).await.unwrap();
        send(opened, taken, 8 * 1024 * 1024).await;
    }
    assert!(near.bulk_connections() > 0);
    within(near.ping()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_pass_through_an_nginx_that_ends_tls() {
    let Some(program) = program() else {
        return;
    };
    let authority = Authority::new("federation").unwrap();
    let server = authority.server("server", &["server.test"]).unwrap();
    let mut options = Options::default();
    options.durations.connect = Duration::from_secs(20);
    let mut behind = Entrance::new("127.0.0.1:0".parse().unwrap());
    let direct = behind;
    behind.clear = true;
    let front = Front::bind(FrontOptions::new(
        vec![behind, direct],
        server.identity().unwrap(),
        options.clone(),
    ))
    .await
    .unwrap();
    let front = Arc::new(front);
    // Of another authority, as a company's ingress has it.
    let elsewhere = Authority::new("company").unwrap();
    let ingress = elsewhere.server("ingress", &["fl.company.test"]).unwrap();
    for (address, tls) in front.local_addresses().iter().zip([false, true]) {
        let nginx = Nginx::start(&program, &ingress, *address, tls).await;
        for scheme in [Scheme::Grpc, Scheme::Http] {
            let identity = authority.site("site-1").unwrap().identity().unwrap();
            let mut target = Target::new(scheme, "127.0.0.1", nginx.port, "server.test", identity);
            target.security = Security::Tls;
            target.outer_authority = Some(ingress.authority.clone().into_bytes());
            target.outer_name = Some("fl.company.test".to_owned());
            let (near, far) = tokio::join!(
                within(dial_with(&target, options.clone())),
                within(front.accept())
            );
            let (near, far) = match (near, far) {
                (Ok(near), Ok(far)) => (near, far),
                (near, far) => panic!(
                    "{scheme}, TLS behind: {tls}: {near:?} {far:?}\n{}",
                    nginx.log("error.log")
                ),
            };
            check(&near, &far).await;
            within(near.close("done")).await;
            within(far.closed()).await;

            // Whoever takes the ingress for the server itself is told.
            target.outer_authority = None;
            target.outer_name = None;
            let error = within(dial_with(&target, options.clone()))
                .await
                .unwrap_err();
            assert!(matches!(error, DialError::Outer { .. }), "{error}");
        }
        // A path that leads nowhere, and a server that is away.
        let text = nginx.log("access.log");
        for path in ["/firesteel.v1.Link/Connect", "/v1/link"] {
            assert!(text.contains(path), "{text}");
        }
    }
    let gone = free_port();
    let nginx = Nginx::start(&program, &ingress, ([127, 0, 0, 1], gone).into(), false).await;
    for scheme in [Scheme::Grpc, Scheme::Http] {
        let identity = authority.site("site-1").unwrap().identity().unwrap();
        let mut target = Target::new(scheme, "127.0.0.1", nginx.port, "server.test", identity);
        target.security = Security::Tls;
        target.outer_authority = Some(ingress.authority.clone().into_bytes());
        target.outer_name = Some("fl.company.test".to_owned());
        let error = within(dial_with(&target, options.clone()))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("does not reach it"), "{scheme}: {text}");
    }
}
