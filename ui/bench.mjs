// How long the page takes for 1,000 workloads and 10,000 edges: to the first picture, and to unfold
// a namespace. GUARDRAIL=target/debug/guardrail node ui/bench.mjs

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

const [WORKLOADS, NAMESPACES, EDGES, ROUNDS] = [1000, 25, 10_000, 5];

let state = 1;
const below = (bound) => (state = (state * 48271) % 2147483647) % bound;
const shop = JSON.parse(readFileSync(join(import.meta.dirname, "../guardrail-cli/tests/data/shop.json"), "utf8"));
const workload = (n) => ({ namespace: `ns-${n % NAMESPACES}`, owner: "Deployment", name: `app-${n}` });
const entry = { ...shop.workloads.find((one) => one.name === "cart"), pods: {} };
const edge = shop.edges.find((one) => one.port === 5432);
const edges = new Map();
while (edges.size < EDGES) {
  // Half of the edges stay inside a namespace.
  const client = below(WORKLOADS);
  const anywhere = below(WORKLOADS);
  const server = below(2) ? anywhere : anywhere - (anywhere % NAMESPACES) + (client % NAMESPACES);
  const port = [80, 443, 5432, 6379, 8080][below(5)];
  if (client === server) continue;
  const ends = { client: { kind: "Workload", ...workload(client) }, server: { kind: "Workload", ...workload(server) } };
  edges.set(`${client} ${server} ${port}`, { ...edge, ...ends, port });
}
const workloads = Array.from({ length: WORKLOADS }, (_, n) => ({ ...entry, ...workload(n) }));
const nothing = { addresses: [], services: [], service_flows: [] };

const directory = mkdtempSync(join(tmpdir(), "guardrail-bench-"));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
});
try {
  const file = join(directory, "graph.json");
  writeFileSync(file, JSON.stringify({ ...shop, ...nothing, workloads, edges: [...edges.values()] }));
  const html = execFileSync(process.env.GUARDRAIL, ["graph", file, "-o", "html"], { maxBuffer: 1 << 28 });
  const page = join(directory, "graph.html");
  writeFileSync(page, html);
  console.log(`${EDGES} edges, ${(html.length / (1 << 20)).toFixed(1)} MiB`);
  for (let round = 0; round < ROUNDS; round += 1) {
    const tab = await browser.newPage({ viewport: { width: 1200, height: 800 } });
    const drawn = () => tab.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const begin = performance.now();
    await tab.goto(pathToFileURL(page).href);
    await tab.locator("#list .lines button").first().waitFor();
    await drawn();
    const first = performance.now() - begin;
    const click = performance.now();
    await tab.locator("#groups button").first().click();
    await drawn();
    console.log(`first picture ${first.toFixed(0)} ms, unfold ${(performance.now() - click).toFixed(0)} ms`);
    await tab.close();
  }
} finally {
  await browser.close();
  rmSync(directory, { recursive: true, force: true });
}
