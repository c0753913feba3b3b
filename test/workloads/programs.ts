/** Programs that are built here for the tests of workloads, and the files that their modules have beside them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type ArtifactName, provide, wanted } from "../../artifacts/artifacts.ts";
import { run } from "../../system/run.ts";
import type { Image } from "../images.ts";

/** What the programs are pinned by: a Go module for each artifact that is made of some. */
const modules = {
  workloads: "programs",
  "prometheus-operator": "programs/prometheus-operator",
  flux: "programs/flux",
} satisfies Partial<Record<ArtifactName, string>>;

type Programs = keyof typeof modules;

/** An image of one program of an artifact. */
export async function program(name: string, artifact: Programs = "workloads"): Promise<{ image: string; made: Image }> {
  const folder = await provide(wanted({ name: artifact }), console.log);
  const image = `workloads.test/${name}:1`;
  const path = `/bin/${name}`;
  const files = { [path]: join(folder, name) };
  return { image, made: { names: [image], files, modes: { "/tmp": 0o1777 }, entrypoint: [path] } };
}

/** The manifests in a folder of a Go module that an artifact's programs pin. */
export async function manifestsOf(path: string, folder: string, artifact: Programs = "workloads"): Promise<string[]> {
  const cwd = join(import.meta.dirname, modules[artifact]);
  const { stdout } = await run("go", ["mod", "download", "-json", path], { cwd });
  const whole = join((JSON.parse(stdout) as { Dir: string }).Dir, folder);
  // That which says how kustomize would put the others together is no object of the cluster's.
  const names = readdirSync(whole).filter((name) => name.endsWith(".yaml") && name !== "kustomization.yaml");
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
