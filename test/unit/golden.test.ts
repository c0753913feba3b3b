/**
 * Every file that is rendered, whole. A change of one shows in the review of its golden file; `vitest run --project
 * unit -u` writes them anew.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { podSubnet, renderConflist } from "../../config/conflist.ts";
import { renderContainerdConfig } from "../../config/containerdToml.ts";
import { renderCoreDns } from "../../config/coredns.ts";
import { facadePlan } from "../../config/facade.ts";
import { renderIngress } from "../../config/ingress.ts";
import { renderMetricsServer } from "../../config/metricsServer.ts";
import { renderNodeConfig } from "../../config/nodeYaml.ts";
import { runtimeCheckSpec, sandboxSpec } from "../../config/ociSpec.ts";
import { containerdKeysFor, facadeFor, type QuirkId } from "../../config/quirks.ts";
import { renderCredentials, renderRegistries } from "../../config/registries.ts";
import { parseStackConfig, type StackConfigInput } from "../../config/schema.ts";
import { renderStorageClass } from "../../config/storageClass.ts";

const stacks: Record<string, StackConfigInput> = {
  default: { name: "dev" },
  custom: {
    name: "other",
    mode: "control-plane",
    sandbox: { subnet: "192.168.77.0/29", memory: null, cpus: 1.5 },
    containerd: { logLevel: "debug" },
    node: {
      httpsListenPort: 7443,
      clusterCidr: "10.50.0.0/16",
      serviceCidr: "10.51.0.0/16",
      labels: { "example.org/tier": "test" },
      kubeletArgs: ["v=4"],
    },
    network: { bridge: "br0", mtu: 1500 },
  },
};

/** What gVisor of 2026-09 and of 2025-02 lack. */
const lacks: Record<string, QuirkId[]> = {
  default: ["no-cgroup-mounts", "kernel-tunables", "dev-kmsg", "old-kernel-cri", "no-netfilter"],
  custom: [
    "no-cgroup-mounts",
    "kernel-tunables",
    "dev-kmsg",
    "procfs-root-inode",
    "tmpfs-nr-blocks",
    "setns-exec",
    "overlay-upper",
    "old-kernel-cri",
    "no-netfilter",
  ],
};

it("registries", async () => {
  const { registries } = parseStackConfig({
    name: "dev",
    registries: {
      mirrors: {
        "*": { endpoint: ["https://all.example"] },
        "docker.io": { endpoint: ["https://mirror.example:5000", "http://proxy.example/v2/hub"] },
      },
      configs: {
        "mirror.example:5000": {
          auth: { username: "user", password: "word" },
          tls: { ca_file: "/ca.pem", cert_file: "/cert.pem", key_file: "/key.pem" },
        },
        "own.example": { tls: { insecure_skip_verify: true } },
        "token.example": { auth: { identity_token: "token" } },
      },
    },
  });
  const files = {
    ...renderRegistries(registries, (path) => `the content of ${path}\n`),
    "conf.d/credentials.toml": renderCredentials(registries)!,
  };
  const text = Object.entries(files)
    .map(([path, content]) => `== ${path}\n${content}`)
    .join("\n");
  await expect(text).toMatchFileSnapshot("golden/registries.txt");
});

describe.each(Object.entries(stacks))("the %s stack's", (stack, input) => {
  const config = parseStackConfig(input);
  const address = { default: "10.107.0.2", custom: "192.168.77.2" }[stack]!;
  const found = lacks[stack]!;
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  const files: Record<string, string> = {
    "config.toml": renderContainerdConfig(
      config.containerd,
      { runtime: "/opt/runc", cniPlugins: "/opt/cni", pauseImage: "example/pause:1" },
      containerdKeysFor(found),
    ),
    "config.yaml": renderNodeConfig(
      config.name,
      address,
      config.node,
      config.mode === "node",
      stack === "custom" ? ["local-storage"] : [],
    ),
    "10-gvisor-k3s.conflist": renderConflist(config.network, podSubnet(config.node.clusterCidr), address),
    "coredns.yaml": renderCoreDns({ name: "example/coredns:1", program: "/opt/example/coredns" }, config.node),
    "ingress.yaml": renderIngress({ name: "example/traefik:1" }),
    "metrics-server.yaml": renderMetricsServer({
      name: "example/metrics-server:1",
      program: "/opt/example/metrics-server",
    }),
    "facade.json": json(facadePlan(config.name, facadeFor(found))),
    "sandbox.json": json(
      sandboxSpec({
        name: config.name,
        rootfs: "/home/rootfs",
        networkNamespace: "/run/netns/x",
        base: "/base",
        artifacts: "/artifacts",
        init: "/opt/init",
        limits: config.sandbox,
      }),
    ),
    "runtime-check.json": json(runtimeCheckSpec(["/bin/true"])),
  };

  it.each(Object.keys(files))("%s", async (file) => {
    await expect(files[file]).toMatchFileSnapshot(`golden/${stack}/${file}`);
  });
});

it("every key of the server's config file is one that k3s knows, by the table in docs/k3s.md", () => {
  const known = [...readFileSync("docs/k3s.md", "utf8").matchAll(/^\| `([\w-]+)` \| pkg\//gm)].map(([, key]) => key);
  const args = {
    labels: { a: "b" },
    kubeletArgs: ["a=b"],
    apiServerArgs: ["a=b"],
    controllerManagerArgs: ["a=b"],
    schedulerArgs: ["a=b"],
  };
  const config = parseStackConfig({ name: "all", node: args });
  const rendered = [true, false].flatMap((agent) =>
    Object.keys(parse(renderNodeConfig("all", "10.107.0.2", config.node, agent, ["traefik"]))),
  );
  expect([...new Set(rendered)].sort()).toEqual(known.sort());
});

it("the StorageClass is the embedded server's, whoever makes it", () => {
  const own = readFileSync(join(import.meta.dirname, "../../node/server/local-storage.yaml"), "utf8");
  expect(parse(renderStorageClass())).toEqual(parse(own));
});
