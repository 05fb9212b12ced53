//! Loads the programs with the running kernel's offsets, and attaches them.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, CgroupSockopt, Iter,
        ProgramError, links::FdLink,
    },
};

use crate::{
    bpf, btf, config::KernelConfig, error::KernelError, object::OBJECT, offsets, pin::Generation, redirects::Redirects,
    sys::page_bytes,
};

/// How a program is attached.
#[derive(Clone, Copy, Debug)]
enum Hook {
    /// `tp_btf/…`
    Tracepoint(&'static str),
    /// `cgroup_skb/…`
    Packet(CgroupSkbAttachType),
    /// `cgroup/bind4` and the like.
    SockAddr,
}

/// A program of ours: name, hook, only with UDP.
const PROGRAMS: [(&str, Hook, bool); 10] = [
    ("cgroup_mkdir", Hook::Tracepoint("cgroup_mkdir"), false),
    ("cgroup_rmdir", Hook::Tracepoint("cgroup_rmdir"), false),
    (FIRST, Hook::Tracepoint("inet_sock_set_state"), false),
    // The kernel runs them in the order in which they were attached.
    (SECOND, Hook::Tracepoint("inet_sock_set_state"), false),
    ("bind4", Hook::SockAddr, true),
    ("bind6", Hook::SockAddr, true),
    ("sendmsg4", Hook::SockAddr, true),
    ("sendmsg6", Hook::SockAddr, true),
    ("udp_egress", Hook::Packet(CgroupSkbAttachType::Egress), true),
    ("udp_ingress", Hook::Packet(CgroupSkbAttachType::Ingress), true),
];

/// Name of the program that sees every TCP event but those which find it running.
pub(crate) const FIRST: &str = "tcp_state";
/// Name of the program that takes what [`FIRST`] missed.
pub(crate) const SECOND: &str = "tcp_missed";

/// Name of the program that sees what redirected connections dialled: attached when a proxy listens
/// ([`crate::redirects`]).
pub(crate) const ON_DEMAND: &str = "original_dst";

/// Name of the socket iterator.
const OPEN_SOCKETS: &str = "open_sockets";

/// Names of the programs that stay attached.
pub(crate) fn attached(udp: bool) -> Vec<&'static str> {
    PROGRAMS.into_iter().filter(|(_, _, only_udp)| udp || !only_udp).map(|(name, ..)| name).collect()
}

/// A ring buffer of ours.
pub(crate) type Ring = RingBuf<MapData>;

/// Where maps come from: programs just loaded, or what an earlier agent pinned.
pub(crate) trait MapSource {
    /// A map's own descriptor.
    fn map(&mut self, name: &str) -> Result<OwnedFd, KernelError>;

    /// A ring.
    fn ring(&mut self, name: &str) -> Result<Ring, KernelError> {
        let refused = |error: MapError| KernelError::Refused {
            what: format!("opening the ring {name}"),
            reason: error.to_string(),
        };
        let data = MapData::from_fd(self.map(name)?).map_err(refused)?;
        RingBuf::try_from(Map::RingBuf(data)).map_err(refused)
    }
}

impl MapSource for Loaded {
    fn map(&mut self, name: &str) -> Result<OwnedFd, KernelError> {
        let (Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::RingBuf(data)) =
            self.ebpf.map(name).ok_or_else(|| no_such_map(name))?
        else {
            return Err(no_such_map(name));
        };
        data.fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| KernelError::System { what: format!("opening the map {name}"), source })
    }
}

impl MapSource for Generation {
    fn map(&mut self, name: &str) -> Result<OwnedFd, KernelError> {
        Generation::map(self, name)
    }
}

/// Loaded programs. Dropping it detaches and unloads them.
pub(crate) struct Loaded {
    pub(crate) ebpf: Ebpf,
    /// Names of the attached programs.
    pub(crate) attached: Vec<&'static str>,
    links: Vec<FdLink>,
    redirects: Option<Redirects>,
    btf: Btf,
}

