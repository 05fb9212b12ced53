// What the browser tests share: the command, the browser, and a page that must not say anything.
// GUARDRAIL names the command, CHROMIUM the browser (default: Debian's).

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { chromium, type Browser, type Page } from "playwright-core";
import { expect } from "vitest";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** The command under test. */
export function guardrail(): string {
  const command = process.env.GUARDRAIL;
  if (!command) throw new Error("GUARDRAIL names no command: `cargo xtask test` sets it");
  return command;
}

/** The graph that the command's own tests use. */
export const SHOP = join(import.meta.dirname, "../../guardrail-cli/tests/data/shop.json");

export function launch(): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    ],
  });
}

/** Opens a page; `said` is what it must not say: errors, dialogs, blocked things, requests elsewhere. */
export async function open(
  browser: Browser,
  url: string,
  options: Parameters<Browser["newPage"]>[0] = {},
): Promise<{ page: Page; said: string[] }> {
  const page = await browser.newPage({ viewport: { width: 1200, height: 800 }, ...options });
  const said: string[] = [];
  const own = new URL(url.split("#")[0] ?? url);
  const isOwn = (asked: string): boolean =>
    own.protocol === "file:" ? asked.split("#")[0] === own.href : new URL(asked).origin === own.origin;
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(error.message));
  page.on("dialog", (dialog) => said.push(`dialog ${dialog.message()}`));
  page.on("request", (request) => !isOwn(request.url()) && said.push(`asked for ${request.url()}`));
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (e) => console.log(`blocked ${e.blockedURI}`)));
  await page.goto(url);
  await page.locator("h1").waitFor();
  return { page, said };
}

/** The lines of the list of edges. */
export const listed = (page: Page): Promise<string[]> => page.locator("#list .lines button").allTextContents();

/** axe-core has nothing to say, and the page is not wider than its window. */
export async function isAccessible(page: Page): Promise<void> {
  await page.evaluate(axe);
  const result = await page.evaluate(() => (globalThis as any).axe.run());
  expect(result.violations.map((one: any) => `${one.id}: ${one.nodes.map((node: any) => node.html).join(" ")}`)).toEqual([]);
  expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)).toBe(true);
}
