//! One request: permission, faults, list, watch, reviews.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Fault, Forward, NoStreaming, Shared, State,
    forward::relay,
    http::{self, Request},
    store::{Logged, RESOURCES, Resource},
};

/// Objects per page, whatever the client asks for: real servers may send fewer, too.
const LARGEST_PAGE: usize = 500;

pub(crate) fn status(code: u16, reason: &str, message: &str) -> Vec<u8> {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
    .to_string()
    .into_bytes()
}

pub(crate) fn connection(stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let Some(request) = http::read(&stream)? else { return Ok(()) };
    let mut state = shared.lock();
    state.requests.push(format!("{} {}", request.method, request.target));
    if let Some(tokens) = &state.manners.tokens {
        let token = request.headers.get("authorization").and_then(|a| a.strip_prefix("Bearer "));
        if !token.is_some_and(|t| tokens.contains(t)) {
            drop(state);
            return http::answer(&stream, 401, "", &status(401, "Unauthorized", "Unauthorized"));
        }
    }
    if request.method == "POST" {
        let answer = review(&state, &request);
        drop(state);
        return match answer {
            Some(body) => http::answer(&stream, 201, "", body.to_string().as_bytes()),
            None => http::answer(&stream, 404, "", b"404 page not found\n"),
        };
    }
    if request.method == "DELETE" {
        let (code, body) = delete(&mut state, &request);
        drop(state);
        shared.notify();
        return http::answer(&stream, code, "", &body);
    }
    if let Some((namespace, pod)) = forwarded(&request) {
        return port_forward(&stream, state, &request, namespace, pod, shared);
    }
    if let Some(document) = state.manners.documents.get(&request.path) {
        let body = document.to_string();
        drop(state);
        return http::answer(&stream, 200, "", body.as_bytes());
    }
    let Some((resource, namespace)) = collection(&request.path) else {
        drop(state);
        return http::answer(&stream, 404, "", b"404 page not found\n");
    };
    let watch = request.query.contains_key("watch");
    let verb = if watch { "watch" } else { "list" };
    if let Some(message) = forbidden(&state, verb, resource.plural, resource.group, namespace, None) {
        drop(state);
        return http::answer(&stream, 403, "", &status(403, "Forbidden", &message));
    }
    let is_later_page = request.query.contains_key("continue");
    let applies = |fault: &mut Fault| *fault != Fault::ExpiredPage || is_later_page;
    let fault = state.faults.get_mut(resource.plural).and_then(|faults| faults.pop_front_if(applies));
    match &fault {
        Some(Fault::ExpiredPage) => {
            drop(state);
            return http::answer(
                &stream,
                410,
                "",
                &status(410, "Expired", "The provided continue parameter is too old"),
            );
        }
        Some(Fault::Disconnect) => return Ok(()),
        Some(Fault::Status { code, retry_after }) => {
            drop(state);
            let extra = retry_after.map_or_else(String::new, |s| format!("Retry-After: {s}\r\n"));
            return http::answer(&stream, *code, &extra, &status(*code, "Misbehaving", "as asked"));
        }
        _ => {}
    }
    if !watch {
        let body = list(&mut state, resource, &request);
        drop(state);
        return http::answer(&stream, body.0, "", &body.1);
    }
    let streams_list = request.query.contains_key("sendInitialEvents");
    let no_streaming = state.manners.no_streaming.get(resource.plural).copied().filter(|_| streams_list);
    drop(state);
    match no_streaming {
        None => Watch::new(&stream, shared, resource, &request, fault).run(),
        Some(NoStreaming::Status(code)) => {
            let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            http::answer(&stream, code, "", &status(code, "Invalid", message))
        }
        Some(NoStreaming::Event(code)) => {
            http::begin_stream(&stream)?;
            error_event(&stream, code, "InternalError", "etcd cluster does not support progress notifications")
        }
        Some(NoStreaming::Cut) => {
            http::begin_stream(&stream)?;
            http::end_stream(&stream)
        }
    }
}

/// Ends a stream with an ERROR event.
fn error_event(stream: &TcpStream, code: u16, reason: &str, message: &str) -> io::Result<()> {
    let object: Value = serde_json::from_slice(&status(code, reason, message))?;
    http::chunk(stream, format!("{}\n", json!({"type": "ERROR", "object": object})).as_bytes())?;
    http::end_stream(stream)
}

