/**
 * The official k3s release, brought into the cache.
 * @module
 */
import { existsSync, statSync } from "node:fs";
import { chmod, copyFile, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { readFile } from "../system/files.ts";
import { cacheFolder } from "../system/folders.ts";
import { run } from "../system/run.ts";
import { artifactsFolder, fileDigest, goArch, intoPlace } from "./artifacts.ts";

/** Where k3s publishes its releases (k3s-io/k3s: install.sh). */
const RELEASES = "https://github.com/k3s-io/k3s/releases/download";

export interface K3sRelease {
  /** A release's tag, such as v1.36.4+k3s1. */
  version: string;
  /** What stands before VERSION/FILE in place of GitHub's address. */
  mirror?: string | undefined;
  /** A folder with the release's files, which are then not downloaded. */
  airgap?: string | undefined;
}

/**
 * The release's folder in the cache; the binary in it is named k3s. It exists once the binary is there and verified. What
 * is published under a tag stays; what is in a folder of the user's may be another thing tomorrow.
 */
export function k3sFolder({ version, airgap }: K3sRelease): string {
  const list = airgap === undefined ? undefined : readFile(join(airgap, releaseFiles().sums));
  const sum = list === undefined ? undefined : sumIn(list);
  return join(artifactsFolder(), ["k3s", version, goArch(), ...(sum ? [sum.slice(0, 12)] : [])].join("-"));
}

/** The SHA-256 of the binary in a release's list of them. */
function sumIn(list: string): string | undefined {
  const lines = list.split("\n").map((line) => line.trim().split(/\s+\*?/));
  const sum = lines.find(([, file]) => file === releaseFiles().binary)?.[0];
  return sum !== undefined && /^[0-9a-f]{64}$/.test(sum) ? sum : undefined;
}

/** The release's files for this machine (k3s-io/k3s: install.sh, setup_verify_arch). */
export function releaseFiles(): { binary: string; sums: string } {
  const arch = goArch();
  return { binary: arch === "amd64" ? "k3s" : `k3s-${arch}`, sums: `sha256sum-${arch}.txt` };
}

/**
 * Brings a release into the cache unless it is there. A download that was interrupted goes on where it ended.
 * @param say takes a line now and then while it goes on
 * @throws Error that names the file or the address, and what is wrong with it: missing, cut off, not what the release's
 *   list of sums says
 */
export async function fetchK3s(release: K3sRelease, say: (line: string) => void): Promise<string> {
  const folder = k3sFolder(release);
  if (existsSync(folder)) return folder;
  const { binary, sums } = releaseFiles();
  const from = (file: string) =>
    release.airgap
      ? join(release.airgap, file)
      : `${release.mirror ?? RELEASES}/${encodeURIComponent(release.version)}/${file}`;
  const absent = (): never => {
    throw new Error(
      `${release.airgap} lacks ${binary} or ${sums} of ${release.version}; the folder of the option ` +
        "k3s.airgap must hold both",
    );
  };
  const list = release.airgap ? (readFile(from(sums)) ?? absent()) : (await curl(from(sums), [])).stdout;
  const expected = sumIn(list);
  if (expected === undefined)
    throw new Error(
      `${from(sums)} has no SHA-256 of ${binary}; give the address of a complete release of ${release.version}`,
    );
  const parts = join(cacheFolder(), "downloads", `k3s-${release.version}`);
  const part = join(parts, binary);
  await mkdir(parts, { recursive: true });
  try {
    const otherwise = `${from(binary)} is not what ${sums} says`;
    if (release.airgap) {
      if (!existsSync(from(binary))) absent();
      await place(from(binary), folder, expected, otherwise);
    } else {
      await download(from(binary), part, expected, say);
      await verify(part, expected, otherwise);
      await place(part, folder, expected, otherwise);
    }
  } catch (error) {
    if (!existsSync(folder)) throw error; // another process brought it meanwhile, and took the part away
  }
  await rm(parts, { recursive: true, force: true });
  return folder;
}

async function verify(part: string, expected: string, otherwise: string): Promise<void> {
  const found = fileDigest(part);
  if (found === expected) return;
  await rm(part);
  throw new Error(
    `${otherwise}: its SHA-256 is ${found}, and ${expected} is expected; it was deleted. Try again; ` +
      "if it stays so, what is there was changed or is of another release",
  );
}

/** Copies it to where it stays, and looks at the copy: another process may be changing what is copied. */
async function place(source: string, folder: string, expected: string, otherwise: string): Promise<void> {
  await intoPlace(folder, async (work) => {
    await copyFile(source, join(work, "k3s"));
    await verify(join(work, "k3s"), expected, otherwise);
    await chmod(join(work, "k3s"), 0o755);
  });
}

/** curl's exit codes for a transfer that ended in its midst: cut off, too slow, nothing sent, broken. */
const CUT = [18, 28, 52, 55, 56, 92];
const ATTEMPTS = 3;

/** Downloads a file, going on with a part of it. Two processes at once take turns. */
async function download(url: string, part: string, expected: string, say: (line: string) => void): Promise<void> {
  const whole = () => existsSync(part) && fileDigest(part) === expected;
  const progress = setInterval(
    () => say(`${url}: ${existsSync(part) ? Math.round(statSync(part).size / 2 ** 20) : 0} MiB`),
    10_000,
  );
  try {
    for (let attempt = 1; !whole(); attempt++) {
      const failure = await curl(url, ["--continue-at", "-", "--output", part], ["flock", `${part}.lock`]).then(
        () => undefined,
        (error: DownloadError) => error,
      );
      if (failure === undefined || whole()) return; // what another process brought cannot be gone on with
      if (attempt === ATTEMPTS || !CUT.includes(failure.code)) throw failure;
      say(`${url}: ${failure.said}; going on`);
    }
  } finally {
    clearInterval(progress);
  }
}

class DownloadError extends Error {
  /** curl's exit code, and its words. */
  readonly code: number;
  readonly said: string;

  constructor(url: string, cause: Error) {
    const said = cause.message.split("\n").at(-1)!.trim();
    super(`${url} cannot be downloaded (${said}); ${advice(said)}`, { cause });
    this.said = said;
    this.code = Number(said.match(/^curl: \((\d+)\)/)?.[1]);
  }
}

/** Runs curl, which knows proxies and redirects. */
async function curl(url: string, options: string[], before: string[] = []): Promise<{ stdout: string }> {
  const [program, ...args] = [
    ...before,
    "curl",
    "--fail",
    "--location",
    "--silent",
    "--show-error",
    "--connect-timeout",
    "20",
    "--speed-limit",
    "1024",
    "--speed-time",
    "60",
    ...options,
    url,
  ];
  return await run(program!, args).catch((error: Error) => {
    throw new DownloadError(url, error);
  });
}

function advice(said: string): string {
  if (/error: 404/.test(said))
    return (
      "there is no such file: see https://github.com/k3s-io/k3s/releases for the releases, and set " +
      "k3s.version to one of them"
    );
  return (
    "what came of it is kept, and the next try goes on from there; where GitHub cannot be reached, " +
    "set k3s.mirror, k3s.airgap or k3s.path"
  );
}
