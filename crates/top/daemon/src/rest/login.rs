//! Logging in.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use firesteel_api::login::{Login, Nonce, Token, signed_text};
use firesteel_api::{Code, Problem, problem};
use firesteel_policy::{Role, Subject};

use super::answer::Answer;
use super::body;
use super::gate::{Caller, person};
use super::router::Inner;
use super::tokens::{NONCE_LIFE, NoRandom, NonceError, TOKEN_LIFE};

/// Hands out a nonce to be signed.
#[utoipa::path(
    post, path = "/v1/login/nonce", tag = "login", security(()),
    responses((status = 200, body = Nonce))
)]
pub(super) async fn nonce(State(rest): State<Arc<Inner>>) -> Answer<Json<Nonce>> {
    let nonce = rest.tokens().nonce(Instant::now()).map_err(no_random)?;
    Ok(Json(Nonce {
        nonce,
        server: rest.options().server.clone(),
        expires_in_s: NONCE_LIFE.as_secs(),
    }))
}

/// Takes the signed nonce and gives a token.
///
/// The signature is over `firesteel login 1`, a zero byte, and the text
/// `server <server's name>\nnonce <nonce>\n`, made with the key of the certificate:
/// ECDSA (ASN.1) with SHA-256 or SHA-384, Ed25519, or RSA-PSS with SHA-256.
#[utoipa::path(
    post, path = "/v1/login", tag = "login", security(()),
    request_body = Login,
    responses(
        (status = 200, body = Token),
        (status = 401, body = Problem, description = "Nonce, certificate or signature do not hold"),
        (status = 429, body = Problem, description = "Too many logins at once"),
    )
)]
pub(super) async fn login(State(rest): State<Arc<Inner>>, body: Body) -> Answer<Json<Token>> {
    let bytes = body::small(body, rest.options().durations.connect).await?;
    let login: Login = problem::read(&bytes)?;
    // Cheap checks first: a stranger gets no signature checked without a nonce.
    rest.tokens()
        .check(&login.nonce, Instant::now())
        .map_err(nonce_problem)?;
    let signature = STANDARD.decode(&login.signature).map_err(|_| {
        Problem::new(Code::Invalid, "the signature is not base64").with_field("signature")
    })?;
    let permit = rest.login_turn()?;
    let text = signed_text(&rest.options().server, &login.nonce);
    let verify = rest.options().verify.clone();
    let chain = login.certificates;
    let checked = tokio::task::spawn_blocking(move || {
        let checked = verify(&chain, &text, &signature);
        drop(permit);
        checked
    })
    .await
    .map_err(|_| Problem::new(Code::Internal, "checking the signature failed"))?;
    let subject = checked.map_err(|reason| {
        rest.log()
            .warning(&format!("a login was refused: {reason}"));
        Problem::new(Code::LoginRefused, reason).with_hint(
            "use a kit of this project, made for this server; `firesteel provision` makes one",
        )
    })?;
    only_people(&subject)?;
    let token = rest
        .tokens()
        .login(&login.nonce, subject.clone(), Instant::now())
        .map_err(no_random)?
        .map_err(nonce_problem)?;
    rest.log().info(&format!(
        "{} ({} of {}) logged in",
        subject.name, subject.role, subject.org
    ));
    Ok(Json(Token {
        token,
        expires_in_s: TOKEN_LIFE.as_secs(),
        subject: person(&subject),
        server: rest.options().server.clone(),
        project: rest.options().project.clone(),
    }))
}

/// Forgets the token that it comes with.
#[utoipa::path(
    post, path = "/v1/logout", tag = "login",
    responses((status = 204), (status = 401, body = Problem))
)]
pub(super) async fn logout(State(rest): State<Arc<Inner>>, caller: Caller) -> StatusCode {
    rest.tokens().forget(&caller.token);
    StatusCode::NO_CONTENT
}

/// The key of a site, a relay or a server opens no session of a person.
fn only_people(subject: &Subject) -> Result<(), Problem> {
    if matches!(subject.role, Role::Admin(_)) {
        return Ok(());
    }
    Err(Problem::new(
        Code::LoginRefused,
        format!(
            "the certificate of `{}` is that of a {}, and only people log in",
            subject.name, subject.role
        ),
    )
    .with_hint("use the kit of an admin"))
}

fn nonce_problem(error: NonceError) -> Problem {
    let message = match error {
        NonceError::Unknown => "the nonce was not handed out by this server",
        NonceError::Expired => "the nonce has expired",
        NonceError::Used => "the nonce was used before",
    };
    Problem::new(Code::LoginRefused, message)
        .with_field("nonce")
        .with_hint("ask for a new one: POST /v1/login/nonce")
}

fn no_random(error: NoRandom) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}
