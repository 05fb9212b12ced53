//! Who is behind a cgroup and behind an address, at a given time.

pub mod addresses;
pub mod cgroup;
pub(crate) mod cgroups;
