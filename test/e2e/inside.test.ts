/** A node on a machine that is a gVisor sandbox itself, as agents and CI jobs find themselves in one. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { linkAddresses } from "../../config/network.ts";
import { defaultSubnet } from "../../config/schema.ts";
import { ownHome, removeHome, root } from "./harness.ts";

const home = await ownHome();
const name = "e2e-inside";
const options = join(root, `Pulumi.${name}.yaml`);
const kubectl = (...args: string[]) => [
  join(artifactFolder({ name: "server" }), "gvisor-k3s-node"),
  "kubectl",
  "--kubeconfig=/etc/rancher/k3s/k3s.yaml",
  ...args,
];
const cli = (verb: string) => [process.execPath, join(root, "automation/cli.ts"), verb, name];
const shell = (script: string) => ["sh", "-c", script];

/** What a node leaves traces in. */
const traces = shell(
  "ls -d /etc/cni /etc/containerd /etc/rancher /opt/gvisor-k3s /run/cni /run/containerd " +
    "/run/gvisor* /run/netns/* /run/sandbox-init.sock /var/lib/cni /var/lib/containerd " +
    "/var/lib/kubelet /var/lib/rancher /var/log/pods /var/log/gvisor-k3s /dev/kmsg 2> /dev/null; cat " +
    "/proc/mounts; ip -oneline address; ps -e -o stat=,comm= | grep -v ^Z | grep -E " +
    "'sandbox-init|containerd|gvisor-k3s|pause|coredns'",
);

const commands: [string, ...string[]][] = [
  ["before", ...traces],
  ["up", ...cli("up")],
  ["again", ...cli("up")],
  ["pods", ...kubectl("get", "pods", "-A", "--no-headers")],
  ["logs", ...kubectl("logs", "testpod")],
  ["exec", ...kubectl("exec", "testpod", "--", "/testpod", "get", "https://kubernetes.default.svc/version")],
  // What supervises is killed, and with it its services; pods live on.
  [
    "kill",
    ...shell(
      "pkill -KILL -x sandbox-init && pkill -KILL -x containerd && pkill -KILL -x gvisor-k3s-node && " +
        "pkill -KILL -x service-proxy",
    ),
  ],
  ["repair", ...cli("up")],
  ["exec again", ...kubectl("exec", "testpod", "--", "/testpod", "get", "https://kubernetes.default.svc/version")],
  ["destroy", ...cli("destroy")],
  ["after", ...traces],
  ["somebody else's", ...shell("mkdir -p /var/lib/kubelet/pods")],
  ["refused", ...cli("up")],
];
let ended: Record<string, { exitCode: number; all: string }>;

beforeAll(async () => {
  writeFileSync(options, "config:\n  gvisor-k3s:target: inside\n");
  const runsc = join(artifactFolder({ name: "runsc" }), "runsc");
  const state = join(home, "outer");
  const flags = [`--root=${state}`, "--platform=systrap", "--network=none", "--ignore-cgroups"];
  const sequence = [process.execPath, join(root, "test/e2e/inSequence.ts"), JSON.stringify(commands)];
  const { stdout, stderr } = await execa(runsc, [...flags, "do", "-force-overlay", ...sequence], {
    cwd: root,
    stdin: "ignore",
    timeout: 280_000,
    reject: false,
    env: { GVISOR_K3S_HOME: "/root/gvisor-k3s-inside" },
  });
  await execa("umount", [join(state, "null-netns")], { reject: false }); // runsc's own
  expect(stdout, stderr).not.toBe("");
  ended = JSON.parse(stdout);
});

afterAll(() => {
  rmSync(options, { force: true });
  removeHome(home);
});

/** What a command printed, which must have ended well. */
function printed(command: string): string {
  const { exitCode, all } = ended[command]!;
  expect(exitCode, `${command}\n${all}`).toBe(0);
  return all;
}

it("is brought up by the same command, with its pods Running", () => {
  expect(printed("up")).toMatch(/phase {7}Running/);
  const pods = printed("pods")
    .split("\n")
    .map((line) => line.split(/ +/));
  expect(pods.map(([, pod, ready, state]) => [pod!.split("-")[0], ready, state]).sort()).toEqual([
    ["coredns", "1/1", "Running"],
    ["metrics", "1/1", "Running"],
    ["testpod", "1/1", "Running"],
  ]);
  expect(printed("logs")).toContain("is running on kernel 4.19.0-gvisor");
  expect(printed("exec")).toContain("gitVersion");
});

it("is not changed by a second up", () => {
  expect(printed("again")).toMatch(/resources {3}\d+ same\n/);
});

it("is there again with the next up when its processes were killed", () => {
  printed("kill");
  expect(printed("repair")).toMatch(/phase {7}Running/);
  expect(printed("exec again")).toContain("gitVersion");
});

it("is gone after a destroy, with everything of it", () => {
  printed("destroy");
  // It sees the names of the host's namespaces, of which other tests make some.
  const own = (command: string) => ended[command]!.all.replace(/^\/run\/netns\/gk-.*\n/gm, "");
  expect(own("after")).toBe(own("before"));
  expect(ended.after!.all).not.toContain(linkAddresses(defaultSubnet(name)).node);
});

it("is refused where somebody else's runtime is", () => {
  expect(ended.refused!.exitCode).toBe(1);
  expect(ended.refused!.all).toContain(
    'target = "inside": this machine has a container runtime or a node already, or what one left: /var/lib/kubelet;',
  );
});
