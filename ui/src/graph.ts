// The picture, drawn by cytoscape. Everything in it is in the lists beside it, too, for those who
// do not see it or have no pointer.

import cytoscape from "cytoscape";
import fcose from "cytoscape-fcose";

import { namespaceOf, portsInWords, type Picture } from "./model";

cytoscape.use(fcose);

export interface Actions {
  /** A box or an open group's frame, or a folded group. */
  box(id: string): void;
  group(id: string): void;
  arrow(id: string): void;
}

const LONGEST = 28;
/** With more arrows than this, only those of what is selected say their ports. */
const LABELS = 120;

/** Runs something that asks for random numbers with the same ones every time: a view that is shared
 * looks alike to both. */
function repeatably(run: () => void): void {
  const random = Math.random;
  let state = 1;
  Math.random = () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  try {
    run();
  } finally {
    Math.random = random;
  }
}

function short(text: string): string {
  const letters = [...text];
  return letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : text;
}

function colours(): Record<string, string> {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string): string => style.getPropertyValue(name).trim();
  return {
    text: of("--text"),
    back: of("--back"),
    frame: of("--frame"),
    box: of("--box"),
    line: of("--line"),
    doubt: of("--doubt"),
    accent: of("--accent"),
  };
}

const ruler = document.createElement("canvas").getContext("2d");

/** How wide a label is as nodes write it, in pixels. */
function widthOf(label: string): number {
  if (ruler === null) return label.length * 8;
  ruler.font = "bold 13px system-ui, sans-serif";
  return Math.max(20, ruler.measureText(label).width);
}

function style(): cytoscape.StylesheetJson {
  const c = colours();
  const font = "system-ui, sans-serif";
  return [
    {
      selector: "node",
      style: {
        label: "data(label)",
        shape: "round-rectangle",
        width: (node: cytoscape.NodeSingular) => widthOf(node.data("label") as string),
        height: 22,
        padding: "7px",
        "font-family": font,
        "font-size": 13,
        "text-valign": "center",
        "text-halign": "center",
        color: c.text,
        "background-color": c.box,
        "border-width": 1,
        "border-color": c.line,
      },
    },
    {
      selector: ":parent",
      style: {
        "text-valign": "top",
        "text-margin-y": -3,
        "font-weight": "bold",
        "background-color": c.frame,
        "border-width": 1,
        padding: "14px",
      },
    },
    {
      selector: ".folded",
      style: { "border-width": 4, "border-style": "double", "font-weight": "bold", "background-color": c.frame },
    },
    { selector: ".outside", style: { "border-style": "dashed" } },
    {
      selector: "edge",
      style: {
        label: "data(label)",
        "curve-style": "bezier",
        width: 1.6,
        "target-arrow-shape": "triangle",
        "line-color": c.line,
        "target-arrow-color": c.line,
        "font-family": font,
        "font-size": 11,
        color: c.text,
        "text-background-color": c.back,
        "text-background-opacity": 0.85,
        "text-background-padding": "1px",
      },
    },
    { selector: "edge.doubt", style: { "line-style": "dashed", "line-color": c.doubt, "target-arrow-color": c.doubt } },
    { selector: "edge.denied", style: { "line-color": c.doubt, "target-arrow-color": c.doubt, "target-arrow-shape": "tee", "arrow-scale": 1.4 } },
    { selector: "edge.quiet", style: { "text-opacity": 0, "text-background-opacity": 0 } },
    { selector: "edge.quiet.near", style: { "text-opacity": 1, "text-background-opacity": 0.85 } },
    {
      selector: "edge.near",
      style: { "line-color": c.accent, "target-arrow-color": c.accent, width: 3 },
    },
    { selector: "node.near", style: { "border-color": c.accent, "border-width": 3 } },
    { selector: ".far", style: { opacity: 0.25 } },
  ] as unknown as cytoscape.StylesheetJson;
}

export class Graph {
  private readonly cy: cytoscape.Core;
  private drawn = "";
  private selected = "";

