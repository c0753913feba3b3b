import { availableParallelism, totalmem } from "node:os";
import { join } from "node:path";
import { defineConfig } from "vitest/config";
import { Failures } from "./test/failures.ts";

/** Two nodes with what the tests run on them take this much. */
const enoughForTwo = availableParallelism() >= 2 && totalmem() > 10 * 2 ** 30;

export default defineConfig({
  test: {
    reporters: ["default", new Failures()],
    projects: [
      // What is built is named by a fixed manifest there, so that no compiler is asked.
      {
        test: {
          name: "unit",
          include: ["test/unit/**/*.test.ts"],
          testTimeout: 120_000, // it ends what hangs; how busy the machine is says nothing
          env: { GVISOR_K3S_MANIFEST: join(import.meta.dirname, "test/unit/fixtures/manifest.json") },
        },
      },
      // Every version of Kubernetes, which takes the servers of the older ones.
      {
        test: {
          name: "versions",
          include: ["test/versions/**/*.test.ts"],
          maxWorkers: 1,
          testTimeout: 600_000,
          hookTimeout: 300_000,
        },
      },
      // Real sandboxes, of which each file has its own: two files at once, because most of the time one of them waits.
      {
        test: {
          name: "e2e",
          include: ["test/e2e/**/*.test.ts"],
          maxWorkers: enoughForTwo ? 2 : 1,
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
      // Others' programs (docs/workloads.md): one after the other, for who asks for them.
      { test: { name: "workloads", include: ["test/workloads/**/*.test.ts"], maxWorkers: 1 } },
    ],
  },
});
