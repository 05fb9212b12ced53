//! Text to plan. Everything that is wrong is told at once, each with its line; nothing is guessed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use guardrail_policy::{
    generate::Phase,
    model::Location,
    read::yaml::{self, Node, Value},
    words::{did_you_mean, nearest},
};
use serde::Serialize;

use super::{
    AcceptedFlow, Admission, Caller, Environment, Exception, ExceptionEnd, ExternalService, Gates, Glob, NamespacePlan,
    Plan, SharedService, Wanted, WorkloadGlob,
    fields::{self, Fields},
    value::{self, Parsed},
};

/// Longest id of an exception: it becomes part of an object's name.
pub const MAX_ID: usize = 40;

/// What is wrong with a plan, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanProblem {
    /// Where.
    pub location: Location,
    /// One sentence: what, and what to do.
    pub message: String,
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// The plan cannot be used. All problems, in the order of their lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PlanError {
    /// At least one.
    pub problems: Vec<PlanProblem>,
}

/// Reads a plan: YAML or JSON, one document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(file: &str, bytes: &[u8]) -> Result<Plan, PlanError> {
    let file: Arc<str> = file.into();
    let at = |line| Location { file: file.clone(), line };
    let one = |line, message: String| PlanError { problems: vec![PlanProblem { location: at(line), message }] };
    let documents = match yaml::documents(&file, bytes) {
        Ok(documents) => documents,
        Err(problem) => return Err(one(problem.location.line, problem.message)),
    };
    let [document] = &documents[..] else {
        let line = documents.get(1).map_or(1, |second| second.line);
        let count = documents.len();
        let message = match count {
            0 => "the file is empty; `guardrail init` writes a first plan".to_owned(),
            _ => format!("a plan is one document, and this file has {count}; keep one of them"),
        };
        return Err(one(line, message));
    };
    let mut reader = Reader { file, problems: Vec::new() };
    let plan = reader.plan(document);
    let mut problems = reader.problems;
    problems.sort_by(|a, b| (a.location.line, &a.message).cmp(&(b.location.line, &b.message)));
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(PlanError { problems }),
    }
}

/// An object of the file whose fields are known ones.
struct Object<'n> {
    node: &'n Node,
    path: String,
    fields: &'static Fields,
}

struct Reader {
    file: Arc<str>,
    problems: Vec<PlanProblem>,
}

impl Reader {
    fn problem(&mut self, line: u32, message: String) {
        self.problems.push(PlanProblem { location: Location { file: self.file.clone(), line }, message });
    }

    /// A mapping, if it is one; unknown and missing fields are told.
    fn object<'n>(&mut self, node: &'n Node, fields: &'static Fields, path: &str) -> Option<Object<'n>> {
        let shown = if path.is_empty() { "a plan" } else { path };
        let Value::Map(entries) = &node.value else {
            let names: Vec<&str> = fields.names().collect();
            self.problem(
                node.line,
                format!("{shown} is {}; write a mapping with {}", node.describe(), names.join(", ")),
            );
            return None;
        };
        for (key, _) in entries {
            if !fields.names().any(|name| name == key.name) {
                let near = nearest(&key.name, fields.names()).map_or_else(
                    || format!("it has {}", fields.names().collect::<Vec<_>>().join(", ")),
                    |near| format!("did you mean {near}?"),
                );
                self.problem(key.line, format!("{shown} has no field `{}`; {near}", key.name));
            }
        }
        for field in fields.fields.iter().filter(|field| field.required) {
            if node.get(field.name).is_none() {
                self.problem(node.line, format!("{shown} has no `{}` ({}); add it", field.name, field.doc));
            }
        }
        Some(Object { node, path: path.to_owned(), fields })
    }

    /// One value of an object; `None` if it is not there, or wrong, which is told.
    fn field<T>(&mut self, object: &Object<'_>, name: &'static str, parse: fn(&Node) -> Parsed<T>) -> Option<T> {
        let node = object.get(name)?;
        self.value(node, &object.path_of(name), parse)
    }

