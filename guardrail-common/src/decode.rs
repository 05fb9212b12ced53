//! From bytes to records: total, without `unsafe`. Any bytes give a record or an error.

use core::fmt;

use crate::{
    address::Address,
    counter::{LossKey, LossKind},
    flow::{FlowKey, FlowRole, FlowValue, PROTOCOL_TCP, PROTOCOL_UDP},
    record::{CgroupRecord, DNS_BYTES, DnsRecord, FlowHint, ListenRecord, PATH_BYTES, RecordKind, SocketRecord},
};

/// What is wrong with some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Too short for what it says to be.
    Short {
        /// Bytes needed.
        needed: usize,
        /// Bytes given.
        given: usize,
    },
    /// No such kind of record.
    Kind(u8),
    /// No such role.
    Role(u8),
    /// No such protocol.
    Protocol(u16),
    /// No such reason.
    Loss(u32),
    /// A length inside the record exceeds its field.
    Length(u16),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, given } => write!(f, "{given} bytes where {needed} are needed"),
            Self::Kind(kind) => write!(f, "unknown record kind {kind}"),
            Self::Role(role) => write!(f, "unknown role {role}"),
            Self::Protocol(protocol) => write!(f, "unknown protocol {protocol}"),
            Self::Loss(kind) => write!(f, "unknown reason of loss {kind}"),
            Self::Length(length) => write!(f, "length {length} exceeds its field"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// A ring record, borrowed from the ring where it has variable parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A key is new.
    Flow(FlowKey),
    /// A cgroup was made (true) or removed (false).
    Cgroup {
        /// Made or removed.
        created: bool,
        /// Its id.
        id: u64,
        /// Boot time, ns.
        at: u64,
        /// Boot time of its removal, ns; 0: not known to be removed.
        ended: u64,
        /// Its path, perhaps not UTF-8.
        path: &'a [u8],
    },
    /// A socket began or ceased to listen.
    Listen(ListenRecord),
    /// A DNS answer.
    Dns {
        /// cgroup that had asked.
        cgroup_id: u64,
        /// Boot time, ns.
        at: u64,
        /// The message.
        payload: &'a [u8],
    },
}

/// Reads fields one after the other.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// `bytes`, if there are at least `needed`.
    fn new(bytes: &'a [u8], needed: usize) -> Result<Self, DecodeError> {
        if bytes.len() < needed { Err(DecodeError::Short { needed, given: bytes.len() }) } else { Ok(Self(bytes)) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(DecodeError::Short { needed: N, given: self.0.len() })?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_ne_bytes)
    }

    fn address(&mut self) -> Result<Address, DecodeError> {
        self.take()
    }

    fn rest(self, used: u16) -> Result<&'a [u8], DecodeError> {
        self.0.get(..usize::from(used)).ok_or(DecodeError::Short { needed: usize::from(used), given: self.0.len() })
    }
}

