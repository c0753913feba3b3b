/**
 * What is refused because of the machine. The machine's own addresses and user are made up here; programs and archives
 * are real files.
 */
import {
  accessSync,
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { arch, type NetworkInterfaceInfo, networkInterfaces, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { create, Header } from "tar";
import { afterAll, beforeEach, describe, expect, it, vi } from "vitest";
import { parse } from "yaml";
import { knownPatches } from "../../artifacts/artifacts.ts";
import { externalKubeconfig } from "../../config/external.ts";
import { InputError } from "../../config/problems.ts";
import { parseStackConfig, type StackConfigInput } from "../../config/schema.ts";
import { hostPaths } from "../../machines/paths.ts";
import { preflight } from "../../steps/preflight.ts";

vi.mock("node:fs", async (original) => {
  const real = await original<typeof import("node:fs")>();
  return { ...real, accessSync: vi.fn(real.accessSync) };
});
vi.mock("node:os", async (original) => ({
  ...(await original<typeof import("node:os")>()),
  networkInterfaces: vi.fn(),
}));

const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-preflight-"));
const name = "preflight"; // no sandbox of this name is on the machine

/** The host's links, each with the addresses that it has. */
function hostHas(links: Record<string, string[]>): void {
  const taken = Object.entries(links).map(([device, cidrs]) => [
    device,
    cidrs.map((cidr) => ({ cidr }) as NetworkInterfaceInfo),
  ]);
  vi.mocked(networkInterfaces).mockReturnValue(Object.fromEntries(taken));
}

beforeEach(() => {
  vi.spyOn(process, "getuid").mockReturnValue(0);
  hostHas({ lo: ["127.0.0.1/8", "::1/128"], eth0: ["192.168.1.20/24"] });
});

afterAll(() => rmSync(folder, { recursive: true }));

/** What is refused of these options, a line each; nothing if they are taken. */
function refusal(options: Partial<StackConfigInput> = {}): string[] {
  try {
    preflight(parseStackConfig({ name, ...options }));
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return error.message.split("\n").slice(1);
  }
  return [];
}

function file(path: string, content: string | Buffer, mode = 0o644): string {
  const whole = join(folder, path);
  mkdirSync(dirname(whole), { recursive: true });
  writeFileSync(whole, content);
  chmodSync(whole, mode);
  return whole;
}

/** A program that answers every call alike. */
const program = (path: string, says: string) => file(path, `#!/bin/sh\necho '${says}'\n`, 0o755);

/** A tar archive with these entries, cut to a length if one is given. */
function archive(path: string, entries: string[], cut?: number): string {
  for (const entry of entries) file(join(`${path}.d`, entry), "x".repeat(2000));
  create({ file: join(folder, path), cwd: join(folder, `${path}.d`), sync: true }, entries);
  if (cut !== undefined) truncateSync(join(folder, path), cut);
  return join(folder, path);
}

/**
 * An archive of an image with a layer of so many bytes, which take no room on the disk.
 * @param format how a size is written that has no room in a header: in binary (GNU), or as an attribute before it (pax)
 */
function large(format: "gnu" | "pax", size: number): string {
  const path = file(`${format}.tar`, "");
  const header = (fields: object) => {
    const block = Buffer.alloc(512);
    new Header({ mode: 0o644, ...fields }).encode(block, 0);
    return block;
  };
  const layer = { path: "blobs/sha256/layer", type: "File" as const };
  const index = Buffer.concat([header({ path: "index.json", size: 0, type: "File" }), Buffer.alloc(1024)]);
  const attribute = (length: number) => `${length} size=${size}\n`;
  const pax = attribute(attribute(10).length);
  const begin =
    format === "gnu"
      ? header({ ...layer, size })
      : Buffer.concat([
          header({ path: "PaxHeader/layer", size: pax.length, type: "ExtendedHeader" }),
          Buffer.concat([Buffer.from(pax)], 512),
          header({ ...layer, size: 0 }),
        ]);
  const fd = openSync(path, "w");
  writeSync(fd, begin);
  writeSync(fd, index, 0, index.length, begin.length + size);
  closeSync(fd);
  return path;
}

it("a machine with nothing in the way is taken", () => {
  expect(refusal()).toEqual([]);
});

it("a name that is another stack's is refused, before anything is made", () => {
  const home = join(folder, "home");
  vi.stubEnv("GVISOR_K3S_HOME", home);
  const programs = { init: "/opt/init" };
  const known = {
    version: 2,
    kind: "managed",
    incarnation: 1,
    revision: "",
    pid: 0,
    startTime: "",
    repairs: 0,
    programs,
  };
  file("home/sandboxes/preflight/machine.json", JSON.stringify({ ...known, owner: "gvisor-k3s/first" }));
  const checked = (owner?: string) => preflight(parseStackConfig({ name }), owner);
  expect(() => checked("gvisor-k3s/second")).toThrow(
    'name = "preflight": preflight is the cluster of gvisor-k3s/first, and gvisor-k3s/second asks for one of the same name',
  );
  expect(() => checked("gvisor-k3s/first")).not.toThrow();
  expect(() => checked()).not.toThrow(); // a program that says nothing of itself
  // Its own sandbox makes way for one of another name, with its network.
  hostHas({ "gk-preflight": ["10.108.9.1/30"] });
  const renamed = (owner: string) =>
    preflight(parseStackConfig({ name: "renamed", sandbox: { subnet: "10.108.9.0/30" } }), owner);
  expect(() => renamed("gvisor-k3s/first")).not.toThrow();
  expect(() => renamed("gvisor-k3s/second")).toThrow("the host's gk-preflight has 10.108.9.1/30");
  vi.unstubAllEnvs();
});

/** A program's head: 64 bits, little-endian, for a machine; with the loader that it asks for, if any. */
function elf(path: string, machine: number, loader = ""): string {
  const bytes = Buffer.alloc(64 + 56 + loader.length + 1);
  bytes.write("\x7fELF\x02\x01", "latin1");
  bytes.writeUInt16LE(machine, 18);
  bytes.writeBigUInt64LE(64n, 32); // e_phoff
  bytes.writeUInt16LE(56, 54); // e_phentsize
  bytes.writeUInt16LE(1, 56); // e_phnum
  bytes.writeUInt32LE(loader ? 3 : 1, 64); // PT_INTERP, else PT_LOAD
  bytes.writeBigUInt64LE(120n, 64 + 8);
  bytes.writeBigUInt64LE(BigInt(loader.length + 1), 64 + 32);
  bytes.write(loader, 120, "latin1");
  return file(path, bytes, 0o755);
}

describe("a runtime", () => {
  const [mine, other] = arch() === "x64" ? [62, 183] : [183, 62];

  it("of this machine's kind is taken", () => {
    expect(refusal({ runtime: { path: elf("runc", mine!) } })).toEqual([]);
    expect(refusal({ runtime: { name: "crun", path: elf("crun", mine!, "/lib/ld.so") } })).toEqual([]);
  });

  it("of another architecture is refused", () => {
    const [path, name] = [elf("runc-other", other!), arch() === "x64" ? "arm64" : "x64"];
    expect(refusal({ runtime: { path } })).toEqual([
      `  - runtime.path = "${path}": it is built for ${name}, and this machine is ${arch()}; give one for ${arch()}`,
    ]);
    const strange = elf("runc-strange", 243);
    expect(refusal({ runtime: { path: strange } })).toEqual([
      `  - runtime.path = "${strange}": it is built for machine 243, and this machine is ${arch()}; ` +
        `give one for ${arch()}`,
    ]);
  });

  it("that needs libraries is refused, but for crun", () => {
    const path = elf("runc-dynamic", mine!, "/lib/ld.so");
    expect(refusal({ runtime: { path } })).toEqual([
      `  - runtime.path = "${path}": it is linked with shared libraries, which the sandbox does not ` +
        "have; give a static one",
    ]);
  });

  it("that is not installed is named with where to get it", () => {
    vi.mocked(accessSync).mockImplementationOnce(() => {
      throw new Error("ENOENT");
    });
    expect(refusal({ runtime: { name: "crun" } })).toEqual([
      '  - runtime.name = "crun": there is no /usr/bin/crun; install it (Debian: apt-get install ' +
        "crun), or give the path of another one with runtime.path",
    ]);
  });
});

it("who is not root is told so", () => {
  vi.spyOn(process, "getuid").mockReturnValue(1000);
  expect(refusal()).toEqual([
    "  - user = 1000: root is needed to make network namespaces and sandboxes; run it with sudo",
  ]);
});

describe("a program", () => {
  it.each(["sandbox.runsc", "runtime.path"])("%s that is not there or cannot be executed is refused", (option) => {
    const [group, key] = option.split(".") as ["sandbox", "runsc"];
    for (const path of ["/nowhere/program", folder, file("not-executable", "#!/bin/sh\n")]) {
      expect(refusal({ [group]: { [key]: path } })).toEqual([
        `  - ${option} = "${path}": there is no such program; give the path of an executable file, or ` +
          "leave the option out",
      ]);
    }
  });

  it("that is not runsc, or fails to say so, is refused as runsc", () => {
    const refused =
      "`--version` of it does not say that it is runsc; give the path of gVisor's runsc, or leave the option out";
    for (const path of [
      program("other", "runc version 1.3.0"),
      file("failing", "#!/bin/sh\necho runsc version 1; exit 1\n", 0o755),
    ]) {
      expect(refusal({ sandbox: { runsc: path } })).toEqual([`  - sandbox.runsc = "${path}": ${refused}`]);
    }
    expect(refusal({ sandbox: { runsc: program("runsc", "runsc version release-20260101.0") } })).toEqual([]);
  });
});

describe("containerd and its shim", () => {
  const set = (containerd: string, shim: string) => ({
    containerd: program("containerd", containerd),
    shim: program("shim", shim),
  });

  it.each([
    [
      "the same",
      "containerd github.com/containerd/containerd/v2 v2.1.4 abc",
      "containerd-shim-runc-v2:\n  Version:  v2.1.4",
      undefined,
    ],
    [
      "the same, one without the v",
      "containerd github.com/containerd/containerd/v2 2.1.4",
      "  Version:  v2.1.4",
      undefined,
    ],
    [
      "a shim of containerd 1.7",
      "containerd github.com/containerd/containerd/v2 v2.1.4 abc",
      "  Version:  v1.7.27",
      "the shim is 1.7.27 and containerd (DIR/containerd) is 2.1.4: they must be of one version",
    ],
    [
      "a release candidate's shim",
      "containerd github.com/containerd/containerd/v2 v2.1.4 abc",
      "  Version:  v2.1.4-rc.1",
      "the shim is 2.1.4-rc.1 and containerd (DIR/containerd) is 2.1.4: they must be of one version",
    ],
    [
      "a shim that does not tell",
      "containerd github.com/containerd/containerd/v2 v2.1.4 abc",
      "?",
      "the shim is of no known version and containerd (DIR/containerd) is 2.1.4: they must be of one version",
    ],
  ])("%s", (_, containerd, shim, message) => {
    expect(refusal({ containerd: set(containerd, shim) })).toEqual(
      message ? [`  - containerd.shim = "${folder}/shim": ${message.replace("DIR", folder)}`] : [],
    );
  });

  it("are each refused when they are not there", () => {
    expect(refusal({ containerd: { containerd: "/nowhere/containerd", shim: "/nowhere/shim" } })).toEqual(
      ["containerd", "shim"].map(
        (key) =>
          `  - containerd.${key} = "/nowhere/${key}": there is no such program; give the path of an ` +
          "executable file, or leave the option out",
      ),
    );
  });
});

it("a patch that is not there is refused with those that are", () => {
  const known = knownPatches("runc");
  expect(refusal({ runtime: { patches: [...known, "no-such"] } })).toEqual([
    `  - runtime.patches = "no-such": there is no such patch; there are: ${known.join(", ") || "none"}`,
  ]);
});

describe("an archive", () => {
  const none =
    "it is a tar archive but none of an image: it has neither index.json nor manifest.json; give one " +
    "that `docker save` or an OCI tool wrote";
  const broken =
    /^ {2}- images = ".*": it is no tar archive, or a broken one \(.+\); give one that `docker save` or an OCI tool wrote$/;

  it("of an image is taken, whichever tool wrote it", () => {
    expect(
      refusal({
        images: [
          archive("oci.tar", ["oci-layout", "index.json", "blobs/x"]),
          archive("docker.tar", ["manifest.json"]),
          archive("dotted.tar", ["./index.json"]),
        ],
      }),
    ).toEqual([]);
  });

  it("that is not there, or of something else, is refused by its path", () => {
    const other = archive("other.tar", ["notes.txt", "folder/index.json"]);
    expect(refusal({ images: ["/nowhere.tar", other] })).toEqual([
      '  - images = "/nowhere.tar": there is no such file',
      `  - images = "${other}": ${none}`,
    ]);
  });

  it("may be as large as it likes, whichever way its sizes are written", async () => {
    for (const format of ["gnu", "pax"] as const) {
      const path = large(format, 9 * 2 ** 30);
      expect(refusal({ images: [path] }), format).toEqual([]);
      truncateSync(path, 8 * 2 ** 30);
      const [line] = refusal({ images: [path] });
      expect(line, format).toMatch(/it is no tar archive, or a broken one \(it ends within blobs\/sha256\/layer\)/);
      rmSync(path);
    }
  });

  it("that is compressed is read through", () => {
    const path = archive("plain.tar", ["index.json", "blobs/x"]);
    for (const [name, packed] of [
      ["image.tgz", gzipSync(readFileSync(path))],
      ["image.tar.zst", zstdCompressSync(readFileSync(path))],
    ] as const) {
      const compressed = file(name, "");
      writeFileSync(compressed, packed);
      expect(refusal({ images: [compressed] }), name).toEqual([]);
      writeFileSync(compressed, packed.subarray(0, packed.length / 2));
      expect(refusal({ images: [compressed] })[0], name).toMatch(broken);
    }
  });

  it.each([
    ["is empty", () => file("empty.tar", "")],
    ["is text", () => file("text.tar", "no archive ".repeat(200))],
    ["ends within an entry", () => archive("short.tar", ["index.json", "blobs/x"], 4000)],
    ["is a folder", () => folder],
  ])("that %s is refused", (_, path) => {
    const lines = refusal({ images: [path()] });
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(broken);
  });
});

it("a manifest that is not there, no YAML, or of something else is refused by its path and document", () => {
  const good = file(
    "good.yaml",
    "# nothing yet\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: " +
      "v1\nkind: List\nitems: []\n",
  );
  const [broken, other] = [
    file("broken.yaml", "a: [\n"),
    file("other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\nkind: ConfigMap\n"),
  ];
  const files = { "/etc/kubernetes/a": "/nowhere", "/etc/kubernetes/b": "/etc" };
  expect(refusal({ node: { files } })).toEqual([
    '  - node.files./etc/kubernetes/a = "/nowhere": there is no such file',
    '  - node.files./etc/kubernetes/b = "/etc": it is no regular file',
  ]);
  const lines = refusal({ manifests: [good, "/nowhere.yaml", broken, other] });
  expect(lines).toEqual([
    '  - manifests = "/nowhere.yaml": there is no such file',
    expect.stringMatching(
      /^ {2}- manifests = ".*broken\.yaml": document 1 is no YAML: Flow sequence in block collection must be/,
    ),
    `  - manifests = "${other}": document 2 is no Kubernetes object: apiVersion, kind and metadata.name are needed`,
  ]);
});

describe("the sandbox's network", () => {
  const taken = (device: string, cidr: string, subnet: string) => [
    `  - sandbox.subnet = "${subnet}": the host's ${device} has ${cidr}; choose a network that the host does not use`,
  ];

  it.each([
    ["within the host's", "192.168.1.128/30", "192.168.1.20/24"],
    ["around the host's", "192.168.1.0/24", "192.168.1.20/30"],
    ["of an address alone", "192.168.1.20/30", "192.168.1.21/32"],
  ])("%s is refused, by the host's link", (_, subnet, cidr) => {
    hostHas({ lo: ["127.0.0.1/8"], eth0: ["fe80::1/64", cidr] });
    expect(refusal({ sandbox: { subnet } })).toEqual(taken("eth0", cidr, subnet));
  });

  it("beside the host's is taken", () => {
    hostHas({ eth0: ["192.168.1.20/25"] });
    expect(refusal({ sandbox: { subnet: "192.168.1.128/25" } })).toEqual([]);
  });

  it("of its own link, from an earlier start, is taken, and of another sandbox's is refused", () => {
    const subnet = "10.107.0.8/30";
    hostHas({ [hostPaths(name, "/").link]: ["10.107.0.9/30"] });
    expect(refusal({ sandbox: { subnet } })).toEqual([]);
    hostHas({ "gk-other": ["10.107.0.9/30"] });
    expect(refusal({ sandbox: { subnet } })).toEqual(taken("gk-other", "10.107.0.9/30", subnet));
  });
});

describe("another's kubeconfig", () => {
  const kubeconfig = (user: string) =>
    file(
      "foreign/config",
      `contexts: [{ name: a, context: { user: a } }, { name: b, context: { user: b } }]
users: [{ name: a, user: { token: t } }, { name: b, user: ${user} }]
current-context: b
`,
    );
  const of = (external: object) => ({ mode: "external" as const, pod: { enabled: false }, external });
  const exec = "{ exec: { command: ./bin/login, args: [token] } }";

  it("that has a program run is refused, unless its user allows that or takes another context", () => {
    const path = kubeconfig(exec);
    expect(refusal(of({ kubeconfig: path }))).toEqual([
      `  - external.kubeconfig = "${path}": it has a program run for its credentials (./bin/login), on this machine and ` +
        "with your rights; set external.exec to true if it may, or give a kubeconfig with a certificate or a token",
    ]);
    expect(refusal(of({ kubeconfig: path, exec: true }))).toEqual([]);
    expect(refusal(of({ kubeconfig: path, context: "a" }))).toEqual([]);
  });

  it("has its paths beside it, its program's too, but for one on PATH", () => {
    const command = (user: string) => {
      const path = kubeconfig(user);
      const { users } = parse(externalKubeconfig(readFileSync(path, "utf8"), { kubeconfig: path, exec: true }));
      return users[1].user.exec.command;
    };
    expect(command(exec)).toBe(join(folder, "foreign/bin/login"));
    expect(command("{ exec: { command: aws } }")).toBe("aws");
  });

  it("that is a folder, or no YAML, is refused by its path", () => {
    expect(refusal(of({ kubeconfig: folder }))[0]).toContain(`"${folder}": it cannot be read (EISDIR`);
    const text = file("foreign/text", "{ no: yaml");
    expect(refusal(of({ kubeconfig: text }))[0]).toContain(`"${text}": it is no kubeconfig`);
  });
});

it("everything that is wrong is told at once", () => {
  vi.spyOn(process, "getuid").mockReturnValue(1000);
  hostHas({ eth0: ["192.168.1.20/24"] });
  const lines = refusal({
    sandbox: { subnet: "192.168.1.0/30", runsc: "/nowhere" },
    runtime: { patches: ["no-such"] },
    images: ["/nowhere.tar"],
  });
  expect(lines.map((line) => line.match(/- (\S+) =/)?.[1])).toEqual([
    "user",
    "sandbox.subnet",
    "runtime.patches",
    "sandbox.runsc",
    "images",
  ]);
});
