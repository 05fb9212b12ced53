import { answers, count, tabsOf } from "./answers";
import type { Page, Source } from "./document";
import { button, element } from "./dom";
import { Graph } from "./graph";
import { isFolded, model as modelOf, namespaceOf, picture, plain, shown as linesOf, type Line, type Model } from "./model";
import { everyLine, panel, time } from "./panel";
import { STATES, START, read, write, type Tab, type View } from "./view";

/** How often a page that is served asks for its document, in milliseconds. */
const ASK_EVERY = 20_000;

/** The list of edges grows by so many at a time: thousands at once would make the page slow. */
const LIST_STEP = 200;

function choice(label: string, options: string[], all: string): [HTMLElement, HTMLSelectElement] {
  const select = element("select");
  select.append(element("option", { value: "" }, all));
  for (const option of options) select.append(element("option", { value: option }, option));
  return [element("label", {}, label, select), select];
}

function input(label: string, attributes: Record<string, string>): [HTMLElement, HTMLInputElement] {
  const made = element("input", attributes);
  return [element("label", {}, label, made), made];
}

/** How old something is, roughly, as a person says it. */
function age(read: string, now: number): string {
  const seconds = Math.max(0, Math.round((now - Date.parse(read)) / 1000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

function sourceLine(source: Source, now: number): HTMLElement {
  const problem = source.problem === undefined ? "" : `; it could not be read since: ${plain(source.problem)}`;
  return element("li", { class: problem === "" ? "" : "bad" }, `${plain(source.name)}, read ${age(source.read, now)} ago${problem}`);
}

/** Shows a document until the signal; gives what tells it that its sources were read again. */
function start(page: Page, signal: AbortSignal): (sources: Source[]) => void {
  const model: Model = modelOf(page);
  let view: View = read(location.hash);
  let listed = LIST_STEP;

  const namespaces = [...model.groups.keys()].flatMap((id) => namespaceOf(id) ?? []);
  const ports = [...new Set(page.edges.map((edge) => `${edge.port}/${edge.protocol}`))];
  ports.sort((a, b) => Number.parseInt(a) - Number.parseInt(b) || (a < b ? -1 : 1));
  const [searchLabel, search] = input("Search", { type: "search", placeholder: "name, port, address" });
  const [namespaceLabel, namespace] = choice("Namespace", namespaces.sort(), "all");
  const [portLabel, portChoice] = choice("Port", ports, "all");
  const states = STATES.filter((known) => known !== "denied" || page.edges.some((edge) => edge.verdict));
  const [stateLabel, state] = choice("State", states, "all");
  const [sinceLabel, since] = input("Since", { type: "text", placeholder: "2026-03-01", size: "12" });
  const [untilLabel, until] = input("Until", { type: "text", placeholder: "2026-03-31", size: "12" });
  const fields = { search, namespace, port: portChoice, state, since, until };

  const change = (next: Partial<View>): void => {
    view = { ...view, ...next };
    const hash = write(view);
    history.replaceState(null, "", hash === "" ? location.pathname + location.search : `#${hash}`);
    listed = LIST_STEP;
    draw();
  };
  const tabs = tabsOf(page);
  const nav = element("nav", { id: "tabs", "aria-label": "Views" });
  const tabButtons = tabs.map((tab) => {
    const things = count(page, tab);
    const name = tab.slice(0, 1).toUpperCase() + tab.slice(1);
    return [tab, button(things === undefined ? name : `${name} (${things})`, () => change({ tab }))] as const;
  });
  nav.append(...tabButtons.map(([, made]) => made));
  nav.hidden = tabs.length < 2;
  const select = (id: string): void => change({ selected: id });
  const toggle = (group: string): void => {
    const rest = view.toggled.filter((known) => known !== group);
    change({ toggled: rest.length < view.toggled.length ? rest : [...rest, group] });
  };

  const summary = element("p", { id: "summary", role: "status" });
  const canvas = element("div", {
    id: "graph",
    role: "application",
    tabindex: "0",
    "aria-label": "The graph. Arrow keys move it, plus and minus zoom, 0 shows all, Page Down and Page Up go through the boxes. The same edges stand in the list below.",
  });
  const groups = element("div", { id: "groups", role: "group", "aria-label": "Fold and unfold" });
  const side = element("section", { id: "panel", "aria-label": "What is known", tabindex: "-1", "aria-live": "polite" });
  side.hidden = true;
  const list = element("section", { id: "list", "aria-label": "Edges" });

  const answer = element("section", { id: "answer" });
  const sources = element("ul", { id: "sources", "aria-label": "What this page was read from" });
  let readFrom = page.sources ?? [];
  const tick = (): void => sources.replaceChildren(...readFrom.map((source) => sourceLine(source, Date.now())));
  tick();
  if (page.sources) {
    const ticking = setInterval(tick, 1000);
    signal.addEventListener("abort", () => clearInterval(ticking));
  }
  const window = page.from && page.to ? `${time(page.from)} to ${time(page.to)} on ${page.nodes} node${page.nodes === 1 ? "" : "s"}` : "nothing observed yet";
  const notes = element("ul", { id: "incomplete" });
  for (const reason of page.incomplete) notes.append(element("li", {}, `The graph is incomplete: ${reason}`));
  document.body.append(
    element(
      "header",
      {},
      element("h1", {}, "Who talks to whom"),
      element("p", {}, window),
      page.sources && sources,
      page.incomplete.length > 0 && notes,
      nav,
    ),
    element(
      "main",
      {},
      answer,
      element(
        "div",
        { id: "graphs" },
      element(
        "form",
        { id: "filters", role: "search", "aria-label": "Filters" },
        searchLabel, namespaceLabel, portLabel, stateLabel, sinceLabel, untilLabel,
        button("Clear", () => change({ ...START })),
      ),
      groups,
      element(
        "div",
        { id: "stage" },
        element(
          "div",
          { id: "picture" },
          canvas,
          element(
            "div",
            { id: "tools" },
            button("+", () => graph.zoom(1.3), { "aria-label": "Larger" }),
            button("−", () => graph.zoom(1 / 1.3), { "aria-label": "Smaller" }),
            button("Fit", () => graph.fit()),
          ),
        ),
        side,
      ),
      summary,
      list,
      ),
    ),
  );
  const graphs = document.getElementById("graphs");
  const graph = new Graph(canvas, { box: select, group: toggle, arrow: select });

  for (const [key, field] of Object.entries(fields)) {
    field.addEventListener("input", () => change({ [key]: field.value.trim() }));
  }
  document.getElementById("filters")?.addEventListener("submit", (event) => event.preventDefault());
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Escape" && view.selected !== "") select("");
    if (event.key === "/" && !(event.target instanceof HTMLInputElement)) {
      event.preventDefault();
      search.focus();
    }
  };
  document.addEventListener("keydown", onKey, { signal });
  addEventListener("hashchange", () => {
    view = read(location.hash);
    draw();
  }, { signal });
  signal.addEventListener("abort", () => graph.end());

  function drawGroups(): void {
    const focused = document.activeElement?.getAttribute("data-group");
    groups.replaceChildren();
    for (const group of model.groups.values()) {
      const open = !isFolded(model, view, group.id);
      const label = `${group.label} (${group.boxes.length})`;
      const made = button(label, () => toggle(group.id), { "aria-expanded": String(open), "data-group": group.id });
      groups.append(made);
      if (group.id === focused) made.focus();
    }
  }

  function drawList(lines: Line[]): void {
    summary.textContent = `${lines.length} of ${model.lines.size} edges`;
    list.replaceChildren(element("h2", {}, "Edges"), everyLine(model, lines.slice(0, listed), select));
    if (lines.length > listed) {
      list.append(
        button(`Show ${Math.min(LIST_STEP, lines.length - listed)} more`, () => {
          listed += LIST_STEP;
          drawList(lines);
        }),
      );
    }
  }

  let panelOf = "";
  function draw(): void {
    const tab: Tab = tabs.includes(view.tab) ? view.tab : "graph";
    for (const [known, made] of tabButtons) {
      if (known === tab) made.setAttribute("aria-current", "page");
      else made.removeAttribute("aria-current");
    }
    answer.replaceChildren(...answers(page, tab));
    answer.hidden = tab === "graph";
    if (graphs) graphs.hidden = tab !== "graph";
    if (tab !== "graph") return;
    for (const [key, field] of Object.entries(fields)) {
      const value = view[key as keyof typeof fields];
      if (field.value.trim() !== value) field.value = value;
    }
    const lines = linesOf(model, view);
    drawGroups();
    const inside = panel(model, lines, view.selected, select);
    side.replaceChildren(...inside);
    side.hidden = inside.length === 0;
    if (inside.length > 0) side.prepend(button("Close", () => select(""), { class: "close" }));
    // Whoever asked by keyboard hears and reaches the answer; who walks through the picture stays there.
    const isWalking = document.activeElement === canvas;
    if (view.selected !== panelOf && inside.length > 0 && !isWalking) side.focus({ preventScroll: true });
    panelOf = view.selected;
    graph.show(picture(model, view, lines), view.selected);
    drawList(lines);
  }
  draw();
  return (again) => {
    readFrom = again;
    tick();
  };
}

let shown = new AbortController();
let text = "";
let readAgain = (_: Source[]): void => {};

/** Shows a document anew, if more than the time of its reading has changed. */
function show(page: Page): void {
  const { sources = [], ...rest } = page;
  const next = JSON.stringify(rest);
  if (next === text) {
    readAgain(sources);
    return;
  }
  text = next;
  shown.abort();
  shown = new AbortController();
  const focused = document.activeElement?.id;
  document.body.replaceChildren();
  readAgain = start(page, shown.signal);
  if (focused) document.getElementById(focused)?.focus();
}

/** Asks the page's own server, again and again; says it when that does not answer. */
async function ask(): Promise<void> {
  try {
    const answer = await fetch("document.json");
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    show((await answer.json()) as Page);
    document.getElementById("gone")?.remove();
  } catch (error) {
    if (!document.getElementById("gone")) {
      const gone = element("p", { id: "gone", class: "bad", role: "alert" });
      document.body.prepend(gone);
      gone.textContent = `guardrail ui does not answer any more (${String(error)}): what stands here grows old.`;
    }
  }
  setTimeout(() => void ask(), ASK_EVERY);
}

const source = document.getElementById("document");
if (source) start(JSON.parse(source.textContent ?? "null") as Page, shown.signal);
else void ask();