impl Loaded {
    /// Loads maps and programs. Attaches nothing yet.
    pub(crate) fn load(config: &KernelConfig, root_cgroup: u64) -> Result<Self, KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoPrograms);
        }
        let globals = offsets::resolve(&btf::Btf::running()?)?;
        raise_memlock();
        let kernel_btf = Btf::from_sys_fs().map_err(|error| KernelError::BadBtf { reason: error.to_string() })?;
        let log_level = config.bpf_log_level as u8;
        let log_ring = if log_level == 0 { page_bytes() } else { 1 << 17 };
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&kernel_btf))
            .verifier_log_level(VerifierLogLevel::DEBUG)
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .override_global("ROOT_CGROUP", &root_cgroup, true)
            .override_global("KEYS_PER_CGROUP", &config.new_keys_per_cgroup, true)
            .override_global("FLOW_ENTRIES", &config.flow_entries, true)
            .map_max_entries("FLOWS", config.flow_entries)
            .map_max_entries("DIALLED", if config.redirects { guardrail_common::redirect::REMEMBERED } else { 1 })
            .map_max_entries("FLOW_RING", ring_bytes(config.ring_bytes))
            .map_max_entries("AYA_LOGS", log_ring);
        for (name, value) in &globals {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| object_error(&error))?;
        drop(loader);
        let mut attached = Vec::new();
        for (name, hook, udp) in PROGRAMS {
            if udp && !config.udp {
                continue;
            }
            load_one(&mut ebpf, name, hook, &kernel_btf).map_err(|error| program_error(name, &error))?;
            attached.push(name);
        }
        let redirects = if config.redirects { Some(load_on_demand(&mut ebpf)?) } else { None };
        Ok(Self { ebpf, attached, links: Vec::new(), redirects, btf: kernel_btf })
    }

    /// Attaches every loaded program: names of cgroups first, packets last. With pins, programs and
    /// links get their names, and the programs stay attached after us. `attached` is called with
    /// the name of each as soon as it is.
    pub(crate) fn attach(
        &mut self,
        cgroup_root: &Path,
        pins: Option<&Generation>,
        mut attached: impl FnMut(&str) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let root = File::open(cgroup_root)
            .map_err(|source| KernelError::System { what: format!("opening {}", cgroup_root.display()), source })?;
        if let (Some(pins), Some(redirects)) = (pins, &mut self.redirects) {
            pins.pin_program(ON_DEMAND, redirects.program())?;
            redirects.pin_at(pins.link_path(ON_DEMAND));
        }
        for (name, hook, _) in PROGRAMS {
            if !self.attached.contains(&name) {
                continue;
            }
            let refused = |error: &ProgramError| program_error(name, error);
            if let Some(pins) = pins {
                let program = self.ebpf.program(name).ok_or_else(|| no_such_program(name))?;
                pins.pin_program(name, program.fd().map_err(|error| refused(&error))?.as_fd())?;
            }
            let link = attach_one(&mut self.ebpf, name, hook, &root).map_err(|error| match (&error, hook) {
                (ProgramError::SyscallError(call), Hook::Packet(_) | Hook::SockAddr) if is_denied(&call.io_error) => {
                    KernelError::CgroupHeld { program: name, path: cgroup_root.to_owned() }
                }
                _ => refused(&error),
            })?;
            attached(name)?;
            match pins {
                Some(pins) => drop(link.pin(pins.link_path(name)).map_err(|error| KernelError::Refused {
                    what: format!("pinning the link of {name}"),
                    reason: error.to_string(),
                })?),
                None => self.links.push(link),
            }
        }
        Ok(())
    }

    /// Loads the socket iterator and opens one pass over it. Without pins it is unloaded with the
    /// rest.
    pub(crate) fn open_socket_iterator(&mut self, pins: Option<&Generation>) -> Result<File, KernelError> {
        let refused = |error: ProgramError| program_error(OPEN_SOCKETS, &error);
        let program: &mut Iter = self
            .ebpf
            .program_mut(OPEN_SOCKETS)
            .ok_or_else(|| no_such_program(OPEN_SOCKETS))?
            .try_into()
            .map_err(refused)?;
        program.load("task_file", &self.btf).map_err(refused)?;
        let program = program.fd().map_err(refused)?.as_fd();
        if let Some(pins) = pins {
            pins.pin_program(OPEN_SOCKETS, program)?;
        }
        iterate(program)
    }

    /// Drops what only loading needed: the kernel's type information is some tens of megabytes.
    pub(crate) fn into_programs(self) -> Result<Programs, KernelError> {
        let Self { ebpf, attached, links, redirects, btf: _ } = self;
        let fd = |name: &'static str| {
            let program = ebpf.program(name).ok_or_else(|| no_such_program(name))?;
            let fd = program.fd().map_err(|error| program_error(name, &error))?;
            let fd = fd.as_fd().try_clone_to_owned();
            Ok((name, fd.map_err(|source| KernelError::System { what: format!("opening {name}"), source })?))
        };
        let programs = attached.into_iter().map(fd).collect::<Result<_, KernelError>>()?;
        let sockets = fd(OPEN_SOCKETS).ok().map(|(_, fd)| fd);
        Ok(Programs { programs, sockets, _links: links, redirects, ebpf: Some(ebpf) })
    }
}

