//! What must hold for any bytes: one function per reader of foreign input. The fuzz targets call
//! them with what libFuzzer makes up, and a test of the workspace (`tests/tests/hostile_input.rs`,
//! which includes this file) with every seed, so that a plain `cargo test` covers them too.
//!
//! Each function ends, stays within bounded memory, and panics only if a property does not hold.

mod dialects;
mod http;
mod kernel;
mod observer;
mod policy;
mod snapshot;
mod text;

/// A check.
pub type Check = fn(&[u8]);

/// Every check by the name of its target and of its directory of seeds.
pub const CHECKS: [(&str, Check); 22] = [
    ("bearer", http::bearer),
    ("btf", kernel::btf),
    ("cgroup", kernel::cgroup),
    ("checkpoint", kernel::checkpoint),
    ("dialects", dialects::policies),
    ("dns", kernel::dns),
    ("epoch", snapshot::epoch),
    ("facts", snapshot::facts),
    ("flows", policy::flows),
    ("http", http::exchange),
    ("hubble", dialects::hubble),
    ("inventory", text::inventory),
    ("merge", snapshot::merge),
    ("names", dialects::names),
    ("observer", observer::observe),
    ("options", dialects::options),
    ("policies", policy::policies),
    ("ring", kernel::ring),
    ("snapshot", snapshot::read),
    ("sockets", kernel::sockets),
    ("state", snapshot::state),
    ("watch", text::watch),
];

/// The check of a target.
///
/// # Panics
/// If there is none of this name.
#[must_use]
pub fn check(target: &str) -> Check {
    CHECKS.iter().find(|(name, _)| *name == target).expect("a target of this name").1
}
