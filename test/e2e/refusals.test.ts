/** Bad input: each has its own clear message, and nothing is made. */
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { create } from "tar";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { imageArchive } from "../../artifacts/artifacts.ts";
import { homeFolder } from "../../system/folders.ts";
import { cli, ownHome, removeHome, root, traces, writeOptions } from "./harness.ts";

const home = await ownHome();
const name = "e2e-bad";
const settings = join(root, `Pulumi.${name}.yaml`);
const files = `${home}-files`;

/** Runs `up` with these options, as they stand in a stack's settings. */
async function upWith(options: Record<string, unknown>) {
  writeOptions(root, name, options);
  return await cli("up", name);
}

function file(path: string, content: string, mode = 0o644): string {
  const whole = join(files, path);
  writeFileSync(whole, content);
  chmodSync(whole, mode);
  return whole;
}

/** A program that answers every call alike. */
function program(path: string, says: string): string {
  return file(path, `#!/bin/sh\necho '${says}'\n`, 0o755);
}

/** This machine's busybox, said to be for RISC-V. */
function foreign(): string {
  const program = readFileSync("/bin/busybox");
  program.writeUInt16LE(243, 18);
  const path = join(files, "foreign-runc");
  writeFileSync(path, program, { mode: 0o755 });
  return path;
}

/** A runsc that says so, and fails in all else. */
function brokenRunsc(): string {
  return file(
    "runsc",
    '#!/bin/sh\n[ "$1" = --version ] && exec echo runsc version broken\necho "cannot start here" >&2\nexit 3\n',
    0o755,
  );
}

beforeAll(() => {
  rmSync(files, { recursive: true, force: true }); // a killed run left them
  mkdirSync(files);
});
beforeEach(() => rmSync(home, { recursive: true, force: true }));
afterAll(() => {
  rmSync(settings, { force: true });
  rmSync(files, { recursive: true });
  removeHome(home);
});

