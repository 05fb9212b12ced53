//! The objects and the events behind them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::{Value, json};

/// One resource that is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) group: &'static str,
}

const fn resource(plural: &'static str, kind: &'static str, group: &'static str) -> Resource {
    Resource { plural, kind, group }
}

pub(crate) const RESOURCES: [Resource; 12] = [
    resource("namespaces", "Namespace", ""),
    resource("nodes", "Node", ""),
    resource("pods", "Pod", ""),
    resource("services", "Service", ""),
    resource("endpointslices", "EndpointSlice", "discovery.k8s.io"),
    resource("deployments", "Deployment", "apps"),
    resource("replicasets", "ReplicaSet", "apps"),
    resource("statefulsets", "StatefulSet", "apps"),
    resource("daemonsets", "DaemonSet", "apps"),
    resource("jobs", "Job", "batch"),
    resource("cronjobs", "CronJob", "batch"),
    resource("networkpolicies", "NetworkPolicy", "networking.k8s.io"),
];

impl Resource {
    pub(crate) fn api_version(self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }

    pub(crate) fn path(self) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        format!("{root}/{}/{}", self.api_version(), self.plural)
    }
}

/// One event of the log.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) version: u64,
    pub(crate) event: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Collection {
    /// (namespace, name) → object.
    pub(crate) items: BTreeMap<(String, String), Value>,
    pub(crate) version: u64,
    /// Watches from an older version get 410.
    pub(crate) compacted: u64,
    pub(crate) log: Vec<Logged>,
    /// Lists that are being read page by page: version → items.
    pub(crate) pages: BTreeMap<u64, Vec<Value>>,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) collections: BTreeMap<String, Collection>,
    /// Streams of an older epoch end.
    pub(crate) epoch: u64,
}

pub(crate) fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn key_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl Store {
    pub(crate) fn load(&mut self, resource: Resource, list: &Value) -> anyhow::Result<()> {
        let collection = self.collections.entry(resource.plural.to_owned()).or_default();
        collection.version = version_of(list);
        collection.compacted = collection.version;
        for item in list["items"].as_array().context("a list without items")? {
            let mut item = item.clone();
            // Items of a list say neither; events do.
            item["kind"] = resource.kind.into();
            item["apiVersion"] = resource.api_version().into();
            collection.items.insert(key_of(&item), item);
        }
        Ok(())
    }

    pub(crate) fn event(&mut self, resource: &str, event: Value) {
        let collection = self.collections.entry(resource.to_owned()).or_default();
        let object = &event["object"];
        let version = version_of(object);
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                collection.items.insert(key_of(object), object.clone());
            }
            Some("DELETED") => {
                collection.items.remove(&key_of(object));
            }
            _ => {}
        }
        collection.version = collection.version.max(version);
        collection.log.push(Logged { version, event });
    }

    /// Versions are numbered over all resources, as etcd does it.
    fn next_version(&self) -> u64 {
        self.collections.values().map(|c| c.version).max().unwrap_or(0) + 1
    }

    pub(crate) fn put(&mut self, resource: &str, mut object: Value) {
        let kind = RESOURCES.iter().find(|r| r.plural == resource);
        if let Some(kind) = kind {
            object["kind"] = kind.kind.into();
            object["apiVersion"] = kind.api_version().into();
        }
        object["metadata"]["resourceVersion"] = self.next_version().to_string().into();
        let there = self.collections.get(resource).is_some_and(|c| c.items.contains_key(&key_of(&object)));
        let event = if there { "MODIFIED" } else { "ADDED" };
        self.event(resource, json!({"type": event, "object": object}));
    }

    pub(crate) fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let version = self.next_version();
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.collections.get(resource).and_then(|c| c.items.get(&key)).cloned() else { return };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.event(resource, json!({"type": "DELETED", "object": object}));
    }

    /// Makes `objects` all there is of a resource, as events.
    pub(crate) fn sync<'a>(&mut self, resource: Resource, objects: impl Iterator<Item = &'a Value>) {
        let plain = |object: &Value| {
            let mut object = object.clone();
            object["apiVersion"] = Value::Null;
            object["metadata"]["resourceVersion"] = Value::Null;
            object
        };
        let wanted: BTreeMap<_, _> = objects.map(|o| (key_of(o), o.clone())).collect();
        let there: BTreeMap<_, _> = self.collections.get(resource.plural).map(|c| c.items.clone()).unwrap_or_default();
        for (namespace, name) in there.keys().filter(|key| !wanted.contains_key(*key)) {
            self.delete(resource.plural, namespace, name);
        }
        for (key, object) in wanted {
            if there.get(&key).is_none_or(|old| plain(old) != plain(&object)) {
                self.put(resource.plural, object);
            }
        }
    }

    pub(crate) fn compact(&mut self) {
        for collection in self.collections.values_mut() {
            collection.compacted = collection.version;
            collection.log.clear();
        }
        self.epoch += 1;
    }

    pub(crate) fn as_list(&self) -> Value {
        let items: Vec<&Value> = self.collections.values().flat_map(|c| c.items.values()).collect();
        json!({"kind": "List", "apiVersion": "v1", "items": items})
    }
}
