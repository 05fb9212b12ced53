//! Somebody else's BPF programs: most count how often they ran and let everything pass, one gives a
//! Service's connections to a pod.

use std::{
    fs::File,
    net::SocketAddrV4,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use guardrail_kernel::bpf;

/// Where a program is attached, with its `bpf_prog_type` and `bpf_attach_type`
/// (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
    /// What happens to TCP sockets.
    SockOps,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::SockOps];

    const fn types(self) -> (u32, u32) {
        match self {
            Self::Ingress => (8, 0),
            Self::Egress => (8, 1),
            Self::SockOps => (13, 3),
        }
    }
}

/// Whether others may attach beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `BPF_F_ALLOW_MULTI`.
    Multi,
    /// `BPF_F_ALLOW_OVERRIDE`: below this cgroup others may take its place.
    Override,
    /// Nobody.
    None,
}

/// An attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct Program {
    hook: Hook,
    cgroup: File,
    program: OwnedFd,
    runs: OwnedFd,
}

/// One instruction: opcode, destination and source register, offset, immediate.
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (off.cast_unsigned() as u64) << 16
        | (imm.cast_unsigned() as u64) << 32
}

impl Program {
    /// Loads the program and attaches it to a cgroup.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(hook: Hook, cgroup: &Path, sharing: Sharing) -> Result<Self> {
        let runs = bpf::create_map(bpf::MAP_TYPE_ARRAY, 4, 8, 1, 0).context("cannot make a map")?;
        let code: [u64; 11] = [
            insn(0x62, 10, 0, -4, 0),              // *(u32 *)(r10 - 4) = 0
            insn(0xbf, 2, 10, 0, 0),               // r2 = r10
            insn(0x07, 2, 0, 0, -4),               // r2 += -4
            insn(0x18, 1, 1, 0, runs.as_raw_fd()), // r1 = the map
            0,                                     // (second half of it)
            insn(0x85, 0, 0, 0, 1),                // r0 = map_lookup_elem(r1, r2)
            insn(0x15, 0, 0, 2, 0),                // if r0 == 0, over the next two
            insn(0xb7, 1, 0, 0, 1),                // r1 = 1
            insn(0xdb, 0, 1, 0, 0),                // *(u64 *)r0 += r1, atomically
            insn(0xb7, 0, 0, 0, 1),                // r0 = 1: pass
            insn(0x95, 0, 0, 0, 0),                // return r0
        ];
        let (program_type, attach_type) = hook.types();
        let name = *b"somebody_elses\0\0";
        let program = bpf::load(&bpf::Code { program_type, attach_type, name, instructions: &code })
            .context("cannot load a program")?;
        let cgroup = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let flags = match sharing {
            Sharing::Multi => 2,
            Sharing::Override => 1,
            Sharing::None => 0,
        };
        bpf::attach(program.as_fd(), cgroup.as_fd(), attach_type, flags)
            .with_context(|| format!("cannot attach to {hook:?}"))?;
        Ok(Self { hook, cgroup, program, runs })
    }

    /// How often it ran.
    ///
    /// # Panics
    /// The kernel does not read its own map.
    #[must_use]
    pub fn runs(&self) -> u64 {
        let runs = bpf::Table::<4, 8>::new(self.runs.as_fd()).expect("the map is open");
        u64::from_ne_bytes(runs.get(&[0; 4]).expect("the kernel reads its map").expect("an array has its element"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A cgroup that is gone has detached it already.
        let _ = bpf::detach(self.program.as_fd(), self.cgroup.as_fd(), self.hook.types().1);
    }
}

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` and `BPF_CGROUP_INET4_CONNECT`.
const CONNECT: (u32, u32) = (18, 10);

/// A program at `connect(2)` that puts a pod in a Service's place, as socket load balancing does:
/// the socket knows the pod alone. Dropping it detaches it.
#[derive(Debug)]
pub struct SocketBalancer {
    cgroup: File,
    program: OwnedFd,
}

impl SocketBalancer {
    /// Attaches it to a cgroup.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(cgroup: &Path, asked: SocketAddrV4, backend: SocketAddrV4) -> Result<Self> {
        // As `struct bpf_sock_addr` has them: network byte order.
        let address = |at: SocketAddrV4| u32::from_ne_bytes(at.ip().octets()).cast_signed();
        let port = |at: SocketAddrV4| i32::from(at.port().to_be());
        let code: [u64; 11] = [
            insn(0xbf, 6, 1, 0, 0),                // r6 = r1, the context
            insn(0x61, 2, 6, 4, 0),                // r2 = user_ip4
            insn(0x56, 2, 0, 6, address(asked)),   // if it is another, to the end
            insn(0x61, 2, 6, 24, 0),               // r2 = user_port
            insn(0x56, 2, 0, 4, port(asked)),      // if it is another, to the end
            insn(0xb4, 3, 0, 0, address(backend)), // w3 = the pod's
            insn(0x63, 6, 3, 4, 0),                // user_ip4 = w3
            insn(0xb4, 3, 0, 0, port(backend)),    // w3 = its port
            insn(0x63, 6, 3, 24, 0),               // user_port = w3
            insn(0xb7, 0, 0, 0, 1),                // r0 = 1: go on
            insn(0x95, 0, 0, 0, 0),                // return r0
        ];
        let name = *b"socket_balancer\0";
        let (program_type, attach_type) = CONNECT;
        let program = bpf::load(&bpf::Code { program_type, attach_type, name, instructions: &code })
            .context("cannot load a program")?;
        let cgroup = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        bpf::attach(program.as_fd(), cgroup.as_fd(), attach_type, 2).context("cannot attach to connect(2)")?;
        Ok(Self { cgroup, program })
    }
}

impl Drop for SocketBalancer {
    fn drop(&mut self) {
        let _ = bpf::detach(self.program.as_fd(), self.cgroup.as_fd(), CONNECT.1);
    }
}