/// The resource of a collection's path, and its namespace if it is that of one.
fn collection(path: &str) -> Option<(Resource, Option<&str>)> {
    RESOURCES.into_iter().find_map(|resource| {
        let whole = resource.path();
        if path == whole {
            return Some((resource, None));
        }
        let root = whole.strip_suffix(resource.plural)?;
        let namespace = path.strip_prefix(root)?.strip_prefix("namespaces/")?.strip_suffix(resource.plural)?;
        Some((resource, Some(namespace.strip_suffix('/').filter(|n| !n.contains('/'))?)))
    })
}

/// Deletes one object of a namespace, if it is the one that the request means.
fn delete(state: &mut State, request: &Request) -> (u16, Vec<u8>) {
    let not_found = || (404, status(404, "NotFound", "not found"));
    let Some((path, name)) = request.path.rsplit_once('/') else { return not_found() };
    let Some((resource, Some(namespace))) = collection(path) else { return not_found() };
    if let Some(message) = forbidden(state, "delete", resource.plural, resource.group, Some(namespace), None) {
        return (403, status(403, "Forbidden", &message));
    }
    let key = (namespace.to_owned(), name.to_owned());
    let items = state.store.collections.get(resource.plural).map(|collection| &collection.items);
    let Some(object) = items.and_then(|items| items.get(&key)) else { return not_found() };
    let options: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let differs = |field: &str| {
        let wanted = &options["preconditions"][field];
        !wanted.is_null() && *wanted != object["metadata"][field]
    };
    if differs("uid") || differs("resourceVersion") {
        return (409, status(409, "Conflict", "the object has been modified"));
    }
    state.store.delete(resource.plural, namespace, name);
    (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}).to_string().into_bytes())
}

/// Namespace and name of the pod of a port-forward.
fn forwarded(request: &Request) -> Option<(&str, &str)> {
    let path = request.path.strip_prefix("/api/v1/namespaces/")?.strip_suffix("/portforward")?;
    path.split_once("/pods/")
}