/// A ring record.
///
/// # Errors
/// [`DecodeError`] for anything the kernel side does not write.
pub fn ring(bytes: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let kind = *bytes.first().ok_or(DecodeError::Short { needed: 1, given: 0 })?;
    match RecordKind::try_from(kind).map_err(DecodeError::Kind)? {
        RecordKind::Flow => {
            let mut c = Cursor::new(bytes, size_of::<FlowHint>())?;
            let _: [u8; 8] = c.take()?;
            key(c.0).map(Decoded::Flow)
        }
        kind @ (RecordKind::CgroupCreated | RecordKind::CgroupRemoved) => {
            let mut c = Cursor::new(bytes, size_of::<CgroupRecord>() - PATH_BYTES)?;
            let _: [u8; 6] = c.take()?;
            let path_len = c.u16()?;
            if usize::from(path_len) > PATH_BYTES {
                return Err(DecodeError::Length(path_len));
            }
            let (id, at, ended) = (c.u64()?, c.u64()?, c.u64()?);
            Ok(Decoded::Cgroup { created: kind == RecordKind::CgroupCreated, id, at, ended, path: c.rest(path_len)? })
        }
        RecordKind::Listen => {
            let mut c = Cursor::new(bytes, size_of::<ListenRecord>())?;
            Ok(Decoded::Listen(ListenRecord {
                kind: c.u8()?,
                listening: c.u8()?,
                port: c.u16()?,
                netns: c.u32()?,
                cgroup_id: c.u64()?,
                at: c.u64()?,
                local: c.address()?,
            }))
        }
        RecordKind::Dns => {
            let mut c = Cursor::new(bytes, size_of::<DnsRecord>() - DNS_BYTES)?;
            let _: [u8; 6] = c.take()?;
            let payload_len = c.u16()?;
            if usize::from(payload_len) > DNS_BYTES {
                return Err(DecodeError::Length(payload_len));
            }
            let (cgroup_id, at) = (c.u64()?, c.u64()?);
            Ok(Decoded::Dns { cgroup_id, at, payload: c.rest(payload_len)? })
        }
        RecordKind::Socket => Err(DecodeError::Kind(kind)),
    }
}

/// A key of FLOWS, with role and protocol checked.
///
/// # Errors
/// [`DecodeError`] for anything the kernel side does not write.
pub fn key(bytes: &[u8]) -> Result<FlowKey, DecodeError> {
    let mut c = Cursor::new(bytes, size_of::<FlowKey>())?;
    let key = FlowKey {
        cgroup_id: c.u64()?,
        local: c.address()?,
        remote: c.address()?,
        server_port: c.u16()?,
        local_port: c.u16()?,
        protocol: c.u8()?,
        role: c.u8()?,
        pad: c.take()?,
    };
    FlowRole::try_from(key.role).map_err(DecodeError::Role)?;
    if key.protocol != PROTOCOL_TCP && key.protocol != PROTOCOL_UDP {
        return Err(DecodeError::Protocol(u16::from(key.protocol)));
    }
    Ok(key)
}

/// A value of FLOWS.
///
/// # Errors
/// [`DecodeError::Short`].
pub fn value(bytes: &[u8]) -> Result<FlowValue, DecodeError> {
    let mut c = Cursor::new(bytes, size_of::<FlowValue>())?;
    Ok(FlowValue {
        first_open: c.u64()?,
        last_failed: c.u64()?,
        refused: c.u64()?,
        unanswered: c.u64()?,
        opened: c.u64()?,
        closed: c.u64()?,
        bytes_sent: c.u64()?,
        bytes_received: c.u64()?,
        last_open: c.u64()?,
        unreachable: c.u64()?,
        jiffies: c.u32()?,
        by_protocol: c.u32()?,
        netns: c.u32()?,
        found: c.u32()?,
    })
}

/// A key of CGROUP_LOSSES: the cgroup's id and why.
///
/// # Errors
/// [`DecodeError`] for anything the kernel side does not write.
pub fn loss_key(bytes: &[u8]) -> Result<(u64, LossKind), DecodeError> {
    let mut c = Cursor::new(bytes, size_of::<LossKey>())?;
    let (id, kind) = (c.u64()?, c.u32()?);
    Ok((id, LossKind::try_from(kind).map_err(DecodeError::Loss)?))
}

