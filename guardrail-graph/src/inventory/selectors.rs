//! Label selectors: matching (docs/semantics.md A21), and the labels that controllers generate.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    inventory::types::Labels,
    selector::{LabelSelector, SelectorOperator},
};

/// Labels that controllers put on pods and that no policy may name: they change with every rollout
/// or differ per replica.
#[must_use]
pub fn is_generated_label(key: &str) -> bool {
    matches!(
        key,
        "pod-template-hash"
            | "controller-revision-hash"
            | "pod-template-generation"
            | "controller-uid"
            | "job-name"
            | "rollouts-pod-template-hash"
    ) || key.starts_with("batch.kubernetes.io/")
        || is_replica_label(key)
}

/// Labels that hold the name or number of one replica, which it keeps over rollouts: of
/// StatefulSets, Strimzi, CloudNativePG.
#[must_use]
pub fn is_replica_label(key: &str) -> bool {
    let part = key.split_once('/').map(|(_, part)| part);
    matches!(part, Some("pod-name" | "pod-index" | "replica-index")) || key == "cnpg.io/instanceName"
}

/// Labels that hold a version, a revision or a run: they stay the same while a pod lives and differ
/// in the next release or run. From the labels that each project documents or its source writes.
const RELEASE_LABELS: [&str; 72] = [
    // Kubernetes' recommended labels, Helm's best practices (the second and its older name hold the
    // chart's version).
    "app.kubernetes.io/version",
    "helm.sh/chart",
    "chart",
    // Argo Workflows (workflow/common: LabelKeyWorkflow, LabelKeyCompleted, LabelKeyPhase).
    "workflows.argoproj.io/workflow",
    "workflows.argoproj.io/completed",
    "workflows.argoproj.io/phase",
    "workflows.argoproj.io/node-name",
    // Tekton (pkg/apis/pipeline: TaskRunLabelKey, PipelineRunLabelKey and their UIDs).
    "tekton.dev/taskRun",
    "tekton.dev/taskRunUID",
    "tekton.dev/pipelineRun",
    "tekton.dev/pipelineRunUID",
    "triggers.tekton.dev/triggers-eventid",
    // Spark on Kubernetes (deploy/k8s/Constants), Spark operator.
    "spark-app-selector",
    "spark-exec-id",
    "spark-version",
    "sparkoperator.k8s.io/submission-id",
    // Airflow's KubernetesExecutor and pod operator.
    "run_id",
    "try_number",
    "map_index",
    "execution_date",
    "airflow_version",
    "airflow-worker",
    "already_checked",
    // Flyte, Kubeflow Pipelines, Katib.
    "execution-id",
    "pipeline/runid",
    "katib.kubeflow.org/trial",
    // Knative Serving (pkg/apis/serving: RevisionLabelKey, RevisionUID,
    // ConfigurationGenerationLabelKey).
    "serving.knative.dev/revision",
    "serving.knative.dev/revisionUID",
    "serving.knative.dev/configurationGeneration",
    "serving.knative.dev/routingState",
    // OpenShift: builds, deployers.
    "openshift.io/build.name",
    "openshift.io/deployer-pod-for.name",
    // GitLab Runner's executor.
    "job.runner.gitlab.com/id",
    "job.runner.gitlab.com/sha",
    "job.runner.gitlab.com/before_sha",
    "job.runner.gitlab.com/ref",
    "job.runner.gitlab.com/url",
    "job.runner.gitlab.com/pod",
    "pipeline.runner.gitlab.com/id",
    // Jenkins' Kubernetes plugin: the digest of a label that holds the build's number.
    "jenkins/label-digest",
    // Actions runner controller.
    "runner-template-hash",
    "actions.github.com/organization-run-id",
    // Training operator, Volcano, JobSet, LeaderWorkerSet, OpenKruise: index, attempt, key of a
    // run.
    "training.kubeflow.org/replica-index",
    "volcano.sh/task-index",
    "jobset.sigs.k8s.io/job-index",
    "jobset.sigs.k8s.io/job-key",
    "jobset.sigs.k8s.io/restart-attempt",
    "leaderworkerset.sigs.k8s.io/group-index",
    "leaderworkerset.sigs.k8s.io/group-key",
    "leaderworkerset.sigs.k8s.io/worker-index",
    "leaderworkerset.sigs.k8s.io/template-revision-hash",
    "apps.kruise.io/cloneset-instance-id",
    // KubeVirt: the virtual machine instance's uid, the node.
    "kubevirt.io/created-by",
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationJobUID",
    // Istio: the version again, and the revision of its control plane.
    "service.istio.io/canonical-revision",
    "istio.io/rev",
    // What pipelines write.
    "git-sha",
    "git-commit",
    "commit-sha",
    "build-id",
    "build-number",
    "git_sha",
    "git_commit",
    "job_id",
    "pipeline_id",
    "pipeline-id",
    "ci_pipeline_id",
    "ci_job_id",
    "ci_commit_sha",
    "run-id",
    // Sandboxes for agents: the name of one of them.
    "agents.x-k8s.io/sandbox-name-hash",
];

