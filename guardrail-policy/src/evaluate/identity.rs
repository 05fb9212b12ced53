//! Cilium's identity labels of a pod.

use crate::model::Labels;

/// Key of the derived label that holds the pod's namespace.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Key of the derived label that holds the pod's service account.
pub(crate) const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// Key of the derived label that holds the cluster's name.
pub(crate) const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// What stands before the keys of the namespace's own labels.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// Beginnings of keys that the agent's default filter leaves out of identities
/// (`identity-relevant-labels.rst`).
const LEFT_OUT: [&str; 13] = [
    "annotation",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "beta.kubernetes.io",
    "controller-revision-hash",
    "controller-uid",
    "etcd_node",
    "io.kubernetes",
    "k8s.io",
    "kubernetes.io",
    "pod-template-",
    "statefulset.kubernetes.io/pod-name",
];
/// Beginnings of keys that stay in once there is an inclusive pattern.
const INCLUDED: [&str; 3] = [POD_NAMESPACE, "io.cilium.k8s.namespace.labels", "app.kubernetes.io"];

/// Which labels are part of an identity: the agent's option `labels` beside its defaults. Once
/// there is an inclusive pattern only what an inclusive one matches is; of an inclusive and an
/// exclusive pattern the one that matches more of a key decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// A regular expression of characters, `.` and `*`, anchored at the start of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    /// `None`: any character.
    is: Option<char>,
    /// Any number of them.
    many: bool,
}

impl LabelFilter {
    /// From patterns with blanks between them: `k8s:app k8s:!job-name`.
    ///
    /// # Errors
    /// One sentence about a pattern that is more than characters, `.` and `*`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for word in text.split_whitespace() {
            let rest = word.split_once(':').map_or(word, |(_, rest)| rest);
            let (list, pattern) = match rest.strip_prefix('!') {
                Some(pattern) => (&mut filter.exclude, pattern),
                None => (&mut filter.include, rest),
            };
            let pattern = Pattern::parse(pattern).ok_or_else(|| {
                format!("`labels` holds `{word}`; of regular expressions only characters, `\\.`, `.` and `*` are read")
            })?;
            // Reserved labels are no pod's.
            if !word.starts_with("reserved:") {
                list.push(pattern);
            }
        }
        Ok(filter)
    }

    /// Whether no selector matches by this label.
    #[must_use]
    pub(crate) fn leaves_out(&self, key: &str) -> bool {
        let begins = |start: &&&str| key.starts_with(**start);
        let known = |list: &[&str]| list.iter().filter(begins).map(|start| start.len()).max();
        let own = |list: &[Pattern]| list.iter().filter_map(|p| p.longest(key)).max();
        let included = known(&INCLUDED).max(own(&self.include));
        let excluded = known(&LEFT_OUT).max(own(&self.exclude));
        if self.include.is_empty() && excluded.is_none() {
            return false;
        }
        included.is_none() || excluded > included
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let mut tokens: Vec<Token> = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let token = match character {
                '\\' => Token { is: Some(characters.next().filter(|c| !c.is_ascii_alphanumeric())?), many: false },
                '.' => Token { is: None, many: false },
                '*' => {
                    tokens.last_mut().filter(|t| !t.many)?.many = true;
                    continue;
                }
                c if c.is_ascii_alphanumeric() || "-_/".contains(c) => Token { is: Some(c), many: false },
                '^' if tokens.is_empty() => continue,
                _ => return None,
            };
            tokens.push(token);
        }
        Some(Self(tokens))
    }

    /// How many bytes of the key's beginning it matches at most.
    fn longest(&self, key: &str) -> Option<usize> {
        // Every place to which the tokens so far may lead.
        let mut places = vec![0];
        for token in &self.0 {
            let step = |at: usize| {
                let next = key[at..].chars().next()?;
                token.is.is_none_or(|is| is == next).then(|| at + next.len_utf8())
            };
            let mut next: Vec<usize> = Vec::new();
            for place in places {
                let mut at = Some(place);
                if token.many {
                    while let Some(here) = at {
                        next.push(here);
                        at = step(here);
                    }
                } else {
                    next.extend(step(place));
                }
            }
            next.sort_unstable();
            next.dedup();
            places = next;
        }
        places.last().copied()
    }
}

/// What a pod's identity is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) namespace_labels: &'a Labels,
    pub(crate) labels: &'a Labels,
    pub(crate) account: Option<&'a str>,
    pub(crate) cluster: &'a str,
    pub(crate) filter: &'a LabelFilter,
}

impl<'a> Identity<'a> {
    /// The value of a label, by its key without source.
    pub(crate) fn label(&self, key: &str) -> Option<&'a str> {
        let value = match key {
            // The agent has it whatever the filter says.
            POD_NAMESPACE => return Some(self.namespace),
            SERVICE_ACCOUNT => self.account,
            CLUSTER => Some(self.cluster),
            _ => {
                let (labels, key) = match key.strip_prefix(NAMESPACE_LABELS) {
                    Some(key) => (self.namespace_labels, key),
                    None => (self.labels, key),
                };
                labels.get(key).map(String::as_str)
            }
        };
        value.filter(|_| !self.filter.leaves_out(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filter: &str, relevant: &[&str], left_out: &[&str]) {
        let filter = LabelFilter::parse(filter).unwrap();
        for key in relevant {
            assert!(!filter.leaves_out(key), "{key}");
        }
        for key in left_out {
            assert!(filter.leaves_out(key), "{key}");
        }
    }

    #[test]
    fn labels_are_relevant_by_the_agents_patterns() {
        let hashes = ["pod-template-hash", "statefulset.kubernetes.io/pod-name", "kubernetes.io/arch"];
        check("", &["app", "app.kubernetes.io/name", "batch.kubernetes.io/job-name", SERVICE_ACCOUNT], &hashes);
        check("k8s:!job-name k8s:!team", &["app", "tea"], &["job-name", "team", "team-2", "kubernetes.io/arch"]);
        let inclusive = r"k8s:io\.kubernetes\.pod\.namespace k8s:app k8s:.*example\.com";
        let relevant = [
            "app",
            "application",
            "app.kubernetes.io/name",
            "x.example.com/zone",
            "io.cilium.k8s.namespace.labels.team",
        ];
        check(inclusive, &relevant, &["team", "my-app", "xexample-com", CLUSTER, "pod-template-hash"]);
        // The longer match decides.
        check(r"k8s:app k8s:!app-secret", &["app", "app-s"], &["app-secret"]);
        check(r"pod-template-hash", &["pod-template-hash"], &["pod-template-generation"]);
        assert!(LabelFilter::parse("k8s:(a|b)").is_err_and(|e| e.starts_with("`labels` holds `k8s:(a|b)`")));
    }
}