/// What the server says if RBAC does not permit it.
fn forbidden(
    state: &State,
    verb: &str,
    resource: &str,
    group: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Option<String> {
    let rule = (verb.to_owned(), resource.to_owned());
    let granted = state.manners.granted.as_ref();
    let permitted = granted.is_none_or(|(inside, rules)| namespace == Some(inside) && rules.contains(&rule));
    if permitted && !state.manners.denied.contains(&rule) {
        return None;
    }
    let place = namespace.map_or("at the cluster scope".to_owned(), |n| format!("in the namespace \"{n}\""));
    let what = name.map_or(resource.to_owned(), |name| format!("pods \"{name}\""));
    Some(format!(
        "{what} is forbidden: User \"system:serviceaccount:guardrail:guardrail-agent\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}"
    ))
}

fn port_forward(
    stream: &TcpStream,
    state: MutexGuard<'_, State>,
    request: &Request,
    namespace: &str,
    pod: &str,
    shared: &Shared,
) -> io::Result<()> {
    // A websocket is a GET, and since 1.35 the server asks for `create` as well.
    let refused = ["get", "create"]
        .into_iter()
        .find_map(|verb| forbidden(&state, verb, "pods/portforward", "", Some(namespace), Some(pod)));
    let forward = state.forwards.get(&(namespace.to_owned(), pod.to_owned())).cloned();
    drop(state);
    if let Some(message) = refused {
        return http::answer(stream, 403, "", &status(403, "Forbidden", &message));
    }
    match forward.as_deref() {
        None => http::answer(stream, 404, "", &status(404, "NotFound", &format!("pods \"{pod}\" not found"))),
        Some(Forward::Status(code, message)) => http::answer(stream, *code, "", &status(*code, "Misbehaving", message)),
        Some(Forward::Silence) => silence(stream, shared),
        Some(Forward::To(connect)) => relay(stream, request, pod, connect),
    }
}

/// Nothing until the client gives up; its closing shows as an end of input.
fn silence(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    while !shared.stopped() {
        match stream.read(&mut [0]) {
            Ok(_) => break,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn selects(request: &Request, object: &Value) -> bool {
    let namespace = collection(&request.path).and_then(|(_, namespace)| namespace);
    let labels = request.query.get("labelSelector").map_or("", String::as_str).split(',').filter(|l| !l.is_empty());
    let labelled = |label: &str| {
        let own = |key: &str| &object["metadata"]["labels"][key];
        match label.split_once('=') {
            Some((key, value)) => own(key) == value,
            // The label alone: whatever its value.
            None => !own(label).is_null(),
        }
    };
    if namespace.is_some_and(|n| object["metadata"]["namespace"] != n) || !labels.into_iter().all(labelled) {
        return false;
    }
    match request.query.get("fieldSelector").and_then(|s| s.strip_prefix("spec.nodeName=")) {
        Some(node) => object["spec"]["nodeName"].as_str() == Some(node),
        None => true,
    }
}

/// The form that the client asked for.
fn shaped(request: &Request, object: &Value) -> Value {
    if request.headers.get("accept").is_some_and(|a| a.contains("as=PartialObjectMetadata")) {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
    } else {
        object.clone()
    }
}

fn list(state: &mut State, resource: Resource, request: &Request) -> (u16, Vec<u8>) {
    let collection = state.store.collections.entry(resource.plural.to_owned()).or_default();
    let limit = request.query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE);
    let (version, offset) = match request.query.get("continue") {
        None => {
            let items = collection.items.values().filter(|o| selects(request, o)).cloned().collect();
            collection.pages.insert(collection.version, items);
            (collection.version, 0)
        }
        Some(token) => {
            // The characters are those that a client must escape.
            let parsed = token
                .strip_prefix("+/=&")
                .and_then(|t| t.split_once(':'))
                .and_then(|(v, o)| Some((v.parse().ok()?, o.parse().ok()?)));
            match parsed {
                Some((version, offset)) if version >= collection.compacted => (version, offset),
                Some(_) => return (410, status(410, "Expired", "The provided continue parameter is too old")),
                None => return (400, status(400, "BadRequest", "continue key is not valid")),
            }
        }
    };
    let items = collection.pages.get(&version).map(Vec::as_slice).unwrap_or_default();
    let page = &items[offset.min(items.len())..(offset + limit).min(items.len())];
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if offset + limit < items.len() {
        metadata["continue"] = format!("+/=&{version}:{}", offset + limit).into();
    }
    let page: Vec<Value> = page
        .iter()
        .map(|o| {
            let mut object = shaped(request, o);
            // Lists of one kind do not repeat it in their items.
            if object["kind"] != "PartialObjectMetadata"
                && let Some(map) = object.as_object_mut()
            {
                map.remove("kind");
                map.remove("apiVersion");
            }
            object
        })
        .collect();
    let body = json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": metadata, "items": page});
    (200, body.to_string().into_bytes())
}

struct Watch<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    resource: Resource,
    request: &'a Request,
    fault: Option<Fault>,
    sent: usize,
}

/// Whether the stream goes on.
enum Next {
    Go,
    End,
}

impl<'a> Watch<'a> {
    fn new(
        stream: &'a TcpStream,
        shared: &'a Shared,
        resource: Resource,
        request: &'a Request,
        fault: Option<Fault>,
    ) -> Self {
        Self { stream, shared, resource, request, fault, sent: 0 }
    }

    fn run(mut self) -> io::Result<()> {
        http::begin_stream(self.stream)?;
        let seconds = self.request.query.get("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(60);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let from: Option<u64> = self.request.query.get("resourceVersion").and_then(|v| v.parse().ok());
        let state = self.shared.lock();
        let epoch = state.store.epoch;
        let collection = &state.store.collections[self.resource.plural];
        let expired = self.fault == Some(Fault::Expired) || from.is_some_and(|v| v < collection.compacted);
        // Events up to here are in the list, or have been seen by the client.
        let mut at =
            collection.log.iter().position(|l| from.is_some_and(|v| l.version > v)).unwrap_or(collection.log.len());
        let version = collection.version;
        let initial: Option<Vec<Value>> = self
            .request
            .query
            .contains_key("sendInitialEvents")
            .then(|| collection.items.values().filter(|o| selects(self.request, o)).cloned().collect());
        drop(state);
        if expired {
            return error_event(self.stream, 410, "Expired", "too old resource version: 1 (1047)");
        }
        if let Some(objects) = initial {
            for object in objects {
                if let Next::End = self.send(&json!({"type": "ADDED", "object": shaped(self.request, &object)}))? {
                    return Ok(());
                }
            }
            if let Next::End = self.send(&self.bookmark(version, true))? {
                return Ok(());
            }
        }
        let mut spoke = Instant::now();
        loop {
            let mut state = self.shared.lock();
            if state.store.epoch != epoch || self.shared.stopped() {
                return http::end_stream(self.stream);
            }
            let collection = &state.store.collections[self.resource.plural];
            let events: Vec<Logged> = collection.log.get(at..).unwrap_or_default().to_vec();
            let version = collection.version;
            if events.is_empty() {
                if Instant::now() >= deadline {
                    drop(state);
                    http::chunk(self.stream, format!("{}\n", self.bookmark(version, false)).as_bytes())?;
                    return http::end_stream(self.stream);
                }
                if self.fault.is_none() && spoke.elapsed() >= state.manners.bookmarks {
                    spoke = Instant::now();
                    drop(state);
                    http::chunk(self.stream, format!("{}\n", self.bookmark(version, false)).as_bytes())?;
                    continue;
                }
                *state.idle.entry(self.resource.plural.to_owned()).or_default() += 1;
                let mut state = self.shared.wait(state, Duration::from_millis(50));
                *state.idle.entry(self.resource.plural.to_owned()).or_default() -= 1;
                continue;
            }
            at += events.len();
            let (duplicates, reorder) = (state.manners.duplicates, state.manners.reorder);
            drop(state);
            if let Next::End = self.send_all(events, duplicates, reorder)? {
                return Ok(());
            }
        }
    }

    fn send_all(&mut self, mut events: Vec<Logged>, duplicates: bool, reorder: bool) -> io::Result<Next> {
        if reorder {
            events.chunks_mut(2).for_each(<[Logged]>::reverse);
        }
        for logged in events {
            let object = &logged.event["object"];
            let bookmark = logged.event["type"] == "BOOKMARK";
            if !bookmark && !selects(self.request, object) {
                continue;
            }
            let event = json!({"type": logged.event["type"], "object": if bookmark { object.clone() } else { shaped(self.request, object) }});
            for _ in 0..=usize::from(duplicates) {
                if let Next::End = self.send(&event)? {
                    return Ok(Next::End);
                }
            }
        }
        Ok(Next::Go)
    }

    fn bookmark(&self, version: u64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"type": "BOOKMARK", "object": {"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata}})
    }

    /// Sends one event, or what the fault makes of it.
    fn send(&mut self, event: &Value) -> io::Result<Next> {
        let line = format!("{event}\n");
        match self.fault {
            Some(Fault::CutMidObject { after }) if self.sent >= after => {
                http::chunk(self.stream, &line.as_bytes()[..line.len() / 2])?;
                return Ok(Next::End);
            }
            Some(Fault::Garbage { after }) if self.sent == after => {
                self.sent += 1;
                http::chunk(self.stream, b"<html>bad gateway</html>\n")?;
                return Ok(Next::Go);
            }
            Some(Fault::Stall { after }) if self.sent >= after => {
                silence(self.stream, self.shared)?;
                return Ok(Next::End);
            }
            _ => {}
        }
        self.sent += 1;
        http::chunk(self.stream, line.as_bytes())?;
        Ok(Next::Go)
    }
}

/// TokenReview and SubjectAccessReview.
fn review(state: &State, request: &Request) -> Option<Value> {
    let mut review: Value = serde_json::from_slice(&request.body).ok()?;
    let manners = &state.manners;
    match request.path.as_str() {
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let user = review["spec"]["token"].as_str().and_then(|t| manners.users.get(t));
            let asked = review["spec"]["audiences"].as_array().cloned().unwrap_or_default();
            let audience = asked.is_empty() || asked.iter().any(|a| a == manners.audience.as_str());
            review["status"] = match user {
                Some(user) if audience || manners.no_audiences => {
                    let mut status = json!({"authenticated": true, "user": {"username": user, "uid": "u", "groups": ["system:authenticated"]}});
                    if !manners.no_audiences {
                        status["audiences"] = json!([manners.audience]);
                    }
                    status
                }
                _ => json!({"authenticated": false, "error": "invalid bearer token", "user": {}}),
            };
        }
        "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
            let spec = &review["spec"];
            let user = spec["user"].as_str().unwrap_or_default().to_owned();
            let path = spec["nonResourceAttributes"]["path"].as_str().unwrap_or_default().to_owned();
            let get = spec["nonResourceAttributes"]["verb"] == "get";
            let groups = spec["groups"].as_array().is_some_and(|g| !g.is_empty());
            review["status"] = json!({"allowed": get && groups && manners.allowed.contains(&(user, path))});
        }
        _ => return None,
    }
    Some(review)
}
