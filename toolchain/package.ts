/**
 * `node toolchain/package.ts [FOLDER]`: makes `dist`, or the folder, the npm package: the TypeScript compiled, because Node.js does not strip
 * types below `node_modules`, beside the sources of what is built on its user's machine. `npm pack ./dist` or `npm
 * publish ./dist` takes it.
 */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { run } from "../system/run.ts";

const root = join(import.meta.dirname, "..");
const dist = resolve(process.argv[2] ?? join(root, "dist"));

/** For tests and checkouts only. */
const left = new Set([
  "node_modules",
  "conformance",
  "registry",
  "helm",
  "pulumi-yaml",
  "runsc-2025-02",
  "golint",
  "golint.sh",
  "testdata",
  "pulumi-resource-command",
  "pulumi-resource-kubernetes",
]);

rmSync(dist, { recursive: true, force: true });
await run(process.execPath, [
  join(root, "node_modules/typescript/bin/tsc"),
  "--project",
  join(root, "tsconfig.package.json"),
  "--outDir",
  dist,
]);
for (const entry of [
  "bin",
  "node",
  "host",
  "standins", // the language host; the stand-ins for plugins are left out
  "toolchain",
  "docs",
  "provider",
  "README.md",
  "CHANGELOG.md",
  "LICENSE",
]) {
  cpSync(join(root, entry), join(dist, entry), {
    recursive: true,
    filter: (path) =>
      !left.has(basename(path)) && !/\.ts$|_test\.go$/.test(path) && path !== join(root, "toolchain/node"),
  });
}
const {
  devDependencies: _,
  private: __,
  scripts: ___,
  ...manifest
} = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
// One file of sources is one compiled file, at the same place.
const compiled = JSON.stringify(manifest, null, 2)
  .replace(/\.\/?([\w/]+)\.ts"/g, (_match, file: string) => `./${file}.js"`)
  .replace(/"([\w/]+)\.ts"/g, '"$1.js"');
const provider = "provider/pulumi-resource-gvisor-k3s";
writeFileSync(join(dist, provider), readFileSync(join(root, provider), "utf8").replace(".ts", ".js"));
writeFileSync(
  join(dist, "Pulumi.yaml"),
  readFileSync(join(root, "Pulumi.yaml"), "utf8").replace("index.ts", "index.js"),
);
writeFileSync(join(dist, "package.json"), `${compiled}\n`);