/// One pass over the sockets that are open.
fn iterate(program: BorrowedFd<'_>) -> Result<File, KernelError> {
    bpf::iterate(program)
        .map(File::from)
        .map_err(|source| KernelError::System { what: format!("starting {OPEN_SOCKETS}"), source })
}

/// The attached programs. Dropping it detaches and unloads them, unless they are pinned.
pub(crate) struct Programs {
    programs: Vec<(&'static str, OwnedFd)>,
    /// The socket iterator, if it could be loaded.
    sockets: Option<OwnedFd>,
    _links: Vec<FdLink>,
    redirects: Option<Redirects>,
    /// What was loaded; `None` if an earlier agent did.
    ebpf: Option<Ebpf>,
}

impl Programs {
    /// The programs that an earlier agent left attached.
    pub(crate) fn adopt(pins: &Generation, config: &KernelConfig) -> Result<Self, KernelError> {
        let programs = attached(config.udp).into_iter().map(|name| Ok((name, pins.program(name)?)));
        let programs = programs.collect::<Result<_, KernelError>>()?;
        let mut redirects = None;
        if config.redirects {
            let mut found = Redirects::new(pins.program(ON_DEMAND)?);
            found.pin_at(pins.link_path(ON_DEMAND));
            redirects = Some(found);
        }
        let sockets = pins.program(OPEN_SOCKETS).ok();
        Ok(Self { programs, sockets, _links: Vec::new(), redirects, ebpf: None })
    }

    /// The program that waits for a proxy.
    pub(crate) fn redirects(&mut self) -> Option<&mut Redirects> {
        self.redirects.as_mut()
    }

    /// One pass of the socket iterator that an earlier agent left.
    pub(crate) fn open_socket_iterator(pins: &Generation) -> Result<File, KernelError> {
        iterate(pins.program(OPEN_SOCKETS)?.as_fd())
    }

    /// One pass of the socket iterator; `None`: there is none.
    pub(crate) fn open_sockets(&self) -> Option<io::Result<File>> {
        Some(bpf::iterate(self.sockets.as_ref()?.as_fd()).map(File::from))
    }

    /// Calls `each` with name and descriptor of every attached program.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&'static str, BorrowedFd<'_>)) {
        for (name, fd) in &self.programs {
            each(name, fd.as_fd());
        }
        if let Some(redirects) = self.redirects.as_ref().filter(|redirects| redirects.is_attached()) {
            each(ON_DEMAND, redirects.program());
        }
    }

    /// For aya-log.
    pub(crate) fn ebpf_mut(&mut self) -> Option<&mut Ebpf> {
        self.ebpf.as_mut()
    }
}

fn load_on_demand(ebpf: &mut Ebpf) -> Result<Redirects, KernelError> {
    let refused = |error: ProgramError| program_error(ON_DEMAND, &error);
    let program = ebpf.program_mut(ON_DEMAND).ok_or_else(|| no_such_program(ON_DEMAND))?;
    let program = <&mut CgroupSockopt>::try_from(program).map_err(refused)?;
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
    let what = || format!("opening {ON_DEMAND}");
    Ok(Redirects::new(fd.map_err(|source| KernelError::System { what: what(), source })?))
}

