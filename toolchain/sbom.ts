/**
 * What a release contains, by the words of the tools that made it: a bill of materials (CycloneDX 1.6, JSON), and the
 * licences.
 * @module
 */
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ArtifactName } from "../artifacts/artifacts.ts";
import { run } from "../system/run.ts";
import { builds, type GoBuild, root } from "./builds.ts";
import { withSources } from "./make.ts";

/** A part that is contained. */
export interface Part {
  name: string;
  version: string;
  /** A package URL (github.com/package-url). */
  purl: string;
  /** The texts of its licences. */
  licences: string[];
  /** The artifacts that it is in. */
  in: string[];
}

/** The parts of artifacts that are built from Go modules, and of what is linked with them. */
export async function partsOf(names: readonly ArtifactName[]): Promise<Part[]> {
  const parts = new Map<string, Part>();
  const add = (part: Omit<Part, "in">, name: string) => {
    const known = parts.get(part.purl) ?? { ...part, in: [] };
    if (!known.in.includes(name)) known.in.push(name);
    parts.set(part.purl, known);
  };
  for (const name of names) {
    for (const goBuild of builds[name] as GoBuild[]) {
      for (const { Path, Version, licences } of await modulesOf(goBuild, name)) {
        add({ name: Path, version: Version, purl: `pkg:golang/${Path}@${Version}`, licences }, name);
      }
      add(await goItself(), name);
      if (goBuild.cgo) add(await debianPart("libc6-dev"), name);
      if (goBuild.tags?.includes("seccomp")) add(await debianPart("libseccomp-dev"), name);
    }
  }
  return [...parts.values()].sort((one, other) => (one.purl < other.purl ? -1 : 1));
}

interface GoModule {
  Path: string;
  Version: string;
  Dir: string;
}

/** The modules whose packages a build compiles, with their licences; this project's own are left out. */
async function modulesOf(goBuild: GoBuild, name: ArtifactName): Promise<(GoModule & { licences: string[] })[]> {
  const { module, packages, tags = [], cgo } = goBuild;
  // What takes a module's place is what is contained, but for a copy that is patched here.
  const other = "{{with .Replace}}{{if .Version}}{{$from = .}}{{end}}{{end}}";
  const told = '{"Path": "{{$from.Path}}", "Version": "{{$from.Version}}", "Dir": "{{.Dir}}"}';
  const format = `{{with .Module}}{{$from := .}}${other}${told}{{end}}`;
  const flags = ["-deps", "-tags", [...(cgo ? ["netgo", "osusergo"] : []), ...tags].join(","), "-f", format];
  const work = await mkdtemp(join(tmpdir(), "gvisor-k3s-"));
  return await withSources(goBuild, { name }, work, async (sources, env) => {
    const args = ["list", ...sources, ...flags, ...packages];
    const { stdout } = await run("go", args, { cwd: join(root, module), env });
    const lines = [...new Set(stdout.split("\n").filter((line) => line !== ""))];
    const found = lines.map((line) => JSON.parse(line) as GoModule).filter(({ Dir }) => !Dir.startsWith(`${root}/`));
    return found.map((module) => ({ ...module, licences: licencesIn(module.Dir) }));
  });
}

async function goItself(): Promise<Omit<Part, "in">> {
  const { stdout } = await run("go", ["env", "GOVERSION", "GOROOT"], { cwd: root });
  const [version, folder] = stdout.trim().split("\n") as [string, string];
  const name = "stdlib";
  return { name, version, purl: `pkg:golang/std@${version.replace("go", "")}`, licences: licencesIn(folder) };
}

