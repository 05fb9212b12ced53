//! Every field of a plan, once: what the reader accepts and the schema says.

/// An object of the file.
pub(super) struct Fields {
    /// What it is.
    pub(super) doc: &'static str,
    pub(super) fields: &'static [Field],
}

impl Fields {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.fields.iter().map(|field| field.name)
    }
}

/// A field of an object.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// What it means; begins in lower case.
    pub(super) doc: &'static str,
    pub(super) required: bool,
    pub(super) kind: Kind,
}

/// What a field holds.
pub(super) enum Kind {
    Text,
    Flag,
    /// 0 to 100.
    Percent,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `24h`.
    Duration,
    /// RFC 3339, or a date.
    Instant,
    /// CIDR.
    Range,
    /// `443/TCP`, or a number.
    Port,
    /// `NS/KIND/NAME`.
    Workload,
    /// The same with `*`, and with or without the kind.
    WorkloadGlob,
    /// `NS/KIND/NAME`, an address or a range.
    End,
    /// `CLIENT->SERVER:PORT/PROTOCOL`.
    Flow,
    List(&'static Self),
    /// By names of the plan's own.
    Map(&'static Self),
    Object(&'static Fields),
}

const fn needed(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, doc, required: true, kind }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, doc, required: false, kind }
}

const PHASES: Kind = Kind::Word(&["observe", "constrain", "default-deny"]);

pub(super) static PLAN: Fields = Fields {
    doc: "What a team wants of its namespaces, environment by environment.",
    fields: &[
        needed("apiVersion", Kind::Word(&[super::API_VERSION]), "version of the format"),
        needed("kind", Kind::Word(&[super::KIND]), "kind of the file"),
        needed("spec", Kind::Object(&SPEC), "the plan itself"),
    ],
};

pub(super) static SPEC: Fields = Fields {
    doc: "The plan itself.",
    fields: &[
        needed("environments", Kind::Map(&Kind::Object(&ENVIRONMENT)), "clusters, or groups of namespaces, by name"),
        optional(
            "shared",
            Kind::List(&Kind::Object(&SHARED)),
            "services that are meant for everybody: one rule instead of a list of callers",
        ),
        optional(
            "callers",
            Kind::List(&Kind::Object(&CALLER)),
            "clients that are meant to reach everybody on the ports seen",
        ),
        optional("nodeRanges", Kind::List(&Kind::Range), "ranges of node addresses"),
        optional("controlPlaneRanges", Kind::List(&Kind::Range), "ranges of the control plane's addresses"),
        optional("external", Kind::Map(&Kind::Object(&EXTERNAL)), "what lies outside of the cluster, by name"),
        optional("exceptions", Kind::List(&Kind::Object(&EXCEPTION)), "connections that are allowed for a while"),
        optional(
            "accepted",
            Kind::List(&Kind::Object(&ACCEPTED)),
            "established flows without a rule that a person takes responsibility for",
        ),
        optional("unused", Kind::Duration, "rules whose evidence is older are dropped; never without this"),
        optional("admission", Kind::Object(&ADMISSION), "who may change policies and exceptions"),
    ],
};

pub(super) static ENVIRONMENT: Fields = Fields {
    doc: "A cluster, or a group of namespaces.",
    fields: &[
        optional("context", Kind::Text, "the kubeconfig context that `kube` means"),
        optional("phase", PHASES, "default of its namespaces; observe without this"),
        optional("egress", Kind::Flag, "whether its namespaces close egress, too"),
        optional(
            "namespaces",
            Kind::Map(&Kind::Object(&NAMESPACE)),
            "namespaces that differ; names or patterns with `*`, an exact name before a pattern, a longer literal beginning before a shorter",
        ),
        optional(
            "sensitive",
            Kind::List(&Kind::WorkloadGlob),
            "workloads whose ingress is closed whatever their namespace's phase is",
        ),
        optional("gates", Kind::Object(&GATES), "what a namespace needs before it may take the next step"),
    ],
};

pub(super) static NAMESPACE: Fields = Fields {
    doc: "What differs from the environment's default.",
    fields: &[
        optional("phase", PHASES, "how far it is closed"),
        optional("egress", Kind::Flag, "whether egress is closed, too"),
    ],
};

pub(super) static GATES: Fields = Fields {
    doc: "What a namespace needs before it may take the next step.",
    fields: &[
        optional(
            "window",
            Kind::Duration,
            "for how long all its nodes were observed at once; 1h for constrain and 24h for default-deny without this",
        ),
        optional(
            "coverage",
            Kind::Percent,
            "how much of the time of each workload's pods must have been observed, percent; 99.9 without this",
        ),
        optional("quiet", Kind::Duration, "for how long no new connection appeared; 0s without this"),
    ],
};

pub(super) static SHARED: Fields = Fields {
    doc: "A workload that every pod and node may reach.",
    fields: &[
        needed("workload", Kind::Workload, "NAMESPACE/KIND/NAME"),
        needed("ports", Kind::List(&Kind::Port), "its pod ports, like 53/UDP"),
    ],
};

pub(super) static CALLER: Fields = Fields {
    doc: "A client that may reach everybody on the ports on which it was seen.",
    fields: &[needed("workload", Kind::Workload, "NAMESPACE/KIND/NAME")],
};

pub(super) static EXTERNAL: Fields = Fields {
    doc: "Something outside of the cluster.",
    fields: &[
        optional("names", Kind::List(&Kind::Text), "DNS names"),
        optional("ranges", Kind::List(&Kind::Range), "the addresses behind them"),
        needed("ports", Kind::List(&Kind::Port), "its ports, like 443/TCP"),
    ],
};

pub(super) static EXCEPTION: Fields = Fields {
    doc: "A connection that is allowed until a certain time.",
    fields: &[
        needed("id", Kind::Text, "a name of its own: lower case letters, digits, `-`"),
        needed("from", Kind::End, "who connects: NAMESPACE/KIND/NAME, an address or a range"),
        needed("to", Kind::End, "who accepts: NAMESPACE/KIND/NAME, an address or a range"),
        needed("ports", Kind::List(&Kind::Port), "on which ports, like 5432/TCP"),
        needed("expires", Kind::Instant, "its end: a time like 2026-12-15T00:00:00Z, or a date"),
        needed("reason", Kind::Text, "why it is needed"),
        needed("owner", Kind::Text, "who answers for it"),
        optional("environments", Kind::List(&Kind::Text), "where it applies; everywhere without this"),
    ],
};

pub(super) static ACCEPTED: Fields = Fields {
    doc: "An observed flow that stays without a rule.",
    fields: &[
        needed("flow", Kind::Flow, "CLIENT->SERVER:PORT/PROTOCOL, as the problem prints it"),
        needed("reason", Kind::Text, "why"),
        optional("until", Kind::Instant, "until when: a time or a date"),
    ],
};

pub(super) static ADMISSION: Fields = Fields {
    doc: "Who may change policies and exceptions.",
    fields: &[
        optional("deployers", Kind::List(&Kind::Text), "users and service accounts that apply guardrail's policies"),
        optional("breakGlass", Kind::List(&Kind::Text), "who may do so in an emergency"),
        optional("controllers", Kind::List(&Kind::Text), "controllers that make pods, beside the control plane's"),
        optional("maxDuration", Kind::Duration, "longest life of an exception; no limit without this"),
    ],
};
