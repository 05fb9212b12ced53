//! Label selectors: matching (docs/semantics.md A21), and the labels that controllers generate.

use std::collections::BTreeMap;

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
            | "statefulset.kubernetes.io/pod-name"
            | "apps.kubernetes.io/pod-index"
            | "rollouts-pod-template-hash"
    ) || key.starts_with("batch.kubernetes.io/")
}

/// Labels that hold a version, a revision or a run: they stay the same while a pod lives and differ
/// in the next release or run. From the labels that each project documents or its source writes.
const RELEASE_LABELS: [&str; 51] = [
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
    // Spark on Kubernetes (deploy/k8s/Constants), Spark operator.
    "spark-app-selector",
    "spark-exec-id",
    "sparkoperator.k8s.io/submission-id",
    // Airflow's KubernetesExecutor and pod operator.
    "run_id",
    "try_number",
    "map_index",
    "execution_date",
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
    "pipeline.runner.gitlab.com/id",
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
];

/// Whether the label holds a version, a revision or a run, so that it is no identity.
#[must_use]
pub fn is_release_label(key: &str) -> bool {
    RELEASE_LABELS.contains(&key)
}

/// `labels` without those that a controller generates and those that a release or a run changes.
#[must_use]
pub fn stable_labels(labels: &Labels) -> Labels {
    labels.iter().filter(|(k, _)| !is_generated_label(k) && !is_release_label(k)).collect()
}

impl LabelSelector {
    /// A selector that asks for exactly these labels.
    #[must_use]
    pub fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self { match_labels: labels, match_expressions: Vec::new() }
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
        kept.match_labels.retain(|key, _| !is_release_label(key));
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
            match_labels: BTreeMap::new(),
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
