/**
 * One archive with what a bug report needs, and no secret in it.
 * @module
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { arch, cpus, release, tmpdir, totalmem } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { create } from "tar";
import { stringify } from "yaml";
import { conflistPath } from "../config/conflist.ts";
import { nodesOf } from "../config/nodes.ts";
import { inSandbox } from "../config/paths.ts";
import { openMachine, refOf } from "../machines/index.ts";
import { hostPaths } from "../machines/paths.ts";
import { filesBelow } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import { run, worked } from "../system/run.ts";
import { kubeconfigOf, kubectl } from "./cluster.ts";
import type { NamedConfig } from "./options.ts";
import { isTelling, secretsOf } from "./secrets.ts";
import { status } from "./status.ts";

/** The end of a text that is taken, in characters. */
const TAIL = 2 * 2 ** 20;

/** How many logs of a sandbox are taken; it has some ten. */
const MOST_LOGS = 50;

const REMOVED = "<removed>";

/** What stands for what a form has found, of which the second is there only where it is a secret. */
const ifWhole = (found: string, secret?: string) => (secret === undefined ? found : REMOVED);

/**
 * What is a secret by its form: private keys, tokens, passwords in addresses and in fields. What begins like one and is
 * none is passed over as a whole: looked at anew from each of its places, a log that somebody in the sandbox has thought
 * of would take hours.
 */
const forms: [RegExp, typeof ifWhole | string][] = [
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----(?:([\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)|[\s\S]*)/g, ifWhole],
  [/\beyJ[\w-]+(\.[\w-]+\.[\w-]+)?/g, ifWhole],
  [/\bK10[0-9a-f]{64}::[^\s"']+/g, REMOVED],
  [/(\w:\/\/)[^\s/:@"']+:[^\s/@"']+@/g, `$1${REMOVED}@`],
  [
    /("?(?:password|passwd|token|secret|client-key-data|auth|authorization|identitytoken)"?\s*[:=]\s*)("[^"\n]*"|'[^'\n]*'|(?:bearer|basic) [^\s,]+|[^\s,{}[\]]+)/gi,
    `$1${REMOVED}`,
  ],
];

/**
 * A text without secrets.
 * @param known secrets that are known by themselves; short ones are left, because they would be found in every word
 */
export function redacted(text: string, known: readonly string[]): string {
  let clean = text;
  for (const secret of known.filter(isTelling)) clean = clean.replaceAll(secret, REMOVED);
  for (const [form, replacement] of forms) clean = clean.replace(form, replacement as string); // its types know one kind at a time
  return clean;
}

/**
 * Writes the archive: what runs, the options, the rendered files, the ends of the logs, and what the API server tells
 * of nodes, pods and events. No pod's own log and no Secret is in it.
 * @returns what is in it
 */
export async function writeBundle(
  config: NamedConfig,
  archive: string,
  say: (line: string) => void,
): Promise<string[]> {
  const secrets = secretsOf(config);
  const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-logs-"));
  const top = basename(archive).replace(/\.(tar\.gz|tgz)$/, "");
  const files: string[] = [];
  const put = async (file: string, text: string) => {
    await mkdir(join(folder, top, dirname(file)), { recursive: true });
    await writeFile(join(folder, top, file), redacted(text, secrets).slice(-TAIL));
    files.push(file);
  };
  try {
    await put("status.json", JSON.stringify(await status(config, say), null, 2));
    await put(
      "machine.json",
      JSON.stringify(
        {
          kernel: release(),
          arch: arch(),
          cpus: cpus().length,
          memory: totalmem(),
          node: process.version,
          os: readFileSync("/etc/os-release", "utf8"),
        },
        null,
        2,
      ),
    );
    await put("options.yaml", stringify(config));
    for (const node of config.mode === "external" ? [] : nodesOf(config)) {
      await putNode(node, (file, text) => put(node.joins ? join("nodes", node.name, file) : file, text));
    }
    if (existsSync(kubeconfigOf(config))) {
      const [program, ...args] = await kubectl(config, say);
      const questions = {
        "nodes.txt": ["describe", "nodes"],
        "pods.txt": ["get", "pods", "-A", "-o", "wide"],
        "pods-described.txt": ["describe", "pods", "-A"],
        "events.txt": ["get", "events", "-A", "--sort-by=.lastTimestamp"],
        "services.txt": ["get", "services,endpointslices", "-A", "-o", "wide"],
      };
      for (const [file, question] of Object.entries(questions)) {
        const asked = run(program, [...args, "--request-timeout=10s", ...question], { timeout: 60_000 });
        const answer = await worked(asked);
        await put(join("kubernetes", file), answer ?? "the API server did not answer\n");
      }
    }
    writeFileSync(archive, "", { mode: 0o600 });
    await create({ gzip: true, file: archive, cwd: folder, portable: true }, [top]);
    return files;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The rendered files of a node, and the ends of its logs. */
async function putNode(config: NamedConfig, put: (file: string, text: string) => Promise<void>): Promise<void> {
  const machine = openMachine(refOf(config));
  for (const path of [inSandbox.containerdConfig, inSandbox.nodeConfig, conflistPath]) {
    const text = await machine.read(path).catch(problemOf);
    if (text !== undefined) await put(`files${path}`, text);
  }
  const own = hostPaths(config.name, homeFolder()).logs;
  for (const file of filesBelow(own)) await put(join("logs/host", relative(own, file)), readFileSync(file, "utf8"));
  const listed = await machine.list(inSandbox.logs).catch(() => []);
  for (const file of listed.filter((name) => /^\w[\w.-]{0,100}$/.test(name)).slice(0, MOST_LOGS)) {
    const text = await machine.read(join(inSandbox.logs, file), { tail: TAIL }).catch(problemOf);
    await put(join("logs", file), text ?? "");
  }
}

/** What stands in the place of a file that is none, or cannot be read. */
const problemOf = (error: Error) => `it cannot be read: ${error.message}\n`;