/// A record of the socket iterator.
///
/// # Errors
/// [`DecodeError`] for anything the kernel side does not write.
pub fn socket(bytes: &[u8]) -> Result<SocketRecord, DecodeError> {
    let mut c = Cursor::new(bytes, size_of::<SocketRecord>())?;
    let record = SocketRecord {
        kind: c.u8()?,
        state: c.u8()?,
        userlocks: c.u8()?,
        fastreuse: c.u8()?.cast_signed(),
        protocol: c.u16()?,
        family: c.u16()?,
        local_port: c.u16()?,
        remote_port: c.u16()?,
        netns: c.u32()?,
        backlog: c.u32()?,
        has_bucket: c.u32()?,
        socket: c.u64()?,
        cgroup_id: c.u64()?,
        local: c.address()?,
        remote: c.address()?,
    };
    if record.kind == RecordKind::Socket as u8 { Ok(record) } else { Err(DecodeError::Kind(record.kind)) }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn hint() -> Vec<u8> {
        let mut bytes = vec![0u8; size_of::<FlowHint>()];
        bytes[0] = RecordKind::Flow as u8;
        bytes[8..16].copy_from_slice(&42u64.to_ne_bytes());
        bytes[16..32].copy_from_slice(&[1; 16]);
        bytes[32..48].copy_from_slice(&[2; 16]);
        bytes[48..50].copy_from_slice(&8080u16.to_ne_bytes());
        bytes[52] = PROTOCOL_TCP;
        bytes[53] = FlowRole::Server as u8;
        bytes
    }

    #[test]
    fn a_flow_hint_comes_back_field_by_field() {
        let Ok(Decoded::Flow(key)) = ring(&hint()) else { panic!("no flow") };
        assert_eq!(
            (key.cgroup_id, key.local, key.remote, key.server_port, key.role),
            (42, [1; 16], [2; 16], 8080, FlowRole::Server as u8)
        );
    }

    #[test]
    fn bytes_that_the_kernel_does_not_write_are_errors() {
        let good = hint();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(ring(&[]), Err(DecodeError::Short { needed: 1, given: 0 }));
        assert_eq!(ring(&good[..55]), Err(DecodeError::Short { needed: 56, given: 55 }));
        assert_eq!(ring(&with(0, 9)), Err(DecodeError::Kind(9)));
        assert_eq!(ring(&with(52, 1)), Err(DecodeError::Protocol(1)));
        assert_eq!(ring(&with(53, 0)), Err(DecodeError::Role(0)));
    }

    #[test]
    fn a_path_is_as_long_as_its_length_says_and_never_longer() {
        let mut bytes = vec![0u8; size_of::<CgroupRecord>()];
        bytes[0] = RecordKind::CgroupCreated as u8;
        bytes[6..8].copy_from_slice(&5u16.to_ne_bytes());
        bytes[8..16].copy_from_slice(&77u64.to_ne_bytes());
        bytes[32..37].copy_from_slice(b"/a/b.");
        assert_eq!(ring(&bytes), Ok(Decoded::Cgroup { created: true, id: 77, at: 0, ended: 0, path: b"/a/b." }));
        bytes[6..8].copy_from_slice(&513u16.to_ne_bytes());
        assert_eq!(ring(&bytes), Err(DecodeError::Length(513)));
        bytes[6..8].copy_from_slice(&512u16.to_ne_bytes());
        bytes.truncate(300);
        assert_eq!(ring(&bytes), Err(DecodeError::Short { needed: 512, given: 268 }));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_record_or_an_error(bytes in vec(any::<u8>(), 0..1400), kind in 0u8..8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            match ring(&bytes) {
                Ok(Decoded::Cgroup { path, .. }) => prop_assert!(path.len() <= PATH_BYTES),
                Ok(Decoded::Dns { payload, .. }) => prop_assert!(payload.len() <= DNS_BYTES),
                Ok(Decoded::Flow(key)) => prop_assert!(FlowRole::try_from(key.role).is_ok()),
                Ok(Decoded::Listen(_)) => prop_assert!(bytes.len() >= size_of::<ListenRecord>()),
                Err(_) => {}
            }
            prop_assert_eq!(key(&bytes).is_ok(), bytes.len() >= 48 && matches!(bytes[44], 6 | 17) && (1..=3).contains(&bytes[45]));
            prop_assert_eq!(value(&bytes).is_ok(), bytes.len() >= size_of::<FlowValue>());
            prop_assert_eq!(socket(&bytes).is_ok(), bytes.len() >= size_of::<SocketRecord>() && kind == 6);
            let _ = loss_key(&bytes);
        }
    }
}
