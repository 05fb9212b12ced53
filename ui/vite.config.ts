import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

// One script and one style, whose hashes are what the single file's policy allows.
function policy(): Plugin {
  return {
    name: "policy",
    writeBundle({ dir }) {
      const file = (name: string): string => join(dir ?? "dist", name);
      const hash = (name: string): string => {
        const digest = createHash("sha256").update(readFileSync(file(name))).digest("base64");
        return `'sha256-${digest}'`;
      };
      if (/<\/script|<!--/i.test(readFileSync(file("page.js"), "utf8"))) {
        throw new Error("page.js would end its own element");
      }
      const allowed = [
        "default-src 'none'",
        `script-src ${hash("page.js")}`,
        `style-src ${hash("page.css")}`,
        "base-uri 'none'",
        "form-action 'none'",
      ];
      writeFileSync(file("policy.txt"), `${allowed.join("; ")}\n`);
    },
  };
}

export default defineConfig({
  plugins: [policy()],
  // The library form keeps the mode as a question to Node.js, which the page does not have.
  define: { "process.env.NODE_ENV": '"production"' },
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    sourcemap: false,
    minify: true,
    lib: { entry: "src/entry.ts", formats: ["iife"], name: "guardrail", fileName: () => "page.js", cssFileName: "page" },
  },
});
