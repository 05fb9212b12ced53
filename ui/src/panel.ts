// What is known of the edge or the workload that is looked at.

import type { Edge, Peer, VerdictSide } from "./document";
import { button, element } from "./dom";
import { failed, namespaceOf, plain, type Box, type Line, type Model } from "./model";

export type Select = (id: string) => void;

export function time(text: string): string {
  return text.replace("T", " ").replace(/(\.\d+)?Z$/, " UTC");
}

export function port(edge: Edge): string {
  return `${edge.port}/${edge.protocol}${edge.port_name ? ` ${plain(edge.port_name)}` : ""}`;
}

function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** A name that stands alone: with its namespace or kind. */
export function fullName(model: Model, id: string): string {
  const box = model.boxes.get(id);
  if (!box) return plain(id);
  const namespace = namespaceOf(box.group);
  if (namespace !== undefined) return `${plain(namespace)}/${box.label}`;
  return box.group === "nodes" ? `node ${box.label}` : `${box.label} (outside)`;
}

function facts(rows: [string, Node | string][]): HTMLElement {
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", {}, name), element("dd", {}, value));
  return list;
}

function peerInWords(peer: Peer | undefined, whole: string): string {
  if (peer?.kind !== "External") return whole;
  const names = (peer.names ?? []).map(plain).join(", ");
  return names ? `${names} at ${peer.address}` : (peer.address ?? "");
}

/** What the policies in force say at one end. */
function sideInWords(side: VerdictSide): string {
  const by = (side.by ?? []).map(plain).join(", ");
  switch (side.state) {
    case "open":
      return "no policy isolates it";
    case "allowed":
      return `allowed by ${by}`;
    case "denied":
      return by.includes("#") ? `denied by ${by}` : `denied: no rule of ${by} accepts it`;
    case "unproven":
      return "cannot be told";
  }
}

function edgePanel(model: Model, line: Line, select: Select): Node[] {
  const { edge } = line;
  const end = (id: string, index: number): Node =>
    button(peerInWords(model.page.peers[index], fullName(model, id)), () => select(id), { class: "link" });
  const count = (number: number): string => number.toLocaleString("en");
  const udp = edge.protocol === "UDP";
  const rows: [string, Node | string][] = [
    ["Client", end(line.client, edge.client)],
    ["Server", end(line.server, edge.server)],
    ["Port", port(edge)],
    [udp ? "Datagrams sent" : "Connections opened", count(edge.opened)],
    ["Open when watching began", count(edge.found)],
    ...(edge.open ? [["Open since an earlier day", count(edge.open)] as [string, string]] : []),
    ["Failed", failed(edge) === 0 ? "none" : `${edge.refused} refused, ${edge.unanswered} unanswered, ${edge.unreachable} unreachable`],
    ...(edge.broken ? [["Broke off", `${count(edge.broken)} timed out after they were established`] as [string, string]] : []),
    ["Sent, received", `${bytes(edge.bytes_sent)}, ${bytes(edge.bytes_received)}`],
    ["First seen", time(edge.first_seen)],
    ["Last seen", time(edge.last_seen)],
    ["Seen by", edge.seen_by.join(" and ") || "neither end itself"],
    ["Via", edge.via.map(plain).join(", ") || "its own address"],
    ["Marks", edge.marks.map(plain).join(", ") || "none"],
    ["Supports a rule", edge.supported ? "yes" : "no: nothing was established"],
  ];
  const { verdict } = edge;
  if (verdict) {
    rows.push(["Policies in force", `${verdict.verdict}${verdict.reason ? `: ${plain(verdict.reason)}` : ""}`]);
    rows.push(["At the client (egress)", sideInWords(verdict.egress)], ["At the server (ingress)", sideInWords(verdict.ingress)]);
  }
  if (edge.after_default_deny !== undefined) {
    rows.push(["Under default-deny", edge.after_default_deny ? "would pass" : "would be denied"]);
  }
  if (edge.node_workloads?.length) rows.push(["Workloads on the node", edge.node_workloads.map(plain).join(", ")]);
  return [element("h2", {}, "Edge"), facts(rows)];
}

/** Lines as buttons that select them; `ends` says who is at them. */
function lineList(lines: Line[], ends: (line: Line) => string, select: Select): HTMLElement {
  const list = element("ul", { class: "lines" });
  for (const line of lines) {
    const label = `${ends(line)} · ${port(line.edge)}`;
    const bad = line.edge.supported ? "" : " · only failed";
    list.append(element("li", {}, button(label + bad, () => select(line.id), { class: "link", "data-line": line.id })));
  }
  return list;
}

function otherEnds(model: Model, lines: Line[], other: "client" | "server", select: Select): Node {
  if (lines.length === 0) return element("p", {}, "nobody in this view");
  return lineList(lines, (line) => fullName(model, line[other]), select);
}