/// Ends of keys with a prefix that say the same, whosever prefix it is: `prefect.io/flow-run-id`,
/// `elasticsearch.k8s.elastic.co/version`, `orchestration.aibrix.ai/role-template-hash`.
const RELEASE_PARTS: [&str; 15] = [
    "version",
    "revision",
    "run-id",
    "run_id",
    "job-id",
    "build-id",
    "build-number",
    "commit",
    "sha",
    "config-hash",
    "template-hash",
    "revision-hash",
    "checksum",
    "uid",
    "uuid",
];

/// Keys that hold a name or, with a number in it, the version of a release.
const MAYBE_RELEASE: [&str; 12] = [
    "version",
    "ver",
    "tag",
    "image",
    "image-tag",
    "imageTag",
    "build",
    "release",
    "revision",
    "commit",
    "date",
    "timestamp",
];

/// Whether the label holds a version, a revision or a run, so that it is no identity.
#[must_use]
pub fn is_release_label(key: &str) -> bool {
    let says = |part: &str, end: &str| {
        part.strip_suffix(end).is_some_and(|front| front.is_empty() || front.ends_with(['-', '_']))
    };
    let ends = |part: &str| RELEASE_PARTS.iter().any(|end| says(part, end));
    RELEASE_LABELS.contains(&key)
        || key.split_once('/').is_some_and(|(_, part)| ends(part))
        || key.ends_with("-template-hash")
}

/// Whether the label holds a version, a revision or a run, by its key, or by its value where the
/// key leaves it open: `version: v1` is a canary's name, `version: 1.4.2` is what the next release
/// changes.
#[must_use]
pub fn is_release(key: &str, value: &str) -> bool {
    is_release_label(key)
        || MAYBE_RELEASE.contains(&key) && is_version(value)
        || key == "ray.io/cluster" && is_of_ray(value)
}

/// A version with a dot, the id of a commit, a date or a time.
fn is_version(value: &str) -> bool {
    let number = value.strip_prefix(['v', 'V']).unwrap_or(value);
    let digits = number.bytes().take_while(u8::is_ascii_digit).count();
    let dotted = digits > 0
        && number[digits..].starts_with('.')
        && number[digits + 1..].starts_with(|c: char| c.is_ascii_digit());
    let hex = value.len() >= 7 && value.bytes().all(|b| b.is_ascii_hexdigit());
    let count = |is: fn(&u8) -> bool| value.bytes().filter(is).count();
    dotted || hex && count(u8::is_ascii_digit) > 0 && (count(u8::is_ascii_alphabetic) > 0 || value.len() >= 8)
}

/// The cluster of a RayJob or a RayService: a new one has five other letters.
fn is_of_ray(value: &str) -> bool {
    value.rsplit_once("-raycluster-").is_some_and(|(_, tail)| tail.len() == 5)
}

