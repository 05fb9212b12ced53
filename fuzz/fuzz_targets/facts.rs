#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guardrail_fuzz::check("facts")(bytes));
