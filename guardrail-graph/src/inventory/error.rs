//! What can be wrong with an inventory, in one sentence each.

use thiserror::Error;

/// Why a text is not a usable inventory. Every message names the file; where it is known also the
/// document (counted from 1) and the line.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum InventoryError {
    /// Nothing but white space and comments.
    #[error(
        "{file}: the file holds no Kubernetes objects: write one with `kubectl get pods,nodes,namespaces,services,endpointslices -A -o yaml`"
    )]
    Empty {
        /// The file.
        file: String,
    },
    /// Larger than [`crate::inventory::read::MAX_BYTES`].
    #[error(
        "{file}: {bytes} bytes are more than the {limit} that are read: leave out what is not needed, or split the file"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not YAML or JSON, or an object that the API server would not have taken.
    #[error("{file}: document {document}{}: {message}", at_line(*line))]
    Invalid {
        /// The file.
        file: String,
        /// Document number, from 1.
        document: usize,
        /// Line, from 1 (0: unknown).
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// Two objects with one name that differ.
    #[error("{file}: {kind} {name} is there twice with different contents: keep one of them")]
    Conflict {
        /// The file.
        file: String,
        /// Kind.
        kind: String,
        /// `namespace/name`.
        name: String,
    },
}

/// What is said of a document that is no Kubernetes object.
pub(super) const NO_KIND: &str =
    "not a Kubernetes object: it has no `kind`; expected what `kubectl get -o yaml` prints";

impl InventoryError {
    /// The text is one, and holds no Kubernetes object: values of a chart, settings of a pipeline.
    #[must_use]
    pub fn holds_no_object(&self) -> bool {
        match self {
            Self::Empty { .. } => true,
            Self::Invalid { message, .. } => message == NO_KIND || message.contains("expected a Kubernetes object"),
            Self::TooLarge { .. } | Self::Conflict { .. } => false,
        }
    }
}

fn at_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(", line {line}") }
}
