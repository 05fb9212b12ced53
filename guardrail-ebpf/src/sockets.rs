//! Sockets that were open before the programs: `iter/task_file`, one pass over every descriptor of
//! every process, in all network namespaces.
//!
//! The program reads, user space classifies. Kernel context: `struct bpf_iter__task_file { meta,
//! task, fd, file }`, each eight bytes.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;
use guardrail_common::{
    flow::{PROTOCOL_MPTCP, PROTOCOL_TCP, PROTOCOL_UDP},
    record::{RecordKind, SocketRecord},
};

use crate::{
    offsets as o,
    socket::{Memory as _, Raw, Typed, addresses, cgroup_id, is_foreign, netns, userlocks},
};

/// `SOCKFS_MAGIC` (`include/uapi/linux/magic.h`).
const SOCKFS_MAGIC: u64 = 0x534F_434B;

/// `struct bpf_iter__task_file`; `task` and `fd` are not used.
#[repr(C)]
pub(crate) struct TaskFile {
    meta: *const Meta,
    task: *const c_void,
    fd: u64,
    file: *mut c_void,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// Entry.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub(crate) extern "C" fn open_sockets(ctx: *const TaskFile) -> i32 {
    let _: Option<()> = try_record(ctx);
    0
}

#[inline(always)]
fn try_record(ctx: *const TaskFile) -> Option<()> {
    // SAFETY: the verifier knows the layout of the iterator's context.
    let (meta, file) = unsafe { ((&raw const (*ctx).meta).read_volatile(), (&raw const (*ctx).file).read_volatile()) };
    if file.is_null() {
        return None;
    }
    // SAFETY: as above.
    let seq = unsafe { (&raw const (*meta).seq).read_volatile() };
    let file = Typed(file.cast());
    // `bpf_sock_from_file` exists since 5.11 only. A file of the socket file system has its `struct
    // socket` behind it, or null if it was opened with O_PATH.
    if file.follow(o::FILE_INODE.load()).follow(o::INODE_SB.load()).read::<u64>(o::SB_MAGIC.load()) != SOCKFS_MAGIC {
        return None;
    }
    let sk = Raw(file.read(o::FILE_PRIVATE_DATA.load())).follow(o::SOCKET_SK.load());
    if sk.0 == 0 {
        return None;
    }
    let family: u16 = sk.read(o::SKC_FAMILY.load());
    let (local, remote) = addresses(sk)?;
    let protocol: u16 = sk.read(o::SK_PROTOCOL.load());
    if protocol != u16::from(PROTOCOL_TCP) && protocol != u16::from(PROTOCOL_UDP) && protocol != PROTOCOL_MPTCP {
        return None;
    }
    if is_foreign(sk) {
        return None;
    }
    let mut record = SocketRecord {
        kind: RecordKind::Socket as u8,
        state: sk.read(o::SKC_STATE.load()),
        userlocks: userlocks(sk),
        fastreuse: 0,
        protocol,
        family,
        local_port: sk.read(o::SKC_NUM.load()),
        remote_port: u16::from_be(sk.read(o::SKC_DPORT.load())),
        netns: netns(sk),
        backlog: sk.read(o::SK_MAX_ACK_BACKLOG.load()),
        has_bucket: 0,
        socket: sk.0,
        cgroup_id: cgroup_id(sk),
        local,
        remote,
    };
    if protocol == u16::from(PROTOCOL_TCP) {
        let bucket = sk.follow(o::ICSK_BIND_HASH.load());
        if bucket.0 != 0 {
            record.fastreuse = bucket.read(o::BUCKET_FASTREUSE.load());
            record.has_bucket = 1;
        }
    }
    // SAFETY: `seq` is the iterator's; the record lies on the stack and is initialised.
    unsafe { bpf_seq_write(seq.cast(), (&raw const record).cast(), size_of::<SocketRecord>() as u32) };
    Some(())
}
