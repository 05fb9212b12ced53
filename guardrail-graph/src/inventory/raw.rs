//! The parts of Kubernetes objects that are read, as serde sees them, and their conversion into
//! [`super::types`].
//!
//! Which fields an object has depends on its kind. kubectl and the API server print `kind` before
//! `spec`, so the fields can be read straight into the right type (with the line of an error); only
//! where they come first are they kept as a generic value until the kind is known.

mod convert;
mod fields;

use std::{fmt, sync::Arc};

pub use fields::parse_sloppy;

use convert::{controller, node, pod, service, slice};
use fields::{
    ControllerSpec, Meta, NodeSpec, NodeStatus, PodSpec, PodStatus, RawEndpoint, RawEndpointPort, ServiceSpec,
    ServiceStatus,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use super::types::{Kind, Namespace, Object};

/// A field whose type depends on the object's kind.
#[derive(Debug)]
enum Late<T> {
    Absent,
    Typed(T),
    /// The kind was not known yet.
    Generic(serde_json::Value),
}

impl<T: DeserializeOwned + Default> Late<T> {
    fn resolve(self) -> Result<T, String> {
        match self {
            Self::Absent => Ok(T::default()),
            Self::Typed(value) => Ok(value),
            Self::Generic(value) => {
                serde_json::from_value::<Option<T>>(value).map(Option::unwrap_or_default).map_err(|e| e.to_string())
            }
        }
    }
}

#[derive(Debug)]
enum Spec {
    Absent,
    Ignored,
    Pod(PodSpec),
    Node(NodeSpec),
    Service(Box<ServiceSpec>),
    Controller(Box<ControllerSpec>),
    Generic(serde_json::Value),
}

#[derive(Debug)]
enum Status {
    Absent,
    Ignored,
    Pod(PodStatus),
    Node(NodeStatus),
    Service(ServiceStatus),
    Generic(serde_json::Value),
}

fn line(location: Location) -> usize {
    usize::try_from(location.line()).unwrap_or(0)
}

/// An object or a `List`, read as far as its kind allowed.
#[derive(Debug)]
pub(super) struct Item {
    /// Of its apiVersion; `None` where that is missing.
    group: Option<String>,
    kind: Option<String>,
    meta: Meta,
    spec: Spec,
    status: Status,
    endpoints: Late<Vec<RawEndpoint>>,
    ports: Late<Vec<RawEndpointPort>>,
    items: Option<Vec<Item>>,
    /// Line of its kind or metadata, 0 if not known.
    pub(super) line: usize,
}

/// What a list of its kind says of its items, which then lack `kind` (the API server prints lists
/// so).
#[derive(Clone, Copy)]
pub(super) struct ItemSeed<'a> {
    pub(super) kind: Option<&'a str>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ItemSeed { kind: None }.deserialize(deserializer)
    }
}

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        deserializer.deserialize_map(self)
    }
}

struct ItemsSeed<'a> {
    kind: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Item>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list of Kubernetes objects")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<Item>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ItemSeed { kind: self.kind })? {
            items.push(item);
        }
        Ok(items)
    }
}

