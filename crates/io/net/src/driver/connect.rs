//! HTTP `CONNECT` through a proxy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Proxy, ProxyError};
use crate::session::DialError;
use crate::wire::Wire;

/// A stream to `authority` (`host:port`) through the proxy at the other end of
/// `socket`.
pub(super) async fn through(
    proxy: &Proxy,
    socket: TcpStream,
    authority: &str,
) -> Result<Wire, DialError> {
    let failed = |why| DialError::Proxy {
        proxy: proxy.to_string(),
        why,
    };
    let protocol = |error| failed(ProxyError::Protocol(error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(protocol)?;
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(authority).header(header::HOST, authority);
    if let Some((user, password)) = &proxy.credentials {
        let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let mut value = HeaderValue::from_str(&text).map_err(|_| failed(ProxyError::Malformed))?;
        value.set_sensitive(true);
        request = request.header(header::PROXY_AUTHORIZATION, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| failed(ProxyError::Malformed))?;
    let answer = sender.send_request(request).await.map_err(protocol)?;
    match answer.status() {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => return Err(failed(ProxyError::Credentials)),
        status if !status.is_success() => return Err(failed(ProxyError::Refused(status))),
        _ => {}
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(protocol)?;
    // The socket itself, unless the server has spoken already: in TLS it does not.
    Ok(match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) if parts.read_buf.is_empty() => Wire::Tcp(parts.io.into_inner()),
        Ok(parts) => Wire::Other(Box::new(crate::wire::Prefixed::new(
            parts.read_buf,
            parts.io.into_inner(),
        ))),
        Err(upgraded) => Wire::Other(Box::new(TokioIo::new(upgraded))),
    })
}
