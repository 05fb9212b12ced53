//! Connections inside a pod's network namespace, in an ambient mesh (docs/data-planes.md).
//!
//! There a proxy of the node has sockets in the namespaces of pods. What came to it through a
//! tunnel or by redirection it hands on to the pod's application in the name of whoever called: the
//! application sees the caller's address at its own port, and nothing of that was on the pod's
//! link. Such a connection is the kernel's twice: of the proxy's socket, whose address is not the
//! pod's although its namespace is, and of the application's. The first tells that the second,
//! which waits as what arrives at other proxies does ([`redirects`]), is no edge.
//!
//! [`redirects`]: super::redirects

use super::{
    Observer,
    edge::{Gain, mark_bit},
    flows::{Last, Step, as_client},
    identity::{LocalEnd, Resolution},
    redirects::Key,
};
use crate::{
    observe::{FlowDelta, PROXY_PORTS, Remote, Role},
    peer::Protocol,
    snapshot::{
        Side,
        facts::Seen,
        marks::{self, HBONE},
    },
    time::Timestamp,
};

impl Observer {
    /// Whether the flow is in a network namespace in which an ambient mesh's proxy listens.
    fn is_in_ambient_mesh(&self, delta: &FlowDelta) -> bool {
        let listens = |netns| self.identity.sockets().listens(netns, HBONE, delta.local);
        delta.protocol == Protocol::Tcp && delta.netns.is_some_and(listens)
    }

    /// Whether an application's connection may be one that the node's proxy has handed on.
    pub(super) fn may_be_inside(&self, delta: &FlowDelta, local: &LocalEnd, side: Side) -> bool {
        side == Side::Server
            && delta.server_port != HBONE
            && !PROXY_PORTS.contains(&delta.server_port)
            && local.marks & mark_bit(marks::PROXIED) == 0
            && self.is_in_ambient_mesh(delta)
    }

    /// Takes a connection that the node's proxy hands on to the application of the pod in whose
    /// namespace it is. `None`: the flow is none of these.
    pub(super) fn inside(&mut self, delta: &FlowDelta, at: Timestamp, now: Timestamp, last: Last) -> Option<Step> {
        let netns = delta.netns.filter(|_| self.is_in_ambient_mesh(delta))?;
        self.identity.learn_namespace(delta.cgroup, netns, delta.local, at);
        let (Role::Client, Remote::Addr(server)) = (delta.role, delta.remote) else { return None };
        let Some(pod) = self.identity.pod_in(netns) else {
            // The application's own end shows whose the namespace is.
            return (!last.role).then_some(Step::WaitRole);
        };
        let record = self.identity.pod(pod)?;
        let addresses = &record.pod.addresses;
        if !addresses.contains(&server) || addresses.contains(&delta.local) {
            return None;
        }
        let local = LocalEnd { peer: record.peer, pod: Some(pod), marks: 0, node_workload: None };
        let caller = match self.remote_peer(delta.local, at, last.pod) {
            Resolution::Wait => return Some(Step::WaitPod),
            Resolution::Known(caller) => Some(caller),
            // It is reported elsewhere, or nowhere: no rule depends on it.
            Resolution::Unresolved(_) => None,
        };
        let port = delta.server_port;
        let key = Key { pod, side: Side::Server, local: server, remote: Remote::Addr(delta.local), port };
        self.take_answer(key, delta, local.peer, now);
        let first = delta.first_open.unwrap_or(at).min(at);
        let gain = Gain {
            side: Side::Server,
            seen: Seen { counts: as_client(&delta.counts, Role::Client), first, last: at },
            closed: delta.counts.closed,
            marks: mark_bit(marks::INSIDE),
            node_workload: None,
            port_name: None,
        };
        if let Some(caller) = caller {
            self.place(&local, (delta.local, port, Protocol::Tcp), caller, gain);
        }
        Some(Step::Done)
    }
}
