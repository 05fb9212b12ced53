//! Reading kernel structures: through typed pointers where the verifier knows the type, else
//! through `bpf_probe_read_kernel`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use guardrail_common::address::Address;

use crate::offsets as o;

/// `AF_INET`.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`.
pub(crate) const AF_INET6: u16 = 10;
/// `SOCK_BINDPORT_LOCK` in `sk_userlocks`.
pub(crate) const SOCK_BINDPORT_LOCK: u8 = 8;

/// Id of the root of the cgroup v2 hierarchy, which sockets have that belong to no other
/// (`kernfs_create_root`).
const HIERARCHY_ROOT: u64 = 1;
/// Levels below the observed cgroup that are looked at. (Kubernetes uses five; nested clusters
/// ten.)
const DEPTH: u32 = 16;

/// Where to read from.
pub(crate) trait Memory: Copy {
    /// Reads a `T` at `offset` bytes; zero if the kernel cannot.
    fn read<T: Copy + Default>(self, offset: u32) -> T;
    /// The memory behind the pointer at `offset`.
    fn follow(self, offset: u32) -> Self;
    /// Whether there is nothing behind it.
    fn is_null(self) -> bool;
}

/// A pointer whose type the verifier knows (a tracepoint argument, and what it leads to): plain
/// loads.
#[derive(Clone, Copy)]
pub(crate) struct Typed(pub(crate) *const c_void);

impl Memory for Typed {
    #[inline(always)]
    fn read<T: Copy + Default>(self, offset: u32) -> T {
        // SAFETY: the verifier checks the access against the kernel's BTF; a fault reads as zero.
        unsafe { self.0.byte_add(offset as usize).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        // SAFETY: as above.
        Self(unsafe { self.0.byte_add(offset as usize).cast::<*const c_void>().read_volatile() })
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// An address that is only a number to the verifier.
#[derive(Clone, Copy)]
pub(crate) struct Raw(pub(crate) u64);

impl Memory for Raw {
    #[inline(always)]
    fn read<T: Copy + Default>(self, offset: u32) -> T {
        let mut value = T::default();
        // No branch on the result: the kernel writes zeroes on a fault
        // (`bpf_probe_read_kernel_common`), and each branch would double the verifier's paths.
        // SAFETY: the helper checks the address and writes `size_of::<T>()` bytes.
        unsafe {
            generated::bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                (self.0 + u64::from(offset)) as *const c_void,
            );
            (&raw const value).read_volatile()
        }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self(self.read(offset))
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// The socket's cgroup v2 id. Never `current`'s: most TCP transitions run in softirq.
#[inline(always)]
pub(crate) fn cgroup_id<M: Memory>(sk: M) -> u64 {
    if o::SK_CGROUP_TAGGED.load() != 0 {
        let word: u64 = sk.read(o::SK_CGROUP.load());
        if word == 0 || word & 3 != 0 {
            return HIERARCHY_ROOT;
        }
        return Raw(word).follow(o::CGROUP_KN.load()).read(o::KN_ID.load());
    }
    sk.follow(o::SK_CGROUP.load()).follow(o::CGROUP_KN.load()).read(o::KN_ID.load())
}

/// Whether the socket's cgroup is neither the observed one nor below it. Not cheap unless the whole
/// hierarchy is observed: for new keys only.
#[inline(always)]
pub(crate) fn is_foreign<M: Memory>(sk: M) -> bool {
    if o::ROOT_CGROUP.load() == HIERARCHY_ROOT {
        return false;
    }
    if o::SK_CGROUP_TAGGED.load() != 0 {
        let word: u64 = sk.read(o::SK_CGROUP.load());
        return word == 0 || word & 3 != 0 || is_foreign_cgroup(Raw(word));
    }
    is_foreign_cgroup(sk.follow(o::SK_CGROUP.load()))
}

/// Whether a cgroup is neither the observed one nor at most [`DEPTH`] levels below it.
#[inline(always)]
pub(crate) fn is_foreign_cgroup<M: Memory>(mut cgroup: M) -> bool {
    let root: u64 = o::ROOT_CGROUP.load();
    if root == HIERARCHY_ROOT {
        return false;
    }
    for _ in 0..DEPTH {
        if cgroup.follow(o::CGROUP_KN.load()).read::<u64>(o::KN_ID.load()) == root {
            return false;
        }
        let parent = cgroup.follow(o::CGROUP_PARENT.load());
        // Above the hierarchy's root there is nothing. It must not be read: a fault in a program
        // with functions of its own may take the kernel down, where the main program's exception
        // table is missing (until the kernel's commit "bpf: ensure main program has an extable";
        // seen on Debian's 5.10.223).
        if parent.is_null() {
            return true;
        }
        cgroup = parent.follow(o::CSS_CGROUP.load());
    }
    true
}

/// The socket's network namespace, as the inode that `/proc/PID/ns/net` shows.
#[inline(always)]
pub(crate) fn netns<M: Memory>(sk: M) -> u32 {
    sk.follow(o::SKC_NET.load()).read(o::NET_INUM.load())
}

/// `sk_userlocks`.
#[inline(always)]
pub(crate) fn userlocks<M: Memory>(sk: M) -> u8 {
    sk.read::<u8>(o::SK_USERLOCKS.load()) >> (o::SK_USERLOCKS_SHIFT.load() & 7)
}

/// An IPv4 address as the kernel's `__be32` loads, mapped into IPv6. As words, so that the compiler
/// keeps it in two registers.
#[inline(always)]
pub(crate) fn map_v4(be: u32) -> Address {
    let [a, b, c, d] = be.to_ne_bytes();
    address([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
}

/// Two native words as the sixteen bytes they are.
#[inline(always)]
pub(crate) fn address(words: [u64; 2]) -> Address {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { core::mem::transmute::<[u64; 2], Address>(words) }
}

/// Sixteen bytes as two native words.
#[inline(always)]
pub(crate) fn words(address: Address) -> [u64; 2] {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { core::mem::transmute::<Address, [u64; 2]>(address) }
}

/// Local and remote address; `None` if the family is neither IPv4 nor IPv6.
#[inline(always)]
pub(crate) fn addresses<M: Memory>(sk: M) -> Option<(Address, Address)> {
    match sk.read::<u16>(o::SKC_FAMILY.load()) {
        AF_INET => Some((map_v4(sk.read(o::SKC_RCV_SADDR.load())), map_v4(sk.read(o::SKC_DADDR.load())))),
        AF_INET6 => {
            let (local, remote) = (o::SKC_V6_RCV_SADDR.load(), o::SKC_V6_DADDR.load());
            Some((address([sk.read(local), sk.read(local + 8)]), address([sk.read(remote), sk.read(remote + 8)])))
        }
        _ => None,
    }
}
