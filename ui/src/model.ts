// What the page shows of a document under a view. Pure: no DOM.

import type { Edge, Page, Peer } from "./document";
import type { View } from "./view";

/** More boxes than this, and namespaces start folded. */
export const FOLD_ABOVE = 40;

const DAY = 24 * 60 * 60 * 1000;
/** Groups of what lies outside of every namespace. */
export const OUTSIDE = "outside";
export const NODES = "nodes";

/** A box: a workload, a node, or external peers of one name. */
export interface Box {
  id: string;
  label: string;
  /** Id of its group. */
  group: string;
  /** Indices in `page.peers`. */
  peers: number[];
}

export interface Group {
  id: string;
  label: string;
  boxes: string[];
}

export interface Line {
  id: string;
  edge: Edge;
  client: string;
  server: string;
}

export interface Model {
  page: Page;
  boxes: Map<string, Box>;
  groups: Map<string, Group>;
  lines: Map<string, Line>;
  /** Whether groups are folded before anybody touched them. */
  folded: boolean;
}

/** Characters that turn the direction of writing, or cannot be seen, are shown as what they are. */
export function plain(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
}

export function boxId(peer: Peer): string {
  switch (peer.kind) {
    case "Workload":
      return `${peer.namespace}/${peer.owner}/${peer.name}`;
    case "Node":
      return `node/${peer.name}`;
    case "External":
      return `external/${peer.names?.[0] ?? peer.address}`;
  }
}

const IN_NAMESPACE = "ns/";

/** The namespace that a group is; `undefined`: nodes, or what lies outside. */
export function namespaceOf(group: string): string | undefined {
  return group.startsWith(IN_NAMESPACE) ? group.slice(IN_NAMESPACE.length) : undefined;
}

function groupId(peer: Peer): string {
  if (peer.kind === "Workload") return IN_NAMESPACE + peer.namespace;
  return peer.kind === "Node" ? NODES : OUTSIDE;
}

export function model(page: Page): Model {
  const boxes = new Map<string, Box>();
  const groups = new Map<string, Group>();
  const kinds = new Map<string, Set<string>>();
  for (const peer of page.peers) {
    if (peer.kind !== "Workload") continue;
    const key = `${peer.namespace}/${peer.name}`;
    kinds.set(key, (kinds.get(key) ?? new Set()).add(peer.owner ?? ""));
  }
  const label = (peer: Peer): string => {
    if (peer.kind === "External") {
      return plain(peer.names?.[0] ?? (peer.address === "*" ? "many addresses" : (peer.address ?? "")));
    }
    const shared = (kinds.get(`${peer.namespace}/${peer.name}`)?.size ?? 0) > 1;
    return plain(peer.name ?? "") + (peer.kind === "Workload" && shared ? ` (${plain(peer.owner ?? "")})` : "");
  };
  page.peers.forEach((peer, index) => {
    const id = boxId(peer);
    const box = boxes.get(id);
    if (box) {
      box.peers.push(index);
      return;
    }
    const group = groupId(peer);
    boxes.set(id, { id, label: label(peer), group, peers: [index] });
    const names: Record<string, string> = { [OUTSIDE]: "outside the cluster", [NODES]: "nodes" };
    const entry = groups.get(group) ?? {
      id: group,
      label: names[group] ?? plain(peer.namespace ?? ""),
      boxes: [],
    };
    entry.boxes.push(id);
    groups.set(group, entry);
  });
  const lines = new Map<string, Line>();
  for (const edge of page.edges) {
    const [client, server] = [page.peers[edge.client], page.peers[edge.server]];
    if (!client || !server) continue;
    // Addresses of one name are one box, and each keeps its own line.
    const address = server.kind === "External" ? server.address : client.kind === "External" ? client.address : "";
    const id = `${boxId(client)}->${boxId(server)}:${edge.port}/${edge.protocol}${address ? `@${address}` : ""}`;
    // An address that some clients had further names for has several peers.
    const unique = lines.has(id) ? `${id}#${edge.client}-${edge.server}` : id;
    lines.set(unique, { id: unique, edge, client: boxId(client), server: boxId(server) });
  }
  return { page, boxes, groups, lines, folded: boxes.size > FOLD_ABOVE };
}

export function isFolded(model: Model, view: View, group: string): boolean {
  return view.toggled.includes(group) !== model.folded;
}

export function failed(edge: Edge): number {
  return edge.refused + edge.unanswered + edge.unreachable;
}

/** A bound of time; a date means its first instant, or as an end its last. */
function instant(text: string, end: boolean): number | undefined {
  if (text === "") return undefined;
  const isDate = /^\d{4}-\d{2}-\d{2}$/.test(text);
  const at = Date.parse(isDate ? `${text}T00:00:00Z` : text);
  if (Number.isNaN(at)) return undefined;
  return isDate && end ? at + DAY - 1 : at;
}

