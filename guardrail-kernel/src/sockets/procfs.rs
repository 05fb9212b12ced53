//! Sockets that no process has a descriptor of: not accepted yet, on their way between processes,
//! parts of an MPTCP connection, the kernel's own. The tables of a network namespace have them.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use guardrail_common::{address::Address, flow::FlowKey};

use super::backing::{Backing, Ends};
use crate::cgroup;

/// Processes of a cgroup that are asked: all of a pod have one network namespace.
const ASKED: usize = 8;
/// `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_LISTEN` and `TCP_NEW_SYN_RECV` are no connections, or none
/// any more.
const NO_CONNECTION: [u8; 4] = [6, 7, 10, 12];

/// Of these keys, those behind which no socket stands in the network namespaces where processes of
/// their cgroup live. What cannot be told by then, or not at all, is not among them.
pub(crate) fn without_socket(root: &Path, keys: Vec<FlowKey>, until: Instant) -> Vec<FlowKey> {
    if keys.is_empty() {
        return keys;
    }
    let mut directories = Vec::new();
    if cgroup::directories(root, &mut |metadata, path| directories.push((metadata.ino(), path.to_owned()))).is_err() {
        return Vec::new();
    }
    let mut by_cgroup: HashMap<u64, Vec<FlowKey>> = HashMap::new();
    keys.into_iter().for_each(|key| by_cgroup.entry(key.cgroup_id).or_default().push(key));
    let mut without = Vec::new();
    for (id, keys) in by_cgroup {
        if Instant::now() > until {
            break;
        }
        let Some(there) = connections(id, &directories) else { continue };
        without.extend(keys.into_iter().filter(|key| !there.holds(key)));
    }
    without
}

/// Connections of the network namespaces of a cgroup's processes; `None`: they cannot be read.
fn connections(cgroup_id: u64, directories: &[(u64, PathBuf)]) -> Option<Backing> {
    let Some((_, own)) = directories.iter().find(|(id, _)| *id == cgroup_id) else {
        // With it all of its processes are gone.
        return Some(Backing::default());
    };
    let mut processes = Vec::new();
    // They may have moved further down since the socket was made.
    for (_, directory) in directories.iter().filter(|(_, directory)| directory.starts_with(own)) {
        match fs::read_to_string(directory.join("cgroup.procs")) {
            Ok(list) => processes.extend(list.lines().map(str::to_owned)),
            Err(error) if is_gone(&error) => {}
            Err(_) => return None,
        }
        if processes.len() >= ASKED {
            break;
        }
    }
    let is_empty = processes.is_empty();
    let (mut all, mut is_read) = (Vec::new(), false);
    for process in processes.iter().take(ASKED) {
        for table in ["tcp", "tcp6"] {
            if let Ok(table) = fs::read_to_string(format!("/proc/{process}/net/{table}")) {
                is_read = true;
                all.extend(table.lines().filter_map(|line| ends(cgroup_id, line)));
            }
        }
    }
    (is_read || is_empty).then(|| Backing::of(all))
}

/// The cgroup was removed meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// A line of `/proc/net/tcp` or `tcp6`: "N: LOCAL:PORT REMOTE:PORT STATE …", in hexadecimal
/// digits. `None`: it is the heading, or no connection.
fn ends(cgroup_id: u64, line: &str) -> Option<Ends> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    if NO_CONNECTION.contains(&u8::from_str_radix(state, 16).ok()?) {
        return None;
    }
    let (local, local_port) = end(local)?;
    let (remote, remote_port) = end(remote)?;
    Some(Ends { cgroup_id, local, remote, local_port, remote_port })
}

/// Words of an address are written as this machine's numbers; IPv4 is mapped.
fn end(text: &str) -> Option<(Address, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut bytes: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    let words = match address.len() {
        8 => &mut bytes[12..],
        32 => &mut bytes[..],
        _ => return None,
    };
    for (at, word) in words.chunks_exact_mut(4).enumerate() {
        let digits = address.get(8 * at..8 * at + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    Some((bytes, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::address;

    #[test]
    fn a_table_s_lines_are_connections_unless_they_listen_or_are_over() {
        let ip = |text: &str| address(text.parse().expect("an address"));
        let ne = |text: &str| {
            let bytes = ip(text);
            let words = if text.contains('.') { &bytes[12..] } else { &bytes[..] };
            let word = |w: &[u8]| format!("{:08X}", u32::from_ne_bytes(w.try_into().expect("four bytes")));
            words.chunks(4).map(word).collect::<String>()
        };
        let line = |local: &str, remote: &str, state: &str| {
            format!("   0: {}:A028 {}:1538 {state} 00000000:00000000 00:00000000 00000000     0", ne(local), ne(remote))
        };
        for (local, remote) in [("10.0.0.1", "10.0.0.2"), ("fd77::1", "fd77::2")] {
            let expected =
                Ends { cgroup_id: 7, local: ip(local), remote: ip(remote), local_port: 41_000, remote_port: 5432 };
            for state in ["01", "04", "05", "08", "09", "0B"] {
                assert_eq!(ends(7, &line(local, remote, state)), Some(expected), "{state}");
            }
            for state in ["06", "07", "0A", "0C", "zz"] {
                assert_eq!(ends(7, &line(local, remote, state)), None, "{state}");
            }
        }
        for odd in
            ["", "  sl  local_address rem_address   st tx_queue", "0: 0:0 0:0 01", "0: 0100007F 0 01", "0: \u{e9}"]
        {
            assert_eq!(ends(7, odd), None, "{odd}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_never_said_to_have_no_socket() {
        use guardrail_common::flow::{FlowRole, PROTOCOL_TCP};
        let key = FlowKey {
            cgroup_id: 1,
            local: [1; 16],
            remote: [2; 16],
            server_port: 80,
            local_port: 0,
            protocol: PROTOCOL_TCP,
            role: FlowRole::Client as u8,
            pad: [0; 2],
        };
        let root = tempfile::tempdir().expect("a directory");
        let soon = || Instant::now() + std::time::Duration::from_secs(60);
        assert_eq!(without_socket(root.path(), vec![key], soon()), [key], "its cgroup is gone");
        let own = root.path().join("pod");
        fs::create_dir_all(own.join("below")).expect("made");
        let id = fs::metadata(&own).expect("there").ino();
        let key = FlowKey { cgroup_id: id, ..key };
        assert_eq!(without_socket(root.path(), vec![key], soon()), [key], "it has no process");
        // Nothing is known of such a process.
        fs::write(own.join("below/cgroup.procs"), "4194305\n").expect("written");
        assert!(without_socket(root.path(), vec![key], soon()).is_empty());
        fs::write(own.join("below/cgroup.procs"), "self\n").expect("written");
        assert_eq!(without_socket(root.path(), vec![key], soon()), [key]);
        assert!(without_socket(root.path(), vec![key], Instant::now() - std::time::Duration::from_secs(1)).is_empty());
    }
}
