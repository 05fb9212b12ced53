//! Label selectors as Kubernetes writes them. How they match stands with labels, in
//! [`crate::inventory`].

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A Kubernetes label selector (`meta/v1 LabelSelector`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Equality requirements, ANDed. Shared by copies: a policy for each of a workload's hundred
    /// callers names it a hundred times.
    #[serde(default, skip_serializing_if = "no_labels")]
    pub match_labels: Arc<BTreeMap<String, String>>,
    /// Set requirements, ANDed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<SelectorRequirement>,
}

fn no_labels(labels: &Arc<BTreeMap<String, String>>) -> bool {
    labels.is_empty()
}

/// One requirement of a selector (`meta/v1 LabelSelectorRequirement`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SelectorRequirement {
    /// Label key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: SelectorOperator,
    /// Values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Operator of a [`SelectorRequirement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SelectorOperator {
    /// The key exists and has one of the values.
    In,
    /// The key is absent or has none of the values.
    NotIn,
    /// The key exists.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

/// The text is no label selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` selects no labels: write it as kubectl does, like pool=windows,!agent or os in (windows,bsd)")]
pub struct BadSelector(String);

impl FromStr for LabelSelector {
    type Err = BadSelector;

    /// As kubectl takes it: `key=value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key`,
    /// `!key`, joined by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut selector = Self::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            // A comma in parentheses separates values.
            let comma = rest.find(',').unwrap_or(rest.len());
            let end = match (rest.find('('), rest.find(')')) {
                (Some(open), Some(close)) if open < comma && open < close => {
                    rest[close..].find(',').map_or(rest.len(), |after| close + after)
                }
                _ => comma,
            };
            selector.require(rest[..end].trim()).ok_or_else(|| BadSelector(text.to_owned()))?;
            rest = rest.get(end + 1..).unwrap_or_default().trim_start();
        }
        if selector == Self::default() { Err(BadSelector(text.to_owned())) } else { Ok(selector) }
    }
}

impl LabelSelector {
    fn require(&mut self, part: &str) -> Option<()> {
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        let word = |text: &str| Some(text.trim()).filter(|text| is_word(text)).map(str::to_owned);
        let value = |text: &str| if text.trim().is_empty() { Some(String::new()) } else { word(text) };
        let mut expression = |key: &str, operator, values: Vec<String>| {
            self.match_expressions.push(SelectorRequirement { key: word(key)?, operator, values });
            Some(())
        };
        if let Some((key, list)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
            let values: Option<Vec<String>> = list.split(',').map(value).collect();
            let (key, operator) = key.trim().rsplit_once(char::is_whitespace)?;
            let operator = match operator {
                "in" => SelectorOperator::In,
                "notin" => SelectorOperator::NotIn,
                _ => return None,
            };
            return expression(key, operator, values?);
        }
        if let Some((key, unwanted)) = part.split_once("!=") {
            return expression(key, SelectorOperator::NotIn, vec![value(unwanted)?]);
        }
        if let Some((key, wanted)) = part.split_once("==").or_else(|| part.split_once('=')) {
            let (key, wanted) = (word(key)?, value(wanted)?);
            return Arc::make_mut(&mut self.match_labels).insert(key, wanted).is_none().then_some(());
        }
        match part.strip_prefix('!') {
            Some(key) => expression(key, SelectorOperator::DoesNotExist, Vec::new()),
            None => expression(part, SelectorOperator::Exists, Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Labels;

    #[test]
    fn a_selector_is_read_as_kubectl_takes_it() {
        let map: BTreeMap<String, String> =
            [("os", "windows"), ("pool", "w")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let windows = Labels::from(map);
        for (text, expected) in [
            ("os=windows", true),
            ("os == windows , pool=w", true),
            ("os=linux", false),
            ("os!=linux", true),
            ("os in (windows, bsd),pool", true),
            ("os notin (windows)", false),
            ("!pool", false),
            ("!other,os", true),
            ("other=", false),
        ] {
            assert_eq!(text.parse::<LabelSelector>().unwrap().matches(&windows), expected, "{text}");
        }
        for wrong in ["", " ", ",", "=x", "os in windows", "os like (a)", "a b", "os=(x", "a=1,a=2", "!", "k in ()x"] {
            assert!(wrong.parse::<LabelSelector>().is_err(), "{wrong}");
        }
    }
}
