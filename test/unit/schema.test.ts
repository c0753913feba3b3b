import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { z } from "zod";
import { contains, overlap, parseNetwork } from "../../config/network.ts";
import { InputError, type Problem } from "../../config/problems.ts";
import { probedQuirks } from "../../config/quirks.ts";
import { bytes, defaultSubnet, NODE_PORTS, parseStackConfig, stackSchema, unwrap } from "../../config/schema.ts";
import { readStackConfig } from "../../config/stackConfig.ts";
import { cidrOf, dotted, names, PREFIXES, validConfigs } from "./arbitraries.ts";

/** What is refused of a configuration; nothing if it is taken, and any other error is not expected. */
function refusal(input: unknown): { lines: string[]; problems: readonly Problem[] } {
  try {
    parseStackConfig(input);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return { lines: error.message.split("\n"), problems: error.problems };
  }
  return { lines: [], problems: [] };
}

it("nothing but a name is needed", () => {
  const config = parseStackConfig({ name: "dev" });
  expect(config).toMatchObject({
    mode: "node",
    quirks: "auto",
    runtime: { name: "runc" },
    containerd: { snapshotter: "auto" },
  });
  expect(config.node.clusterDns).toBe("10.43.0.10");
  expect(config.sandbox.subnet).toBe(defaultSubnet("dev"));
});

it("has a word for no limit where a language has no null", () => {
  expect(parseStackConfig({ name: "a", sandbox: { memory: "none", cpus: 2 } }).sandbox).toMatchObject({
    memory: null,
    cpus: 2,
  });
});