impl<'de> Visitor<'de> for ItemSeed<'_> {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (a mapping with apiVersion, kind and metadata)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let mut item = Item {
            group: None,
            kind: self.kind.map(str::to_owned),
            meta: Meta::default(),
            spec: Spec::Absent,
            status: Status::Absent,
            endpoints: Late::Absent,
            ports: Late::Absent,
            items: None,
            line: 0,
        };
        while let Some(key) = map.next_key::<String>()? {
            let kind = item.kind.as_deref().map(|k| (Kind::from_name(item.group.as_deref(), k), k));
            match (key.as_str(), kind) {
                ("apiVersion", _) => {
                    let version: serde_json::Value = map.next_value()?;
                    let group = version.as_str().map(|v| v.split_once('/').map_or("", |(group, _)| group));
                    // Metadata alone says nothing of the group that it is from.
                    item.group = group.filter(|g| *g != "meta.k8s.io").map(str::to_owned);
                }
                ("kind", _) => {
                    let kind: Option<Spanned<String>> = map.next_value()?;
                    item.line = kind.as_ref().map_or(0, |k| line(k.referenced));
                    item.kind = kind.map(|k| k.value);
                }
                ("metadata", Some((None, _))) => {
                    map.next_value::<IgnoredAny>()?;
                }
                ("metadata", _) => {
                    if let Some(meta) = map.next_value::<Option<Spanned<Meta>>>()? {
                        item.line = line(meta.referenced);
                        item.meta = meta.value;
                    }
                }
                ("spec", Some((kind, _))) => {
                    item.spec = match kind {
                        Some(Kind::Pod) => Spec::Pod(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Node) => Spec::Node(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Service) => Spec::Service(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Controller(_)) => {
                            Spec::Controller(map.next_value::<Option<_>>()?.unwrap_or_default())
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            Spec::Ignored
                        }
                    }
                }
                ("spec", None) => item.spec = Spec::Generic(map.next_value()?),
                ("status", Some((kind, _))) => {
                    item.status = match kind {
                        Some(Kind::Pod) => Status::Pod(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Node) => Status::Node(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        Some(Kind::Service) => Status::Service(map.next_value::<Option<_>>()?.unwrap_or_default()),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            Status::Ignored
                        }
                    }
                }
                ("status", None) => item.status = Status::Generic(map.next_value()?),
                ("endpoints", Some((Some(Kind::EndpointSlice), _))) => {
                    item.endpoints = Late::Typed(map.next_value::<Option<_>>()?.unwrap_or_default());
                }
                ("endpoints", None) => item.endpoints = Late::Generic(map.next_value()?),
                ("ports", Some((Some(Kind::EndpointSlice), _))) => {
                    item.ports = Late::Typed(map.next_value::<Option<_>>()?.unwrap_or_default())
                }
                ("ports", None) => item.ports = Late::Generic(map.next_value()?),
                ("items", None) => item.items = Some(map.next_value_seed(ItemsSeed { kind: None })?),
                ("items", Some((None, name))) if name.ends_with("List") => {
                    let of = name.strip_suffix("List").filter(|k| !k.is_empty()).map(str::to_owned);
                    item.items = Some(map.next_value_seed(ItemsSeed { kind: of.as_deref() })?);
                }
                // An OpenShift Template: what stands there as it will be made. A parameter may
                // stand where a number belongs.
                ("objects", Some((None, "Template"))) => {
                    let objects: Vec<serde_json::Value> = map.next_value::<Option<_>>()?.unwrap_or_default();
                    let whole = objects.into_iter().filter(|o| !o.to_string().contains("${"));
                    item.items = Some(whole.filter_map(|o| serde_json::from_value(o).ok()).collect());
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        // The JSON reader tells no lines but with its errors.
        if item.line == 0 {
            item.check().map_err(A::Error::custom)?;
        }
        Ok(item)
    }
}

/// What became of an [`Item`].
pub(super) enum Converted {
    Object(Object),
    List(Vec<Item>),
    /// A kind that is not read: its name.
    Ignored(String),
}

impl Item {
    /// What can be said about the object as soon as it is read, while the line is known.
    fn check(&self) -> Result<(), String> {
        if let Some(kind) = self.kind.as_deref()
            && self.items.is_none()
            && Kind::from_name(self.group.as_deref(), kind).is_some()
            && self.meta.name.is_empty()
            && self.meta.generate_name.is_empty()
        {
            return Err(format!("a {kind} without metadata.name: give it its name"));
        }
        Ok(())
    }

    /// The kind that the items of this list have, if it says so.
    pub(super) fn item_kind(&self) -> Option<String> {
        self.kind.as_deref()?.strip_suffix("List").filter(|k| !k.is_empty()).map(str::to_owned)
    }

    pub(super) fn convert(mut self, default_kind: Option<&str>) -> Result<Converted, String> {
        if let Some(items) = self.items.take() {
            return Ok(Converted::List(items));
        }
        let Some(name) = self.kind.take().or_else(|| default_kind.map(str::to_owned)) else {
            return Err(super::error::NO_KIND.to_owned());
        };
        if name == "List" {
            return Ok(Converted::List(Vec::new()));
        }
        let Some(kind) = Kind::from_name(self.group.as_deref(), &name) else {
            // As kubectl tells kinds of one name apart: `Service.serving.knative.dev`.
            let group = self.group.filter(|_| Kind::from_name(None, &name).is_some());
            return Ok(Converted::Ignored(group.map_or(name.clone(), |group| format!("{name}.{group}"))));
        };
        self.kind = Some(name.clone());
        self.check()?;
        if self.meta.name.is_empty() {
            // `kubectl create` takes it; the API server puts five letters in place of the star.
            self.meta.name = format!("{}*", self.meta.generate_name);
        }
        let subject = match &self.meta.namespace {
            Some(namespace) => format!("{name} {namespace}/{}", self.meta.name),
            None => format!("{name} {}", self.meta.name),
        };
        self.object(&kind)
            .map(|o| o.map_or(Converted::Ignored(name), Converted::Object))
            .map_err(|e| format!("{subject}: {e}"))
    }

    fn object(self, kind: &Kind) -> Result<Option<Object>, String> {
        let Self { meta, spec, status, endpoints, ports, .. } = self;
        let namespace = meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
        Ok(Some(match kind {
            Kind::Namespace => {
                let mut labels = meta.labels.to_map();
                labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| meta.name.clone());
                Object::Namespace(Arc::new(Namespace { name: meta.name, labels: labels.into() }))
            }
            Kind::Node => Object::Node(Arc::new(node(meta, node_spec(spec)?, node_status(status)?)?)),
            Kind::Pod => Object::Pod(Arc::new(pod(namespace, meta, pod_spec(spec)?, pod_status(status)?)?)),
            Kind::Service => {
                Object::Service(Arc::new(service(namespace, meta, service_spec(spec)?, service_status(status)?)?))
            }
            Kind::EndpointSlice => {
                Object::EndpointSlice(Arc::new(slice(namespace, meta, endpoints.resolve()?, ports.resolve()?)?))
            }
            Kind::Controller(kind) => {
                let spec = controller_spec(spec)?;
                // A Rollout may borrow the template of a Deployment (`workloadRef`).
                if kind == "Rollout" && spec.template.is_none() {
                    return Ok(None);
                }
                Object::Controller(Arc::new(controller(kind, namespace, meta, spec)?))
            }
            Kind::NetworkPolicy => return Ok(None),
        }))
    }
}

/// The variants of an enum are boxed where they are large.
trait Unboxed<T> {
    fn unboxed(self) -> T;
}

impl<T> Unboxed<T> for T {
    fn unboxed(self) -> T {
        self
    }
}

impl<T> Unboxed<T> for Box<T> {
    fn unboxed(self) -> T {
        *self
    }
}

macro_rules! late {
    ($name:ident, $from:ident, $variant:ident, $type:ty) => {
        fn $name(value: $from) -> Result<$type, String> {
            match value {
                $from::$variant(v) => Ok(v.unboxed()),
                $from::Generic(v) => {
                    serde_json::from_value::<Option<$type>>(v).map(Option::unwrap_or_default).map_err(|e| e.to_string())
                }
                _ => Ok(<$type>::default()),
            }
        }
    };
}
late!(pod_spec, Spec, Pod, PodSpec);
late!(node_spec, Spec, Node, NodeSpec);
late!(service_spec, Spec, Service, ServiceSpec);
late!(controller_spec, Spec, Controller, ControllerSpec);
late!(pod_status, Status, Pod, PodStatus);
late!(node_status, Status, Node, NodeStatus);
late!(service_status, Status, Service, ServiceStatus);
