/** The program's graph, from the registrations that Pulumi's engine would get. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";

interface Registration {
  type: string;
  /** The names of the resources, without their types. */
  parent: string;
  dependsOn: string[];
  deletedWith: string;
  secretOutputs: string[];
}

const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-graph-"));
const nameOf = (urn: string) => urn.split("::").at(-1) ?? "";

/** Runs the program with these options and returns what it registers, by name. */
async function graph(options: Record<string, unknown> = {}): Promise<Record<string, Registration>> {
  const registrations: Record<string, Registration> = {};
  await pulumi.runtime.setMocks(
    {
      newResource: ({ name, inputs }) => ({ id: `${name}-id`, state: { ...inputs, stdout: `${name} says` } }),
      call: () => ({}),
    },
    "gvisor-k3s",
    "graph",
  );
  const monitor = pulumi.runtime.getMonitor()!;
  const register = monitor.registerResource;
  monitor.registerResource = ((...args: Parameters<typeof register>) => {
    const [request] = args;
    registrations[request.getName()] = {
      type: request.getType().replace("gvisor-k3s:index:", ""),
      parent: nameOf(request.getParent()),
      dependsOn: request.getDependenciesList().map(nameOf).sort(),
      deletedWith: nameOf(request.getDeletedwith()),
      secretOutputs: request.getAdditionalsecretoutputsList(),
    };
    return register.apply(monitor, args);
  }) as typeof register;
  pulumi.runtime.setAllConfig(Object.fromEntries(Object.entries(options).map(([key, value]) => [`gvisor-k3s:${key}`, JSON.stringify(value)])));
  vi.resetModules();
  await import("../../index.ts");
  await pulumi.runtime.disconnect();
  return registrations;
}

/** Everything that must be done before a resource is made. */
function awaited(all: Record<string, Registration>, name: string): Set<string> {
  const found = new Set<string>();
  const visit = (from: string) => {
    for (const next of all[from]!.dependsOn) {
      if (found.has(next)) continue;
      found.add(next);
      visit(next);
    }
  };
  visit(name);
  return found;
}

let plain: Record<string, Registration>;

beforeAll(async () => {
  vi.stubEnv("GVISOR_K3S_HOME", home);
  plain = await graph();
});

afterAll(() => {
  vi.unstubAllEnvs();
  rmSync(home, { recursive: true });
});

describe("the graph", () => {
  it("has each part as a component, with its commands below it", () => {
    const parts = Object.entries(plain).filter(([, { type }]) => !type.includes(":"));
    expect(Object.fromEntries(parts.map(([part, { type }]) => [part, [type, Object.keys(plain).filter((name) => plain[name]!.parent === part).sort()]]))).toEqual({
      sandbox: ["Sandbox", ["sandbox-build", "sandbox-process"]],
      facade: ["KernelFacade", ["facade-apply"]],
      runc: ["PatchedRunc", ["runc-build"]],
      runtime: ["RuntimeWrapper", ["runtime-check"]],
      containerd: ["ContainerdConfig", ["containerd-apply", "containerd-build"]],
      node: ["K3sNode", ["node-build", "node-kubeconfig", "node-server"]],
      network: ["PodNetwork", ["network-apply"]],
      images: ["Images", ["images-build", "images-import"]],
      testpod: ["TestPod", ["testpod-logs", "testpod-pod", "testpod-provider"]],
    });
  });

  it("does the steps in the order of their integration", () => {
    const order = ["sandbox-process", "facade-apply", "runtime-check", "containerd-apply", "node-server", "network-apply", "testpod-pod", "testpod-logs"];
    for (const [index, step] of order.entries()) {
      expect([...awaited(plain, step)], `before ${step}`).toEqual(expect.arrayContaining(order.slice(0, index)));
      for (const later of order.slice(index + 1)) expect(awaited(plain, step), `before ${step}`).not.toContain(later);
    }
    expect(awaited(plain, "runtime-check")).toContain("runc-build");
    expect(awaited(plain, "testpod-pod")).toContain("images-import");
    expect(awaited(plain, "images-import")).toContain("node-server");
    expect(awaited(plain, "network-apply")).not.toContain("images-import");
  });

  it("builds beside the sandbox: no build waits for anything", () => {
    const builds = Object.keys(plain).filter((name) => name.endsWith("-build") && name !== "sandbox-build");
    expect(builds.sort()).toEqual(["containerd-build", "images-build", "node-build", "runc-build"]);
    for (const build of builds) expect(awaited(plain, build), build).not.toContain("sandbox-process");
  });

  it("lets everything in the sandbox end with it, and nothing else", () => {
    const ending = Object.keys(plain).filter((name) => plain[name]!.deletedWith !== "");
    expect(ending.sort()).toEqual(["containerd-apply", "facade-apply", "images-import", "network-apply", "node-kubeconfig", "node-server", "runtime-check", "testpod-logs", "testpod-pod"]);
    for (const name of ending) expect(plain[name]!.deletedWith, name).toBe("sandbox-process");
  });

  it("keeps the kubeconfig a secret", () => {
    expect(plain["node-kubeconfig"]!.secretOutputs).toEqual(["stdout", "stderr"]);
  });
});

describe("an option changes the graph", () => {
  it("with a rule there is a wrapper, before the check", async () => {
    const ruled = await graph({ runtime: { rules: [{ dropNamespace: "cgroup" }] } });
    expect(awaited(ruled, "runtime-check")).toContain("runtime-install");
    expect(ruled["runtime-install"]!.deletedWith).toBe("");
  });

  it("without the test pod there is none", async () => {
    expect(Object.keys(await graph({ pod: { enabled: false } })).filter((name) => name.startsWith("testpod"))).toEqual([]);
  });

  it("what is wrong stops the program before it registers anything", async () => {
    await expect(graph({ network: { mtu: 1 } })).rejects.toThrow("network.mtu = 1: a whole number from 1280 to 65521 is allowed");
  });
});
