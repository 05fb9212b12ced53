//! Kubernetes objects: inventory files, and what the API server sends.

use guardrail_agent::policies;
use guardrail_graph::{
    Observer, ObserverConfig, Snapshot, Timestamp,
    inventory::{Change, read},
};
use guardrail_kube::{Resource, fuzzing};

/// Any text gives objects or one sentence; an observer takes any objects.
pub(super) fn inventory(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let objects = match read::objects(&text, "fuzz.yaml") {
        Ok(read) => read.objects,
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("fuzz.yaml") && !message.contains('\n'), "{message:?}");
            return;
        }
    };
    let at = Timestamp::from_unix_seconds(1_000);
    let mut observer = Observer::new(ObserverConfig::new("node-a", "instance", at));
    for object in objects {
        observer.apply(Change::Apply(object), at);
    }
    let snapshot = observer.snapshot(at);
    assert_eq!(Snapshot::from_json(&snapshot.to_json(), "again").expect("what was written can be read"), snapshot);
}

/// The first byte says what is watched, the second how the stream is cut; how it is cut changes
/// nothing.
pub(super) fn watch(bytes: &[u8]) {
    let [resource, cut, stream @ ..] = bytes else { return };
    let resource = Resource::ALL[usize::from(*resource) % Resource::ALL.len()];
    let whole = fuzzing::watch(resource, [stream], policies::read);
    let cut = fuzzing::watch(resource, stream.chunks(usize::from(*cut) + 1), policies::read);
    assert_eq!(whole, cut);
    assert!(whole.waiting <= stream.len() && whole.objects + whole.refused.len() <= whole.lines + 1);
    assert!(whole.refused.iter().all(|why| !why.is_empty()));
    let _ = fuzzing::page(resource, stream, policies::read);
}
