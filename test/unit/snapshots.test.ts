/** What is kept of a machine, as far as that is files of the host's. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { hostPaths } from "../../machines/paths.ts";
import type { MachineRef } from "../../machines/ref.ts";
import {
  drop,
  dropHalfMade,
  keepIn,
  manifestIn,
  pausedWith,
  SNAPSHOT_NAME,
  type Snapshot,
  snapshotFolder,
  snapshotsOf,
  verify,
} from "../../machines/snapshots.ts";

let ref: MachineRef;
beforeEach(() => {
  ref = { kind: "managed", name: "a", home: mkdtempSync(join(tmpdir(), "snapshots-")) };
});
afterEach(() => rmSync(ref.home, { recursive: true, force: true }));

/** sha256sum of "memory". */
const sha256 = "c064fbca9d9de8dd9bb0624984403b28d0da807a69365d4f7fb09123ecb0c405";

function described(name: string, created: string, more: Partial<Snapshot> = {}): Snapshot {
  return {
    version: 1,
    name,
    cluster: "a",
    created,
    kind: "memory",
    product: "0",
    server: "",
    runsc: "",
    init: "",
    revision: "",
    options: {},
    cpu: [],
    frozen: 1,
    files: {},
    ...more,
  };
}

const keep = (name: string, created = "2026-01-01T00:00:00.000Z", more: Partial<Snapshot> = {}) =>
  keepIn(snapshotFolder(ref, name), async (half) => {
    writeFileSync(join(half, "disk"), "what is on the disk");
    return described(name, created, more);
  });

describe("a folder of what is kept", () => {
  it("is there with all that is in it, for its owner alone", async () => {
    await keep("one");
    const folder = snapshotFolder(ref, "one");
    expect(readdirSync(folder).sort()).toEqual(["disk", "manifest.json"]);
    expect(readdirSync(hostPaths("a", ref.home).snapshots)).toEqual(["one"]);
    for (const path of [folder, hostPaths("a", ref.home).snapshots]) expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(statSync(join(folder, "manifest.json")).mode & 0o777).toBe(0o600);
    expect(manifestIn(folder)).toMatchObject({ name: "one" });
  });

  it("is not there if making it fails", async () => {
    const folder = snapshotFolder(ref, "one");
    const failing = keepIn(folder, async (half) => {
      writeFileSync(join(half, "disk"), "half");
      throw new Error("gVisor refuses");
    });
    await expect(failing).rejects.toThrow("gVisor refuses");
    expect(readdirSync(hostPaths("a", ref.home).snapshots)).toEqual([]);
  });

  it("takes the place of no other one", async () => {
    await keep("one", "2026-01-01T00:00:00.000Z");
    await expect(keep("one", "2027-01-01T00:00:00.000Z")).rejects.toThrow("ENOTEMPTY");
    expect(snapshotsOf(ref)).toMatchObject([{ created: "2026-01-01T00:00:00.000Z" }]);
  });

  it("is gone as a whole", async () => {
    await keep("one");
    await drop(snapshotFolder(ref, "one"));
    expect(readdirSync(hostPaths("a", ref.home).snapshots)).toEqual([]);
  });
});

it("what a killed command has left is none, and is removed by the next", async () => {
  await keep("whole");
  const { state, snapshots } = hostPaths("a", ref.home);
  for (const folder of [join(snapshots, ".new-half"), join(snapshots, ".old-gone"), join(state, ".new-paused")]) {
    mkdirSync(folder);
    writeFileSync(join(folder, "manifest.json"), JSON.stringify(described("half", "2030")));
  }
  expect(snapshotsOf(ref).map(({ name }) => name)).toEqual(["whole"]);
  expect(pausedWith(ref)).toBeUndefined();
  await dropHalfMade(ref);
  expect(readdirSync(snapshots)).toEqual(["whole"]);
  expect(existsSync(join(state, ".new-paused"))).toBe(false);
});

it("the newest snapshot is the last one, whatever they are called", async () => {
  await keep("a", "2026-01-03T00:00:00.000Z");
  await keep("b", "2026-01-01T00:00:00.000Z");
  await keep("c", "2026-01-02T00:00:00.000Z");
  expect(snapshotsOf(ref).map(({ name }) => name)).toEqual(["b", "c", "a"]);
});

it("a manifest that cannot be read is told by name", async () => {
  await keep("one");
  writeFileSync(join(snapshotFolder(ref, "one"), "manifest.json"), "{");
  expect(() => snapshotsOf(ref)).toThrow(/snapshots\/one\/manifest\.json cannot be read .*delete .*snapshots\/one/);
});

it("a file that is damaged, or gone, is told by name", async () => {
  const { name, files } = await keep("one", undefined, { files: { "memory/pages.img": { size: 6, sha256 } } });
  const folder = snapshotFolder(ref, "one");
  const check = () => verify(folder, described(name, "", { files }), "memory/");
  await expect(check()).rejects.toThrow(/pages\.img is missing: the snapshot one cannot be used/);
  mkdirSync(join(folder, "memory"));
  writeFileSync(join(folder, "memory/pages.img"), "memory");
  await check();
  writeFileSync(join(folder, "memory/pages.img"), "Memory");
  await expect(check()).rejects.toThrow(/pages\.img is damaged/);
  expect(readFileSync(join(folder, "disk"), "utf8")).toBe("what is on the disk");
});

it.each(["a", "before-the-upgrade", "2026-11-26-15.04_x", "A1"])("%s is a name", (name) =>
  expect(name).toMatch(SNAPSHOT_NAME),
);

it.each(["", ".", "..", "../a", "a/b", ".new-a", "-a", "a-", "a b", "a\n", "ä", "x".repeat(64)])("%j is none", (name) =>
  expect(name).not.toMatch(SNAPSHOT_NAME),
);
