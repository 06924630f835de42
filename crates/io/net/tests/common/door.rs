//! A front door on loopback, and ways to it.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "helpers of tests are tests, too, and each test uses some of them"
)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use firesteel_net::dev::Authority;
use firesteel_net::{
    DialError, Entrance, Front, FrontOptions, Identity, Options, Scheme, Security, Session, Target,
    Web, WebBody, dial_with, stream_with,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::within;

pub const SCHEMES: [Scheme; 3] = [Scheme::Tcp, Scheme::Grpc, Scheme::Http];

/// Says back what it was asked, and from where.
pub struct Echo;

impl Web for Echo {
    fn call(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = Response<WebBody>> + Send>> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().len());
            let text = format!("{} {} {from} {body:?}", head.method, head.uri.path());
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            Response::new(WebBody::new(body))
        })
    }
}

pub struct House {
    pub authority: Authority,
    pub front: Arc<Front>,
    pub options: Options,
}

impl House {
    pub async fn new(options: Options) -> Self {
        Self::with(options, |_| {}).await
    }

    /// With a change of what the front door is made from.
    pub async fn with(options: Options, change: impl FnOnce(&mut FrontOptions)) -> Self {
        let authority = Authority::new("test").unwrap();
        let server = authority.server("server", &["localhost", "127.0.0.1", "::1"]);
        let identity = server.unwrap().identity().unwrap();
        let entrance = Entrance::new("127.0.0.1:0".parse().unwrap());
        let mut made = FrontOptions::new(vec![entrance], identity, options.clone());
        made.web = Some(Arc::new(Echo));
        change(&mut made);
        let front = Front::bind(made).await.unwrap();
        Self {
            authority,
            front: Arc::new(front),
            options,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.front.local_addresses()[0]
    }

    pub fn site(&self, name: &str) -> Identity {
        self.authority.site(name).unwrap().identity().unwrap()
    }

    pub fn target(&self, scheme: Scheme) -> Target {
        self.target_at(scheme, self.address(), self.site("site-1"))
    }

    pub fn target_at(&self, scheme: Scheme, address: SocketAddr, identity: Identity) -> Target {
        let host = address.ip().to_string();
        Target::new(scheme, &host, address.port(), "localhost", identity)
    }

    pub async fn dial(&self, target: &Target) -> Result<Session, DialError> {
        within(dial_with(target, self.options.clone())).await
    }

    /// A session: the site's end, the server's end.
    pub async fn session(&self, target: &Target) -> (Session, Session) {
        let (near, far) = tokio::join!(self.dial(target), within(self.front.accept()));
        (near.unwrap(), far.unwrap())
    }

    /// What a GET answers.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let target = self.target(Scheme::Http);
        get_at(&target, &self.options, path, headers).await
    }
}

/// What a GET answers at a target.
pub async fn get_at(
    target: &Target,
    options: &Options,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    let stream = within(stream_with(target, options)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let mut request = Request::get(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = within(sender.send_request(request)).await.unwrap();
    let status = answer.status().as_u16();
    let body = within(answer.into_body().collect()).await.unwrap();
    driving.abort();
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    (status, text)
}

pub fn clear(mut target: Target) -> Target {
    target.security = Security::Clear;
    target
}