/** A package of Debian's that is linked in or brought along; this machine's version of it, as for all architectures. */
export async function debianPart(name: string): Promise<Omit<Part, "in">> {
  const { stdout: version } = await run("dpkg-query", ["--show", `--showformat=$${"{Version}"}`, name]);
  const about = readFileSync(`/usr/share/doc/${name}/copyright`, "utf8");
  // What is common is only named there.
  const common = [...about.matchAll(/\/usr\/share\/common-licenses\/[\w.-]*\w/g)].map(([file]) => file);
  const licences = [about, ...[...new Set(common)].map((file) => readFileSync(file, "utf8"))];
  return { name, version, purl: `pkg:deb/debian/${name}@${encodeURIComponent(version)}`, licences };
}

function licencesIn(folder: string): string[] {
  const files = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|notice|patents)/i.test(file));
  const texts = files.sort().map((file) => join(folder, file));
  return texts.flatMap((file) => {
    try {
      return [readFileSync(file, "utf8")];
    } catch {
      return []; // a folder of that name
    }
  });
}

/** The texts of all licences, each once, with what is under it. */
export function licencesText(parts: readonly Part[]): string {
  const under = new Map<string, string[]>();
  for (const { name, version, licences } of parts) {
    for (const text of licences.length > 0 ? licences : ["(no licence file)"]) {
      const whole = text.trim();
      under.set(whole, [...(under.get(whole) ?? []), `${name} ${version}`]);
    }
  }
  const line = "=".repeat(79);
  return [...under].map(([text, names]) => `${line}\n${names.join("\n")}\n${line}\n\n${text}\n`).join("\n");
}

/** The licence of a text, by SPDX's name, where its words leave no doubt. */
function spdx(text: string): string[] {
  const words = text.replaceAll(/\s+/g, " ");
  const known: [string, RegExp][] = [
    ["Apache-2.0", /Apache License,? Version 2\.0/i],
    ["MPL-2.0", /Mozilla Public License,? (version )?2\.0/i],
    ["MIT", /Permission is hereby granted, free of charge, to any person obtaining a copy/],
    ["ISC", /Permission to use, copy, modify, and(\/or)? distribute this software for any purpose/],
    ["BSD-3-Clause", /Redistributions in binary form.*Neither the name/],
  ];
  const found = known.filter(([, pattern]) => pattern.test(words)).map(([id]) => id);
  const isBsd = /Redistributions in binary form/.test(words) && !found.includes("BSD-3-Clause");
  return isBsd ? [...found, "BSD-2-Clause"] : found;
}

/** The licences of a part as CycloneDX has them: a file of Debian's names them. */
function licencesOf({ licences, purl }: Part): object[] {
  if (!purl.startsWith("pkg:deb/")) return [...new Set(licences.flatMap(spdx))].map((id) => ({ license: { id } }));
  const named = [...licences[0]!.matchAll(/^License: (.+)$/gm)].map(([, name]) => name!.trim());
  return [...new Set(named)].map((name) => ({ license: { name } }));
}

/** The bill of materials of a package. */
export function bill(name: string, version: string, parts: readonly Part[], files: Record<string, string>): object {
  return {
    $schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: { "bom-ref": name, type: "application", name, version, purl: `pkg:npm/${name}@${version}` },
    },
    components: [
      ...parts.map((part) => ({
        "bom-ref": part.purl,
        type: "library",
        name: part.name,
        version: part.version,
        purl: part.purl,
        licenses: licencesOf(part),
        properties: part.in.map((value) => ({ name: "gvisor-k3s:artifact", value })),
      })),
      ...Object.entries(files).map(([file, content]) => ({
        "bom-ref": `file:${file}`,
        type: "file",
        name: file,
        hashes: [{ alg: "SHA-256", content }],
      })),
    ],
  };
}

/** What the npm package depends on, as npm itself tells it, without what is another one each time. */
export async function npmBill(): Promise<object> {
  const { stdout } = await run("npm", ["sbom", "--omit=dev", "--sbom-format=cyclonedx"], { cwd: root });
  const { serialNumber: _, metadata, ...rest } = JSON.parse(stdout) as { serialNumber: string; metadata: object };
  const { timestamp: __, ...lasting } = metadata as { timestamp: string };
  return { ...rest, metadata: lasting };
}
