/**
 * A cluster that the release 0.2.0 made: the state of Pulumi's and the files of its home folder are kept in
 * fixtures/v0.2.0, as that release wrote them; the data on its disk is today's, since its form is the same.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Stack } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  changes,
  cli,
  endAll,
  entriesOf,
  killSandbox,
  kubectl,
  open,
  ownHome,
  pathsOf,
  supervised,
  traces,
} from "./harness.ts";

const home = await ownHome();
// As the fixture has them; so is the home folder.
const [stackName, name] = ["e2e-prev", "prev-c"];
const manifest = join(home, "team.yaml");
let stack: Stack;
let before: ReturnType<typeof traces>;

beforeAll(async () => {
  before = { ...traces(home, name), files: [] };
  writeFileSync(
    manifest,
    "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: team, namespace: default }\ndata: { team: blue }\n",
  );
  stack = await opened();
  await stack.up();
  await kubectl(name, "create", "configmap", "kept", "--from-literal=by=its-owner");
});

afterAll(async () => {
  await endAll(home, stackName);
});

const opened = () =>
  open(stackName, { name, egress: { enabled: true }, sandbox: { memory: "3Gi" }, manifests: [manifest] });

const fixture = (file: string) => readFileSync(join(import.meta.dirname, "fixtures/v0.2.0", file), "utf8");

/** Kills the cluster, and makes of what is kept of it here what the release 0.2.0 kept. */
async function becomePrevious(): Promise<void> {
  await killSandbox(name);
  const { state, bundle } = pathsOf(name);
  for (const entry of entriesOf(state)) {
    if (!["bundle", "runsc"].includes(entry)) rmSync(join(state, entry), { recursive: true });
  }
  rmSync(join(bundle, "rootfs/etc"), { recursive: true });
  for (const [path, content] of Object.entries(JSON.parse(fixture("files.json")) as Record<string, string>)) {
    mkdirSync(dirname(join(home, path)), { recursive: true });
    writeFileSync(join(home, path), content);
  }
  for (const log of ["sandbox.log", "egress.log", "server.log"]) {
    mkdirSync(join(state, "log"), { recursive: true });
    writeFileSync(join(state, "log", log), "");
  }
  writeFileSync(join(home, `pulumi/.pulumi/stacks/gvisor-k3s/${stackName}.json`), fixture("stack.json"));
  stack = await opened();
}

it("is taken over by an update, with its data and its keys", async () => {
  const authority = /certificate-authority-data: (\S+)/;
  const ca = authority.exec(readFileSync(pathsOf(name).kubeconfig, "utf8"))![1];
  await becomePrevious();

  const { changed } = await changes((options) => stack.up(options));
  const { update, delete: deleted, ...others } = changed;
  expect(update).toContain("sandbox-process");
  // The node has a step of its own, which awaits it; the test pod's image is another one; its provider is replaced because
  // the data here is another cluster's.
  expect([...new Set(Object.values(others).flat())].sort()).toEqual(["node-ready", "testpod-pod", "testpod-provider"]);
  // What was only looked up, the way out, and addons' images are no resources of their own any more.
  expect(deleted!.sort()).toEqual([
    "containerd-build",
    "coredns-image",
    "egress",
    "egress-apply",
    "images-build",
    "metrics-server-image",
    "node-build",
    "sandbox-build",
  ]);
  expect(await kubectl(name, "get", "configmap", "kept", "-o=jsonpath={.data.by}")).toBe("its-owner");
  expect(authority.exec(readFileSync(pathsOf(name).kubeconfig, "utf8"))![1]).toBe(ca);
  await kubectl(name, "wait", "pod/testpod", "--for=condition=Ready", "--timeout=60s");
  expect(supervised(name).egress).not.toBeNull();
  for (const old of ["sandbox.json", "egress.json", "etc"]) expect(entriesOf(pathsOf(name).state)).not.toContain(old);
  expect((await changes((options) => stack.preview(options))).changed).toEqual({});
});

it("is removed with what that release has given to its steps", async () => {
  await becomePrevious();
  const { exitCode, all } = await cli("destroy", stackName);
  expect(exitCode, all).toBe(0);
  expect({ ...traces(home, name), files: [] }).toEqual(before);
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
});
