//! `meta/v1 LabelSelector`, validated.

use std::sync::Arc;

use guardrail_graph::snapshot::{LabelSelector, SelectorOperator, SelectorRequirement};

use super::{
    policy::Decoder,
    syntax::{is_label_key, is_label_value},
    yaml::{Node, Value},
};

impl Decoder<'_> {
    pub(super) fn selector(&mut self, node: &Node, field: &str) -> LabelSelector {
        let mut selector = LabelSelector::default();
        if !self.mapping(node, field, &["matchLabels", "matchExpressions"]) {
            return selector;
        }
        if let Some(labels) = node.get("matchLabels") {
            self.match_labels(labels, &format!("{field}.matchLabels"), &mut selector);
        }
        if let Some(expressions) = node.get("matchExpressions") {
            let field = format!("{field}.matchExpressions");
            for (item, index) in self.list(expressions, &field).iter().zip(0..) {
                selector.match_expressions.extend(self.requirement(item, &format!("{field}[{index}]")));
            }
        }
        selector
    }

    fn match_labels(&mut self, labels: &Node, field: &str, selector: &mut LabelSelector) {
        let Value::Map(entries) = &labels.value else {
            self.invalid(labels.line, format!("`{field}` is a mapping, this is {}", labels.describe()));
            return;
        };
        for (key, value) in entries {
            self.label_key(&key.name, key.line, field);
            // A null string is the empty string, for the API server as for us.
            let text = if value.is_null() { Some("") } else { value.as_str() };
            let Some(text) = text else {
                self.invalid(
                    value.line,
                    format!(
                        "the value of label `{}` is {}, labels are strings; put it in quotes",
                        key.name,
                        value.describe()
                    ),
                );
                continue;
            };
            self.label_value(text, value.line, &key.name);
            Arc::make_mut(&mut selector.match_labels).insert(key.name.clone(), text.to_owned());
        }
    }

    fn requirement(&mut self, node: &Node, field: &str) -> Option<SelectorRequirement> {
        if !self.mapping(node, field, &["key", "operator", "values"]) {
            return None;
        }
        let key = self.string(node, "key", field)?;
        self.label_key(&key, node.line, field);
        let operator = match self.string(node, "operator", field)?.as_str() {
            "In" => SelectorOperator::In,
            "NotIn" => SelectorOperator::NotIn,
            "Exists" => SelectorOperator::Exists,
            "DoesNotExist" => SelectorOperator::DoesNotExist,
            other => {
                let line = node.get("operator").map_or(node.line, |n| n.line);
                self.invalid(line, format!("`{field}.operator` is `{other}`; write In, NotIn, Exists or DoesNotExist"));
                return None;
            }
        };
        let mut values = Vec::new();
        if let Some(list) = node.get("values") {
            for item in self.list(list, &format!("{field}.values")) {
                match item.as_str() {
                    Some(value) => {
                        self.label_value(value, item.line, &key);
                        values.push(value.to_owned());
                    }
                    None => self.invalid(
                        item.line,
                        format!(
                            "a value of `{field}.values` is {}, labels are strings; put it in quotes",
                            item.describe()
                        ),
                    ),
                }
            }
        }
        let needs = matches!(operator, SelectorOperator::In | SelectorOperator::NotIn);
        if needs && node.get("values").is_none_or(|v| matches!(&v.value, Value::Seq(items) if items.is_empty())) {
            self.invalid(node.line, format!("`{field}` has operator In or NotIn and no values; add at least one"));
        }
        if !needs && !values.is_empty() {
            self.invalid(
                node.line,
                format!("`{field}` has operator Exists or DoesNotExist and values; remove the values"),
            );
        }
        Some(SelectorRequirement { key, operator, values })
    }

    fn label_key(&mut self, key: &str, line: u32, field: &str) {
        if !is_label_key(key) {
            self.invalid(line, format!("`{key}` in `{field}` is no valid label key"));
        }
    }

    fn label_value(&mut self, value: &str, line: u32, key: &str) {
        if !is_label_value(value) {
            self.invalid(
                line,
                format!("`{value}` is no valid value of label `{key}`: at most 63 letters, digits, `-`, `_`, `.`"),
            );
        }
    }
}
