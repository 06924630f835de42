//! One admin's session with one server.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use firesteel_api::login::{self, Nonce, Token, signed_text};
use firesteel_api::route;
use firesteel_base::{Durations, limits};
use firesteel_pki::{Kit, Purpose, Role, Signer};
use http::Method;
use serde_json::{from_slice, to_vec};

use crate::connect::{BoxConnect, KitConnect};
use crate::error::SessionError;
use crate::exchange::{Ask, Reply, refusal};
use crate::http1::Connections;

/// A token is renewed so long before it ends, so that no request meets its end.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Who logs in, and where.
#[derive(Clone)]
pub struct Login {
    /// Signs.
    pub signer: Signer,
    /// The server's name, as its certificate and the kit have it.
    pub server: String,
    /// The project.
    pub project: String,
}

/// One admin's session with one server. Requests may run at once; a clone is the
/// same session.
#[derive(Clone)]
pub struct Session(Arc<Shared>);

struct Shared {
    login: Login,
    connections: Arc<Connections>,
    durations: Durations,
    token: Mutex<Option<Held>>,
    /// One logs in at a time, and the others wait for its token.
    logging_in: tokio::sync::Mutex<()>,
}

struct Held {
    token: Token,
    until: Instant,
}

impl Session {
    /// The session of a kit. Connects with the first request.
    ///
    /// # Errors
    /// [`SessionError`] when the kit cannot be used.
    pub fn open(kit: &Path) -> Result<Self, SessionError> {
        let kit = Kit::open(kit)?;
        Self::of(&kit)
    }

    /// The session of a kit that was opened.
    ///
    /// # Errors
    /// [`SessionError`] when it is no admin's or names no server.
    pub fn of(kit: &Kit) -> Result<Self, SessionError> {
        if !matches!(kit.role(), Role::Admin(_)) {
            return Err(SessionError::NotAdmin {
                name: kit.name().to_owned(),
                role: kit.role().to_string(),
            });
        }
        let login = Login {
            signer: Signer::from_kit(kit)?,
            server: kit.config().server.clone(),
            project: kit.project().to_owned(),
        };
        let connect = KitConnect::of(kit).map_err(|source| SessionError::NoConnection {
            address: login.server.clone(),
            source,
        })?;
        Ok(Self::new(login, Arc::new(connect), Durations::default()))
    }

    /// A session over any connection.
    pub fn new(login: Login, connect: BoxConnect, durations: Durations) -> Self {
        let connections = Connections::new(connect, durations.connect, durations.idle);
        Self(Arc::new(Shared {
            login,
            connections,
            durations,
            token: Mutex::new(None),
            logging_in: tokio::sync::Mutex::new(()),
        }))
    }

    /// Sends any request with a token and gives whatever comes back.
    ///
    /// # Errors
    /// [`SessionError`] when there is no answer; a refusal is an answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Reply, SessionError> {
        let invalid = |why: &str| SessionError::Answer {
            request: format!("{method} {path}"),
            why: why.to_owned(),
        };
        let known = Method::from_bytes(method.as_bytes()).map_err(|_| invalid("no such method"))?;
        if !path.starts_with("/v1/") {
            return Err(invalid("a path starts with /v1/"));
        }
        let mut ask = Ask::new(known, path);
        if let Some(body) = body {
            ask = ask.json(body);
        }
        self.reply(&ask).await
    }

    /// Who the server takes this session for.
    ///
    /// # Errors
    /// [`SessionError`] when the login fails.
    pub async fn whoami(&self) -> Result<firesteel_api::Person, SessionError> {
        self.token().await?;
        let held = self.held();
        let held = held.as_ref().ok_or_else(|| self.no_token())?;
        Ok(held.token.subject.clone())
    }

    /// Gives the token back and closes the connection. The session can still be
    /// used: it logs in again.
    pub async fn close(&self) {
        let token = self.held().take();
        if let Some(held) = token {
            let ask = Ask::new(Method::POST, route::LOGOUT);
            // A server that is not there any more needs no goodbye.
            if let Ok(answer) = self.once(&ask, Some(&held.token.token)).await {
                let _ = answer.whole(limits::REST_JSON).await;
            }
        }
        self.0.connections.close();
    }

    /// The project, which bundles are made for.
    pub fn project(&self) -> &str {
        &self.0.login.project
    }

    /// Signs with the kit's key: bundles.
    pub fn signer(&self) -> &Signer {
        &self.0.login.signer
    }

    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.0.connections
    }

    pub(crate) fn idle(&self) -> Duration {
        self.0.durations.idle
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> Option<String> {
        self.held()
            .as_ref()
            .filter(|held| held.until > Instant::now() + RENEW_BEFORE)
            .map(|held| held.token.token.clone())
    }

    /// Drops a token that the server does not know, unless it was renewed already.
    pub(crate) fn forget(&self, token: &str) {
        self.held().take_if(|held| held.token.token == token);
    }

    /// A token that is good for a while.
    pub(crate) async fn token(&self) -> Result<String, SessionError> {
        if let Some(token) = self.fresh() {
            return Ok(token);
        }
        let _turn = self.0.logging_in.lock().await;
        if let Some(token) = self.fresh() {
            return Ok(token);
        }
        let token = self.log_in().await?;
        let text = token.token.clone();
        let until = Instant::now() + Duration::from_secs(token.expires_in_s.min(3600));
        *self.held() = Some(Held { token, until });
        Ok(text)
    }

    async fn log_in(&self) -> Result<Token, SessionError> {
        let ask = Ask::new(Method::POST, route::LOGIN_NONCE);
        let nonce: Nonce = self.open_exchange(&ask, |body| from_slice(body)).await?;
        let Login { signer, server, .. } = &self.0.login;
        if nonce.server != *server {
            return Err(SessionError::OtherServer {
                address: self.connections().address(),
                found: nonce.server.chars().take(limits::NAME_LENGTH).collect(),
                wanted: server.clone(),
            });
        }
        // Over the name in the kit, whatever the answer said.
        let signature = signer.sign(Purpose::Login, &signed_text(server, &nonce.nonce))?;
        let login = login::Login {
            nonce: nonce.nonce,
            certificates: String::from_utf8_lossy(signer.chain_pem()).into_owned(),
            signature: STANDARD.encode(signature),
        };
        let body = to_vec(&login).map_err(|error| SessionError::Answer {
            request: ask.told(),
            why: error.to_string(),
        })?;
        let ask = Ask::new(Method::POST, route::LOGIN).json(body.into());
        self.open_exchange(&ask, |body| from_slice(body)).await
    }

    /// A request without a token.
    async fn open_exchange<T>(
        &self,
        ask: &Ask,
        read: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, SessionError> {
        let answer = self.once(ask, None).await?;
        let status = answer.head.status.as_u16();
        let body = answer.whole(limits::REST_ANSWER).await?;
        if status != 200 {
            return Err(refusal(ask, status, &body));
        }
        read(&body).map_err(|error| SessionError::Answer {
            request: ask.told(),
            why: error.to_string(),
        })
    }

    fn no_token(&self) -> SessionError {
        SessionError::Answer {
            request: format!("POST {}", route::LOGIN),
            why: "the token went away at once".to_owned(),
        }
    }
}