/// The keys among a pod's labels that are no identity, because a release or a run changes them: by
/// their key, by their value, or because the value holds that of such a label
/// (`app: etl-x7k2p` beside `workflows.argoproj.io/workflow: etl-x7k2p`).
#[must_use]
pub fn release_keys<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeSet<&'a str> {
    let labels: BTreeMap<&str, &str> = labels.into_iter().collect();
    let mut keys: BTreeSet<&str> = labels.iter().filter(|(k, v)| is_release(k, v)).map(|(k, _)| *k).collect();
    let tells = |value: &&str| value.len() >= 5 && value.bytes().any(|b| b.is_ascii_digit());
    let values: Vec<&str> = keys.iter().map(|key| labels[key]).filter(tells).collect();
    let of_one = |value: &str| values.iter().any(|of_run| value.contains(of_run));
    // The name of a ReplicationController: that of its DeploymentConfig, and a number.
    let of_rollout = |key: &str, value: &str| {
        let config = labels.get("deploymentconfig").filter(|_| key == "deployment");
        config.is_some_and(|config| value.strip_prefix(config).is_some_and(|rest| rest.starts_with('-')))
    };
    keys.extend(labels.iter().filter(|(k, v)| of_one(v) || of_rollout(k, v)).map(|(k, _)| *k));
    keys
}

/// `labels` without those that a controller generates and those that a release or a run changes.
#[must_use]
pub fn stable_labels(labels: &Labels) -> Labels {
    let passing = release_keys(labels.iter());
    labels.iter().filter(|(k, _)| !is_generated_label(k) && !passing.contains(k)).collect()
}

