/** The steps as one file, in a copy of the checkout. */
import { execFileSync } from "node:child_process";
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-bundle-"));
const copy = join(folder, "copy");
const env = { GVISOR_K3S_CACHE: join(folder, "cache"), GVISOR_K3S_MANIFEST: "" };

beforeAll(() => {
  const left = /^(node_modules|toolchain\/node\/node_modules|\.git|\.state|dist|release)$/;
  cpSync(root, copy, { recursive: true, filter: (path) => !left.test(relative(root, path)) });
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
});

afterAll(() => rmSync(folder, { recursive: true }));

/** The file that the sources' manifest names. */
function bundle(): string {
  const options = { env: { ...process.env, ...env }, encoding: "utf8" } as const;
  const manifest = execFileSync(process.execPath, [join(copy, "toolchain/build.ts"), "--manifest"], options).trim();
  return (JSON.parse(readFileSync(manifest, "utf8")) as { steps: string }).steps;
}

/** What a step says that gets no parameters. */
async function step(steps: string): Promise<string> {
  const { stderr } = await execa(process.execPath, [join(copy, "steps/main.ts"), "server"], {
    env: { ...env, GVISOR_K3S_STEPS: steps, STEP_PARAMS: "{}" },
    reject: false,
    stdin: "ignore",
  });
  return stderr;
}

it("is used, and made again for each change of what is in it", async () => {
  const first = bundle();
  expect(bundle()).toBe(first);
  expect(await step(first)).toContain("of an older gvisor-k3s");
  // It is that file that speaks: the sources would say this at once.
  appendFileSync(join(copy, "system/run.ts"), '\nconsole.error("changed");\n');
  expect(await step(first)).not.toContain("changed");
  const second = bundle();
  expect(second).not.toBe(first);
  expect(await step(second)).toContain("changed");
});
