/** What holds of every file that is rendered, whatever the options; golden.test.ts has some of them whole. */
import { join } from "node:path";
import fc from "fast-check";
import { parse as parseToml } from "smol-toml";
import { describe, expect, it } from "vitest";
import { parse as parseYaml } from "yaml";
import { podSubnet, renderConflist } from "../../config/conflist.ts";
import { renderContainerdConfig } from "../../config/containerdToml.ts";
import { facadePlan } from "../../config/facade.ts";
import { linkAddresses } from "../../config/network.ts";
import { renderNodeConfig } from "../../config/nodeYaml.ts";
import { sandboxSpec } from "../../config/ociSpec.ts";
import { inSandbox } from "../../config/paths.ts";
import { containerdKeysFor, facadeFor, type QuirkId } from "../../config/quirks.ts";
import { parseStackConfig, type StackConfig } from "../../config/schema.ts";
import { hostPaths } from "../../machines/paths.ts";
import { renderKubeconfig } from "../../servers/kubeconfig.ts";
import { homeFolder } from "../../system/folders.ts";
import { quirkLists, validConfigs } from "./arbitraries.ts";

const files = { runtime: "/opt/runc", cniPlugins: "/opt/cni", pauseImage: "example/pause:1" };
const specOf = ({ name, sandbox }: StackConfig) =>
  sandboxSpec({
    name,
    rootfs: "/home/rootfs",
    networkNamespace: "/run/netns/x",
    base: "/base",
    artifacts: "/artifacts",
    init: "/opt/init",
    limits: sandbox,
  });

function render(config: StackConfig, found: QuirkId[]): string[] {
  const address = linkAddresses(config.sandbox.subnet).node;
  return [
    renderContainerdConfig(config.containerd, files, containerdKeysFor(found)),
    renderNodeConfig(config.name, address, config.node, config.mode === "node"),
    renderConflist(config.network, podSubnet(config.node.clusterCidr), address),
    JSON.stringify([facadePlan(config.name, facadeFor(found)), specOf(config)]),
  ];
}

describe("any valid configuration", () => {
  const configs = validConfigs.map((input) => parseStackConfig(input));

  it("renders to the same bytes each time, in whatever order quirks are named", () => {
    fc.assert(
      fc.property(configs, quirkLists, (config, found) => {
        expect(render(structuredClone(config), found.toReversed())).toEqual(render(config, found));
      }),
    );
  });

  it("gives containerd the paths and options as they are", () => {
    fc.assert(
      fc.property(
        configs,
        quirkLists,
        fc.record({ runtime: fc.string(), cniPlugins: fc.string(), pauseImage: fc.string() }),
        ({ containerd }, found, paths) => {
          const toml = parseToml(renderContainerdConfig(containerd, paths, containerdKeysFor(found))) as {
            plugins: Record<string, Record<string, unknown>>;
          };
          const snapshotter =
            containerd.snapshotter !== "auto"
              ? containerd.snapshotter
              : found.includes("overlay-upper")
                ? "native"
                : "overlayfs";
          const unprivileged = !found.includes("old-kernel-cri");
          expect(toml).toMatchObject({
            version: 3,
            debug: { level: containerd.logLevel },
            grpc: { address: inSandbox.containerdSocket },
          });
          expect(toml.plugins["io.containerd.cri.v1.images"]).toMatchObject({
            snapshotter,
            pinned_images: { sandbox: paths.pauseImage },
          });
          // An import that unpacked for another snapshotter than the CRI's would leave images that no container can
          // use.
          expect(toml.plugins["io.containerd.transfer.v1.local"]).toEqual({
            unpack_config: [{ platform: "linux", snapshotter }],
          });
          expect(toml.plugins["io.containerd.cri.v1.runtime"]).toMatchObject({
            enable_unprivileged_icmp: unprivileged,
            enable_unprivileged_ports: unprivileged,
            cni: { bin_dirs: [paths.cniPlugins] },
            containerd: { runtimes: { runc: { options: { BinaryName: paths.runtime } } } },
          });
        },
      ),
    );
  });

  it("has its snapshotter in two lines of containerd's config, and a change of it changes no other", () => {
    fc.assert(
      fc.property(configs, ({ containerd }) => {
        const [before, after] = (["overlayfs", "native"] as const).map((snapshotter) =>
          renderContainerdConfig({ ...containerd, snapshotter }, files, {}).split("\n"),
        );
        expect(after).toHaveLength(before!.length);
        expect(before!.flatMap((line, index) => (line === after![index] ? [] : [[line, after![index]]]))).toEqual(
          Array(2).fill(['snapshotter = "overlayfs"', 'snapshotter = "native"']),
        );
      }),
    );
  });

  // The server reads YAML 1.1 (sigs.k8s.io/yaml), where more words than in 1.2 are no texts: a node's name may be "on",
  // "no" or "y".
  it.each(["1.1", "1.2"] as const)("gives the server its options as they are, read as YAML %s", (version) => {
    fc.assert(
      fc.property(configs, ({ name, node }) => {
        const yaml = parseYaml(renderNodeConfig(name, "10.107.0.2", node, true), { version }) as Record<
          string,
          unknown
        >;
        expect(yaml).toMatchObject({
          "node-name": name,
          "node-ip": "10.107.0.2",
          "write-kubeconfig-mode": "0600",
          "https-listen-port": node.httpsListenPort,
          "cluster-domain": node.clusterDomain,
          "cluster-cidr": node.clusterCidr,
          "service-cidr": node.serviceCidr,
          "cluster-dns": node.clusterDns,
        });
        const lists = {
          "node-label": Object.entries(node.labels).map((label) => label.join("=")),
          "kubelet-arg": [
            ...(node.pruneImagesAt === null
              ? ["image-gc-high-threshold=100"]
              : [
                  `image-gc-high-threshold=${node.pruneImagesAt}`,
                  `image-gc-low-threshold=${Math.max(0, node.pruneImagesAt - 5)}`,
                ]),
            ...node.kubeletArgs,
          ],
          "kube-apiserver-arg": node.apiServerArgs,
          "kube-controller-manager-arg": node.controllerManagerArgs,
          "kube-scheduler-arg": node.schedulerArgs,
        };
        // An empty list is left out: k3s takes a key without values for one empty value.
        expect(
          Object.fromEntries(Object.keys(lists).flatMap((key) => (key in yaml ? [[key, yaml[key]]] : []))),
        ).toEqual(Object.fromEntries(Object.entries(lists).filter(([, values]) => values.length > 0)));
      }),
    );
  });

  it.each(["1.1", "1.2"] as const)(
    "names its cluster in the kubeconfig as it is called, read as YAML %s",
    (version) => {
      for (const name of ["dev", "on", "no", "y"]) {
        const text = renderKubeconfig(
          name,
          { ca: "", certificate: "", key: "" },
          { address: "10.107.0.2", port: 6443 },
        );
        expect(parseYaml(text, { version })).toMatchObject({
          clusters: [{ name }],
          users: [{ name }],
          contexts: [{ name, context: { cluster: name, user: name } }],
          "current-context": name,
        });
      }
    },
  );

  it("gives the network its options as they are", () => {
    fc.assert(
      fc.property(configs, ({ network, node }) => {
        const conflist = JSON.parse(renderConflist(network, podSubnet(node.clusterCidr), "10.107.0.2")) as {
          plugins: unknown[];
        };
        expect(conflist.plugins).toEqual([
          expect.objectContaining({
            bridge: network.bridge,
            mtu: network.mtu,
            nodeAddresses: ["10.107.0.2"],
            ipam: expect.objectContaining({ ranges: [[{ subnet: node.clusterCidr.replace(/\/.*/, "/24") }]] }),
          }),
        ]);
      }),
    );
  });

  it("limits the sandbox to what was given, and not at all for null", () => {
    fc.assert(
      fc.property(configs, (config) => {
        const { memory, cpus } = config.sandbox;
        const resources = specOf(config).linux.resources as {
          memory?: { limit: number };
          cpu?: { quota: number; period: number };
        };
        expect(Object.keys(resources)).toEqual([
          ...(memory === null ? [] : ["memory"]),
          ...(cpus === null ? [] : ["cpu"]),
        ]);
        if (cpus !== null) expect(resources.cpu!.quota / resources.cpu!.period).toBeCloseTo(cpus, 4);
        if (memory !== null) expect(resources.memory!.limit).toBeGreaterThanOrEqual(512 * 2 ** 20);
      }),
    );
  });
});

