/** Programs that are built here for the tests of workloads, and the files that their modules have beside them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { provide, wanted } from "../../artifacts/artifacts.ts";
import { run } from "../../system/run.ts";
import type { Image } from "../images.ts";

const module = join(import.meta.dirname, "programs");

/** An image of one program of the module `programs`. */
export async function program(name: string): Promise<{ image: string; made: Image }> {
  const folder = await provide(wanted({ name: "workloads" }), console.log);
  const image = `workloads.test/${name}:1`;
  const files = { [`/${name}`]: join(folder, name) };
  return { image, made: { names: [image], files, modes: { "/tmp": 0o1777 }, entrypoint: [`/${name}`] } };
}

/** The manifests in a folder of a Go module that the programs pin. */
export async function manifestsOf(path: string, folder: string): Promise<string[]> {
  const { stdout } = await run("go", ["mod", "download", "-json", path], { cwd: module });
  const whole = join((JSON.parse(stdout) as { Dir: string }).Dir, folder);
  const names = readdirSync(whole).filter((name) => name.endsWith(".yaml"));
  return names.map((name) => readFileSync(join(whole, name), "utf8"));
}

/** A Deployment of one pod, which may do everything in the cluster, as others' charts make narrower roles for. */
export function operator(name: string, image: string, args: string[] = []): object[] {
  const labels = { app: name };
  return [
    { apiVersion: "v1", kind: "ServiceAccount", metadata: { name } },
    {
      apiVersion: "rbac.authorization.k8s.io/v1",
      kind: "ClusterRoleBinding",
      metadata: { name },
      roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "cluster-admin" },
      subjects: [{ kind: "ServiceAccount", name, namespace: "default" }],
    },
    {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { name },
      spec: {
        selector: { matchLabels: labels },
        template: {
          metadata: { labels },
          spec: { serviceAccountName: name, containers: [{ name, image, args }] },
        },
      },
    },
  ];
}