/**
 * Whether an edge is new: first seen since the chosen begin, or else in the last day. What was seen
 * in the first hour of the observation is not: it may have been there before.
 */
export function isNew(page: Page, view: View, edge: Edge): boolean {
  const first = Date.parse(edge.first_seen);
  const since = instant(view.since, false);
  if (since !== undefined) return first >= since;
  if (page.from === null || page.to === null) return false;
  return first >= Date.parse(page.to) - DAY && first >= Date.parse(page.from) + DAY / 24;
}

function matches(model: Model, line: Line, words: string[]): boolean {
  const { edge } = line;
  const text = [
    line.client,
    line.server,
    ...(model.page.peers[edge.client]?.names ?? []),
    ...(model.page.peers[edge.server]?.names ?? []),
    model.page.peers[edge.client]?.address ?? "",
    model.page.peers[edge.server]?.address ?? "",
    ...edge.via,
    ...(edge.node_workloads ?? []),
    `${edge.port}/${edge.protocol}`,
    edge.port_name ?? "",
    ...edge.marks,
  ]
    .join("\n")
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The edges that the view lets through, in the document's order. */
export function shown(model: Model, view: View): Line[] {
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  const [since, until] = [instant(view.since, false), instant(view.until, true)];
  const [port, protocol] = view.port.toUpperCase().split("/");
  return [...model.lines.values()].filter((line) => {
    const { edge } = line;
    const ends = [model.boxes.get(line.client)?.group, model.boxes.get(line.server)?.group];
    if (view.namespace && !ends.includes(IN_NAMESPACE + view.namespace)) return false;
    if (port && String(edge.port) !== port) return false;
    if (protocol && edge.protocol.toUpperCase() !== protocol) return false;
    if (since !== undefined && Date.parse(edge.last_seen) < since) return false;
    if (until !== undefined && Date.parse(edge.first_seen) > until) return false;
    if (view.state === "supported" && !edge.supported) return false;
    if (view.state === "failed" && failed(edge) === 0) return false;
    if (view.state === "new" && !isNew(model.page, view, edge)) return false;
    if (view.state === "denied" && edge.verdict?.verdict !== "denied") return false;
    if (view.state === "tunnel" && !edge.marks.includes("tunnel")) return false;
    return words.length === 0 || matches(model, line, words);
  });
}

/** An arrow of the picture: the lines of one pair of boxes, or of folded groups. */
export interface Arrow {
  id: string;
  from: string;
  to: string;
  ports: string[];
  lines: Line[];
  supported: boolean;
  /** The policies in force deny one of them. */
  denied: boolean;
}

export interface Picture {
  /** Open groups, drawn around their boxes. */
  frames: Group[];
  /** Folded groups, drawn as one box, with how many boxes they hold. */
  folded: Group[];
  boxes: Box[];
  arrows: Arrow[];
}

/** What is drawn of the lines that the view lets through: boxes without a line only while nothing is filtered. */
export function picture(model: Model, view: View, lines: Line[] = shown(model, view)): Picture {
  const filtered = lines.length < model.lines.size || view.search !== "" || view.namespace !== "";
  const touched = new Set(lines.flatMap((line) => [line.client, line.server]));
  const frames: Group[] = [];
  const folded: Group[] = [];
  const boxes: Box[] = [];
  const drawnAs = new Map<string, string>();
  for (const group of model.groups.values()) {
    const inside = group.boxes.filter((id) => !filtered || touched.has(id));
    if (inside.length === 0) continue;
    const closed = isFolded(model, view, group.id);
    (closed ? folded : frames).push({ ...group, boxes: inside });
    for (const id of inside) {
      drawnAs.set(id, closed ? group.id : id);
      const box = model.boxes.get(id);
      if (!closed && box) boxes.push(box);
    }
  }
  const arrows = new Map<string, Arrow>();
  for (const line of lines) {
    const [from, to] = [drawnAs.get(line.client), drawnAs.get(line.server)];
    // What stays inside a folded group is not seen from outside.
    if (from === undefined || to === undefined || (from === to && model.groups.has(from))) continue;
    const id = `${from}->${to}`;
    const arrow = arrows.get(id) ?? { id, from, to, ports: [], lines: [], supported: false, denied: false };
    const port = `${line.edge.port}/${line.edge.protocol}`;
    if (!arrow.ports.includes(port)) arrow.ports.push(port);
    arrow.lines.push(line);
    arrow.supported ||= line.edge.supported;
    arrow.denied ||= line.edge.verdict?.verdict === "denied";
    arrows.set(id, arrow);
  }
  return { frames, folded, boxes, arrows: [...arrows.values()] };
}

/** The ports of an arrow, so that its label stays short. */
export function portsInWords(ports: string[]): string {
  const short = ports.map((port) => port.replace(/\/TCP$/, ""));
  return short.length > 3 ? `${short.slice(0, 2).join(", ")} +${short.length - 2}` : short.join(", ");
}