it("images are deleted when the kubelet's own arguments say, where its user gives these", () => {
  const { node } = parseStackConfig({ name: "dev", node: { kubeletArgs: ["image-gc-high-threshold=80", "v=2"] } });
  const { "kubelet-arg": given } = parseYaml(renderNodeConfig("dev", "10.107.0.2", node, true));
  expect(given).toEqual(["image-gc-high-threshold=80", "v=2"]);
});

it("a control plane alone has no container runtime, and no kubelet", () => {
  const { node } = parseStackConfig({ name: "dev" });
  expect(parseYaml(renderNodeConfig("dev", "10.107.0.2", node, true))).toHaveProperty("container-runtime-endpoint");
  const alone = parseYaml(renderNodeConfig("dev", "10.107.0.2", node, false));
  expect(alone).toHaveProperty("disable-agent", true);
  expect(alone).not.toHaveProperty("container-runtime-endpoint");
});

it("a sandbox's machine id is its own, and forwarding is on before the overlay covers it", () => {
  expect(facadePlan("dev", []).files[0]).not.toEqual(facadePlan("other", []).files[0]);
  expect(facadePlan("dev", facadeFor(["kernel-tunables"])).settings).toEqual([
    { path: "/proc/sys/net/ipv4/ip_forward", content: "1" },
  ]);
});

it("two sandboxes share no path and no link, and a link's name is one that the kernel takes", () => {
  const [a, b] = ["dev", "twelve-chars"].map((name) => hostPaths(name, "/home"));
  for (const key of Object.keys(a!) as (keyof typeof a & string)[]) expect(a![key]).not.toBe(b![key]);
  expect(b!.link).toHaveLength(15);
});

it("the home is the variable's, and a variable that is empty is as good as none", () => {
  expect(homeFolder({ GVISOR_K3S_HOME: "/elsewhere" })).toBe("/elsewhere");
  expect(homeFolder({ GVISOR_K3S_HOME: "" })).toBe("/var/lib/gvisor-k3s");
  expect(homeFolder({ GVISOR_K3S_HOME: "relative" }), "from the current folder").toBe(join(process.cwd(), "relative"));
});