describe("each bad input has its own message", () => {
  const whole = "a whole number from 1 to 65535 is allowed";
  const network = "an IPv4 network such as 10.42.0.0/16, with no bit set behind the prefix, is allowed";
  const options =
    "allowed here: name, mode, external, quirks, target, from, ssh, kubernetes, distribution, k3s, sandbox, runtime, " +
    "containerd, registries, proxy, node, network, egress, addons, nodes, ports, manifests, images, pod";
  const rules =
    "one of {dropNamespace: TYPE}, {dropMaskedPath: PATH}, {dropMount: PATH}, {unset: FIELD}, {set: " +
    "FIELD, value: JSON}, {sysctls: show} is allowed";
  const apart = "choose networks that share no address";

  it.each<[Record<string, unknown>, string]>([
    // the options one by one
    [{ name: undefined }, "name: it is missing"],
    [{ name: 5 }, "name = 5: a value of type string is allowed"],
    [
      { name: "Dev_" },
      'name = "Dev_": up to 12 lower-case letters, digits and dashes are allowed, a letter first, no dash last',
    ],
    [{ bar: 1 }, `bar: there is no such option; ${options}`],
    [
      { target: "inside", sandbox: { runsc: "/opt/runsc" } },
      'sandbox.runsc = "/opt/runsc": a sandbox is made with it, and none is made with target: inside; leave it out',
    ],
    [
      { mode: "external", pod: { enabled: false } },
      "external.kubeconfig: mode: external needs the kubeconfig of the cluster",
    ],
    [
      { mode: "external", external: { kubeconfig: "/k" } },
      "pod.image: with mode: external an image is needed that the cluster has or can pull; or set pod.enabled to false",
    ],
    [
      { mode: "external", external: { kubeconfig: "/k" }, pod: { enabled: false }, images: ["/a.tar"] },
      'images = ["/a.tar"]: nothing is installed with mode: external; leave it out',
    ],
    [
      { external: { kubeconfig: "/k" } },
      'external.kubeconfig = "/k": it is for mode: external; set that, or leave it out',
    ],
    [{ distribution: "k0s" }, 'distribution = "k0s": allowed: embedded, k3s'],
    [{ sandbox: null }, "sandbox = null: a value of type object is allowed"],
    [
      { ports: ["80"] },
      'ports[0] = "80": HOST_PORT:PORT or ADDRESS:HOST_PORT:PORT is allowed, such as 8080:80 or 0.0.0.0:8080:80',
    ],
    [
      { ports: ["127.0.0.1:8080:70000"] },
      'ports = "127.0.0.1:8080:70000": a port from 1 to 65535, and an IPv4 address, is allowed',
    ],
    [
      { target: "inside", ports: ["8080:80"] },
      'ports = ["8080:80"]: a sandbox that is made here has them, and none is made with target: inside; leave it out',
    ],
    [
      { node: { files: { "/etc/shadow": "/x" } } },
      "node.files./etc/shadow: a path below /etc/kubernetes or /var/lib/kubelet/seccomp is allowed",
    ],
    [
      { sandbox: { foo: 1 } },
      "sandbox.foo: there is no such option; allowed here: subnet, memory, cpus, platform, network, hostPorts, " +
        "setuid, restart, runsc",
    ],
    [{ sandbox: { subnet: "10.0.0.1/24" } }, `sandbox.subnet = "10.0.0.1/24": ${network}`],
    [{ sandbox: { memory: 4 } }, "sandbox.memory = 4: a value of type string is allowed"],
    [
      { sandbox: { memory: "4GB" } },
      'sandbox.memory = "4GB": a whole number with Mi or Gi behind it, such as 4Gi, is allowed',
    ],
    [{ sandbox: { cpus: "two" } }, 'sandbox.cpus = "two": a value of type number is allowed'],
    [{ sandbox: { cpus: 0 } }, "sandbox.cpus = 0: a number from 0.1 is allowed"],
    [{ sandbox: { platform: "xen" } }, 'sandbox.platform = "xen": allowed: systrap, kvm, ptrace'],
    [{ sandbox: { runsc: "runsc" } }, 'sandbox.runsc = "runsc": an absolute path is allowed'],
    [{ runtime: { patches: "a" } }, 'runtime.patches = "a": a value of type array is allowed'],
    [{ runtime: { rules: [{ dropNamespace: "cpu" }] } }, `runtime.rules[0] = {"dropNamespace":"cpu"}: ${rules}`],
    [{ runtime: { rules: [{ unset: "x" }, { set: "x" }] } }, `runtime.rules[1] = {"set":"x"}: ${rules}`],
    [{ runtime: { rules: [{ dropMount: "dev" }] } }, 'runtime.rules[0].dropMount = "dev": an absolute path is allowed'],
    [{ runtime: { rules: [{ unset: "" }] } }, 'runtime.rules[0].unset = "": a path such as linux.seccomp is allowed'],
    [
      { runtime: { rules: [{ dropNamespace: "cgroup", foo: 1 }] } },
      `runtime.rules[0] = {"dropNamespace":"cgroup","foo":1}: ${rules}`,
    ],
    [
      { registries: { mirrors: { "docker.io": { endpoint: ["mirror:5000"] } } } },
      'registries.mirrors.docker.io.endpoint[0] = "mirror:5000": a URL such as https://mirror.example:5000 is allowed',
    ],
    [
      { registries: { mirrors: { "docker.io": { rewrite: {} } } } },
      "registries.mirrors.docker.io.rewrite = {}: containerd's releases cannot rewrite names; give the " +
        "mirror's path in its endpoint instead",
    ],
    [
      { registries: "/nowhere.yaml" },
      'registries = "/nowhere.yaml": the path of a YAML file, or its content as an object, is allowed',
    ],
    [
      { registries: { configs: { a: { auth: { password: 12 } } } } },
      "registries.configs.a.auth.password: a value of type string is allowed",
    ],
    [
      { registries: { mirrors: { "a/b": {} } } },
      "registries.mirrors.a/b: a registry's host, with its port if it has one, is allowed",
    ],
    [
      { registries: { configs: { a: { tls: { ca: "x" } } } } },
      "registries.configs.a.tls.ca: there is no such option; allowed here: ca_file, cert_file, " +
        "key_file, insecure_skip_verify",
    ],
    [{ proxy: { http: "proxy" } }, 'proxy.http = "proxy": a URL such as http://proxy.example:3128 is allowed'],
    [
      { addons: { corefile: {} } },
      "addons.corefile: there is no such option; allowed here: coredns, ingress, localStorage, metricsServer",
    ],
    [
      { manifests: ["/srv/App.yaml"] },
      'manifests[0] = "/srv/App.yaml": an absolute path of a .yaml file is allowed, its name in ' +
        "lower-case letters, digits, dots and dashes",
    ],
    [
      { manifests: ["/srv/coredns.yaml"] },
      'manifests = "/srv/coredns.yaml": its name, coredns, is that of addons.coredns too; rename the file',
    ],
    [
      { manifests: ["/a/x.yaml", "/b/x.yml"] },
      'manifests = "/b/x.yml": its name, x, is that of /a/x.yaml too; rename the file',
    ],
    [{ containerd: { snapshotter: "zfs" } }, 'containerd.snapshotter = "zfs": allowed: auto, overlayfs, native'],
    [{ containerd: { logLevel: "trace" } }, 'containerd.logLevel = "trace": allowed: debug, info, warn, error'],
    [{ node: { httpsListenPort: 0 } }, `node.httpsListenPort = 0: ${whole}`],
    [{ node: { httpsListenPort: 65536 } }, `node.httpsListenPort = 65536: ${whole}`],
    [{ node: { httpsListenPort: 6443.5 } }, `node.httpsListenPort = 6443.5: ${whole}`],
    [{ node: { httpsListenPort: "6443" } }, `node.httpsListenPort = "6443": ${whole}`],
    [{ node: { clusterDomain: "my domain" } }, 'node.clusterDomain = "my domain": a DNS name is allowed'],
    [{ node: { clusterCidr: "fd00::/64" } }, `node.clusterCidr = "fd00::/64": ${network}`],
    [{ node: { clusterDns: "dns" } }, 'node.clusterDns = "dns": an IPv4 address is allowed'],
    [{ node: { labels: { disk: 1 } } }, "node.labels.disk = 1: a value of type string is allowed"],
    [
      { node: { kubeletArgs: ["v=2", "--v=2"] } },
      'node.kubeletArgs[1] = "--v=2": name=value without leading dashes is allowed, such as v=2',
    ],
    [
      { network: { bridge: "a-very-long-name" } },
      'network.bridge = "a-very-long-name": up to 15 lower-case letters, digits and dashes are allowed, a letter first',
    ],
    [{ network: { mtu: 1000 } }, "network.mtu = 1000: a whole number from 1280 to 65521 is allowed"],
    [{ images: ["pause.tar"] }, 'images[0] = "pause.tar": an absolute path is allowed'],
    [{ pod: { enabled: "no" } }, 'pod.enabled = "no": a value of type boolean is allowed'],
    [
      { pod: { namespace: "-x" } },
      'pod.namespace = "-x": up to 63 lower-case letters, digits and dashes are allowed, no dash at either end',
    ],
    [
      { pod: { image: "nginx" } },
      'pod.image = "nginx": a full image name with registry and tag or digest is allowed, such as ' +
        "registry.example/team/app:1.2",
    ],
    // against each other
    [{ mode: "agent" }, 'mode = "agent": allowed: node, control-plane, external'],
    [{ quirks: "rshared" }, 'quirks = "rshared": auto, or a list of quirk ids, is allowed'],
    [
      { quirks: ["setns"] },
      `quirks = "setns": there is no such quirk; auto is allowed, or a list of ${probedQuirks.join(", ")}`,
    ],
    [
      { quirks: ["machine-id"] },
      `quirks = "machine-id": there is no such quirk; auto is allowed, or a list of ${probedQuirks.join(", ")}`,
    ],
    [
      { quirks: ["no-veth", "setns-exec", "rshared"] },
      'quirks = "rshared, no-veth": a sandbox with these cannot run pods (the kubelet, the pods\' ' +
        "network); set mode: control-plane, or use another gVisor",
    ],
    [{ runtime: { name: "youki" } }, 'runtime.name = "youki": allowed: runc, crun'],
    [
      { runtime: { name: "crun", patches: ["a"] } },
      'runtime.patches = ["a"]: only a runc that is built here can be patched; leave out runtime.path ' +
        "and runtime.name, or the patches",
    ],
    [
      { runtime: { path: "/x", patches: ["a"] } },
      'runtime.patches = ["a"]: only a runc that is built here can be patched; leave out runtime.path ' +
        "and runtime.name, or the patches",
    ],
    [{ k3s: { path: "/opt/k3s" } }, 'k3s.path = "/opt/k3s": it is for distribution: k3s; set that, or leave it out'],
    [
      { distribution: "k3s", k3s: { version: "1.36" } },
      'k3s.version = "1.36": a release\'s tag such as v1.36.4+k3s1 is allowed',
    ],
    [
      { distribution: "k3s", k3s: { mirror: "ftp://mirror.example" } },
      'k3s.mirror = "ftp://mirror.example": an http or https address is allowed',
    ],
    [
      { sandbox: { hostPorts: "none" } },
      'sandbox.hostPorts = "none": all, or a list of ports from 1 to 65535, is allowed',
    ],
    [{ sandbox: { hostPorts: [0] } }, "sandbox.hostPorts[0] = 0: a whole number from 1 to 65535 is allowed"],
    [
      { target: "inside", sandbox: { hostPorts: [80] } },
      "sandbox.hostPorts = [80]: the link that they are for is made with target: managed only, and not " +
        "with target: inside; leave it out",
    ],
    [{ target: "ssh" }, "ssh.host: target: ssh needs the host to log in to"],
    [{ ssh: { host: "a" } }, 'ssh.host = "a": it is for target: ssh; set that, or leave it out'],
    [
      { target: "ssh", ssh: { host: "-oProxyCommand=x" } },
      'ssh.host = "-oProxyCommand=x": a host\'s name or address is allowed',
    ],
    [{ target: "ssh", ssh: { host: "a", user: "a b" } }, 'ssh.user = "a b": a user\'s name is allowed'],
    [
      { sandbox: { subnet: "10.42.0.0/24" } },
      `node.clusterCidr = "10.42.0.0/16": it overlaps sandbox.subnet (10.42.0.0/24); ${apart}`,
    ],
    [
      { node: { serviceCidr: "10.42.128.0/20" } },
      `node.serviceCidr = "10.42.128.0/20": it overlaps node.clusterCidr (10.42.0.0/16); ${apart}`,
    ],
    [{ sandbox: { subnet: "10.0.0.0/31" } }, 'sandbox.subnet = "10.0.0.0/31": a prefix from /24 to /30 is allowed'],
    [{ sandbox: { subnet: "10.0.0.0/23" } }, 'sandbox.subnet = "10.0.0.0/23": a prefix from /24 to /30 is allowed'],
    [
      { node: { clusterCidr: "10.1.0.0/25" } },
      'node.clusterCidr = "10.1.0.0/25": a prefix up to /24 is allowed: the node needs 256 addresses',
    ],
    [{ node: { serviceCidr: "10.2.0.0/29" } }, 'node.serviceCidr = "10.2.0.0/29": a prefix from /12 to /28 is allowed'],
    [{ node: { serviceCidr: "16.0.0.0/11" } }, 'node.serviceCidr = "16.0.0.0/11": a prefix from /12 to /28 is allowed'],
    [
      { node: { clusterDns: "10.44.0.1" } },
      'node.clusterDns = "10.44.0.1": it must lie in node.serviceCidr (10.43.0.0/16)',
    ],
    [
      { sandbox: { memory: "511Mi" } },
      'sandbox.memory = "511Mi": at least 512Mi is allowed: the node alone needs about 350 MiB',
    ],
    [
      { containerd: { shim: "/x" } },
      'containerd.shim = "/x": containerd and its shim belong together: set containerd.containerd as well, or neither',
    ],
    [
      { containerd: { containerd: "/x" } },
      'containerd.containerd = "/x": containerd and its shim belong together: set containerd.shim as well, or neither',
    ],
    ...Object.entries(NODE_PORTS).map(([owner, taken]): [Record<string, unknown>, string] => [
      { node: { httpsListenPort: taken } },
      `node.httpsListenPort = ${taken}: the port is in use by the node's ${owner}; choose another`,
    ]),
  ])("%j", (input, message) => {
    expect(refusal({ name: "d", ...input }).lines).toEqual([
      "1 problem with the configuration; nothing was changed:",
      `  - ${message}`,
    ]);
  });

  it("several are told at once", () => {
    expect(
      refusal({ name: "Dev_", sandbox: { foo: 1, memory: 4 }, containerd: { snapshotter: "zfs" }, bar: 1 }).lines,
    ).toEqual([
      "5 problems with the configuration; nothing was changed:",
      '  - name = "Dev_": up to 12 lower-case letters, digits and dashes are allowed, a letter first, no dash last',
      "  - sandbox.memory = 4: a value of type string is allowed",
      "  - sandbox.foo: there is no such option; allowed here: subnet, memory, cpus, platform, " +
        "network, hostPorts, setuid, restart, runsc",
      '  - containerd.snapshotter = "zfs": allowed: auto, overlayfs, native',
      `  - bar: there is no such option; ${options}`,
    ]);
    // And so are those that only show when the options are seen together.
    expect(
      refusal({
        name: "d",
        distribution: "k3s",
        k3s: { path: "/a", airgap: "/b" },
        sandbox: { subnet: "10.43.0.0/31", memory: "1Mi" },
      }).problems.map(({ option }) => option),
    ).toEqual(["node.serviceCidr", "sandbox.subnet", "sandbox.memory", "k3s.airgap", "k3s.path"]);
  });
});

