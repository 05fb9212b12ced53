// What the commands answer about policies, as tables: status, drift, blocked, exceptions.

import type { BlockedAttempts, Gate, NamespaceStatus, Page, SideInForce, Wanted } from "./document";
import { button, element } from "./dom";
import { plain } from "./model";
import { time } from "./panel";
import type { Tab } from "./view";

/** The views that a document has something for. */
export function tabsOf(page: Page): Tab[] {
  const tabs: Tab[] = ["graph"];
  if (page.status) tabs.push("status");
  if (page.drift) tabs.push("drift");
  if (page.blocked) tabs.push("blocked");
  if (page.environment !== undefined) tabs.push("exceptions");
  return tabs;
}

/** How many things want attention; `undefined`: none. */
export function count(page: Page, tab: Tab): number | undefined {
  const of: Record<Tab, number> = {
    graph: 0,
    status: page.environment === undefined ? 0 : (page.status ?? []).filter((one) => !one.as_wanted).length,
    drift: page.drift?.findings.length ?? 0,
    blocked: page.blocked?.length ?? 0,
    exceptions: exceptions(page).length,
  };
  return of[tab] || undefined;
}

function wanted(step: Wanted | null): string {
  return step === null ? "" : `${step.phase}${step.egress ? ", egress" : ""}`;
}

function table(label: string, heads: string[], rows: (Node | string)[][]): HTMLElement {
  // On a narrow screen each row becomes a block, where a table would lose its roles.
  const head = element("tr", { role: "row" }, ...heads.map((name) => element("th", { scope: "col", role: "columnheader" }, name)));
  const body = rows.map((cells) => {
    const [first, ...rest] = cells;
    const others = rest.map((cell, index) => element("td", { role: "cell", "data-head": heads[index + 1] ?? "" }, cell));
    return element("tr", { role: "row" }, element("th", { scope: "row", role: "rowheader" }, first), ...others);
  });
  const parts = [element("thead", { role: "rowgroup" }, head), element("tbody", { role: "rowgroup" }, ...body)];
  return element("table", { role: "table", "aria-label": label }, ...parts);
}

function texts(messages: string[]): HTMLElement {
  return element("ul", {}, ...messages.map((message) => element("li", {}, plain(message))));
}

function isolated(side: SideInForce, pods: number): string {
  return side.isolated === 0 ? "open" : `${side.isolated} of ${pods} pods isolated`;
}

function gate(one: Gate): HTMLElement {
  const bar = element("meter", {
    min: "0", max: "100", low: "99.5", high: "99.5", optimum: "100", value: String(one.percent),
    "aria-label": `${one.name}: ${one.is}, needs ${one.needs}`,
  });
  return element("div", { class: "gate" }, `${one.name} `, bar, ` ${one.is}; needs ${one.needs}`);
}

function backHeld(status: NamespaceStatus): HTMLElement {
  const gates = status.gates.map(gate);
  const messages = [...status.would_break, ...status.stopped_by];
  if (status.next === null) return element("div", {}, "nothing to do");
  const ready = status.gates.every((one) => one.passed) && messages.length === 0;
  return element("div", {}, ready && element("p", {}, "nothing holds it back"), ...gates, messages.length > 0 && texts(messages));
}

function statusView(page: Page): Node[] {
  const rows = (page.status ?? []).map((status) => {
    const { pods, ingress, egress } = status.in_force;
    const sensitive = status.sensitive.map((one) => `${one.workload.name}: ${one.closed} of ${one.pods} pods closed`);
    const now = status.denied_now.length;
    return [
      plain(status.namespace),
      ...(page.environment === undefined ? [] : [wanted(status.wanted)]),
      element(
        "div", {},
        status.wanted !== null && element("strong", { class: status.as_wanted ? "" : "bad" }, status.as_wanted ? "as wanted: " : "not as wanted: "),
        `${ingress.phase ?? "no pods"}; ingress ${isolated(ingress, pods)}, egress ${isolated(egress, pods)}`,
        sensitive.length > 0 && texts(sensitive),
      ),
      wanted(status.next) || "none",
      backHeld(status),
      element("div", {}, now > 0 ? texts(status.denied_now) : "none"),
    ];
  });
  const heads = ["Namespace", ...(page.environment === undefined ? [] : ["Wanted"]), "In force", "Next step", "What holds it back", "Flows denied now"];
  return [
    element("h2", {}, page.environment === undefined ? "Status" : `Status of ${plain(page.environment)}`),
    rows.length > 0 ? table("Status", heads, rows) : element("p", {}, "no namespace is known"),
  ];
}

