//! Splits lists and watch events without building the objects that they carry.

use std::borrow::Cow;

use guardrail_graph::inventory::{Object, read};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Failure, Resource, client::StatusObject};

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct RawHead<'a> {
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    resource_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    annotations: Option<Marks<'a>>,
}

/// Of all annotations only the one that marks the end of the first list of a stream (KEP-3157).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Marks<'a> {
    #[serde(borrow, rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<Cow<'a, str>>,
}

/// One page of a list.
pub(crate) struct Page<'a> {
    /// Version of the list.
    pub(crate) version: String,
    /// Where the next page starts.
    pub(crate) next: Option<String>,
    /// Its objects as text.
    pub(crate) items: Vec<&'a RawValue>,
}

/// The part of an object that is readable even if the rest makes no sense.
pub(crate) struct Head<'a> {
    /// `namespace/name`, or the name alone.
    pub(crate) name: String,
    /// `metadata.resourceVersion`.
    pub(crate) version: Option<String>,
    metadata: &'a RawValue,
    /// The server sent metadata alone.
    metadata_only: bool,
}

/// One event of a watch.
pub(crate) enum Event<'a> {
    /// ADDED or MODIFIED.
    Applied(&'a RawValue),
    /// DELETED.
    Deleted(&'a RawValue),
    /// BOOKMARK: everything up to this version has been sent.
    Bookmark {
        /// The version.
        version: String,
        /// It ends the first list.
        initial_end: bool,
    },
    /// ERROR.
    Failed(Failure),
}

fn malformed(e: &serde_json::Error) -> Failure {
    Failure::Malformed(e.to_string())
}

/// Reads one page of a list.
pub(crate) fn page(bytes: &[u8]) -> Result<Page<'_>, Failure> {
    let raw: RawPage<'_> = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
    let Some(version) = raw.metadata.resource_version.filter(|v| !v.is_empty()) else {
        return Err(Failure::Malformed("a list without metadata.resourceVersion".to_owned()));
    };
    Ok(Page { version, next: raw.metadata.r#continue.filter(|c| !c.is_empty()), items: raw.items.unwrap_or_default() })
}

/// Reads one line of a watch.
pub(crate) fn event(line: &[u8]) -> Result<Event<'_>, Failure> {
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(|e| malformed(&e))?;
    Ok(match &*raw.kind {
        "ADDED" | "MODIFIED" => Event::Applied(raw.object),
        "DELETED" => Event::Deleted(raw.object),
        "BOOKMARK" => {
            let head: RawHead<'_> = serde_json::from_str(raw.object.get()).map_err(|e| malformed(&e))?;
            let meta: HeadMeta<'_> = serde_json::from_str(head.metadata.get()).map_err(|e| malformed(&e))?;
            let Some(version) = meta.resource_version else {
                return Err(Failure::Malformed("a bookmark without metadata.resourceVersion".to_owned()));
            };
            let initial_end = meta.annotations.and_then(|a| a.initial_events_end).is_some_and(|end| end == "true");
            Event::Bookmark { version: version.into_owned(), initial_end }
        }
        "ERROR" => {
            let status: StatusObject = serde_json::from_str(raw.object.get()).map_err(|e| malformed(&e))?;
            Event::Failed(status.failure())
        }
        other => {
            return Err(Failure::Malformed(format!(
                "an event of the unknown type `{}`",
                other.chars().take(40).collect::<String>()
            )));
        }
    })
}

/// Reads name and version of an object.
///
/// # Errors
/// What is wrong, if it has no readable metadata.
pub(crate) fn head(object: &RawValue) -> Result<Head<'_>, String> {
    let head: RawHead<'_> = serde_json::from_str(object.get()).map_err(|e| e.to_string())?;
    let meta: HeadMeta<'_> = serde_json::from_str(head.metadata.get()).map_err(|e| e.to_string())?;
    let name = meta.name.filter(|n| !n.is_empty()).ok_or("it has no metadata.name")?;
    let name = match meta.namespace {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.into_owned(),
    };
    Ok(Head {
        name,
        version: meta.resource_version.map(Cow::into_owned),
        metadata: head.metadata,
        metadata_only: head.kind.is_some_and(|k| k == "PartialObjectMetadata"),
    })
}