describe("valid configurations", () => {
  it("are taken, keep what was given, and are complete: parsing them again changes nothing", () => {
    fc.assert(
      fc.property(validConfigs, (input) => {
        const config = parseStackConfig(input);
        expect(config).toMatchObject(input);
        expect(parseStackConfig(config)).toEqual(config);
        expect(contains(parseNetwork(config.node.serviceCidr)!, config.node.clusterDns)).toBe(true);
      }),
    );
  });

  it("get for every name a subnet of the pool, always the same", () => {
    const pool = parseNetwork("10.107.0.0/16")!;
    fc.assert(
      fc.property(names, (name) => {
        const { subnet } = parseStackConfig({ name }).sandbox;
        expect(parseNetwork(subnet)).toMatchObject({ size: 4 });
        expect(overlap(parseNetwork(subnet)!, pool)).toBe(true);
        expect(parseStackConfig({ name }).sandbox.subnet).toBe(subnet);
      }),
    );
  });
});

describe("any other input", () => {
  /** The groups of options, "" for the top. */
  const groups = ["", "sandbox", "runtime", "containerd", "node", "network", "pod"] as const;
  const optionsOf = (group: string) =>
    Object.keys((group === "" ? stackSchema : (unwrap(stackSchema.shape[group as "node"]) as z.ZodObject)).shape);

  it("with one unknown key, wherever it is, is refused by the key's name, with the keys that are allowed there", () => {
    const where = fc.constantFrom(...groups).chain((group) =>
      fc.tuple(
        fc.constant(group),
        fc.string().filter((key) => !optionsOf(group).includes(key)),
        fc.jsonValue(),
      ),
    );
    fc.assert(
      fc.property(validConfigs, where, (input, [group, key, value]) => {
        const extra = { [key]: value };
        const bad = group === "" ? { ...input, ...extra } : { ...input, [group]: { ...input[group], ...extra } };
        const option = group === "" ? key : `${group}.${key}`;
        expect(refusal(bad).problems).toEqual([
          { option, message: `there is no such option; allowed here: ${optionsOf(group).join(", ")}` },
        ]);
      }),
    );
  });

  it("is refused with an InputError or taken, whatever stands in the place of an option", () => {
    const places = groups.flatMap((group) => optionsOf(group).map((option) => [group, option] as const));
    fc.assert(
      fc.property(validConfigs, fc.constantFrom(...places), fc.jsonValue(), (input, [group, option], value) => {
        const bad =
          group === "" ? { ...input, [option]: value } : { ...input, [group]: { ...input[group], [option]: value } };
        for (const problem of refusal(bad).problems)
          expect(problem).toEqual({
            option: expect.stringMatching(/./),
            value: problem.value,
            message: expect.stringMatching(/./),
          });
      }),
    );
  });
});

