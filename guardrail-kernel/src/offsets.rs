//! The members that the programs read, and the globals that carry their offsets
//! (`guardrail-ebpf/src/offsets.rs`).

use crate::{btf::Btf, error::KernelError, sys::page_bytes};

/// A member that some hook reads.
struct Wanted {
    /// Global of the programs.
    global: &'static str,
    /// Structure and path, alternatives in order of age, newest first.
    paths: &'static [(&'static str, &'static str)],
    /// The hook that cannot do without it.
    hook: &'static str,
}

const fn wanted(global: &'static str, paths: &'static [(&'static str, &'static str)], hook: &'static str) -> Wanted {
    Wanted { global, paths, hook }
}

const TCP: &str = "tp_btf/inet_sock_set_state";
const UDP: &str = "cgroup_skb";
const CGROUP: &str = "tp_btf/cgroup_mkdir";
const ITER: &str = "iter/task_file";

const WANTED: &[Wanted] = &[
    wanted("SKC_FAMILY", &[("sock", "__sk_common.skc_family")], TCP),
    wanted("SKC_STATE", &[("sock", "__sk_common.skc_state")], ITER),
    wanted("SKC_DADDR", &[("sock", "__sk_common.skc_daddr")], TCP),
    wanted("SKC_RCV_SADDR", &[("sock", "__sk_common.skc_rcv_saddr")], TCP),
    wanted("SKC_V6_DADDR", &[("sock", "__sk_common.skc_v6_daddr")], TCP),
    wanted("SKC_V6_RCV_SADDR", &[("sock", "__sk_common.skc_v6_rcv_saddr")], TCP),
    wanted("SKC_DPORT", &[("sock", "__sk_common.skc_dport")], TCP),
    wanted("SKC_NUM", &[("sock", "__sk_common.skc_num")], TCP),
    wanted("SKC_NET", &[("sock", "__sk_common.skc_net.net")], TCP),
    wanted("NET_INUM", &[("net", "ns.inum")], TCP),
    wanted("SK_PROTOCOL", &[("sock", "sk_protocol")], TCP),
    wanted("SK_ERR", &[("sock", "sk_err")], TCP),
    wanted("SK_SHUTDOWN", &[("sock", "sk_shutdown")], TCP),
    wanted("SK_MAX_ACK_BACKLOG", &[("sock", "sk_max_ack_backlog")], TCP),
    wanted("SK_USERLOCKS", &[("sock", "sk_userlocks")], UDP),
    wanted("SK_CGROUP", &[("sock", "sk_cgrp_data.cgroup"), ("sock", "sk_cgrp_data.val")], TCP),
    wanted("CGROUP_KN", &[("cgroup", "kn")], CGROUP),
    wanted("CGROUP_ROOT", &[("cgroup", "root")], CGROUP),
    wanted("CGROUP_ROOT_ID", &[("cgroup_root", "hierarchy_id")], CGROUP),
    wanted("CGROUP_PARENT", &[("cgroup", "self.parent")], CGROUP),
    wanted("CSS_CGROUP", &[("cgroup_subsys_state", "cgroup")], CGROUP),
    wanted("KN_ID", &[("kernfs_node", "id")], CGROUP),
    wanted("INET_SPORT", &[("inet_sock", "inet_sport")], TCP),
    wanted("TCP_BYTES_RECEIVED", &[("tcp_sock", "bytes_received")], TCP),
    wanted("TCP_BYTES_SENT", &[("tcp_sock", "bytes_sent")], TCP),
    wanted("TCP_BYTES_RETRANS", &[("tcp_sock", "bytes_retrans")], TCP),
    wanted("ICSK_BIND_HASH", &[("inet_connection_sock", "icsk_bind_hash")], ITER),
    wanted("BUCKET_FASTREUSE", &[("inet_bind_bucket", "fastreuse")], ITER),
    wanted("FILE_INODE", &[("file", "f_inode")], ITER),
    wanted("FILE_PRIVATE_DATA", &[("file", "private_data")], ITER),
    wanted("INODE_SB", &[("inode", "i_sb")], ITER),
    wanted("SB_MAGIC", &[("super_block", "s_magic")], ITER),
    wanted("SOCKET_SK", &[("socket", "sk")], ITER),
    wanted("SKB_SK", &[("sk_buff", "sk")], UDP),
    wanted("TASK_STACK", &[("task_struct", "stack")], TCP),
];

/// Name of each global, and the value to write into it.
pub(crate) fn resolve(btf: &Btf) -> Result<Vec<(&'static str, u32)>, KernelError> {
    let mut globals = Vec::with_capacity(WANTED.len() + 2);
    for Wanted { global, paths, hook } in WANTED {
        let found = paths.iter().find_map(|(name, path)| btf.member(name, path).map(|member| (*path, member)));
        let Some((path, member)) = found else {
            let (name, path) = paths[0];
            return Err(KernelError::MissingMember { member: format!("{name}.{path}"), hook });
        };
        globals.push((*global, member.byte()));
        match *global {
            "SK_USERLOCKS" => globals.push(("SK_USERLOCKS_SHIFT", member.shift())),
            "SK_CGROUP" => globals.push((
                "SK_CGROUP_TAGGED",
                u32::from(path.ends_with(".val") || btf.member("sock_cgroup_data", "val").is_some()),
            )),
            _ => {}
        }
    }
    if has_recursion_guard(btf) {
        globals.push(("STACK_BYTES", THREAD_BYTES.max(page_bytes())));
    }
    Ok(globals)
}

/// `THREAD_SIZE` of x86-64, and of arm64 with small pages; with larger ones it is a page.
const THREAD_BYTES: u32 = 16 << 10;

/// Whether the kernel may skip a tracing program because it is running on that CPU already
/// (`bpf_prog.active`, Linux ≥ 5.12; for raw tracepoints since 6.1).
fn has_recursion_guard(btf: &Btf) -> bool {
    btf.member("bpf_prog", "active").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_member_is_refused_by_the_members_and_the_hooks_name() {
        // An empty BTF: header only.
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for field in [24u32, 0, 0, 0, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        let btf = Btf::parse(bytes).expect("parses");
        let message = resolve(&btf).expect_err("nothing is there").to_string();
        assert!(message.contains("sock.__sk_common.skc_family") && message.contains(TCP), "{message}");
    }
}