    fn value<T>(&mut self, node: &Node, path: &str, parse: fn(&Node) -> Parsed<T>) -> Option<T> {
        match parse(node) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.problem(node.line, format!("{path} {wrong}"));
                None
            }
        }
    }

    /// The items of a list, each with its path.
    fn items<'n>(&mut self, object: &Object<'n>, name: &'static str) -> Vec<(&'n Node, String)> {
        let path = object.path_of(name);
        match object.get(name) {
            None => Vec::new(),
            Some(Node { value: Value::Seq(items), .. }) => {
                items.iter().enumerate().map(|(index, item)| (item, format!("{path}[{index}]"))).collect()
            }
            Some(other) => {
                self.problem(other.line, format!("{path} is {}; write a list", other.describe()));
                Vec::new()
            }
        }
    }

    fn list<T>(&mut self, object: &Object<'_>, name: &'static str, parse: fn(&Node) -> Parsed<T>) -> Vec<T> {
        let items = self.items(object, name);
        items.into_iter().filter_map(|(item, path)| self.value(item, &path, parse)).collect()
    }

    /// A list that must not be empty.
    fn some<T: Ord>(&mut self, object: &Object<'_>, name: &'static str, parse: fn(&Node) -> Parsed<T>) -> BTreeSet<T> {
        if let Some(Node { value: Value::Seq(items), line }) = object.get(name)
            && items.is_empty()
        {
            self.problem(*line, format!("{} is empty; add at least one", object.path_of(name)));
        }
        self.list(object, name, parse).into_iter().collect()
    }

    /// The entries of a mapping with names of the plan's own: name, its line, value and path.
    fn entries<'n>(&mut self, object: &Object<'n>, name: &'static str) -> Vec<(&'n str, u32, &'n Node, String)> {
        let path = object.path_of(name);
        match object.get(name) {
            None => Vec::new(),
            Some(Node { value: Value::Map(entries), .. }) => entries
                .iter()
                .map(|(key, value)| (&*key.name, key.line, value, format!("{path}.{}", key.name)))
                .collect(),
            Some(other) => {
                self.problem(other.line, format!("{path} is {}; write a mapping by name", other.describe()));
                Vec::new()
            }
        }
    }

    fn plan(&mut self, document: &Node) -> Option<Plan> {
        let plan = self.object(document, &fields::PLAN, "")?;
        for (name, right) in [("apiVersion", super::API_VERSION), ("kind", super::KIND)] {
            if let Some(found) = self.field(&plan, name, value::text)
                && found != right
            {
                let line = plan.get(name).map_or(1, |node| node.line);
                self.problem(line, format!("{name} is `{found}`; a plan has {right}"));
            }
        }
        let spec = self.object(plan.get("spec")?, &fields::SPEC, "spec")?;
        let mut plan = Plan::default();
        for (name, line, node, path) in self.entries(&spec, "environments") {
            if !is_name(name) {
                self.problem(
                    line,
                    format!("`{name}` is no name of an environment; write letters, digits, `-`, `_`, `.`"),
                );
            }
            if let Some(environment) = self.environment(node, &path) {
                plan.environments.insert(name.to_owned(), environment);
            }
        }
        if let Some(Node { value: Value::Map(entries), line }) = spec.get("environments")
            && entries.is_empty()
        {
            self.problem(*line, "spec.environments is empty; add one, like production".to_owned());
        }
        for (node, path) in self.items(&spec, "shared") {
            let Some(object) = self.object(node, &fields::SHARED, &path) else { continue };
            let ports = self.some(&object, "ports", value::port);
            let workload = self.field(&object, "workload", value::workload);
            plan.shared.extend(workload.map(|workload| SharedService { workload, ports, line: node.line }));
        }
        for (node, path) in self.items(&spec, "callers") {
            let Some(object) = self.object(node, &fields::CALLER, &path) else { continue };
            let workload = self.field(&object, "workload", value::workload);
            plan.callers.extend(workload.map(|workload| Caller { workload, line: node.line }));
        }
        plan.node_ranges = self.list(&spec, "nodeRanges", value::range).into_iter().collect();
        plan.control_plane_ranges = self.list(&spec, "controlPlaneRanges", value::range).into_iter().collect();
        for (name, _, node, path) in self.entries(&spec, "external") {
            if let Some(external) = self.external(node, &path) {
                plan.external.insert(name.to_owned(), external);
            }
        }
        self.exceptions(&spec, &mut plan);
        for (node, path) in self.items(&spec, "accepted") {
            plan.accepted.extend(self.accepted(node, &path));
        }
        plan.unused = self.field(&spec, "unused", value::duration);
        if let Some(node) = spec.get("admission")
            && let Some(object) = self.object(node, &fields::ADMISSION, "spec.admission")
        {
            plan.admission = Admission {
                deployers: self.list(&object, "deployers", value::text),
                break_glass: self.list(&object, "breakGlass", value::text),
                controllers: self.list(&object, "controllers", value::text),
                max_duration: self.field(&object, "maxDuration", value::duration),
            };
        }
        Some(plan)
    }

    fn environment(&mut self, node: &Node, path: &str) -> Option<Environment> {
        let object = self.object(node, &fields::ENVIRONMENT, path)?;
        let default = self.wanted(&object, Wanted::default());
        let mut environment =
            Environment { context: self.field(&object, "context", value::text), default, ..Environment::default() };
        let mut known: Vec<(Glob, u32)> = Vec::new();
        for (name, line, node, path) in self.entries(&object, "namespaces") {
            if name.is_empty()
                || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-*".contains(&b))
            {
                self.problem(line, format!("`{name}` is no name of a namespace and no pattern of one, like sandbox-*"));
                continue;
            }
            let glob = Glob::new(name);
            if let Some((same, first)) =
                known.iter().find(|(other, _)| other.rank() == glob.rank() && other.overlaps(&glob))
            {
                let message = format!(
                    "`{glob}` and `{same}` of line {first} stand for the same namespaces and neither is closer; make the letters before the `*` of one of them longer"
                );
                self.problem(line, message);
            }
            if let Some(object) = self.object(node, &fields::NAMESPACE, &path) {
                let wanted = self.wanted(&object, default);
                environment.namespaces.push(NamespacePlan { glob: glob.clone(), wanted });
            }
            known.push((glob, line));
        }
        environment.namespaces.sort_by(|a, b| a.glob.cmp(&b.glob));
        for (node, path) in self.items(&object, "sensitive") {
            let Some(text) = self.value(node, &path, value::text) else { continue };
            match WorkloadGlob::new(&text, node.line) {
                Some(glob) => environment.sensitive.push(glob),
                None => self.problem(
                    node.line,
                    format!("{path} is `{text}`, which names no workload; write NAMESPACE/KIND/NAME or NAMESPACE/*"),
                ),
            }
        }
        if let Some(node) = object.get("gates")
            && let Some(object) = self.object(node, &fields::GATES, &object.path_of("gates"))
        {
            environment.gates = Gates {
                window: self.field(&object, "window", value::duration),
                coverage: self.field(&object, "coverage", value::percent),
                quiet: self.field(&object, "quiet", value::duration),
            };
        }
        Some(environment)
    }

    fn wanted(&mut self, object: &Object<'_>, default: Wanted) -> Wanted {
        let phase = self.field(object, "phase", value::phase).unwrap_or(default.phase);
        let egress = self.field(object, "egress", value::flag);
        if phase == Phase::Observe && egress == Some(true) {
            let line = object.get("egress").map_or(object.node.line, |node| node.line);
            let path = object.path_of("egress");
            self.problem(
                line,
                format!("{path} has no effect at phase observe, which closes nothing; remove one of them"),
            );
        }
        Wanted { phase, egress: egress.unwrap_or(default.egress) && phase != Phase::Observe }
    }

    fn external(&mut self, node: &Node, path: &str) -> Option<ExternalService> {
        let object = self.object(node, &fields::EXTERNAL, path)?;
        let names: BTreeSet<String> =
            self.list(&object, "names", value::text).into_iter().map(|name| name.to_ascii_lowercase()).collect();
        let ranges: BTreeSet<_> = self.list(&object, "ranges", value::range).into_iter().collect();
        if object.get("names").is_none() && object.get("ranges").is_none() {
            self.problem(node.line, format!("{path} has neither names nor ranges; add one of them"));
        }
        Some(ExternalService { names, ranges, ports: self.some(&object, "ports", value::port) })
    }

    fn exceptions(&mut self, spec: &Object<'_>, plan: &mut Plan) {
        let mut lines: BTreeMap<String, u32> = BTreeMap::new();
        for (node, path) in self.items(spec, "exceptions") {
            let Some(exception) = self.exception(node, &path) else { continue };
            if let Some(first) = lines.get(&exception.id) {
                self.problem(
                    node.line,
                    format!("exception {} stands at line {first}, too; give one of them another id", exception.id),
                );
            }
            lines.insert(exception.id.clone(), node.line);
            for environment in &exception.environments {
                if !plan.environments.contains_key(environment) {
                    let near = did_you_mean(environment, plan.environments.keys().map(String::as_str));
                    self.problem(
                        node.line,
                        format!(
                            "exception {} names environment {environment}, which the plan does not have{near}",
                            exception.id
                        ),
                    );
                }
            }
            plan.exceptions.push(exception);
        }
    }

    fn exception(&mut self, node: &Node, path: &str) -> Option<Exception> {
        let object = self.object(node, &fields::EXCEPTION, path)?;
        let id = self.field(&object, "id", value::text);
        if let Some(id) = id.as_deref().filter(|id| !is_exception_id(id)) {
            let line = object.get("id").map_or(node.line, |node| node.line);
            let message = format!(
                "{path}.id is `{id}`; it becomes part of an object's name: write at most {MAX_ID} lower case letters, digits and `-`"
            );
            self.problem(line, message);
        }
        let (from, to) = (self.field(&object, "from", value::end), self.field(&object, "to", value::end));
        if let (Some(ExceptionEnd::Range(_)), Some(ExceptionEnd::Range(_))) = (&from, &to) {
            self.problem(node.line, format!("{path} has no end in the cluster; name a workload in from or to"));
        }
        let ports = self.some(&object, "ports", value::port);
        let expires = self.field(&object, "expires", value::instant);
        let (reason, owner) = (self.field(&object, "reason", value::text), self.field(&object, "owner", value::text));
        let environments = self.list(&object, "environments", value::text).into_iter().collect();
        Some(Exception {
            id: id?,
            from: from?,
            to: to?,
            ports,
            expires: expires?,
            reason: reason?,
            owner: owner?,
            environments,
            line: node.line,
        })
    }

    fn accepted(&mut self, node: &Node, path: &str) -> Option<AcceptedFlow> {
        let object = self.object(node, &fields::ACCEPTED, path)?;
        let flow = self.field(&object, "flow", value::flow);
        let reason = self.field(&object, "reason", value::text);
        let until = self.field(&object, "until", value::instant);
        Some(AcceptedFlow { flow: flow?, reason: reason?, until, line: node.line })
    }
}

impl<'n> Object<'n> {
    /// The field, which has to be one of the object's; null counts as absent.
    fn get(&self, name: &'static str) -> Option<&'n Node> {
        debug_assert!(self.fields.names().any(|known| known == name), "{name} is no field");
        self.node.get(name)
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// Whether an exception may be called so: a name of an object may have it inside.
#[must_use]
pub fn is_exception_id(text: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inside = |text: &str| text.bytes().all(|b| is_letter(b) || b == b'-');
    text.len() <= MAX_ID && inside(text) && text.trim_matches('-') == text && !text.is_empty()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests;
