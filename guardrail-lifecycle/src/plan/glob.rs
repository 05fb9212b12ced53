//! Names with `*`: exact before pattern, a longer literal beginning before a shorter.

use std::fmt;

use guardrail_graph::WorkloadRef;

/// A name, or a pattern in which each `*` stands for any letters, or none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob(String);

impl Glob {
    /// From its text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for one name only.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Which of two that match the same name counts: the greater one.
    #[must_use]
    pub fn rank(&self) -> (bool, usize) {
        (self.is_exact(), self.0.find('*').unwrap_or(self.0.len()))
    }

    /// Whether it stands for this name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        // A name without `*` is the pattern that stands for itself.
        meet(self.0.as_bytes(), name.as_bytes())
    }

    /// Whether there is a name that both stand for.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        meet(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether some text is matched by both; time and memory are the product of their lengths.
fn meet(a: &[u8], b: &[u8]) -> bool {
    // Row `i` says for each `j` whether `a[i..]` and `b[j..]` meet; from the ends.
    let mut below = vec![false; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        for j in (0..=b.len()).rev() {
            row[j] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                // A star is empty, or takes one more of the other side.
                (Some(b'*'), other) => below[j] || other.is_some() && row[j + 1],
                (other, Some(b'*')) => row[j + 1] || other.is_some() && below[j],
                (Some(x), Some(y)) => x == y && below[j + 1],
                _ => false,
            };
        }
        below = row;
    }
    below[0]
}

/// Workloads: `NAMESPACE/NAME` or `NAMESPACE/KIND/NAME`, with `*` in any part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadGlob {
    namespace: Glob,
    kind: Option<Glob>,
    name: Glob,
    line: u32,
}

impl WorkloadGlob {
    /// From its text; `None` if it has another number of parts, or an empty one.
    #[must_use]
    pub fn new(text: &str, line: u32) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, kind, name) = match parts[..] {
            [namespace, name] => (namespace, None, name),
            [namespace, kind, name] => (namespace, Some(Glob::new(kind)), name),
            _ => return None,
        };
        let full = parts.iter().all(|part| !part.is_empty());
        full.then(|| Self { namespace: Glob::new(namespace), kind, name: Glob::new(name), line })
    }

    /// Whether this workload is meant.
    #[must_use]
    pub fn matches(&self, workload: &WorkloadRef) -> bool {
        self.namespace.matches(&workload.namespace)
            && self.kind.as_ref().is_none_or(|kind| kind.matches(&workload.owner))
            && self.name.matches(&workload.name)
    }

    /// Whether it stands for one workload only.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.namespace.is_exact() && self.kind.as_ref().is_none_or(Glob::is_exact) && self.name.is_exact()
    }

    /// Whether it may mean a workload of this namespace.
    #[must_use]
    pub fn is_of(&self, namespace: &str) -> bool {
        self.namespace.matches(namespace)
    }

    /// Where it stands in the file.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }

    /// It stands nowhere.
    pub(super) fn forget_line(&mut self) {
        self.line = 0;
    }

    /// A workload as this one would be written: with or without its kind.
    pub(super) fn like(&self, workload: &WorkloadRef) -> String {
        match self.kind {
            Some(_) => workload.to_string(),
            None => format!("{}/{}", workload.namespace, workload.name),
        }
    }
}

impl fmt::Display for WorkloadGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "{}/{kind}/{}", self.namespace, self.name),
            None => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_letters_or_none() {
        for (pattern, name, is) in [
            ("shop", "shop", true),
            ("shop", "shop2", false),
            ("sandbox-*", "sandbox-", true),
            ("sandbox-*", "sandbox-a", true),
            ("sandbox-*", "sandbox", false),
            ("*-eu", "a-eu", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2c3", false),
            ("*", "", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn two_patterns_overlap_if_a_name_fits_both() {
        for (a, b, meet) in [
            ("a*x", "a*y", false),
            ("a*x", "a*", true),
            ("a*x*", "a*y", true),
            ("ab*", "a*", true),
            ("ab*", "ac*", false),
            ("*", "*", true),
            ("*a", "a*", true),
        ] {
            assert_eq!(Glob::new(a).overlaps(&Glob::new(b)), meet, "{a} {b}");
            assert_eq!(Glob::new(b).overlaps(&Glob::new(a)), meet, "{b} {a}");
        }
    }
}
