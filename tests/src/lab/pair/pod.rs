//! A process that makes sockets in its cgroup and network namespace and hands them out.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use crate::lab::{
    fork::Forked,
    netns::Netns,
    socket::{self, family},
};

/// What is asked for: domain, type, protocol.
type Request = [libc::c_int; 3];

/// Room for one descriptor in a control message, aligned as its header.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// A pod. Dropping it ends its process; its sockets belong to the test.
#[derive(Debug)]
pub struct SocketPod {
    /// Id of its cgroup: the inode of its directory.
    pub cgroup_id: u64,
    /// Directory of its cgroup.
    pub path: PathBuf,
    channel: UnixStream,
    _process: Forked,
}

impl SocketPod {
    /// A pod in this cgroup directory, which exists.
    pub fn new(path: &Path, netns: &Netns) -> Self {
        let (channel, theirs) = UnixStream::pair().expect("a socket pair");
        let fd = theirs.as_raw_fd();
        let process = Forked::fork(path, Some(netns), fd, || serve(fd));
        let cgroup_id = fs::metadata(path).expect("the cgroup is there").ino();
        Self { cgroup_id, path: path.to_owned(), channel, _process: process }
    }

    /// socket(2), made by the pod's process.
    pub fn socket(&self, domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
        let request: Request = [domain, kind, protocol];
        let fd = self.channel.as_raw_fd();
        // SAFETY: as many bytes are read as there are.
        let sent = unsafe { libc::send(fd, request.as_ptr().cast(), size_of::<Request>(), libc::MSG_NOSIGNAL) };
        assert_eq!(sent, size_of::<Request>() as isize, "the pod's process is alive");
        let mut error: libc::c_int = -1;
        let mut control = Control([0; 24]);
        let mut part = libc::iovec { iov_base: (&raw mut error).cast(), iov_len: size_of::<libc::c_int>() };
        // SAFETY: all zero is valid; the buffers outlive the call, and the control message is read
        // within its bounds.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = size_of::<Control>() as _;
            let got = libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC);
            assert_eq!(
                got,
                size_of::<libc::c_int>() as isize,
                "the pod's process could not join its cgroup or namespace"
            );
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            assert!(!header.is_null(), "a descriptor comes with the answer");
            Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
        }
    }

    /// A TCP socket that listens at this address.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        self.listen_with(address, 128, 0)
    }

    /// The same with a backlog and a protocol (`IPPROTO_MPTCP`) of choice.
    pub fn listen_with(&self, address: SocketAddr, backlog: libc::c_int, protocol: libc::c_int) -> TcpListener {
        let fd = self.socket(family(address), libc::SOCK_STREAM, protocol).expect("a socket");
        socket::set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        socket::bind(&fd, address).expect("bound");
        socket::listen(&fd, backlog).expect("listening");
        fd.into()
    }

    /// A TCP connection to this address.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect_from(None, to)
    }

    /// A TCP connection from an address of choice.
    pub fn connect_from(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
        let fd = self.socket(family(to), libc::SOCK_STREAM, 0)?;
        if let Some(from) = from {
            socket::bind(&fd, from)?;
        }
        // Two seconds after the first SYN a second one; then it is over.
        socket::set_option(&fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 1);
        socket::connect(&fd, to)?;
        Ok(fd.into())
    }

    /// Begins to connect and does not wait.
    pub fn begin_to_connect(&self, to: SocketAddr) -> OwnedFd {
        let fd = self.socket(family(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).expect("a socket");
        let error = socket::connect(&fd, to).expect_err("it takes a while");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        fd
    }

    /// A UDP socket that is not bound; of the family that talks to this address.
    pub fn udp(&self, like: SocketAddr) -> UdpSocket {
        self.socket(family(like), libc::SOCK_DGRAM, 0).expect("a socket").into()
    }

    /// A UDP socket bound to this address; port 0 leaves the choice to the kernel.
    pub fn udp_at(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.udp(address);
        socket::bind(&socket, address).expect("bound");
        socket
    }
}

/// The pod's process: makes sockets until nobody asks any more. System calls only.
fn serve(channel: RawFd) {
    loop {
        let mut request: Request = [0; 3];
        // SAFETY: the buffers are as long as said and outlive the calls; the control message is
        // written within its bounds.
        unsafe {
            let got = libc::recv(channel, request.as_mut_ptr().cast(), size_of::<Request>(), libc::MSG_WAITALL);
            if got != size_of::<Request>() as isize {
                return;
            }
            let made = libc::socket(request[0], request[1] | libc::SOCK_CLOEXEC, request[2]);
            let mut error = if made < 0 { *libc::__errno_location() } else { 0 };
            let mut control = Control([0; 24]);
            let mut part = libc::iovec { iov_base: (&raw mut error).cast(), iov_len: size_of::<libc::c_int>() };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if made >= 0 {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(4) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(4) as _;
                libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(made);
            }
            libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL);
            if made >= 0 {
                libc::close(made);
            }
        }
    }
}