describe("networks", () => {
  const options = ["sandbox.subnet", "node.clusterCidr", "node.serviceCidr"] as const;
  const configWith = (subnet: string, clusterCidr: string, serviceCidr: string) => ({
    name: "d",
    sandbox: { subnet },
    node: { clusterCidr, serviceCidr },
  });
  const prefixes = Object.values(PREFIXES);
  const prefixOf = (option: number) => fc.integer({ min: prefixes[option]![0], max: prefixes[option]![1] });

  it("that overlap are refused, whichever two they are", () => {
    const cases = fc.constantFrom([0, 1, 2] as const, [0, 2, 1] as const, [1, 2, 0] as const).chain(([a, b, c]) =>
      // Around one address, so that the two have at least that one in common; the third one is away from them.
      fc.record({
        a: fc.constant(a),
        b: fc.constant(b),
        c: fc.constant(c),
        address: fc.integer({ min: 2 ** 28, max: 2 ** 31 }),
        prefixA: prefixOf(a),
        prefixB: prefixOf(b),
        prefixC: prefixOf(c),
      }),
    );
    fc.assert(
      fc.property(cases, ({ a, b, c, address, prefixA, prefixB, prefixC }) => {
        const cidr = {
          [a]: cidrOf(address, prefixA),
          [b]: cidrOf(address, prefixB),
          [c]: cidrOf(2 ** 31 + 2 ** 30, prefixC),
        };
        expect(refusal(configWith(cidr[0]!, cidr[1]!, cidr[2]!)).problems).toEqual([
          {
            option: options[b],
            value: cidr[b],
            message: `it overlaps ${options[a]} (${cidr[a]}); choose networks that share no address`,
          },
        ]);
      }),
    );
  });

  it("that only touch are taken", () => {
    fc.assert(
      // The two halves of a network, and the network beside it.
      fc.property(fc.integer({ min: 12, max: 23 }), fc.nat(2 ** 32 - 1), fc.boolean(), (prefix, address, flip) => {
        const first = Math.floor(address / 2 ** (33 - prefix)) * 2 ** (33 - prefix);
        const [low, high] = [`${dotted(first)}/${prefix + 1}`, `${dotted(first + 2 ** (31 - prefix))}/${prefix + 1}`];
        const beside = `${dotted(first + 2 ** (32 - prefix))}/30`;
        expect(refusal(flip ? configWith(beside, low, high) : configWith(beside, high, low)).problems).toEqual([]);
      }),
    );
  });
});

