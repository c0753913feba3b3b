/** What a pod may take and do: limits that hold, resizes, and a control plane that outlives whatever a pod asks for. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { waitFor } from "../../system/wait.ts";
import { endAll, inside, kubectl, kubectlProcess, open, ownHome, services, shellImage } from "./harness.ts";

const home = await ownHome();
const name = "e2e-l";
const image = "example.test/shell:1";
const archive = join(home, "shell.tar");

beforeAll(async () => {
  await shellImage(image, archive);
  const stack = await open(name, {
    images: [archive],
    pod: { enabled: false },
    addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
  });
  await stack.up();
});

afterAll(async () => {
  await endAll(home, name);
});

interface Container {
  name?: string;
  command?: string[];
  [field: string]: unknown;
}

/** A pod of one or more containers of the tests' image. */
function pod(pod: string, containers: Container[], spec: object = {}): object {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: containers.map((container, i) => ({ name: `c${i}`, image, imagePullPolicy: "Never", ...container })),
      ...spec,
    },
  };
}

async function create(object: object): Promise<void> {
  await kubectlProcess(name, ["create", "-f", "-"], { input: JSON.stringify(object) });
}

const ready = (pod: string) => kubectl(name, "wait", "--for=condition=Ready", `pod/${pod}`, "--timeout=60s");

const remove = (...pods: string[]) => kubectl(name, "delete", "pod", ...pods, "--force", "--grace-period=0");

/** What a JSON path gives of a pod. */
const ask = (pod: string, path: string) => kubectl(name, "get", "pod", pod, `-o=jsonpath={${path}}`);

/** The server's process: its pid and when it started. */
async function server(): Promise<string> {
  const { pid } = (await services(name)).server!;
  const stat = await inside(name, "/bin/cat", `/proc/${pid}/stat`);
  return `${pid} since ${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]}`;
}

describe("a resize in place", () => {
  const resize = async (to: object) =>
    await kubectl(
      name,
      "patch",
      "pod",
      "resize",
      "--subresource=resize",
      "--patch",
      JSON.stringify({
        spec: { containers: [{ name: "c0", resources: to }] },
      }),
    );

  beforeAll(async () => {
    await create(
      pod("resize", [
        {
          command: ["/bin/sleep", "infinity"],
          resources: { requests: { cpu: "50m", memory: "32Mi" }, limits: { cpu: "100m", memory: "64Mi" } },
        },
      ]),
    );
    await ready("resize");
  });

  it("is done, in the container's cgroup and the pod's, without a restart", async () => {
    const before = await server();
    await resize({ requests: { cpu: "80m", memory: "48Mi" }, limits: { cpu: "200m", memory: "128Mi" } });
    await waitFor("the resize is done", 60, async () => {
      const told = await ask("resize", ".status.containerStatuses[0].resources");
      return (
        told === '{"limits":{"cpu":"200m","memory":"128Mi"},"requests":{"cpu":"80m","memory":"48Mi"}}' || undefined
      );
    });
    expect(await ask("resize", ".status.containerStatuses[0].restartCount")).toBe("0");
    const uid = await ask("resize", ".metadata.uid");
    const id = (await ask("resize", ".status.containerStatuses[0].containerID")).replace("containerd://", "");
    const folder = `/sys/fs/cgroup/memory/kubepods/burstable/pod${uid}`;
    for (const cgroup of [folder, `${folder}/${id}`])
      expect((await inside(name, "/bin/cat", `${cgroup}/memory.limit_in_bytes`)).trim()).toBe(String(128 * 2 ** 20));
    expect(await server()).toBe(before);
  });

  it("that the node has no room for is refused, with the reason", async () => {
    const before = await server();
    const refused = resize({ requests: { memory: "64Gi" }, limits: { memory: "64Gi" } });
    await expect(refused).rejects.toThrow(/enough allocatable resources: memory, requested: \d+, allocatable: \d+/);
    expect(await ask("resize", ".status.containerStatuses[0].resources.limits.memory")).toBe("128Mi");
    expect(await server()).toBe(before);
    await remove("resize");
  });
});
