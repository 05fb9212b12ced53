//! A small transparent proxy, as sidecars have one.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::scenario::Onward;

/// `SO_MARK` of a proxy's own connections, which are not redirected.
pub const MARK: u32 = 0x539;
/// Where the proxies of an ambient mesh take tunnels. Inside stands the port that is meant.
const TUNNELS: u16 = 15008;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`.
const ORIGINAL_DST: libc::c_int = 80;

/// A listening socket, dual-stack; one that takes foreign addresses if connections come by
/// `TPROXY`.
///
/// # Errors
/// The port cannot be bound.
pub fn listen(port: u16, on: &Onward) -> io::Result<TcpListener> {
    let bind = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    if matches!(on, Onward::Transparent) {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.bind(&bind.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Takes connections for ever.
pub fn serve(listener: &TcpListener, on: &Onward) {
    let on = Arc::new(on.clone());
    for accepted in listener.incoming() {
        let Ok(client) = accepted else { continue };
        let on = Arc::clone(&on);
        // A connection that cannot go on is closed: its client sees that.
        thread::spawn(move || drop(carry(client, &on)));
    }
}

fn carry(client: TcpStream, on: &Onward) -> io::Result<()> {
    let local = client.local_addr()?;
    let loopback = |port| {
        let address = if local.ip().to_canonical().is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        };
        SocketAddr::new(address, port)
    };
    let peer = client.peer_addr()?.ip().to_canonical();
    let mut preface = Vec::new();
    let mut source = None;
    let target = match on {
        Onward::Unasked { port } => loopback(*port),
        Onward::Transparent => loopback(local.port()),
        Onward::Inside { inner } => {
            let dialled = original(&client, local)?.port();
            loopback(if dialled == local.port() { *inner } else { dialled })
        }
        Onward::Outside { endpoints } => {
            let dialled = original(&client, local)?;
            endpoints.get(&dialled).copied().unwrap_or(dialled)
        }
        Onward::Tunnel { ends } => {
            let dialled = original(&client, local)?;
            match ends.get(&dialled) {
                Some(end) => {
                    preface.extend(end.port().to_be_bytes());
                    SocketAddr::new(end.ip(), TUNNELS)
                }
                None => dialled,
            }
        }
        Onward::Unpack => {
            let mut port = [0; 2];
            (&client).read_exact(&mut port)?;
            source = Some(peer);
            SocketAddr::new(local.ip().to_canonical(), u16::from_be_bytes(port))
        }
        Onward::InTheNameOf => {
            source = Some(peer);
            original(&client, local)?
        }
    };
    let server = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    server.set_mark(MARK)?;
    if let Some(source) = source {
        server.set_ip_transparent_v4(true)?;
        server.bind(&SocketAddr::new(source, 0).into())?;
    }
    server.connect(&target.into())?;
    let server: TcpStream = server.into();
    (&server).write_all(&preface)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let back = thread::spawn(move || copy(&server, &client));
    copy(&from, &to);
    let _ = back.join();
    Ok(())
}

/// Copies to the end, and passes the end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// What a connection dialled before it was redirected.
fn original(stream: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    let is_v4 = local.ip().to_canonical().is_ipv4();
    let level = if is_v4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let mut bytes = [0u8; size_of::<libc::sockaddr_in6>()];
    let mut length = (if is_v4 { size_of::<libc::sockaddr_in>() } else { bytes.len() }) as libc::socklen_t;
    let (to, at) = (bytes.as_mut_ptr().cast(), &raw mut length);
    // SAFETY: the kernel writes no more than `length` bytes.
    if unsafe { libc::getsockopt(stream.as_raw_fd(), level, ORIGINAL_DST, to, at) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let address = if is_v4 {
        IpAddr::from([bytes[4], bytes[5], bytes[6], bytes[7]])
    } else {
        let mut address = [0u8; 16];
        address.copy_from_slice(&bytes[8..24]);
        IpAddr::from(address)
    };
    Ok(SocketAddr::new(address, port))
}
