//! The interface behind a front door.

use std::net::SocketAddr;
use std::pin::Pin;

use axum::http::{Request, Response};
use firesteel_net::{Web, WebBody};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::router::Rest;

impl Web for Rest {
    fn call(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = Response<WebBody>> + Send>> {
        let rest = self.clone();
        Box::pin(async move {
            let response = Rest::call(&rest, request, from).await;
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        })
    }
}
