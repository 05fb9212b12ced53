//! What many pods have alike is kept once: the pods of a ReplicaSet differ in name, uid and address
//! only.

use std::sync::Arc;

use super::{ContainerPort, Labels, OwnerRef, Pod, labels::Label};
use crate::interner::Interner;

/// Parts of pods, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    labels: Interner<[Label]>,
    ports: Interner<[ContainerPort]>,
    owners: Interner<OwnerRef>,
}

impl Shared {
    /// The pod with the parts that other pods have as well. It stays as it is where somebody else
    /// holds it already.
    pub(super) fn share(&mut self, mut pod: Arc<Pod>) -> Arc<Pod> {
        if let Some(pod) = Arc::get_mut(&mut pod) {
            let Pod { labels: Labels(labels), ports, controller, .. } = pod;
            *labels = self.labels.intern(Arc::clone(labels));
            *ports = self.ports.intern(Arc::clone(ports));
            if let Some(owner) = controller {
                *owner = self.owners.intern(Arc::clone(owner));
            }
        }
        pod
    }

    /// Forgets what no other pod has. A part that somebody else still holds is only no longer
    /// shared with pods to come.
    pub(super) fn release(&mut self, pod: &Pod) {
        self.labels.release(&pod.labels.0);
        self.ports.release(&pod.ports);
        if let Some(owner) = &pod.controller {
            self.owners.release(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(app: &str) -> Arc<Pod> {
        let controller = Some(Arc::new(OwnerRef { name: app.to_owned(), ..OwnerRef::default() }));
        Arc::new(Pod { labels: [("app", app)].into_iter().collect(), controller, ..Pod::default() })
    }

    #[test]
    fn equal_parts_of_pods_are_kept_once_and_forgotten_with_the_last_pod() {
        let mut shared = Shared::default();
        let [a, b, c] = ["web", "web", "db"].map(|app| shared.share(pod(app)));
        assert!(Arc::ptr_eq(&a.labels.0, &b.labels.0) && !Arc::ptr_eq(&a.labels.0, &c.labels.0));
        assert!(Arc::ptr_eq(a.controller.as_ref().unwrap(), b.controller.as_ref().unwrap()));
        let count = |shared: &Shared| (shared.labels.len(), shared.owners.len());
        shared.release(&a);
        assert_eq!(count(&shared), (2, 2), "another pod has them");
        drop(a);
        shared.release(&b);
        assert_eq!(count(&shared), (1, 1));
        let again = shared.share(b);
        assert_eq!(count(&shared), (2, 2));
        assert_eq!(again, pod("web"));
    }
}
