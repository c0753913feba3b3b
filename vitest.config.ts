import { join } from "node:path";
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    projects: [
      // What is built is named by a fixed manifest there, so that no compiler is asked.
      {
        test: {
          name: "unit",
          include: ["test/unit/**/*.test.ts"],
          env: { GVISOR_K3S_MANIFEST: join(import.meta.dirname, "test/unit/fixtures/manifest.json") },
        },
      },
      // Real sandboxes: one file at a time on two cores, and each step takes as long as it takes.
      {
        test: {
          name: "e2e",
          include: ["test/e2e/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 300_000,
          bail: 1,
        },
      },
    ],
  },
});