fn load_one(ebpf: &mut Ebpf, name: &str, hook: Hook, kernel_btf: &Btf) -> Result<(), ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?;
    match hook {
        Hook::Tracepoint(tracepoint) => <&mut BtfTracePoint>::try_from(program)?.load(tracepoint, kernel_btf),
        Hook::Packet(_) => <&mut CgroupSkb>::try_from(program)?.load(),
        Hook::SockAddr => <&mut CgroupSockAddr>::try_from(program)?.load(),
    }
}

fn attach_one(ebpf: &mut Ebpf, name: &str, hook: Hook, root: &File) -> Result<FdLink, ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?;
    // Links are multi by themselves; AllowMultiple is EINVAL for them since 5.7.
    let mode = CgroupAttachMode::Single;
    Ok(match hook {
        Hook::Tracepoint(_) => {
            let program = <&mut BtfTracePoint>::try_from(program)?;
            let link = program.attach()?;
            program.take_link(link)?.into()
        }
        Hook::Packet(direction) => {
            let program = <&mut CgroupSkb>::try_from(program)?;
            let link = program.attach(root, direction, mode)?;
            fd_link(program.take_link(link)?)?
        }
        Hook::SockAddr => {
            let program = <&mut CgroupSockAddr>::try_from(program)?;
            let link = program.attach(root, mode)?;
            fd_link(program.take_link(link)?)?
        }
    })
}

/// The kernel's link of an attachment; there are links for cgroups since 5.7.
fn fd_link<L: TryInto<FdLink>>(link: L) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

fn no_such_program(name: &str) -> KernelError {
    KernelError::Refused { what: "reading the programs".to_owned(), reason: format!("the object has no {name}") }
}

fn no_such_map(name: &str) -> KernelError {
    KernelError::Refused { what: "reading the programs".to_owned(), reason: format!("the object has no map {name}") }
}

fn object_error(error: &EbpfError) -> KernelError {
    if let EbpfError::MapError(MapError::CreateError { name, io_error }) = error {
        return if is_denied(io_error) {
            KernelError::Denied { what: format!("the map {name}") }
        } else {
            KernelError::Refused { what: format!("making the map {name}"), reason: io_error.to_string() }
        };
    }
    KernelError::Refused { what: "reading the programs".to_owned(), reason: error.to_string() }
}

fn program_error(name: &str, error: &ProgramError) -> KernelError {
    let denied = match error {
        ProgramError::LoadError { io_error, .. } => is_denied(io_error),
        ProgramError::SyscallError(call) => is_denied(&call.io_error),
        _ => false,
    };
    if denied {
        return KernelError::Denied { what: format!("the program {name}") };
    }
    let reason = match error {
        // The last line names the instruction that the verifier refused; the rest is for
        // GUARDRAIL_VERIFIER_LOG-less reading with bpftool.
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let mut tail: Vec<&str> = log
                .lines()
                .rev()
                .filter(|line| !line.trim().is_empty() && !line.starts_with("processed"))
                .take(3)
                .collect();
            tail.reverse();
            format!("{io_error}: {}", tail.join("; "))
        }
        ProgramError::SyscallError(call) => format!("{}: {}", call.call, call.io_error),
        other => other.to_string(),
    };
    KernelError::Refused { what: format!("loading or attaching the program {name}"), reason }
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK. Failing to raise it shows when a map is
/// refused.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is read only.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// What the kernel takes: a power of two of at least one page.
fn ring_bytes(wanted: u32) -> u32 {
    wanted.max(page_bytes()).checked_next_power_of_two().unwrap_or(1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_rounded_to_what_the_kernel_takes() {
        assert_eq!(ring_bytes(0), page_bytes());
        assert_eq!(ring_bytes(5000), page_bytes().max(8192));
        assert_eq!(ring_bytes(u32::MAX), 1 << 31);
    }
}
