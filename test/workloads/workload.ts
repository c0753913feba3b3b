/** What the tests of real workloads share: a cluster for each, with images that are made for it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import { stringify } from "yaml";
import { cacheFolder } from "../../system/folders.ts";
import { waitFor } from "../../system/wait.ts";
import { endAll, kubectlProcess, open, ownHome } from "../e2e/harness.ts";
import { type Image, makeImage } from "../images.ts";

/** Seconds for a program to do its work on a busy machine. */
export const PATIENCE = 300;

/** Milliseconds for a test, or for what comes before them. */
export const TIMEOUT = 900_000;

/** What is asked of a workload's cluster. */
export interface Workload {
  /** Its sandbox's name. */
  name: string;
  /** Runs kubectl, and returns what it prints. */
  kubectl(...args: string[]): Promise<string>;
  /** Applies objects, or a manifest. */
  apply(...objects: (object | string)[]): Promise<void>;
  /** Waits until a command of kubectl says something. */
  says(what: string | RegExp, ...args: string[]): Promise<string>;
}

/**
 * A cluster that there is while the tests of a file run.
 * @param make its images, the objects that are there, whose pods are Ready, and further options of the cluster
 */
export async function workload(
  name: string,
  make: () => Promise<{ images: Image[]; objects: (object | string)[]; options?: object }>,
): Promise<Workload> {
  const home = await ownHome();
  beforeAll(async () => {
    const { images, objects, options } = await make();
    const archives: string[] = [];
    for (const image of images) archives.push(...(await makeImage(image, join(cacheFolder(), "workloads"))));
    const manifest = join(home, "workload.yaml");
    writeFileSync(manifest, asText(objects));
    await (await open(name, { pod: { enabled: false }, images: archives, manifests: [manifest], ...options })).up();
  }, TIMEOUT);
  afterAll(() => endAll(home, name), TIMEOUT);
  const ask = async (...args: string[]) =>
    String((await kubectlProcess(name, args, { timeout: PATIENCE * 1000 })).stdout);
  return {
    name,
    kubectl: ask,
    apply: async (...objects) => {
      await kubectlProcess(name, ["apply", "--filename=-"], { input: asText(objects) });
    },
    says: async (what, ...args) => {
      let said = "";
      await waitFor(
        `${args.join(" ")} says ${what}`,
        PATIENCE,
        async () => {
          said = await ask(...args).catch((error: Error) => error.message);
          return (typeof what === "string" ? said.includes(what) : what.test(said)) || undefined;
        },
        () => said,
      );
      return said;
    },
  };
}

/** A Service of the pods with the label `app` that has its name. */
export const service = (name: string, port: number, targetPort = port) => ({
  apiVersion: "v1",
  kind: "Service",
  metadata: { name },
  spec: { selector: { app: name }, ports: [{ port, targetPort }] },
});

const asText = (objects: (object | string)[]) =>
  objects
    .map((object) => (typeof object === "string" ? object : stringify(object, { version: "1.1" }))) // as kubectl reads it
    .join("---\n");
