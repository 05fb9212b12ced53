// What is looked at: everything that a person can choose, and how it stands in the address.

/** Which edges by what is known of them. */
export const STATES = ["supported", "failed", "new", "tunnel", "denied"] as const;
export type State = (typeof STATES)[number];

/** What the page shows: the graph, or one of the answers of the commands. */
export const TABS = ["graph", "status", "drift", "blocked", "exceptions"] as const;
export type Tab = (typeof TABS)[number];

export interface View {
  tab: Tab;
  search: string;
  /** Only edges that touch it; empty: all. */
  namespace: string;
  /** `5432` or `5432/TCP`; empty: all. */
  port: string;
  /** A time as RFC 3339 or a date; empty: unbounded. */
  since: string;
  until: string;
  state: State | "";
  /** Groups that are not as they begin: folded ones open, open ones folded. */
  toggled: string[];
  /** Id of the edge or peer that is looked at. */
  selected: string;
}

export const START: View = {
  tab: "graph",
  search: "",
  namespace: "",
  port: "",
  since: "",
  until: "",
  state: "",
  toggled: [],
  selected: "",
};

/** The view as the part of an address behind `#`; what is as at the start is left out. */
export function write(view: View): string {
  const parts = new URLSearchParams();
  for (const key of ["search", "namespace", "port", "since", "until", "state", "selected"] as const) {
    if (view[key] !== "") parts.set(key, view[key]);
  }
  if (view.tab !== START.tab) parts.set("tab", view.tab);
  for (const group of [...view.toggled].sort()) parts.append("toggled", group);
  return parts.toString();
}

/** Reads an address; what it cannot mean is as at the start. */
export function read(hash: string): View {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const text = (key: string): string => parts.get(key) ?? "";
  const state = STATES.find((known) => known === text("state")) ?? "";
  return {
    tab: TABS.find((known) => known === text("tab")) ?? START.tab,
    search: text("search"),
    namespace: text("namespace"),
    port: text("port"),
    since: text("since"),
    until: text("until"),
    state,
    toggled: [...new Set(parts.getAll("toggled"))].sort(),
    selected: text("selected"),
  };
}
