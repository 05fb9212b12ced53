import { describe, expect, test } from "vitest";

import type { Edge, Page, Peer } from "../src/document";
import { FOLD_ABOVE, isFolded, isNew, model, picture, plain, portsInWords, shown } from "../src/model";
import { START, read, write } from "../src/view";

const workload = (namespace: string, name: string, owner = "Deployment"): Peer => ({ kind: "Workload", namespace, owner, name });

function edge(client: number, server: number, port: number, more: Partial<Edge> = {}): Edge {
  return {
    client, server, protocol: "TCP", port, via: [], seen_by: ["client"], opened: 1, found: 0, refused: 0, unanswered: 0,
    unreachable: 0, bytes_sent: 0, bytes_received: 0, first_seen: "2026-03-01T10:00:00Z",
    last_seen: "2026-03-03T10:00:00Z", supported: true, marks: [], ...more,
  };
}

function page(peers: Peer[], edges: Edge[]): Page {
  return {
    apiVersion: "guardrail.dev/v1", kind: "Page", from: "2026-03-01T10:00:00Z", to: "2026-03-05T10:00:00Z", nodes: 1,
    incomplete: [], peers, edges,
  };
}

const PEERS: Peer[] = [
  workload("shop", "cart"),
  workload("data", "db", "StatefulSet"),
  { kind: "External", address: "203.0.113.1", names: ["api.example.com"] },
  { kind: "External", address: "203.0.113.2", names: ["api.example.com"] },
  { kind: "External", address: "203.0.113.3" },
  { kind: "Node", name: "a" },
];
const SHOP = model(
  page(PEERS, [
    edge(0, 1, 5432),
    edge(0, 2, 443),
    edge(0, 3, 443),
    edge(0, 4, 25, { supported: false, opened: 0, refused: 3 }),
    edge(5, 0, 53, { protocol: "UDP", marks: ["tunnel"], first_seen: "2026-03-05T08:00:00Z", last_seen: "2026-03-05T09:00:00Z" }),
  ]),
);
const ids = (view: Partial<typeof START>): string[] => shown(SHOP, { ...START, ...view }).map((line) => line.id);

describe("model", () => {
  test("external peers of one name are one box, and each address keeps its line", () => {
    expect(SHOP.boxes.get("external/api.example.com")?.peers).toEqual([2, 3]);
    expect(SHOP.lines.size).toBe(5);
  });

  test("each filter lets through what it says", () => {
    expect(ids({})).toHaveLength(5);
    expect(ids({ namespace: "data" })).toEqual(["shop/Deployment/cart->data/StatefulSet/db:5432/TCP"]);
    expect(ids({ port: "443" })).toHaveLength(2);
    expect(ids({ port: "53/TCP" })).toHaveLength(0);
    expect(ids({ port: "53/UDP" })).toHaveLength(1);
    expect(ids({ state: "supported" })).toHaveLength(4);
    expect(ids({ state: "failed" })).toEqual(["shop/Deployment/cart->external/203.0.113.3:25/TCP@203.0.113.3"]);
    expect(ids({ state: "tunnel" })).toEqual(["node/a->shop/Deployment/cart:53/UDP"]);
    expect(ids({ state: "new" })).toEqual(["node/a->shop/Deployment/cart:53/UDP"]);
    expect(ids({ search: "API cart" })).toHaveLength(2);
    expect(ids({ search: "203.0.113.2" })).toHaveLength(1);
  });

  test("a span keeps what meets it", () => {
    expect(ids({ since: "2026-03-04" })).toEqual(["node/a->shop/Deployment/cart:53/UDP"]);
    expect(ids({ until: "2026-03-04" })).toHaveLength(4);
    expect(ids({ since: "nonsense" })).toHaveLength(5);
  });

  test("what was there when watching began is not new", () => {
    const short = page(PEERS, []);
    short.to = "2026-03-01T12:00:00Z";
    expect(isNew(short, START, edge(0, 1, 1))).toBe(false);
    expect(isNew(short, START, edge(0, 1, 1, { first_seen: "2026-03-01T11:30:00Z" }))).toBe(true);
  });

  test("folded groups show the edges between them once, and none inside", () => {
    const view = { ...START, toggled: ["ns/shop", "ns/data", "outside", "nodes"] };
    const drawn = picture(SHOP, view);
    expect(drawn.folded.map((group) => group.id)).toEqual(["ns/shop", "ns/data", "outside", "nodes"]);
    expect(drawn.arrows.map((arrow) => [arrow.id, arrow.ports])).toEqual([
      ["ns/shop->ns/data", ["5432/TCP"]],
      ["ns/shop->outside", ["443/TCP", "25/TCP"]],
      ["nodes->ns/shop", ["53/UDP"]],
    ]);
  });

  test("many boxes start folded", () => {
    const many = model(page(Array.from({ length: FOLD_ABOVE + 1 }, (_, n) => workload("a", `w${n}`)), []));
    expect(isFolded(many, START, "ns/a")).toBe(true);
    expect(isFolded(many, { ...START, toggled: ["ns/a"] }, "ns/a")).toBe(false);
    expect(isFolded(SHOP, START, "ns/shop")).toBe(false);
  });

  test("signs that turn the direction of writing are shown as what they are", () => {
    expect(plain("a\u202eb")).toBe("a\ufffdb");
  });

  test("a label of ports stays short", () => {
    expect(portsInWords(["80/TCP", "53/UDP"])).toBe("80, 53/UDP");
    expect(portsInWords(["1/TCP", "2/TCP", "3/TCP", "4/TCP"])).toBe("1, 2 +2");
  });
});

test("a view survives its address", () => {
  const view = { ...START, search: "a & b=#", namespace: "shop", state: "failed" as const, toggled: ["ns/b", "ns/a"], selected: "x->y:1/TCP" };
  expect(read(`#${write(view)}`)).toEqual({ ...view, toggled: ["ns/a", "ns/b"] });
  expect(write(START)).toBe("");
  expect(read("#state=nonsense").state).toBe("");
});
