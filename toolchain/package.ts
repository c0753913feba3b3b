/**
 * `node toolchain/package.ts [FOLDER]`: makes `dist`, or the folder, the npm package: the TypeScript compiled, because Node.js
 * does not strip types below `node_modules`, beside the sources of what is built on its user's machine. `npm pack ./dist`
 * or `npm publish ./dist` takes it.
 *
 * The library is an ES module. CommonJS, which Pulumi's own templates are, gets the same one by `require`; its compiler
 * wants declarations of CommonJS for that, which lie in `cjs`.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { run } from "../system/run.ts";
import { bundleSteps } from "./bundle.ts";

const root = join(import.meta.dirname, "..");
const dist = resolve(process.argv[2] ?? join(root, "dist"));

/** For tests and checkouts only. */
const left = new Set([
  "node_modules",
  "conformance",
  "registry",
  "helm",
  "pulumi-yaml",
  "pulumi-sdks",
  "runsc-2025-02",
  "golint",
  "golint.sh",
  "csi-driver",
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
  "node",
  "host",
  "standins", // the language host; the stand-ins for plugins are left out
  "toolchain",
  "docs",
  "provider",
  "automation/bin.cjs",
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
commonJs();
// The packages that are loaded on demand are as quick from where npm puts them.
const compiledSteps = { "import.meta.filename": '"steps.js"' };
await bundleSteps(join(dist, "steps"), compiledSteps, ["@kubernetes/client-node"]);
const launcher = join(dist, "steps/main.js");
const loading = readFileSync(launcher, "utf8");
const loadingBundle = loading.replace(/`\.\/steps\$\{.*?\}`/, '"./steps.mjs"');
if (loadingBundle === loading) throw new Error(`${launcher} loads its steps in another way than is known here`);
writeFileSync(launcher, loadingBundle);
const {
  devDependencies: _,
  private: __,
  scripts: ___,
  ...manifest
} = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
// One file of sources is one compiled file, at the same place.
const compiled = JSON.parse(JSON.stringify(manifest).replace(/(\.?\/?[\w/]+)\.ts"/g, '$1.js"'));
const provider = "provider/pulumi-resource-gvisor-k3s";
writeFileSync(join(dist, provider), readFileSync(join(root, provider), "utf8").replace(".ts", ".js"));
writeFileSync(
  join(dist, "Pulumi.yaml"),
  readFileSync(join(root, "Pulumi.yaml"), "utf8").replace("index.ts", "index.js"),
);
const exported = {
  ...compiled.exports,
  ".": {
    import: { types: "./lib.d.ts", default: "./lib.js" },
    require: { types: "./cjs/lib.d.ts", default: "./cjs/lib.js" },
  },
};
// What knows no exports, as resolution of the kind node10 does, takes CommonJS.
const published = { ...compiled, main: "./cjs/lib.js", types: "./cjs/lib.d.ts", exports: exported };
writeFileSync(join(dist, "package.json"), `${JSON.stringify(published, null, 2)}\n`);

/**
 * Makes the entry of CommonJS, and its declarations: the same ones, in a folder whose files are taken for CommonJS. What
 * a declaration imports is named by what is compiled, as every compiler knows it.
 */
function commonJs(): void {
  const files = readdirSync(dist, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".d.ts"));
  for (const file of files) {
    const content = readFileSync(join(dist, file), "utf8").replace(/(["']\.{1,2}\/[^"'\n]+)\.ts(["'])/g, "$1.js$2");
    writeFileSync(join(dist, file), content);
    mkdirSync(dirname(join(dist, "cjs", file)), { recursive: true });
    writeFileSync(join(dist, "cjs", file), content);
  }
  writeFileSync(join(dist, "cjs/package.json"), '{ "type": "commonjs" }\n');
  writeFileSync(join(dist, "cjs/lib.js"), 'module.exports = require("../lib.js");\n');
}