function driftView(page: Page): Node[] {
  const { findings, not_looked_at: skipped } = page.drift ?? { findings: [], not_looked_at: [] };
  const rows = findings.map((one) => [one.rule, one.kind, plain(one.message)]);
  return [
    element("h2", {}, "Drift"),
    rows.length > 0 ? table("Drift", ["Rule", "Kind", "What"], rows) : element("p", {}, "traffic, policies and intent agree"),
    skipped.length > 0 && element("h3", {}, "Not looked at"),
    skipped.length > 0 && texts(skipped),
  ].filter((node) => node !== false);
}

/** Text in a shell's single quotes. */
function quoted(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** The command that says why, and writes an exception with an end. */
export function unblock(one: BlockedAttempts): string {
  const ends = `--from ${quoted(one.client)} --to ${quoted(one.server)} --port ${one.port}/${one.protocol}`;
  return `guardrail unblock SNAPSHOT --policies PATH ${ends}`;
}

function blockedView(page: Page): Node[] {
  const rows = (page.blocked ?? []).map((one) => {
    const command = unblock(one);
    const copy = button("Copy", () => void navigator.clipboard.writeText(command).then(() => (copy.textContent = "Copied")));
    copy.setAttribute("aria-label", `Copy the command for ${plain(one.flow)}`);
    const via = [...one.via, ...one.behind].map(plain).join(", ");
    return [
      plain(one.flow) + (via ? ` (${via})` : ""),
      element("div", {}, element("strong", { class: one.confidence === "certain" ? "bad" : "" }, one.confidence), one.because.length > 0 && texts(one.because)),
      `${one.attempts} ${one.outcome}, last ${time(one.last_attempt)}`,
      one.denied_by.map(plain).join(", "),
      element("div", {}, element("code", {}, plain(command)), " ", copy),
    ];
  });
  return [
    element("h2", {}, "Blocked"),
    element("p", {}, "Attempts that failed and that the policies in force deny."),
    rows.length > 0 ? table("Blocked", ["Flow", "How sure", "Attempts", "Denied by", "To unblock"], rows) : element("p", {}, "nothing blocked"),
  ];
}

/** Each exception once, by its end. */
function exceptions(page: Page): NamespaceStatus["exceptions"] {
  const all = new Map((page.status ?? []).flatMap((status) => status.exceptions.map((one) => [one.id, one] as const)));
  return [...all.values()].sort((a, b) => Date.parse(a.expires) - Date.parse(b.expires) || (a.id < b.id ? -1 : 1));
}

function exceptionsView(page: Page): Node[] {
  const rows = exceptions(page).map((one) => [
    plain(one.id),
    element("span", { class: one.is_over ? "bad" : "" }, `${time(one.expires)}, ${one.told}`),
    plain(one.owner),
    plain(one.reason),
  ]);
  return [
    element("h2", {}, "Exceptions"),
    rows.length > 0 ? table("Exceptions", ["Id", "End", "Owner", "Reason"], rows) : element("p", {}, "the plan has none"),
  ];
}

/** A view that is not the graph. */
export function answers(page: Page, tab: Tab): Node[] {
  const doubts = page.unproven_because ?? [];
  const note = doubts.length > 0 ? [element("p", {}, "What is said of policies may be wrong:"), texts(doubts)] : [];
  switch (tab) {
    case "graph":
      return [];
    case "status":
      return [...statusView(page), ...note];
    case "drift":
      return [...driftView(page), ...note];
    case "blocked":
      return [...blockedView(page), ...note];
    case "exceptions":
      return exceptionsView(page);
  }
}
