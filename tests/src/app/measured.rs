//! Exchanges that are measured: no record of them is written, and the times of all are kept.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{
    scenario::Measured,
    serve::{read_frame, write_frame},
};

/// Times of exchanges, and the connection that is kept between them.
#[derive(Debug, Default)]
pub struct Stopwatch {
    took: Mutex<Vec<Duration>>,
    kept: Mutex<Option<TcpStream>>,
}

impl Stopwatch {
    /// Does one exchange, with a document of about so many bytes where there is a request.
    ///
    /// # Panics
    /// The server is not there, or answers something else.
    pub fn exchange(&self, what: Measured, to: SocketAddr, bytes: usize) {
        let request = if what == Measured::Reset { Vec::new() } else { document(bytes) };
        let begin = Instant::now();
        match what {
            Measured::Reset => reset(to),
            Measured::Connection => ask(&mut connect(to), &request),
            Measured::Kept => {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                ask(kept.get_or_insert_with(|| connect(to)), &request);
            }
        }
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(begin.elapsed());
    }

    /// First decile, median and 99th percentile of the exchanges since the last time, in
    /// nanoseconds.
    pub fn take(&self) -> Option<[u128; 3]> {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap_or_else(PoisonError::into_inner));
        took.sort_unstable();
        (!took.is_empty()).then(|| [10, 50, 99].map(|percent| took[took.len() * percent / 100].as_nanos()))
    }
}

/// A JSON document of about this size, as a request.
fn document(bytes: usize) -> Vec<u8> {
    let item = |n: usize| json!({"id": n, "name": format!("item-{n}"), "labels": {"app": "shop", "tier": "front"}, "price": 1.5});
    let items: Vec<Value> = (0..(bytes / 80).max(1)).map(item).collect();
    Value::from(items).to_string().into_bytes()
}

/// Serves one connection after the other: answers a JSON document with the same, read and written
/// anew, as a service would that does next to nothing.
pub fn serve(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let _ = stream.set_nodelay(true);
        // A connection that was reset, also before it was accepted, is one more connection, nothing
        // else.
        while let Ok(request) = read_frame(&mut stream) {
            let answer = serde_json::from_slice::<Value>(&request).map(|document| document.to_string());
            if write_frame(&mut stream, answer.unwrap_or_default().as_bytes()).is_err() {
                break;
            }
        }
    }
}

fn socket(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a TCP socket");
    socket.set_tcp_nodelay(true).expect("TCP has it");
    socket
}

/// Connects and resets, which leaves no `TIME_WAIT` behind.
fn reset(to: SocketAddr) {
    let socket = socket(to);
    socket
        .set_linger(Some(Duration::ZERO))
        .and_then(|()| socket.connect(&to.into()))
        .expect("the measured server is there");
}

fn connect(to: SocketAddr) -> TcpStream {
    let socket = socket(to);
    socket.connect(&to.into()).expect("the measured server is there");
    socket.into()
}

fn ask(stream: &mut TcpStream, request: &[u8]) {
    let answer = write_frame(stream, request).and_then(|()| read_frame(stream)).expect("the measured server answers");
    assert_eq!(answer.len(), request.len(), "the measured server answers with the same document");
}
