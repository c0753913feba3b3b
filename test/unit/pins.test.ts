/** What is depended on is pinned, with hashes. */
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");
const json = (file: string) => JSON.parse(readFileSync(join(root, file), "utf8"));

it.each(["package.json", "toolchain/node/package.json"])("every package of %s is of one exact version", (file) => {
  const {
    dependencies = {},
    devDependencies = {},
    optionalDependencies = {},
  } = json(file) as Record<string, Record<string, string> | undefined>;
  const versions = Object.entries({ ...dependencies, ...devDependencies, ...optionalDependencies });
  expect(versions.length).toBeGreaterThan(0);
  expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))).toEqual([]);
});

it.each(["package-lock.json", "toolchain/node/package-lock.json"])("every package in %s has its hash", (file) => {
  const { packages } = json(file) as { packages: Record<string, { integrity?: string }> };
  expect(
    Object.entries(packages)
      .filter(([path, { integrity = "" }]) => path !== "" && !integrity.startsWith("sha512-"))
      .map(([path]) => path),
  ).toEqual([]);
});

it("every Go module has the hashes of what it depends on", () => {
  const modules = globSync("{node,toolchain}/**/go.mod", { cwd: root, exclude: ["**/node_modules/**"] });
  expect(modules.length).toBeGreaterThan(10);
  expect(
    modules.filter(
      (file) =>
        /^\s*(require )?\S+ v\d/m.test(readFileSync(join(root, file), "utf8")) &&
        !existsSync(join(root, dirname(file), "go.sum")),
    ),
  ).toEqual([]);
});
