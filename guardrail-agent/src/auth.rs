//! `--auth kube`: who may read `/metrics` and `/v1/graph`, which name every service in the cluster.
//!
//! The API server decides: a TokenReview says who the bearer of a token is, a SubjectAccessReview whether that user may `get` the URL as a
//! non-resource URL, as kubelets and controllers do it. Answers are remembered for a short time, refusals for a shorter one. What has to be asked
//! for is limited in rate and in number, so that a caller with many bad tokens loads neither the agent nor the API server.

mod review;
pub mod tls;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::sync::Semaphore;

use crate::kube::Api;

/// Longest token that is looked at; those of service accounts have about 1 KiB.
const MAX_TOKEN: usize = 8 << 10;
/// Answers that are remembered.
const MAX_ANSWERS: usize = 256;

/// Limits; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a permission holds.
    pub allowed: Duration,
    /// How long a refusal holds.
    pub refused: Duration,
    /// Questions to the API server at the same time.
    pub concurrent: usize,
    /// Questions to the API server per second, on average; twice as many in a burst.
    pub per_second: f64,
    /// How long the API server may take.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allowed: Duration::from_secs(60),
            refused: Duration::from_secs(10),
            concurrent: 4,
            per_second: 10.0,
            answer: Duration::from_secs(5),
        }
    }
}

/// What the API server says of a token and a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// Nobody's token: 401.
    Unknown,
    /// A user who may not: 403.
    Forbidden,
}

/// Token and path.
type Question = (Box<str>, Box<str>);

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Guards routes.
pub struct Guard {
    api: Arc<Api>,
    audience: Option<String>,
    limits: Limits,
    answers: Mutex<HashMap<Question, (Verdict, Instant)>>,
    bucket: Mutex<Bucket>,
    asking: Semaphore,
}

impl Guard {
    /// A guard that asks `api`. With an audience, only tokens issued for it count.
    #[must_use]
    pub fn new(api: Arc<Api>, audience: Option<String>, limits: Limits) -> Self {
        Self {
            api,
            audience: audience.filter(|a| !a.is_empty()),
            answers: Mutex::default(),
            bucket: Mutex::new(Bucket { left: 2.0 * limits.per_second, at: Instant::now() }),
            asking: Semaphore::new(limits.concurrent),
            limits,
        }
    }

    fn remembered(&self, key: &Question) -> Option<Verdict> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(_, until)| *until > Instant::now()).map(|(verdict, _)| *verdict)
    }

    fn remember(&self, key: Question, verdict: Verdict) {
        let now = Instant::now();
        let holds = if verdict == Verdict::Allowed { self.limits.allowed } else { self.limits.refused };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (_, until)| *until > now);
        }
        // Refusals make room for permissions: bad tokens must not push good ones out.
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (verdict, _)| *verdict == Verdict::Allowed);
        }
        if answers.len() < MAX_ANSWERS {
            answers.insert(key, (verdict, now + holds));
        }
    }

    fn may_ask(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let refill = now.duration_since(bucket.at).as_secs_f64() * self.limits.per_second;
        bucket.left = (bucket.left + refill).min(2.0 * self.limits.per_second);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }

    async fn check(&self, token: &str, path: &str) -> Result<Verdict, Response> {
        let key = (Box::from(token), Box::from(path));
        if let Some(verdict) = self.remembered(&key) {
            return Ok(verdict);
        }
        let busy = || {
            let wait = [(header::RETRY_AFTER, "1")];
            (StatusCode::TOO_MANY_REQUESTS, wait, "too many tokens to review, try again in a second\n").into_response()
        };
        if !self.may_ask() {
            return Err(busy());
        }
        let _permit = self.asking.try_acquire().map_err(|_| busy())?;
        match review::review(&self.api, token, self.audience.as_deref(), path, self.limits.answer).await {
            Ok(verdict) => {
                self.remember(key, verdict);
                Ok(verdict)
            }
            Err(e) => {
                tracing::warn!("a token cannot be reviewed: {e}");
                Err((StatusCode::SERVICE_UNAVAILABLE, "the API server cannot review the token now, try again\n")
                    .into_response())
            }
        }
    }
}

/// Middleware: lets through who may `get` the URL.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN);
    let unknown = || {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, challenge, "give a service account's token as `Authorization: Bearer …`\n")
            .into_response()
    };
    let Some(token) = token else { return unknown() };
    match guard.check(token, request.uri().path()).await {
        Ok(Verdict::Allowed) => next.run(request).await,
        Ok(Verdict::Unknown) => unknown(),
        Ok(Verdict::Forbidden) => {
            let path = request.uri().path();
            (StatusCode::FORBIDDEN, format!("not permitted: grant the verb get on the nonResourceURL {path}\n"))
                .into_response()
        }
        Err(response) => response,
    }
}