  constructor(container: HTMLElement, actions: Actions) {
    this.cy = cytoscape({ container, style: style(), minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false });
    this.cy.on("tap", "node", (event) => {
      const id = (event.target as cytoscape.NodeSingular).id();
      if (event.target.hasClass("folded") || event.target.isParent()) actions.group(id);
      else actions.box(id);
    });
    this.cy.on("tap", "edge", (event) => actions.arrow((event.target as cytoscape.EdgeSingular).id()));
    container.addEventListener("keydown", (event) => this.key(event, actions));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.cy.style(style()));
  }

  show(picture: Picture, selected: string): void {
    const nodes: cytoscape.ElementDefinition[] = [
      // What lies outside of namespaces gets no frame: it would stretch around half of the picture.
      ...picture.frames.filter((group) => namespaceOf(group.id) !== undefined).map((group) => ({ data: { id: group.id, label: short(group.label) } })),
      ...picture.folded.map((group) => ({
        data: { id: group.id, label: `${short(group.label)} (${group.boxes.length})` },
        classes: "folded",
      })),
      ...picture.boxes.map((box) => {
        const [data, isOutside] = [{ id: box.id, label: short(box.label) }, namespaceOf(box.group) === undefined];
        return isOutside ? { data, classes: "outside" } : { data: { ...data, parent: box.group }, classes: "" };
      }),
    ];
    const edges = picture.arrows.map((arrow) => ({
      data: { id: arrow.id, source: arrow.from, target: arrow.to, label: portsInWords(arrow.ports) },
      classes: `${arrow.supported ? "" : "doubt"} ${arrow.denied ? "denied" : ""} ${picture.arrows.length > LABELS ? "quiet" : ""}`,
    }));
    const drawn = JSON.stringify([nodes, edges]);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      this.cy.elements().remove();
      this.cy.add([...nodes, ...edges]);
      this.arrange(nodes.length);
    }
    this.selected = selected;
    this.mark(selected, picture);
  }

  /** Moves with the arrows, zooms with + and −, fits with 0, goes through the boxes with Page Up and Down. */
  private key(event: KeyboardEvent, actions: Actions): void {
    const step = 60;
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step],
    };
    const move = moves[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (move) this.cy.panBy({ x: move[0], y: move[1] });
    else if (event.key === "+") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.fit();
    else if (event.key === "PageDown" || event.key === "PageUp") this.goOn(event.key === "PageDown" ? 1 : -1, actions);
    else return;
    event.preventDefault();
  }

  private goOn(by: number, actions: Actions): void {
    // Folded groups are opened by their buttons.
    const boxes = this.cy.nodes().filter((node) => !node.isParent() && !node.hasClass("folded"));
    if (boxes.empty()) return;
    const at = boxes.toArray().findIndex((node) => node.id() === this.selected);
    const next = at < 0 ? (by > 0 ? 0 : boxes.length - 1) : (at + by + boxes.length) % boxes.length;
    const box = boxes[next];
    if (!box) return;
    actions.box(box.id());
    this.cy.center(box);
  }

  /** Nothing is drawn any more. */
  end(): void {
    this.cy.destroy();
  }

  fit(): void {
    this.cy.fit(undefined, 24);
  }

  zoom(factor: number): void {
    const { width, height } = { width: this.cy.width(), height: this.cy.height() };
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: { x: width / 2, y: height / 2 } });
  }

  private arrange(count: number): void {
    // Fewer rounds where there is more to place, so that unfolding stays quick.
    const options = {
      name: "fcose",
      animate: false,
      randomize: true,
      quality: count > 400 ? "draft" : "default",
      nodeDimensionsIncludeLabels: true,
      nodeSeparation: 140,
      idealEdgeLength: 130,
      nodeRepulsion: 30000,
      nestingFactor: 0.2,
      gravityRangeCompound: 0.6,
      padding: 24,
    };
    this.cy.resize();
    repeatably(() => this.cy.layout(options as unknown as cytoscape.LayoutOptions).run());
  }

  private mark(selected: string, picture: Picture): void {
    this.cy.elements().removeClass("near far");
    if (selected === "") return;
    const arrow = picture.arrows.find((a) => a.id === selected || a.lines.some((line) => line.id === selected));
    const core = this.cy.elements().filter((one) => one.id() === (arrow?.id ?? selected));
    if (core.empty()) return;
    const near = core.union(core.nodes().neighborhood()).union(core.edges().connectedNodes());
    near.addClass("near");
    this.cy.elements().difference(near.union(near.ancestors())).addClass("far");
  }
}
