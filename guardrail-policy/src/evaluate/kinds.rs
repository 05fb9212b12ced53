//! What an end is, apart from labels and addresses, as a set of bits.

use crate::model::tier::Entity;

/// A set of kinds of ends. An end may be of several: a node that runs the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kinds(u16);

impl Kinds {
    pub(super) const NONE: Self = Self(0);
    /// A pod that is not on the host network.
    pub(super) const POD: Self = Self(1);
    /// The node of the pod on the other side.
    pub(super) const HOST: Self = Self(1 << 1);
    /// Another node.
    pub(super) const REMOTE: Self = Self(1 << 2);
    /// An address that is no pod's and no node's.
    pub(super) const WORLD: Self = Self(1 << 3);
    /// One of the API server's own addresses.
    pub(super) const API_SERVER: Self = Self(1 << 4);
    const INGRESS: Self = Self(1 << 5);
    const INIT: Self = Self(1 << 6);
    const HEALTH: Self = Self(1 << 7);
    const UNMANAGED: Self = Self(1 << 8);
    pub(super) const ALL: Self = Self(u16::MAX);
    pub(super) const NODES: Self = Self(Self::HOST.0 | Self::REMOTE.0);

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The ends that an entity stands for.
    pub(super) const fn of_entity(entity: Entity) -> Self {
        match entity {
            Entity::All => Self::ALL,
            Entity::World => Self::WORLD,
            Entity::Cluster => Self::ALL.without(Self::WORLD),
            Entity::Host => Self::HOST,
            Entity::RemoteNode => Self::REMOTE,
            Entity::KubeApiserver => Self::API_SERVER,
            Entity::Ingress => Self::INGRESS,
            Entity::Init => Self::INIT,
            Entity::Health => Self::HEALTH,
            Entity::Unmanaged => Self::UNMANAGED,
            Entity::None => Self::NONE,
        }
    }
}
