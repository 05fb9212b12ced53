//! `guardrail init` as a user meets it.

mod common;

use std::fs;

use common::guardrail;

#[test]
fn a_first_plan_of_the_shop() {
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--context", "prod-eu"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!(stdout);
}

#[test]
fn an_image_tells_what_a_name_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let object = |kind: &str, name: &str, spec: &str| {
        format!("{{kind: {kind}, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}")
    };
    let containers = |image: &str| format!("{{template: {{spec: {{containers: [{{image: {image}}}]}}}}}}");
    let job = format!("{{jobTemplate: {{spec: {}}}}}", containers("hashicorp/vault:1.15"));
    let list = format!(
        "kind: List\nitems: [{}, {}]\n---\n# nothing\n---\n{}\n",
        object("Deployment", "mailer", &containers("registry.example:5000/keycloak/keycloak:24")),
        object("CronJob", "nightly-report-generator", &job),
        object("Deployment", "frontend", &containers("shop/web:postgres")),
    );
    let inventory = common::file(&directory, "workloads.yaml", list);
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--inventory", &inventory]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for line in [
        "# - shop/Deployment/mailer  # runs the image keycloak/keycloak, which speaks of identity\n",
        "# - shop/CronJob/nightly-report-generator  # runs the image hashicorp/vault, which speaks of secrets\n",
        "# - data/StatefulSet/postgres  # serves PostgreSQL at 5432\n",
    ] {
        assert_eq!(stdout.matches(line).count(), 3, "once an environment: {line}{stdout}");
    }
    assert!(!stdout.contains("shop/Deployment/frontend"), "{stdout}");
    // A list as the API server has it, and what is no object.
    let list = r#"{"kind": "DeploymentList", "items": [{"metadata": {"name": "mailer", "namespace": "shop"}, "spec": {"template": {"spec": {"containers": [{"image": "vault"}]}}}}]}"#;
    let inventory = common::file(&directory, "list.json", list);
    let (_, stdout, _) = guardrail(&["init", "shop.json", "--inventory", &inventory]);
    assert!(stdout.contains("# - shop/Deployment/mailer  # runs the image vault, which speaks of secrets"), "{stdout}");
    let inventory = common::file(&directory, "text.yaml", "just text\n");
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--inventory", &inventory]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("text.yaml: no Kubernetes objects"), "{stderr}");
}

#[test]
fn a_plan_that_is_there_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guardrail.yaml");
    let name = file.to_str().unwrap();
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--output", name]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""));
    let first = fs::read_to_string(&file).unwrap();
    assert!(first.contains("kind: Plan"));
    let (code, stdout, stderr) = guardrail(&["init", "shop.json", "--output", name]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("is there already: remove it, or name another file with --output"), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
}
