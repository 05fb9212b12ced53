//! Any bytes give flows or problems with a place.
#![no_main]

use guardrail_policy::read;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match read::flows("fuzz.csv", bytes) {
    Ok(flows) => assert!(flows.iter().all(|f| f.port > 0 && f.line > 0)),
    Err(error) => assert!(!error.problems.is_empty() && error.problems.iter().all(|p| p.location.line > 0)),
});
