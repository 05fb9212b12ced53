import type { Page } from "./document";
import { button, element } from "./dom";
import { Graph } from "./graph";
import { isFolded, model as modelOf, namespaceOf, picture, shown, type Line, type Model } from "./model";
import { everyLine, panel, time } from "./panel";
import { STATES, START, read, write, type View } from "./view";

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

function start(page: Page): void {
  const model: Model = modelOf(page);
  let view: View = read(location.hash);
  let listed = LIST_STEP;

  const namespaces = [...model.groups.keys()].flatMap((id) => namespaceOf(id) ?? []);
  const ports = [...new Set(page.edges.map((edge) => `${edge.port}/${edge.protocol}`))];
  ports.sort((a, b) => Number.parseInt(a) - Number.parseInt(b) || (a < b ? -1 : 1));
  const [searchLabel, search] = input("Search", { type: "search", placeholder: "name, port, address" });
  const [namespaceLabel, namespace] = choice("Namespace", namespaces.sort(), "all");
  const [portLabel, portChoice] = choice("Port", ports, "all");
  const [stateLabel, state] = choice("State", [...STATES], "all");
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
  const select = (id: string): void => change({ selected: id });
  const toggle = (group: string): void => {
    const rest = view.toggled.filter((known) => known !== group);
    change({ toggled: rest.length < view.toggled.length ? rest : [...rest, group] });
  };

  const summary = element("p", { id: "summary", role: "status" });
  const canvas = element("div", { id: "graph", role: "img", "aria-label": "The graph; the same edges stand in the list below" });
  const groups = element("div", { id: "groups", role: "group", "aria-label": "Fold and unfold" });
  const side = element("section", { id: "panel", "aria-label": "What is known", tabindex: "-1", "aria-live": "polite" });
  side.hidden = true;
  const list = element("section", { id: "list", "aria-label": "Edges" });

  const window = page.from && page.to ? `${time(page.from)} to ${time(page.to)} on ${page.nodes} node${page.nodes === 1 ? "" : "s"}` : "nothing observed yet";
  const notes = element("ul", { id: "incomplete" });
  for (const reason of page.incomplete) notes.append(element("li", {}, `The graph is incomplete: ${reason}`));
  document.body.append(
    element(
      "header",
      {},
      element("h1", {}, "Who talks to whom"),
      element("p", {}, window),
      page.incomplete.length > 0 && notes,
    ),
    element(
      "main",
      {},
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
  );
  const graph = new Graph(canvas, { box: select, group: toggle, arrow: select });

  for (const [key, field] of Object.entries(fields)) {
    field.addEventListener("input", () => change({ [key]: field.value.trim() }));
  }
  document.getElementById("filters")?.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && view.selected !== "") select("");
    if (event.key === "/" && !(event.target instanceof HTMLInputElement)) {
      event.preventDefault();
      search.focus();
    }
  });
  addEventListener("hashchange", () => {
    view = read(location.hash);
    draw();
  });

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
    for (const [key, field] of Object.entries(fields)) {
      const value = view[key as keyof typeof fields];
      if (field.value.trim() !== value) field.value = value;
    }
    const lines = shown(model, view);
    drawGroups();
    const inside = panel(model, lines, view.selected, select);
    side.replaceChildren(...inside);
    side.hidden = inside.length === 0;
    if (inside.length > 0) side.prepend(button("Close", () => select(""), { class: "close" }));
    // Whoever asked by keyboard hears and reaches the answer.
    if (view.selected !== panelOf && inside.length > 0) side.focus({ preventScroll: true });
    panelOf = view.selected;
    graph.show(picture(model, view, lines), view.selected);
    drawList(lines);
  }
  draw();
}

const source = document.getElementById("document");
start(JSON.parse(source?.textContent ?? "null") as Page);