describe("the configuration is refused before anything is made", () => {
  const cases: [string, () => Record<string, unknown> | Promise<Record<string, unknown>>, string][] = [
    [
      "an unknown option",
      () => ({ containerd: { snapshoter: "native" } }),
      "containerd.snapshoter: there is no such option; allowed here: snapshotter, logLevel, containerd, shim",
    ],
    ["a wrong type", () => ({ sandbox: { cpus: "two" } }), 'sandbox.cpus = "two": a value of type number is allowed'],
    [
      "networks that overlap",
      () => ({ sandbox: { subnet: "10.43.0.0/30" } }),
      'node.serviceCidr = "10.43.0.0/16": it overlaps sandbox.subnet (10.43.0.0/30); choose networks ' +
        "that share no address",
    ],
    [
      "a network of the host's",
      () => ({ sandbox: { subnet: "127.0.0.0/24" } }),
      "the host's lo has 127.0.0.1/8; choose a network that the host does not use",
    ],
    [
      "a port that the node uses itself",
      () => ({ node: { httpsListenPort: 10250 } }),
      "node.httpsListenPort = 10250: the port is in use by the node's kubelet; choose another",
    ],
    [
      "a bad name",
      () => ({ name: "My_Node" }),
      'name = "My_Node": up to 12 lower-case letters, digits and dashes are allowed, a letter first, no dash last',
    ],
    [
      "no runsc",
      () => ({ sandbox: { runsc: "/nowhere/runsc" } }),
      'sandbox.runsc = "/nowhere/runsc": there is no such program; give the path of an executable ' +
        "file, or leave the option out",
    ],
    [
      "a runsc that is none",
      () => ({ sandbox: { runsc: program("no-runsc", "something else") } }),
      "`--version` of it does not say that it is runsc",
    ],
    [
      "an archive that is none",
      () => ({ images: [file("text.tar", "no archive")] }),
      "it is no tar archive, or a broken one",
    ],
    [
      "an archive that ends too early",
      () => ({ images: [file("short.tar", readFileSync(imageArchive(), "latin1").slice(0, 3000))] }),
      "it is no tar archive, or a broken one",
    ],
    [
      "an archive of something else",
      async () => {
        await create({ file: join(files, "other.tar"), cwd: files }, [file("notes.txt", "").split("/").at(-1)!]);
        return { images: [join(files, "other.tar")] };
      },
      "it has neither index.json nor manifest.json",
    ],
    [
      "containerd and a shim of different versions",
      () => ({
        containerd: {
          containerd: program("containerd", "containerd github.com/containerd/containerd/v2 v2.4.2 abc"),
          shim: program("shim", "  Version:  v2.1.0"),
        },
      }),
      `the shim is 2.1.0 and containerd (${files}/containerd) is 2.4.2: they must be of one version`,
    ],
    [
      "an unknown quirk",
      () => ({ quirks: ["rshared", "no-such-quirk"], mode: "control-plane" }),
      'quirks = "no-such-quirk": there is no such quirk; auto is allowed, or a list of no-cgroup-mounts, ',
    ],
    [
      "a quirk that no pod can live with",
      () => ({ quirks: ["rshared"] }),
      'quirks = "rshared": a sandbox with these cannot run pods (the kubelet); set mode: ' +
        "control-plane, or use another gVisor",
    ],
    [
      "a runtime that is missing",
      () => ({ runtime: { path: "/nowhere/runc" } }),
      'runtime.path = "/nowhere/runc": there is no such program; give the path of an executable file, ' +
        "or leave the option out",
    ],
    [
      "a runtime of another architecture",
      () => ({ runtime: { path: foreign() } }),
      "it is built for machine 243, and this machine is",
    ],
    [
      "a patch for a runtime that is not built",
      () => ({ runtime: { name: "crun", patches: ["cap-last-cap"] } }),
      "only a runc that is built here can be patched",
    ],
    [
      "an unknown patch",
      () => ({ runtime: { patches: ["no-such-patch"] } }),
      'runtime.patches = "no-such-patch": there is no such patch',
    ],
  ];

  it.each(cases)("%s", async (_, options, message) => {
    const { exitCode, all } = await upWith(await options());
    expect(exitCode).toBe(1);
    expect(all).toMatch(/^\d+ problems? with the configuration; nothing was changed:\n {2}- /);
    expect(all).toContain(message);
    expect(existsSync(home)).toBe(false);
  });

  it("a patch that does not apply to runc", async () => {
    const patch = join(root, "toolchain/runc/patches/e2e-stale.patch");
    writeFileSync(
      patch,
      "--- a/github.com/opencontainers/runc/main.go\n+++ b/github.com/opencontainers/runc/main.go\n@@ " +
        "-55 +55 @@\n-a line of another version\n+another\n",
    );
    const manifest = process.env.GVISOR_K3S_MANIFEST;
    process.env.GVISOR_K3S_MANIFEST = ""; // this one knows nothing of the patch
    try {
      const { exitCode, all } = await upWith({ runtime: { patches: ["e2e-stale", "cap-last-cap"] } });
      expect(exitCode).toBe(1);
      expect(all).toMatch(
        /^1 problem with the configuration; nothing was changed:\n {2}- runtime\.patches = "e2e-stale": it does not apply to the runc that is pinned in toolchain\/runc\/go\.mod: .*Hunk #1 FAILED at 55/,
      );
      expect(existsSync(home)).toBe(false);
    } finally {
      process.env.GVISOR_K3S_MANIFEST = manifest;
      rmSync(patch);
    }
  });

  it("every problem at once", async () => {
    const { all } = await upWith({ sandbox: { memory: 4 }, containerd: { snapshotter: "zfs" } });
    expect(all).toBe(
      "2 problems with the configuration; nothing was changed:\n  - sandbox.memory = 4: a value of " +
        'type string is allowed\n  - containerd.snapshotter = "zfs": allowed: auto, overlayfs, native',
    );
  });

  it("who is not root", async () => {
    writeFileSync(settings, "");
    // Another user, who may yet read this checkout wherever it lies.
    const { all, exitCode } = await execa(
      "setpriv",
      [
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        process.execPath,
        join(root, "automation/cli.ts"),
        "up",
        name,
      ],
      { all: true, reject: false },
    );
    expect(exitCode).toBe(1);
    expect(all).toContain("root is needed to make network namespaces and sandboxes; run it with sudo");
    expect(existsSync(home)).toBe(false);
  });
});

describe("what shows only at the start leaves no sandbox behind", () => {
  let before: ReturnType<typeof traces>;

  beforeAll(() => {
    before = { ...traces(home), files: [] };
  });

  it("a runsc that cannot start", async () => {
    const { exitCode, all } = await upWith({ sandbox: { runsc: brokenRunsc() } });
    expect(exitCode).toBe(1);
    expect(all).toContain(`exit code 3: ${files}/runsc`);
    expect(all).toContain("cannot start here");
    expect(existsSync(join(home, "sandboxes"))).toBe(false);
    expect({ ...traces(home), files: [] }).toEqual(before);
  });

  it("a disk that is full", async () => {
    mkdirSync(home);
    await execa("mount", ["-t", "tmpfs", "-o", "size=64m", "tmpfs", home]);
    try {
      const { exitCode, all } = await upWith({});
      expect(exitCode).toBe(1);
      expect(all).toMatch(
        new RegExp(
          `no space: ${home} has \\d+ MiB free and a sandbox needs 512 MiB; make room, or set GVISOR_K3S_HOME`,
        ),
      );
      expect(existsSync(join(home, "sandboxes"))).toBe(false);
    } finally {
      await execa("umount", [home]);
    }
    expect({ ...traces(home), files: [] }).toEqual(before);
  });

  it("and a destroy takes what is left of the attempt", async () => {
    await upWith({ sandbox: { runsc: brokenRunsc() } });
    const { exitCode, all } = await cli("destroy", name);
    expect(exitCode, all).toBe(0);
    expect(existsSync(homeFolder())).toBe(false);
  });
});
