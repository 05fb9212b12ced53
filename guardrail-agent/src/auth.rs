//! `--auth kube`: who may read `/metrics` and `/v1/graph`, which name every service in the cluster.
//!
//! The API server decides ([`guardrail_kube::review`]): a TokenReview names the bearer of a token,
//! a SubjectAccessReview says whether that user may `get` the URL as a non-resource URL, as
//! kubelets and controllers do it. Permissions are cached for a short time, refusals for a shorter
//! one. Reviews are limited in rate and in number, so that a caller with many bad tokens loads
//! neither the agent nor the API server. Such a caller does not lock others out either: each caller
//! has a share of its own, and tokens that were good before are reviewed apart from unknown ones.

pub mod tls;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use guardrail_kube::{
    Api,
    quiet::Quiet,
    review::{Verdict, review},
};
use tokio::sync::Semaphore;

use crate::serve::Caller;

/// Longest token that is looked at; those of service accounts have about 1 KiB.
const MAX_TOKEN: usize = 8 << 10;
/// Answers that are remembered.
const MAX_ANSWERS: usize = 256;
/// Callers whose share is kept apart.
const MAX_CALLERS: usize = 1024;

/// Limits; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct ReviewLimits {
    /// How long a permission holds.
    pub allowed: Duration,
    /// How long a refusal holds.
    pub refused: Duration,
    /// Questions to the API server at the same time.
    pub concurrent: usize,
    /// Questions to the API server per second, on average; twice as many in a burst.
    pub per_second: f64,
    /// As `per_second`, for one caller's unknown tokens.
    pub per_caller: f64,
    /// How long the API server may take.
    pub answer: Duration,
}

impl Default for ReviewLimits {
    fn default() -> Self {
        Self {
            allowed: Duration::from_secs(60),
            refused: Duration::from_secs(10),
            concurrent: 4,
            per_second: 10.0,
            per_caller: 2.5,
            answer: Duration::from_secs(5),
        }
    }
}

/// Token and path.
type Question = (Box<str>, Box<str>);

/// A token bucket: so many per second, twice as many in a burst.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(per_second: f64, now: Instant) -> Self {
        Self { left: 2.0 * per_second, at: now }
    }

    fn refill(&mut self, per_second: f64, now: Instant) {
        let gain = now.duration_since(self.at).as_secs_f64() * per_second;
        self.left = (self.left + gain).min(2.0 * per_second);
        self.at = now;
    }

    fn take(&mut self, per_second: f64, now: Instant) -> bool {
        self.refill(per_second, now);
        let some = self.left >= 1.0;
        if some {
            self.left -= 1.0;
        }
        some
    }
}

/// Questions of one sort: a bucket for all, and how many are under way.
#[derive(Debug)]
struct Lane {
    bucket: Mutex<Bucket>,
    asking: Semaphore,
}

impl Lane {
    fn new(limits: &ReviewLimits) -> Self {
        Self {
            bucket: Mutex::new(Bucket::full(limits.per_second, Instant::now())),
            asking: Semaphore::new(limits.concurrent),
        }
    }
}

/// Guards routes.
pub struct Guard {
    api: Arc<Api>,
    audience: Option<String>,
    limits: ReviewLimits,
    /// Verdicts and until when they hold. An expired permission stays a while, as a note that the
    /// token was good before.
    answers: Mutex<HashMap<Question, (Verdict, Instant)>>,
    /// For tokens that nobody knows.
    unknown: Lane,
    /// For tokens that were good before.
    known: Lane,
    callers: Mutex<HashMap<IpAddr, Bucket>>,
    /// Limits the log lines about reviews that fail.
    quiet: Mutex<Quiet>,
}

