import fc from "fast-check";
import { parse as parseToml } from "smol-toml";
import { describe, expect, it } from "vitest";
import { parse as parseYaml } from "yaml";
import { renderConflist } from "../../config/conflist.ts";
import { renderContainerdConfig } from "../../config/containerdToml.ts";
import { facadePlan } from "../../config/facade.ts";
import { renderNodeConfig } from "../../config/nodeYaml.ts";
import { parseStackConfig } from "../../config/schema.ts";
import { readStackConfig } from "../../config/stackConfig.ts";

const config = parseStackConfig({ name: "dev" });
const files = { shim: "/opt/shim", runtime: "/opt/runc", cniPlugins: "/opt/cni", pauseImage: "local/pause:1" };

describe("containerd's config", () => {
  const render = (containerd: object) => renderContainerdConfig({ ...config.containerd, ...containerd }, files);

  it("differs in the snapshotter's lines only when the snapshotter changes", () => {
    const [before, after] = [render({}).split("\n"), render({ snapshotter: "native" }).split("\n")];
    const changed = after.filter((line, index) => line !== before[index]);
    expect(after).toHaveLength(before.length);
    expect(new Set(changed)).toEqual(new Set(['snapshotter = "native"']));
  });

  it("switches off what gVisor lacks and names shim and runtime by path", () => {
    const { plugins } = parseToml(render({})) as { plugins: Record<string, Record<string, unknown>> };
    expect(plugins["io.containerd.cri.v1.runtime"]).toMatchObject({
      enable_unprivileged_icmp: false,
      enable_unprivileged_ports: false,
      containerd: { runtimes: { runc: { runtime_path: "/opt/shim", options: { BinaryName: "/opt/runc" } } } },
    });
  });
});

describe("the node's config", () => {
  it("is in k3s's keys, with lists only where they hold something", () => {
    const yaml = parseYaml(renderNodeConfig("dev", "10.107.0.2", { ...config.node, labels: { a: "b" } }));
    expect(yaml).toMatchObject({ "node-ip": "10.107.0.2", "https-listen-port": 6443, "node-label": ["a=b"], "flannel-backend": "none" });
    expect(yaml).not.toHaveProperty("kubelet-arg");
  });
});

describe("whatever a user writes", () => {
  it("arguments and labels arrive as they were given", () => {
    const args = fc.array(fc.tuple(fc.stringMatching(/^[a-z][a-z0-9-]*$/), fc.string()).map(([name, value]) => `${name}=${value}`));
    const labels = fc.dictionary(fc.string({ minLength: 1 }), fc.string());
    fc.assert(
      fc.property(args, labels, (kubeletArgs, labels) => {
        const yaml = parseYaml(renderNodeConfig("dev", "10.107.0.2", parseStackConfig({ name: "dev", node: { kubeletArgs, labels } }).node));
        expect(yaml["kubelet-arg"] ?? []).toEqual(kubeletArgs);
        expect(yaml["node-label"] ?? []).toEqual(Object.entries(labels).map(([key, value]) => `${key}=${value}`));
      }),
    );
  });

  it("paths and image names arrive in containerd's config", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (shim, pauseImage) => {
        const { plugins } = parseToml(renderContainerdConfig(config.containerd, { ...files, shim, pauseImage })) as { plugins: Record<string, Record<string, unknown>> };
        expect(plugins["io.containerd.cri.v1.images"]).toMatchObject({ pinned_images: { sandbox: pauseImage } });
        expect(plugins["io.containerd.cri.v1.runtime"]).toMatchObject({ containerd: { runtimes: { runc: { runtime_path: shim } } } });
      }),
    );
  });
});

it("the conflist gives the node the first /24 of the cluster's network", () => {
  expect(JSON.parse(renderConflist(config.network, "10.42.0.0/16", "10.107.0.2")).plugins[0].ipam.ranges).toEqual([[{ subnet: "10.42.0.0/24" }]]);
});

it("the facade is the same for the same sandbox, and forwarding is on before the overlay covers it", () => {
  expect(facadePlan("dev")).toEqual(facadePlan("dev"));
  expect(facadePlan("dev").files[0]).not.toEqual(facadePlan("other").files[0]);
  expect(facadePlan("dev").settings).toEqual([{ path: "/proc/sys/net/ipv4/ip_forward", content: "1" }]);
});

it("options come out of Pulumi's texts, and other projects' do not", () => {
  expect(readStackConfig({ "p:containerd": '{"snapshotter":"native"}', "p:name": "x", "q:y": "1" }, "p", "dev")).toEqual({ name: "x", containerd: { snapshotter: "native" } });
});