/** What default-deny would do to a workload's callers: of all that was seen, whatever the filters. */
function defaultDeny(model: Model, box: Box, select: Select): Node[] {
  const { default_deny: preview } = model.page;
  if (!preview) return [];
  const calls = [...model.lines.values()].filter((line) => line.server === box.id);
  const denied = calls.filter((line) => line.edge.after_default_deny === false);
  const stopped = preview.stopped[namespaceOf(box.group) ?? ""] ?? [];
  const made: Node[] = [element("h3", {}, "Under default-deny")];
  if (stopped.length > 0) {
    made.push(element("p", {}, "It cannot be written for this namespace yet:"));
    made.push(element("ul", {}, ...stopped.map((message) => element("li", {}, plain(message)))));
    return made;
  }
  const passing = calls.length - denied.length;
  made.push(element("p", {}, `${passing} of ${calls.length} edges to it would pass, nobody else.`));
  if (denied.length > 0) made.push(element("p", {}, "It would deny:"), lineList(denied, (line) => fullName(model, line.client), select));
  return made;
}

function boxPanel(model: Model, lines: Line[], box: Box, select: Select): Node[] {
  const peers = box.peers.flatMap((index) => model.page.peers[index] ?? []);
  const about = peers.find((peer) => peer.about)?.about;
  const rows: [string, Node | string][] = [];
  const kind = peers[0]?.kind;
  if (kind === "Workload") rows.push(["Kind", plain(peers[0]?.owner ?? "")], ["Namespace", plain(peers[0]?.namespace ?? "")]);
  if (kind === "External") {
    const addresses = [...new Set(peers.map((peer) => peer.address ?? ""))];
    rows.push(["Addresses", addresses.slice(0, 20).join(", ") + (addresses.length > 20 ? ` and ${addresses.length - 20} more` : "")]);
  }
  if (about) {
    rows.push(["Pods", `${about.pods} on ${about.nodes} node${about.nodes === 1 ? "" : "s"}`]);
    const labels = Object.entries(about.labels).map(([key, value]) => `${plain(key)}=${plain(value)}`);
    rows.push(["Labels", labels.join(", ") || "none in common"]);
    if (about.host_network) rows.push(["Network", "its node's: policies do not apply to it"]);
    if (about.selector_advice) rows.push(["Selector", plain(about.selector_advice)]);
  }
  if (kind === "Workload") {
    const reasons = [...new Set(peers.flatMap((peer) => peer.incomplete ?? []))];
    const nodes = model.page.incomplete.length > 0 ? "no reason of its own; see the note above" : "complete";
    rows.push(["Coverage", reasons.length > 0 ? `incomplete: ${reasons.map(plain).join(", ")}` : nodes]);
  }
  const policies = peers.find((peer) => peer.policies)?.policies;
  if (policies) {
    const direction = (isolated: number, by: string[]): string =>
      isolated === 0 ? "open" : `${isolated} of ${policies.pods} pods isolated, by ${by.map(plain).join(", ")}`;
    rows.push(["Policies, ingress", direction(policies.ingress_isolated, policies.ingress)]);
    rows.push(["Policies, egress", direction(policies.egress_isolated, policies.egress)]);
  }
  const callers = lines.filter((line) => line.server === box.id);
  const callees = lines.filter((line) => line.client === box.id);
  return [
    element("h2", {}, fullName(model, box.id)),
    facts(rows),
    ...(kind === "Workload" ? defaultDeny(model, box, select) : []),
    element("h3", {}, `Called by (${callers.length})`),
    otherEnds(model, callers, "client", select),
    element("h3", {}, `Calls (${callees.length})`),
    otherEnds(model, callees, "server", select),
  ];
}

/** What is known of what is selected, among the lines that the view lets through. */
export function panel(model: Model, lines: Line[], selected: string, select: Select): Node[] {
  const line = model.lines.get(selected);
  if (line) return edgePanel(model, line, select);
  const box = model.boxes.get(selected);
  if (box) return boxPanel(model, lines, box, select);
  const [from, to] = selected.split("->");
  const between = lines.filter((line) => {
    const is = (id: string, end: string | undefined): boolean => id === end || model.boxes.get(id)?.group === end;
    return is(line.client, from) && is(line.server, to);
  });
  if (to !== undefined && between.length > 0) {
    return [element("h2", {}, `${between.length} edges of this arrow`), everyLine(model, between, select)];
  }
  return [];
}

export function everyLine(model: Model, lines: Line[], select: Select): Node {
  return lineList(lines, (line) => `${fullName(model, line.client)} → ${fullName(model, line.server)}`, select);
}
