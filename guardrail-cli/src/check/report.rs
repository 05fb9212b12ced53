//! What is printed: an answer for each flow, and what was found beside them.

use std::borrow::Cow;

use guardrail_policy::{check::Findings, evaluate::Exemption, model::Protocol};
use serde::Serialize;

/// The answer for one flow.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    pub(super) src: Cow<'a, str>,
    pub(super) dst: Cow<'a, str>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) verdict: Answer,
    pub(super) ingress_by: String,
    pub(super) egress_by: String,
    /// Why policies have no say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exempt: Option<Exemption>,
    /// A proxy restricts what is allowed further, by request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) restricted: bool,
    /// Why it is unproven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

/// The contract's verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    Allowed,
    Denied,
    Unproven,
}

impl Answer {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unproven => "unproven",
        }
    }
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) flows: Vec<Row<'a>>,
    pub(super) allowed: usize,
    pub(super) denied: usize,
    pub(super) unproven: usize,
    /// Why verdicts are unproven.
    pub(super) unproven_because: Vec<String>,
    /// Why the observation is incomplete.
    pub(super) incomplete_because: Vec<String>,
    #[serde(flatten)]
    pub(super) findings: Findings,
}
