/** runc is built with patches from files, by id. Nothing is patched by default, so the patches here are the test's own. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Artifact, artifactFolder, artifactsFolder, build, knownPatches } from "../../toolchain/artifacts.ts";
import { root } from "./harness.ts";

const folder = join(root, "toolchain/runc/patches");
const [good, bad] = ["e2e-usage", "e2e-stale"];
const patched: Artifact = { name: "runc", patches: [good] };

/** Changes the first line of runc's help. */
const patch = (was: string) => `--- a/main.go
+++ b/main.go
@@ -55 +55 @@
-	usage      = \`${was}
+	usage      = \`Patched Container Initiative runtime
`;

beforeAll(() => {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${good}.patch`), patch("Open Container Initiative runtime"));
  writeFileSync(join(folder, `${bad}.patch`), patch("a line of another version"));
});

afterAll(() => {
  rmSync(artifactFolder(patched), { recursive: true, force: true });
  for (const id of [good, bad]) rmSync(join(folder, `${id}.patch`));
  if (knownPatches("runc").length === 0) rmSync(folder, { recursive: true });
});

it("a patch is in the runc that is built with it, and in no other", async () => {
  const [plain, own] = [await build({ name: "runc" }), await build(patched)];
  expect(own).not.toBe(plain);
  const help = (path: string) => execFileSync(join(path, "runc"), ["--help"], { encoding: "utf8" });
  expect(help(own)).toContain("Patched Container Initiative runtime");
  expect(help(plain)).not.toContain("Patched");
});

it("a patch that does not fit fails with the patch's name, and leaves nothing", async () => {
  await expect(build({ name: "runc", patches: [bad] })).rejects.toThrow(new RegExp(`${bad}\\.patch[\\s\\S]*FAILED`));
  expect(readdirSync(artifactsFolder()).filter((entry) => entry.includes(".tmp-"))).toEqual([]);
});
