import { defineConfig } from "vitest/config";

// A browser on a loaded machine takes its time; what a test waits for is a condition, never a clock.
export default defineConfig({ test: { include: ["test/*.test.ts"], testTimeout: 120_000, hookTimeout: 120_000 } });
