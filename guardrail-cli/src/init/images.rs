//! The images that workloads run, by their templates. The graph has none.

use std::path::PathBuf;

use anyhow::Context as _;
use guardrail_graph::WorkloadRef;
use guardrail_lifecycle::init::Images;
use serde::Deserialize;

use crate::input::{self, KubeArgs};

/// An object, or a list of objects.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    kind: String,
    metadata: Metadata,
    spec: Option<Spec>,
    items: Vec<Document>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

/// A pod's spec, or that of what makes pods.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    template: Option<Template>,
    job_template: Option<Template>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Template {
    spec: Option<Box<Spec>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    image: String,
}

/// What the files, or the cluster, say.
///
/// # Errors
/// If something cannot be read.
pub(super) fn of(inventory: &[PathBuf], cluster: &KubeArgs) -> anyhow::Result<Images> {
    let mut images = Images::new();
    for (name, text) in input::texts(inventory, cluster)? {
        let documents: Vec<Option<Document>> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("{name}: no Kubernetes objects"))?;
        for document in documents.into_iter().flatten() {
            collect(document, "", &mut images);
        }
    }
    Ok(images)
}

/// Those of an object. The API server's own lists say once of what kind their items are.
fn collect(document: Document, kind_of_list: &str, images: &mut Images) {
    let Document { kind, metadata, spec, items } = document;
    let kind = if kind.is_empty() { kind_of_list.to_owned() } else { kind };
    for item in items {
        collect(item, kind.strip_suffix("List").unwrap_or_default(), images);
    }
    let mut innermost = spec;
    while let Some(spec) = innermost.take() {
        for container in spec.containers.into_iter().filter(|container| !container.image.is_empty()) {
            let Metadata { name, namespace } = &metadata;
            let namespace = if namespace.is_empty() { "default" } else { namespace };
            let workload = WorkloadRef { namespace: namespace.to_owned(), owner: kind.clone(), name: name.clone() };
            images.entry(workload).or_default().insert(container.image);
        }
        innermost = spec.template.or(spec.job_template).and_then(|template| template.spec).map(|spec| *spec);
    }
}