impl Guard {
    /// A guard that asks `api`. With an audience, only tokens issued for it count.
    #[must_use]
    pub fn new(api: Arc<Api>, audience: Option<String>, limits: ReviewLimits) -> Self {
        Self {
            api,
            audience: audience.filter(|a| !a.is_empty()),
            answers: Mutex::default(),
            unknown: Lane::new(&limits),
            known: Lane::new(&limits),
            callers: Mutex::default(),
            quiet: Mutex::default(),
            limits,
        }
    }

    /// The verdict that holds, and whether the token was ever good.
    fn remembered(&self, key: &Question) -> (Option<Verdict>, bool) {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((verdict, until)) = answers.get(key) else { return (None, false) };
        ((*until > Instant::now()).then_some(*verdict), *verdict == Verdict::Allowed)
    }

    fn remember(&self, key: Question, verdict: Verdict) {
        let now = Instant::now();
        let holds = if verdict == Verdict::Allowed { self.limits.allowed } else { self.limits.refused };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // Refusals make room for permissions: bad tokens must not push good ones out.
        let keep: [fn(Verdict, bool) -> bool; 3] =
            [|v, holds| holds || v == Verdict::Allowed, |v, _| v == Verdict::Allowed, |_, holds| holds];
        for keep in keep {
            if answers.len() >= MAX_ANSWERS && !answers.contains_key(&key) {
                answers.retain(|_, (verdict, until)| keep(*verdict, *until > now));
            }
        }
        if answers.len() < MAX_ANSWERS || answers.contains_key(&key) {
            answers.insert(key, (verdict, now + holds));
        }
    }

    /// Whether a caller's own share of questions is not used up.
    fn caller_may_ask(&self, caller: Option<Caller>) -> bool {
        let Some(Caller(address)) = caller else { return true };
        let (now, rate) = (Instant::now(), self.limits.per_caller);
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= MAX_CALLERS && !callers.contains_key(&address) {
            callers.retain(|_, bucket| {
                bucket.refill(rate, now);
                bucket.left < 2.0 * rate
            });
            // More at once than are kept apart share what is there for all.
            if callers.len() >= MAX_CALLERS {
                return true;
            }
        }
        callers.entry(address).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }

    async fn check(&self, token: &str, path: &str, caller: Option<Caller>) -> Result<Verdict, Response> {
        let key = (Box::from(token), Box::from(path));
        let (verdict, was_good) = self.remembered(&key);
        if let Some(verdict) = verdict {
            return Ok(verdict);
        }
        let busy = || {
            let wait = [(header::RETRY_AFTER, "1")];
            (StatusCode::TOO_MANY_REQUESTS, wait, "too many tokens to review, try again in a second\n").into_response()
        };
        let lane = if was_good { &self.known } else { &self.unknown };
        let mut may_ask = was_good || self.caller_may_ask(caller);
        if may_ask {
            let mut bucket = lane.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            may_ask = bucket.take(self.limits.per_second, Instant::now());
        }
        if !may_ask {
            return Err(busy());
        }
        let _permit = lane.asking.try_acquire().map_err(|_| busy())?;
        match review(&self.api, token, self.audience.as_deref(), path, self.limits.answer).await {
            Ok(verdict) => {
                self.remember(key, verdict);
                Ok(verdict)
            }
            Err(e) => {
                if self.quiet.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now()) {
                    tracing::warn!("a token cannot be reviewed: {e}");
                }
                Err((StatusCode::SERVICE_UNAVAILABLE, "the API server cannot review the token now, try again\n")
                    .into_response())
            }
        }
    }
}

/// The token of an `Authorization: Bearer` header, if it is one that is looked at.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    // Blanks and control characters are in no token (RFC 6750, section 2.1).
    let is_plain = !token.is_empty() && token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && is_plain).then_some(token)
}

/// Middleware: lets through who may `get` the URL.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let unknown = || {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, challenge, "give a service account's token as `Authorization: Bearer …`\n")
            .into_response()
    };
    let Some(token) = bearer(request.headers()) else { return unknown() };
    let caller = request.extensions().get::<Caller>().copied();
    match guard.check(token, request.uri().path(), caller).await {
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
