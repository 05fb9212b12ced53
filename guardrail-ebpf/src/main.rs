//! guardrail's kernel programs: they observe, count and never decide about a packet.
//!
//! One hook family a file. FLOWS is the truth, rings carry hints; see ARCHITECTURE.md, "The kernel
//! side". Thin entries call a fallible `try_*`; nothing here knows policy or Kubernetes.
#![no_std]
#![no_main]
// The BPF target has no compare-and-swap, so the standard atomics lack `fetch_add`; the toolchain
// is pinned by date.
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(internal_features, reason = "the only way to an atomic add on this target")]

mod cgroup;
mod empty;
mod flows;
mod maps;
mod offsets;
mod packet;
mod redirect;
mod sockaddr;
mod socket;
mod sockets;
mod tcp;
mod turn;
mod udp;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
