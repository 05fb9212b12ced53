//! Indices into the kernel's COUNTERS array (`u64` each). The kernel writes all but
//! [`KEYS_REMOVED`], [`UNDECIDED`], [`UNJOURNALLED`] and [`REDIRECTS`], which user space writes.

/// Flow hints that the ring had no room for.
pub const RING_FULL: u32 = 0;
/// DNS answers that the ring had no room for.
pub const DNS_RING_FULL: u32 = 1;
/// cgroup and listen records that the ring had no room for.
pub const CGROUP_RING_FULL: u32 = 2;
/// Client flows that went to a coarse key. Per cgroup: CGROUP_LOSSES.
pub const COARSE_CLIENT: u32 = 3;
/// Flows that FLOWS refused. Per cgroup: CGROUP_LOSSES.
pub const MAP_FULL: u32 = 4;
/// Keys ever put into FLOWS by the kernel.
pub const KEYS_INSERTED: u32 = 5;
/// Keys ever taken out of FLOWS by user space, less those it put in (wrapping).
pub const KEYS_REMOVED: u32 = 6;
/// Losses of class edge whose cgroup could not be kept, because CGROUP_LOSSES was full.
pub const UNNAMED_LOSS: u32 = 7;
/// Undecided keys in FLOWS that the socket inventory put there. While there are none, no
/// connection's end is looked up among them.
pub const UNDECIDED: u32 = 8;
/// Entries that user space took out of FLOWS without a note in its journal since the last
/// checkpoint. Only user space writes it; it stands here so that the next agent finds it.
pub const UNJOURNALLED: u32 = 9;
/// TCP events that the second program took because the first missed them.
pub const TAKEN_OVER: u32 = 10;
/// 1 once the program that sees what redirected connections dialled is attached. Before, no
/// connection's end is looked up among them.
pub const REDIRECTS: u32 = 11;
/// How many counters there are.
pub const COUNT: u32 = 12;

/// Why a cgroup lost something: with its id, the key of CGROUP_LOSSES.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LossKind {
    /// A client's remote went to the coarse key.
    CoarseClient = 1,
    /// FLOWS took neither key.
    MapFull = 2,
}

impl TryFrom<u32> for LossKind {
    type Error = u32;

    fn try_from(kind: u32) -> Result<Self, u32> {
        match kind {
            1 => Ok(Self::CoarseClient),
            2 => Ok(Self::MapFull),
            other => Err(other),
        }
    }
}

/// Key of CGROUP_LOSSES; its value is a `u64` count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LossKey {
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// [`LossKind`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<LossKey>() == 16);
