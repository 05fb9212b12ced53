//! `pods/NAME/portforward` over a websocket, as a kubelet speaks it behind an API server.
//!
//! The subprotocol is `v4.channel.k8s.io`: binary messages whose first byte is a channel; each port
//! has two, for data and for an error. Each channel begins with the number of its port, two bytes,
//! the lesser first.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
};

use tungstenite::{Message, WebSocket, handshake::derive_accept_key, protocol::Role};

use super::http::{self, Request};

/// Connects to a port of a pod.
pub type Connect = Box<dyn Fn(u16) -> io::Result<TcpStream> + Send + Sync>;

/// Where the port-forwards of a pod lead.
pub enum Forward {
    /// To the pod. What keeps it from connecting, the kubelet says in the error channel.
    To(Connect),
    /// The API server refuses with this status and message.
    Status(u16, String),
    /// Nobody answers, not even the API server.
    Silence,
}

const PROTOCOL: &str = "v4.channel.k8s.io";

/// Answers the upgrade and relays until one end is done.
pub(crate) fn relay(stream: &TcpStream, request: &Request, pod: &str, connect: &Connect) -> io::Result<()> {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let offered = header("sec-websocket-protocol").split(',').any(|p| p.trim() == PROTOCOL);
    let port = request.query.get("ports").and_then(|p| p.parse::<u16>().ok());
    let (true, true, Some(port)) = (header("upgrade").eq_ignore_ascii_case("websocket"), offered, port) else {
        return http::answer(stream, 400, "", &super::serve::status(400, "BadRequest", "Upgrade request required"));
    };
    let accept = derive_accept_key(header("sec-websocket-key").as_bytes());
    write!(
        &mut &*stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    )?;
    stream.set_read_timeout(None)?;
    // One end reads, the other writes: a client that sends neither pings nor a close in the middle
    // of an answer sees no difference.
    let mut to_client = WebSocket::from_raw_socket(stream.try_clone()?, Role::Server, None);
    let mut from_client = WebSocket::from_raw_socket(stream.try_clone()?, Role::Server, None);
    let mut send = |channel: u8, data: &[u8]| {
        let message = Message::binary([&[channel], data].concat());
        to_client.send(message).map_err(io::Error::other)
    };
    send(0, &port.to_le_bytes())?;
    send(1, &port.to_le_bytes())?;
    let target = match connect(port) {
        Ok(target) => target,
        Err(e) => {
            let said = format!(
                "error forwarding port {port} to pod {pod}, uid : failed to execute portforward in network namespace \"/var/run/netns/cni-1\": failed to connect to localhost:{port} inside namespace: dial tcp4 127.0.0.1:{port}: connect: {e}"
            );
            send(1, said.as_bytes())?;
            return end(&mut to_client, || while from_client.read().is_ok() {});
        }
    };
    let mut into_pod = target.try_clone()?;
    let reader = thread::spawn(move || {
        while let Ok(message) = from_client.read() {
            match message {
                Message::Binary(data) if data.first() == Some(&0) && into_pod.write_all(&data[1..]).is_ok() => {}
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = into_pod.shutdown(Shutdown::Both);
    });
    let mut from_pod = target;
    let mut buffer = [0; 32 << 10];
    while let Ok(n @ 1..) = from_pod.read(&mut buffer) {
        if send(0, &buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from_pod.shutdown(Shutdown::Both);
    end(&mut to_client, || drop(reader.join()))
}

/// The end of the pod's connection is that of the websocket: a close, and the client's close
/// awaited, so that nothing on the way is lost.
fn end(to_client: &mut WebSocket<TcpStream>, wait: impl FnOnce()) -> io::Result<()> {
    // A client that is gone already needs no close.
    if to_client.close(None).and_then(|()| to_client.flush()).is_ok() {
        wait();
    }
    Ok(())
}
