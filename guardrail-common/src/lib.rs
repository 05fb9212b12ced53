//! Wire records that cross the guardrail kernel boundary, and their total decoder.
//!
//! Both sides use this crate: the kernel programs (`guardrail-ebpf`) write the records, the agent
//! decodes them. It is `no_std`, allocates nothing and never panics on bytes: any bytes give a
//! record or a [`DecodeError`].
//!
//! Conventions: integers in host byte order unless a name says otherwise; addresses are 16 bytes in
//! network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2); times are `CLOCK_BOOTTIME`
//! nanoseconds (`bpf_ktime_get_boot_ns`), 0 for "never"; enums travel as `u8` and come back through
//! `TryFrom`.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod budget;
pub mod counter;
pub mod decode;
pub mod encode;
pub mod flow;
pub mod record;
pub mod redirect;

/// The most instructions that a kernel's verifier may have to walk for one program. The kernel's
/// limit is 1,000,000; what is far below it on the kernels that we test also loads on those between
/// and after them, whose verifiers prune differently. Held by tests on the running kernel and on
/// those of `cargo xtask vm-test`.
pub const VERIFIER_INSTRUCTION_CEILING: u32 = 50_000;

pub use self::{
    address::{Address, AddressClass},
    decode::{DecodeError, Decoded},
    flow::{FlowKey, FlowRole, FlowValue},
};

/// Version of the maps' layout and meaning, for agents that find the maps of an earlier one. Count
/// it up with every change of a key, a value, a record or what its fields mean: maps of another
/// version are not read.
pub const LAYOUT: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_sizes_counts_the_layout_up() {
        let sizes = [
            size_of::<FlowKey>(),
            size_of::<FlowValue>(),
            size_of::<record::CgroupRecord>(),
            size_of::<record::ListenRecord>(),
            size_of::<record::DnsRecord>(),
            size_of::<redirect::Connection>(),
            size_of::<redirect::Dialled>(),
            counter::COUNT as usize,
        ];
        // If this fails, the maps changed: count LAYOUT up and write the new sizes beside it.
        assert_eq!((LAYOUT, sizes), (3, [48, 96, 544, 40, 1256, 40, 24, 12]));
    }
}
