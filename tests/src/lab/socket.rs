//! Addresses and options of sockets, and what std has no call for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
};

/// `address:port`.
pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// An IPv4 address as IPv6 sockets take it.
pub fn mapped(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(address.parse::<Ipv4Addr>().expect("an IPv4 address").to_ipv6_mapped()), port)
}

/// The address family of an address.
pub fn family(address: SocketAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// An address as system calls take it.
fn raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let pointer = &raw mut storage;
    let length = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is large enough and aligned for every address.
            let raw = unsafe { &mut *pointer.cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *pointer.cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// bind(2).
pub fn bind(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let (raw, length) = raw(address);
    // SAFETY: the address is as long as said.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const raw).cast(), length) })
}

/// connect(2).
pub fn connect(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let (raw, length) = raw(address);
    // SAFETY: the address is as long as said.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), (&raw const raw).cast(), length) })
}

/// listen(2).
pub fn listen(socket: &impl AsFd, backlog: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) })
}

/// setsockopt(2) with a number.
pub fn set_option(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as said.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length) };
    check(result).expect("the option is set");
}

/// Makes a connection deaf or lets it hear again: a socket filter drops every packet that arrives,
/// before TCP looks at it, so nothing is acknowledged.
pub fn set_deaf(socket: &impl AsFd, is_deaf: bool) {
    if !is_deaf {
        return set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
    }
    // Return 0: keep no byte of it.
    let mut code = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the program is as long as said, and lives until the kernel has copied it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    check(result).expect("the filter is attached");
}

/// setsockopt(2) with bytes.
pub fn set_option_bytes(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: &[u8]) {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the value is as long as said.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    check(result).expect("the option is set");
}
