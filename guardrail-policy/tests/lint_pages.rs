//! Every lint rule has a page in `docs/lint`: its example gives the finding, its fix does not.

use std::{fs, path::Path};

use guardrail_graph::inventory;
use guardrail_policy::{
    lint::{self, Context, LintRule, RULES},
    read::{Expect, Reader},
};

fn block(page: &str, kind: &str) -> Option<String> {
    let (_, rest) = page.split_once(&format!("```yaml {kind}\n"))?;
    Some(rest.split_once("```").unwrap().0.to_owned())
}

fn found(rule: &LintRule, policies: &str, inventory: Option<&str>) -> bool {
    let objects = inventory.map(|text| inventory::read::objects(text, "inventory.yaml").unwrap().objects);
    let context = Context::from_objects(&objects.unwrap_or_default());
    let mut reader = Reader::new();
    reader.add("policies.yaml", policies.as_bytes(), Expect::Policies);
    let (set, problems) = reader.finish_lenient();
    lint::lint(&set, &problems, &context).iter().any(|finding| finding.rule == rule.id)
}

#[test]
fn every_rule_has_a_page_whose_example_it_finds_and_whose_fix_it_does_not() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/lint");
    let index = fs::read_to_string(directory.join("README.md")).unwrap();
    for rule in RULES {
        let name = format!("{}.md", rule.id);
        let page = fs::read_to_string(directory.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(page.starts_with(&format!("# {}: {}\n", rule.id, rule.name)), "{name}: its title");
        assert!(page.contains("## Harm\n") && page.contains("## Fix\n"), "{name}: harm and fix");
        assert!(
            index.contains(&format!("[{} {}]({name}) | {} |", rule.id, rule.name, rule.severity.as_str())),
            "{name}: in the index"
        );
        let inventory = block(&page, "inventory");
        let (bad, good) = (block(&page, "policies").unwrap(), block(&page, "fixed").unwrap());
        assert!(found(rule, &bad, inventory.as_deref()), "{name}: the example has no such finding");
        assert!(!found(rule, &good, inventory.as_deref()), "{name}: the fix still has the finding");
        // One of a kind: the comment of the documentation silences it.
        if !["GR001", "GR002", "GR003"].contains(&rule.id) {
            let silenced = format!("# guardrail: ignore {} the example of a page\n{bad}", rule.id);
            assert!(
                !found(rule, &silenced, inventory.as_deref()) || bad.contains("kind: Template"),
                "{name}: the comment does nothing"
            );
            let bare = format!("# guardrail: ignore {}\n{bad}", rule.id);
            assert!(found(rule, &bare, inventory.as_deref()), "{name}: a comment without a reason silences it");
        }
    }
}
