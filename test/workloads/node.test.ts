/** A Node.js program that watches its ConfigMap. */
import { cpSync, rmSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { cacheFolder } from "../../system/folders.ts";
import { run } from "../../system/run.ts";
import { service, TIMEOUT, workload } from "./workload.ts";

const image = "workloads.test/config-app:1";
const config = (greeting: string) => ({
  apiVersion: "v1",
  kind: "ConfigMap",
  metadata: { name: "app" },
  data: { greeting },
});

const { kubectl, apply, says } = await workload("wk-node", async () => ({
  images: [
    {
      names: [image],
      packages: ["libc6", "libstdc++6"],
      files: { "/usr/bin/node": process.execPath, "/app": await installed() },
      cmd: ["node", "/app/server.js"],
    },
  ],
  objects: [
    config("hello"),
    service("app", 80, 8080),
    {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { name: "app" },
      spec: {
        selector: { matchLabels: { app: "app" } },
        template: {
          metadata: { labels: { app: "app" } },
          spec: {
            containers: [
              {
                name: "app",
                image,
                readinessProbe: { httpGet: { port: 8080 } },
                volumeMounts: [{ name: "config", mountPath: "/config" }],
              },
            ],
            volumes: [{ name: "config", configMap: { name: "app" } }],
          },
        },
      },
    },
  ],
}));

/** The program with its packages, from npm. */
async function installed(): Promise<string> {
  const folder = join(cacheFolder(), "workloads/config-app");
  rmSync(folder, { recursive: true, force: true });
  cpSync(join(import.meta.dirname, "config-app"), folder, { recursive: true });
  await run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], { cwd: folder });
  return folder;
}

it("sees a change of its ConfigMap when it is told of it, and lives on", { timeout: TIMEOUT }, async () => {
  const get = ["get", "--raw", "/api/v1/namespaces/default/services/app:80/proxy/"];
  await says('{"greeting":"hello","changes":0}', ...get);
  for (const [changes, greeting] of ["good morning", "good night"].entries()) {
    await apply(config(greeting));
    await says(JSON.stringify({ greeting, changes: changes + 1 }), ...get);
  }
  expect(
    await kubectl("get", "pods", "-l=app=app", "-o=jsonpath={.items[*].status.containerStatuses[*].restartCount}"),
  ).toBe("0");
});