/// Reads the object itself.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn object(raw: &RawValue, head: &Head<'_>, resource: Resource) -> Result<Option<Object>, String> {
    let kind = resource.kind();
    let what = format!("{} {}", kind.as_str(), head.name);
    let read = if head.metadata_only {
        let text = format!("{{\"kind\":\"{}\",\"metadata\":{}}}", kind.as_str(), head.metadata.get());
        read::object(&text, Some(kind.as_str()), &what)
    } else {
        read::object(raw.get(), Some(kind.as_str()), &what)
    };
    match read {
        // An object of another kind under this resource would get a key that nobody deletes.
        Ok(Some(object)) if object.key().kind != kind => Err(format!("it is a {}", object.key().kind.as_str())),
        Ok(object) => Ok(object),
        Err(e) => Err(e.to_string()),
    }
}

/// An object as a document of its own: items of lists say neither kind nor version.
///
/// # Errors
/// What is wrong, if it is no object.
pub(crate) fn with_kind(raw: &RawValue, api_version: &str, kind: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
        #[serde(borrow, default)]
        spec: Option<&'a RawValue>,
    }
    let parts: Parts<'_> = serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
    let spec = parts.spec.map_or("{}", RawValue::get);
    Ok(format!(
        "{{\"apiVersion\":\"{api_version}\",\"kind\":\"{kind}\",\"metadata\":{},\"spec\":{spec}}}",
        parts.metadata.get()
    ))
}

impl Head<'_> {
    /// The version as a number.
    pub(crate) fn number(&self) -> Option<u64> {
        self.version.as_deref()?.parse().ok()
    }

    /// Whether the server sent metadata alone.
    pub(crate) fn is_metadata_only(&self) -> bool {
        self.metadata_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookmarks_errors_and_garbage_are_told_apart() {
        let bookmark = |text: &str| match event(text.as_bytes()) {
            Ok(Event::Bookmark { version, initial_end }) => (version, initial_end),
            _ => panic!("{text}"),
        };
        let end = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        assert_eq!(bookmark(end), ("7".to_owned(), true));
        let plain = r#"{"type":"BOOKMARK","object":{"kind":"DaemonSet","metadata":{"resourceVersion":"8","annotations":{"deprecated.daemonset.template.generation":"0"}}}}"#;
        assert_eq!(bookmark(plain), ("8".to_owned(), false));

        let expired = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410}}"#;
        assert!(matches!(event(expired.as_bytes()), Ok(Event::Failed(Failure::Expired))));
        let busy = r#"{"type":"ERROR","object":{"kind":"Status","code":429,"details":{"retryAfterSeconds":3}}}"#;
        match event(busy.as_bytes()) {
            Ok(Event::Failed(f)) => assert_eq!(f.retry_after().map(|d| d.as_secs()), Some(3)),
            _ => panic!("{busy}"),
        }
        for bad in [
            "",
            "{",
            "[]",
            "null",
            r#"{"type":"ADDED"}"#,
            r#"{"type":"ODD","object":{}}"#,
            r#"{"type":"BOOKMARK","object":{"metadata":{}}}"#,
            "\u{1}",
        ] {
            assert!(matches!(event(bad.as_bytes()), Err(Failure::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn metadata_alone_makes_a_controller_with_its_owner() {
        let text = r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"web-1","namespace":"shop","uid":"u","resourceVersion":"9","ownerReferences":[{"kind":"Deployment","name":"web","uid":"d","controller":true}]}}"#;
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        let head = head(raw).unwrap();
        assert_eq!((head.name.as_str(), head.number(), head.is_metadata_only()), ("shop/web-1", Some(9), true));
        match object(raw, &head, Resource::ReplicaSets) {
            Ok(Some(Object::Controller(c))) => assert_eq!(c.controller.as_ref().map(|o| o.name.as_str()), Some("web")),
            other => panic!("{other:?}"),
        }
        assert!(object(raw, &head, Resource::Pods).is_ok(), "a pod needs no more to be one");
    }

    #[test]
    fn a_bad_object_still_has_its_name() {
        let text = r#"{"kind":"Pod","metadata":{"name":"x","namespace":"y","resourceVersion":"3"},"status":{"podIP":"not an address"}}"#;
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        let head = head(raw).unwrap();
        let error = object(raw, &head, Resource::Pods).unwrap_err();
        assert!(error.contains("Pod y/x") && error.contains("not an address"), "{error}");
    }
}