impl LabelSelector {
    /// A selector that asks for exactly these labels.
    #[must_use]
    pub fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self { match_labels: labels.into(), match_expressions: Vec::new() }
    }

    /// It has no requirement and so selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether it selects an object with these labels: all requirements hold; `NotIn` and
    /// `DoesNotExist` hold when the key is absent.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v.as_str()))
            && self.match_expressions.iter().all(|r| {
                let value = labels.get(&r.key);
                match r.operator {
                    SelectorOperator::In => value.is_some_and(|v| r.values.iter().any(|r| r == v)),
                    SelectorOperator::NotIn => value.is_none_or(|v| r.values.iter().all(|r| r != v)),
                    SelectorOperator::Exists => value.is_some(),
                    SelectorOperator::DoesNotExist => value.is_none(),
                }
            })
    }

    /// The same without requirements for labels that a release or a run changes.
    #[must_use]
    pub fn without_release_labels(&self) -> Self {
        let mut kept = self.clone();
        let passing = release_keys(self.match_labels.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        Arc::make_mut(&mut kept.match_labels).retain(|key, _| !passing.contains(key.as_str()));
        kept.match_expressions.retain(|requirement| !is_release_label(&requirement.key));
        kept
    }

    /// Whether it asks for more than the tool that made the pods, which others have made theirs
    /// with as well.
    #[must_use]
    pub fn tells_who(&self) -> bool {
        let of_tools = ["app.kubernetes.io/managed-by", "app.kubernetes.io/created-by", "heritage"];
        let mut keys = self.match_labels.keys().chain(self.match_expressions.iter().map(|r| &r.key));
        keys.any(|key| !of_tools.contains(&key.as_str()))
    }

    /// Whether a requirement names a generated label.
    #[must_use]
    pub fn names_generated_label(&self) -> bool {
        self.match_labels.keys().any(|k| is_generated_label(k))
            || self.match_expressions.iter().any(|r| is_generated_label(&r.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::SelectorRequirement;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    fn requirement(operator: SelectorOperator, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: Arc::default(),
            match_expressions: vec![SelectorRequirement {
                key: "a".into(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
        }
    }

    #[test]
    fn not_in_and_does_not_exist_match_an_absent_key() {
        let (with, without) = (labels(&[("a", "1")]), labels(&[("b", "1")]));
        for (operator, values, on_with, on_without) in [
            (SelectorOperator::In, &["1"][..], true, false),
            (SelectorOperator::NotIn, &["1"][..], false, true),
            (SelectorOperator::NotIn, &["2"][..], true, true),
            (SelectorOperator::Exists, &[][..], true, false),
            (SelectorOperator::DoesNotExist, &[][..], false, true),
        ] {
            let selector = requirement(operator, values);
            assert_eq!(
                (selector.matches(&with), selector.matches(&without)),
                (on_with, on_without),
                "{operator:?} {values:?}"
            );
        }
    }

    #[test]
    fn the_empty_selector_matches_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
    }

    #[test]
    fn labels_of_a_release_are_no_identity_and_a_tool_is_nobody() {
        let all = labels(&[
            ("app", "x"),
            ("app.kubernetes.io/version", "1"),
            ("helm.sh/chart", "x-1"),
            ("tekton.dev/taskRun", "build-77"),
        ]);
        assert_eq!(stable_labels(&all), labels(&[("app", "x")]));
        let selector = LabelSelector::of_labels(all.to_map());
        assert_eq!(selector.without_release_labels(), LabelSelector::of_labels(labels(&[("app", "x")]).to_map()));
        let tool = LabelSelector::of_labels(labels(&[("app.kubernetes.io/managed-by", "tekton")]).to_map());
        assert!(selector.tells_who() && !tool.tells_who() && !LabelSelector::default().tells_who());
        let mut keys = RELEASE_LABELS.to_vec();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), RELEASE_LABELS.len(), "none stands twice");
    }

    #[test]
    fn a_version_or_a_run_is_recognised_by_its_key_or_its_value() {
        for (key, value) in [
            ("elasticsearch.k8s.elastic.co/version", "8.1.0"),
            ("prefect.io/flow-run-id", "x"),
            ("dagster/run-id", "x"),
            ("role-template-hash", "554c55bd59"),
            ("pipelinesascode.tekton.dev/sha", "x"),
            ("version", "1.4.2"),
            ("version", "v1.4"),
            ("tag", "1a2b3c4d"),
            ("image-tag", "20240131"),
            ("ray.io/cluster", "rayjob-raycluster-x7k2p"),
            ("ci_pipeline_id", "12345"),
            ("buildkite.com/job-uuid", "x"),
            ("example.com/config-checksum", "x"),
            ("agents.x-k8s.io/sandbox-name-hash", "0bfb8a35"),
        ] {
            assert!(is_release(key, value), "{key}={value}");
        }
        for (key, value) in [
            ("version", "v1"),
            ("version", "stable"),
            ("version", "2"),
            ("release", "prometheus"),
            ("build", "frontend"),
            ("ray.io/cluster", "analytics"),
            ("app", "1.4.2"),
            ("tekton.dev/pipeline", "build"),
            ("workflows.argoproj.io/cron-workflow", "etl"),
            ("example.com/druid", "x"),
        ] {
            assert!(!is_release(key, value), "{key}={value}");
        }
        for key in ["strimzi.io/pod-name", "cnpg.io/instanceName", "apps.kubernetes.io/pod-index"] {
            assert!(is_replica_label(key) && is_generated_label(key), "{key}");
        }
    }

    #[test]
    fn a_label_that_holds_the_value_of_a_run_is_no_identity_either() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            release_keys(pairs.iter().copied()).into_iter().collect::<Vec<_>>()
        };
        let run = ("workflows.argoproj.io/workflow", "etl-x7k2p");
        assert_eq!(of(&[("app", "etl-x7k2p"), ("team", "etl"), run]), ["app", run.0]);
        assert_eq!(
            of(&[("app", "web-1.2.3"), ("app.kubernetes.io/version", "1.2.3")]),
            ["app", "app.kubernetes.io/version"]
        );
        assert_eq!(of(&[("app", "web-1"), ("app.kubernetes.io/version", "1")]), ["app.kubernetes.io/version"]);
        assert_eq!(of(&[("deployment", "web-3"), ("deploymentconfig", "web")]), ["deployment"]);
        assert_eq!(of(&[("deployment", "web-3")]), [""; 0]);
    }

    #[test]
    fn generated_labels_are_recognised_and_stable_ones_kept() {
        let all = labels(&[
            ("app", "x"),
            ("pod-template-hash", "1"),
            ("batch.kubernetes.io/job-name", "j"),
            ("job-name", "j"),
            ("version", "2"),
        ]);
        assert_eq!(stable_labels(&all), labels(&[("app", "x"), ("version", "2")]));
        assert!(LabelSelector::of_labels(all.to_map()).names_generated_label());
    }
}
