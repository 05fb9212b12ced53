//! What is attached while an operation is measured.

use std::{fs::File, thread, time::Duration};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, CgroupSockopt},
};
use guardrail_kernel::{Kernel, KernelConfig, OBJECT, find_cgroup2_root};

use super::Result;

/// guardrail's program at `cgroup/getsockopt`.
pub(crate) const ORIGINAL_DST_PROGRAM: &str = "original_dst";
const MISSING: &str = "the object lacks an empty program";

/// The empty programs, attached until dropped.
pub(crate) struct Empty(Ebpf);

impl Empty {
    pub(crate) fn attach(udp: bool) -> Result<Self> {
        let btf = Btf::from_sys_fs()?;
        let mut ebpf = EbpfLoader::new().map_max_entries("FLOWS", 1).load(OBJECT)?;
        let root = File::open(find_cgroup2_root()?)?;
        for name in ["empty_tp", "empty_second_tp"] {
            let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or(MISSING)?.try_into()?;
            program.load("inet_sock_set_state", &btf)?;
            program.attach()?;
        }
        if udp {
            for (name, direction) in
                [("empty_egress", CgroupSkbAttachType::Egress), ("empty_ingress", CgroupSkbAttachType::Ingress)]
            {
                let program: &mut CgroupSkb = ebpf.program_mut(name).ok_or(MISSING)?.try_into()?;
                program.load()?;
                program.attach(&root, direction, CgroupAttachMode::Single)?;
            }
            let program: &mut CgroupSockAddr = ebpf.program_mut("empty_sendmsg4").ok_or(MISSING)?.try_into()?;
            program.load()?;
            program.attach(&root, CgroupAttachMode::Single)?;
        }
        Ok(Self(ebpf))
    }

    /// Only the one at `cgroup/getsockopt`.
    pub(crate) fn getsockopt() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().map_max_entries("FLOWS", 1).load(OBJECT)?;
        let root = File::open(find_cgroup2_root()?)?;
        let program: &mut CgroupSockopt = ebpf.program_mut("empty_getsockopt").ok_or(MISSING)?.try_into()?;
        program.load()?;
        program.attach(&root, CgroupAttachMode::Single)?;
        Ok(Self(ebpf))
    }

    /// Time and runs of all of them so far.
    pub(crate) fn reading(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for (_, program) in self.0.programs() {
            if program.fd().is_ok() {
                let info = program.info()?;
                sum.0 += u64::try_from(info.run_time().as_nanos())?;
                sum.1 += info.run_count();
            }
        }
        Ok(sum)
    }
}

/// Runs `work` while guardrail's programs are attached, and its reader reads.
pub(crate) fn with_ours<T>(
    udp: bool,
    sweep_interval: Option<Duration>,
    work: impl FnOnce(&Kernel) -> Result<T>,
) -> Result<T> {
    let mut config = KernelConfig::new(find_cgroup2_root()?);
    config.udp = udp;
    config.sweep_interval = sweep_interval.unwrap_or(config.sweep_interval);
    let (kernel, mut observations) = Kernel::start(config, None)?;
    let drain = thread::spawn(move || while observations.blocking_recv().is_some() {});
    let result = work(&kernel);
    let _ = kernel.shutdown();
    drain.join().map_err(|_| "the receiving thread panicked")?;
    result
}
