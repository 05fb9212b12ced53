//! Wire records that cross the guardrail kernel boundary, and their total decoder.
//!
//! Both sides use this crate: the kernel programs (`guardrail-ebpf`) write the records, the agent decodes them. It is `no_std`, allocates nothing and
//! never panics on bytes: any bytes give a record or a [`DecodeError`].
//!
//! Conventions: integers in host byte order unless a name says otherwise; addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`
//! (RFC 4291 §2.5.5.2); times are `CLOCK_BOOTTIME` nanoseconds (`bpf_ktime_get_boot_ns`), 0 for "never"; enums travel as `u8` and come back through `TryFrom`.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod budget;
pub mod counter;
pub mod decode;
pub mod flow;
pub mod record;

pub use self::{
    address::{Address, AddressClass},
    decode::{DecodeError, Decoded},
    flow::{FlowKey, FlowRole, FlowValue},
};
