//! What is not sure of who had an address, because a watch was silent: an agent that continues a
//! state doubts it as well. A snapshot says nothing of it, so it stands in the state by itself.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AddressOwner, Observer};
use crate::{identity::addresses::Tenure, time::Timestamp};

/// The doubt about a tenure, with times in ns since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Doubt {
    pub(super) address: IpAddr,
    /// `namespace/name` of a pod, or a node's name.
    pub(super) owner: String,
    /// The tenure's end.
    pub(super) to: i64,
    /// As [`Tenure::born`], [`Tenure::since`], [`Tenure::sure`] and [`Tenure::silent`].
    times: [i64; 5],
}

fn times(tenure: &Tenure<AddressOwner>) -> [i64; 5] {
    let Tenure { born, since, sure, silent, .. } = tenure;
    [born, since, &sure.0, &sure.1, silent].map(|at| at.as_unix_ns())
}

impl Observer {
    fn owner_name(&self, owner: AddressOwner) -> Option<String> {
        match owner {
            AddressOwner::Pod(id) => self.identity.pod(id).map(|r| format!("{}/{}", r.pod.namespace, r.pod.name)),
            AddressOwner::Node(peer) => self.peers.node_name(peer).map(str::to_owned),
        }
    }

    /// What is in doubt.
    pub(super) fn doubts(&self) -> Vec<Doubt> {
        let is_doubted = |tenure: &Tenure<_>| tenure.sure != (Timestamp::MIN, Timestamp::MAX);
        let doubted = self.identity.tenures().filter(|(_, tenure)| is_doubted(tenure));
        let doubt = |(address, tenure): (IpAddr, &Tenure<AddressOwner>)| {
            let (owner, to) = (self.owner_name(tenure.owner)?, tenure.to.as_unix_ns());
            Some(Doubt { address, owner, to, times: times(tenure) })
        };
        doubted.filter_map(doubt).collect()
    }

    /// Takes back what a state doubts.
    pub(super) fn restore_doubts(&mut self, doubts: Vec<Doubt>) {
        for Doubt { address, owner, to, times } in doubts {
            let is_owner = |known: AddressOwner| self.owner_name(known).is_some_and(|name| name == owner);
            let of_owner = self.identity.tenures_of(address).map(|tenure| tenure.owner).find(|known| is_owner(*known));
            let Some(of_owner) = of_owner else { continue };
            let [born, since, first, last, silent] = times.map(Timestamp::from_unix_ns);
            self.identity.doubt(address, of_owner, Timestamp::from_unix_ns(to), |tenure| {
                (tenure.born, tenure.since, tenure.sure, tenure.silent) = (born, since, (first, last), silent);
            });
        }
    }
}