it("quantities are in powers of 1024", () => {
  expect([bytes("512Mi"), bytes("4Gi")]).toEqual([536_870_912, 4_294_967_296]);
});

/** There are no files. */
const none = () => undefined;

it("options come out of Pulumi's texts, and other projects' do not", () => {
  expect(
    readStackConfig(
      { "p:containerd": '{"snapshotter":"native"}', "p:images": '["/a"]', "p:name": "x", "q:y": "1", "pp:z": "1" },
      "p",
      "dev",
      none,
    ),
  ).toEqual({
    name: "x",
    containerd: { snapshotter: "native" },
    images: ["/a"],
  });
  expect(readStackConfig({ "p:images": "[/a" }, "p", "dev", none)).toEqual({ name: "dev", images: "[/a" });
  expect(readStackConfig({ "p:images": ["/a"], "p:containerd": '{"snapshotter":"native"}' }, "p", "dev", none)).toEqual(
    {
      name: "dev",
      images: ["/a"],
      containerd: { snapshotter: "native" },
    },
  );
  expect(readStackConfig({}, "p", "dev", none)).toEqual({ name: "dev" });
});

it("registries may be in a file", () => {
  const files: Record<string, string> = {
    "/a.yaml": "mirrors: {docker.io: {endpoint: [https://mirror.example]}}",
    "/empty.yaml": "# none",
    "/broken.yaml": "a: [",
  };
  const read = (path: string) =>
    readStackConfig({ "p:registries": path }, "p", "dev", (file) => files[file]).registries;
  expect(read("/a.yaml")).toEqual({ mirrors: { "docker.io": { endpoint: ["https://mirror.example"] } } });
  expect(read("/empty.yaml")).toEqual({});
  expect(read("/broken.yaml")).toBe("/broken.yaml");
  expect(read("/nowhere.yaml")).toBe("/nowhere.yaml");
});
