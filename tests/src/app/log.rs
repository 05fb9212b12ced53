//! The log of what really happened: the ground truth.

use std::{
    fs::File,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Which side of a connection wrote the record. The ground truth shares no type with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It called.
    Client,
    /// It was called.
    Server,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// TCP: connected and one request answered. UDP: answered.
    Established,
    /// Server: a connection was accepted and its first request read; a datagram arrived.
    Accepted,
    /// UDP without an answer expected: sent.
    Sent,
    /// Reset, or ICMP port unreachable.
    Refused,
    /// Nobody answered in time.
    Unanswered,
    /// No route, or ICMP unreachable.
    Unreachable,
    /// Connected, but the exchange broke: the lab is not sound.
    Broken,
}

/// One connection or exchange, as one of its ends saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Wall-clock time, nanoseconds since the epoch.
    pub at_ns: u64,
    /// The process that writes.
    pub process: String,
    /// Its side.
    pub side: Side,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Local address (`getsockname`).
    pub local: Option<SocketAddr>,
    /// Client: the address that was asked for. Server: the peer's address as `accept` or `recvfrom`
    /// told it.
    pub remote: SocketAddr,
    /// Client: what the scenario named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Identifier that the client chose and sent, `process#number`; absent for DNS, whose messages
    /// have no room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Payload bytes of this record's exchange that were sent.
    pub sent: u64,
    /// Payload bytes of this record's exchange that were received.
    pub received: u64,
    /// The connection was opened before `ready`.
    pub before: bool,
}

/// Appends records to a file, one write each.
#[derive(Debug)]
pub struct Log {
    file: Mutex<File>,
    process: String,
}

impl Log {
    /// Creates the file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path, process: &str) -> std::io::Result<Self> {
        Ok(Self { file: Mutex::new(File::create(path)?), process: process.to_owned() })
    }

    /// Name of the process.
    #[must_use]
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Writes one record; `at_ns` and `process` are filled in.
    ///
    /// # Panics
    /// The log cannot be written: without it there is no truth.
    pub fn write(&self, mut record: Record) {
        record.process.clone_from(&self.process);
        record.at_ns = now_ns();
        let mut line = serde_json::to_vec(&record).expect("a record is always valid JSON");
        line.push(b'\n');
        self.file.lock().expect("no writer panics").write_all(&line).expect("the log of connections is writable");
    }
}

/// Wall-clock time in nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
