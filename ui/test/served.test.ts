// The page as `guardrail ui` serves it, with policies in force and a plan.

import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";

import { SHOP, guardrail, isAccessible, launch, listed, open } from "./browser";

const directory = mkdtempSync(join(tmpdir(), "guardrail-served-"));
const snapshot = join(directory, "shop.json");
let browser: Browser;
let server: ChildProcess;
let address: string;

const PLAN = `apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: default-deny
      namespaces: {monitoring: {phase: observe}, shop: {phase: default-deny, egress: true}}
      gates: {window: 14d}
  exceptions:
  - {id: inc-4711, from: shop/Deployment/mailer, to: data/StatefulSet/postgres, ports: [5432], expires: 2026-03-04, reason: "<img src=x onerror=alert(1)>", owner: team-shop}
`;

beforeAll(async () => {
  copyFileSync(SHOP, snapshot);
  const policies = join(directory, "policies");
  execFileSync(guardrail(), ["export", snapshot, "--phase", "default-deny", "--min-window", "0s", "--accept-inferred", "-d", policies], { stdio: "ignore" });
  // One caller of the database loses its rule.
  const file = join(policies, "data.guardrail-allow-statefulset-postgres.yaml");
  const text = readFileSync(file, "utf8");
  const changed = text.replace("app: cart", "app: somebody-else");
  expect(changed).not.toBe(text);
  writeFileSync(file, changed);
  const plan = join(directory, "guardrail.yaml");
  writeFileSync(plan, PLAN);
  const args = ["ui", snapshot, "--policies", policies, "--plan", plan, "--environment", "production", "--now", "2026-03-01T12:00:00Z", "--refresh", "1"];
  server = spawn(guardrail(), args, { stdio: ["ignore", "pipe", "ignore"] });
  const lines = createInterface({ input: server.stdout! });
  address = await new Promise((found) => lines.once("line", found));
  browser = await launch();
});

afterAll(async () => {
  await browser?.close();
  server?.kill("SIGKILL");
  rmSync(directory, { recursive: true, force: true });
});

test("it shows the graph, asks nobody but its own server, and breaks no rule of its policy", async () => {
  const { page, said } = await open(browser, address);
  const edges = JSON.parse(readFileSync(SHOP, "utf8")).edges;
  expect(await listed(page)).toHaveLength(edges.length);
  expect(await page.locator("#sources").textContent()).toMatch(/shop\.json, read \d+ s ago/);
  await page.getByRole("combobox", { name: /^State/ }).selectOption("denied");
  expect(await listed(page)).toEqual([
    expect.stringMatching(/^monitoring\/prometheus → data\/postgres .* only failed$/),
    expect.stringContaining("shop/cart → data/postgres"),
  ]);
  await page.locator("#list .lines button").last().click();
  const panel = (await page.locator("#panel").textContent()) ?? "";
  expect(panel).toContain("Policies in forcedenied");
  expect(panel).toMatch(/At the server \(ingress\)denied: no rule of data\/guardrail-allow-statefulset-postgres, .* accepts it/);
  expect(panel).toContain("Under default-denywould pass");
  await page.locator("#panel").getByRole("button", { name: "data/postgres" }).click();
  const workload = (await page.locator("#panel").textContent()) ?? "";
  expect(workload).toMatch(/Policies, ingress1 of 1 pods isolated, by data\//);
  expect(workload).toMatch(/Under default-deny\d+ of \d+ edges to it would pass, nobody else/);
  expect(said).toEqual([]);
  await page.close();
});

test("status, drift and exceptions, by keyboard, shared by address", async () => {
  const { page, said } = await open(browser, address);
  const tabs = page.locator("#tabs button");
  expect(await tabs.allTextContents()).toEqual([
    "Graph",
    "Status (1)",
    expect.stringMatching(/^Drift \(\d+\)$/),
    "Blocked (1)",
    "Exceptions (1)",
  ]);
  await tabs.nth(1).focus();
  await page.keyboard.press("Enter");
  expect(await tabs.nth(1).getAttribute("aria-current")).toBe("page");
  const data = page.getByRole("row", { name: /^data/ });
  expect(await data.textContent()).toContain("shop/Deployment/cart->data/StatefulSet/postgres:5432/TCP");
  expect(await page.locator("meter").first().getAttribute("aria-label")).toMatch(/^window: .*, needs 14/);
  const shared = await open(browser, page.url());
  expect(await shared.page.getByRole("row", { name: /^data/ }).textContent()).toBe(await data.textContent());
  await shared.page.close();
  await tabs.nth(2).focus();
  await page.keyboard.press("Enter");
  expect(await page.getByRole("table", { name: "Drift" }).textContent()).toContain("GD0");
  await tabs.nth(3).click();
  const blocked = page.getByRole("row", { name: /prometheus/ });
  expect(await blocked.textContent()).toContain("data/guardrail-default-deny-ingress");
  const command = "--from monitoring/StatefulSet/prometheus --to data/StatefulSet/postgres --port 9187/TCP";
  expect(await blocked.locator("code").textContent()).toContain(command);
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await blocked.getByRole("button").click();
  await expect.poll(() => page.evaluate(() => navigator.clipboard.readText())).toContain(command);
  await tabs.nth(4).click();
  expect(await page.getByRole("row", { name: /inc-4711/ }).textContent()).toContain("<img src=x onerror=alert(1)>");
  expect(said).toEqual([]);
  await page.close();
});

test("what is read again is shown, and what cannot be read any more is said", async () => {
  const { page, said } = await open(browser, `${address}#search=postgres`);
  const changed = JSON.parse(readFileSync(SHOP, "utf8"));
  const template = structuredClone(changed.edges.find((edge: any) => edge.server.name === "postgres"));
  template.client = { kind: "Workload", namespace: "shop", owner: "Deployment", name: "newcomer" };
  changed.edges.push(template);
  const before = await listed(page);
  writeFileSync(`${snapshot}.new`, JSON.stringify(changed));
  copyFileSync(`${snapshot}.new`, snapshot);
  // The page asks every 20 seconds; whoever is in a hurry loads it again.
  await expect.poll(async () => {
    await page.reload();
    await page.locator("#list").waitFor();
    return (await listed(page)).length;
  }, { timeout: 30_000 }).toBe(before.length + 1);
  expect(page.url()).toContain("search=postgres");
  writeFileSync(snapshot, "{ broken");
  await expect.poll(() => page.locator("#sources").textContent(), { timeout: 60_000 }).toContain("it could not be read since");
  expect(await listed(page)).toHaveLength(before.length + 1);
  expect(said).toEqual([]);
  copyFileSync(SHOP, snapshot);
  await page.close();
});

for (const colorScheme of ["light", "dark"] as const) {
  for (const width of [1200, 360]) {
    for (const tab of ["graph", "status", "drift", "blocked", "exceptions"]) {
      test(`axe finds nothing in ${tab}, ${colorScheme}, ${width} wide`, async () => {
        const { page } = await open(browser, `${address}#tab=${tab}`, { colorScheme, viewport: { width, height: 800 } });
        await isAccessible(page);
        await page.close();
      });
    }
  }
}
