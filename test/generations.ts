/**
 * The generations of gVisor that this project is tested with, beside the one that it pins. They stand for what users
 * find; nothing in the product goes by them.
 * @module
 */
import { existsSync } from "node:fs";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { StackConfigInput } from "../config/schema.ts";
import { cacheFolder } from "../system/folders.ts";
import { run } from "../system/run.ts";
import { build } from "../toolchain/make.ts";

/** A gVisor by its date, with how it is started on a host of today. */
export interface Generation {
  name: string;
  /** Makes the program available and returns its path. */
  runsc: (say: (line: string) => void) => Promise<string>;
  sandbox: Pick<NonNullable<StackConfigInput["sandbox"]>, "platform" | "network">;
}

export const generations: Generation[] = [
  { name: "2026-09", runsc: async (say) => join(await build({ name: "runsc" }, say), "runsc"), sandbox: {} },
  { name: "2025-02", runsc: async (say) => join(await build({ name: "runsc-2025-02" }, say), "runsc"), sandbox: {} },
  // It knows no systrap, and takes the network namespace of a newer kernel for the host's own, in which it refuses its
  // own network stack.
  { name: "2022-12", runsc: debianRunsc, sandbox: { platform: "ptrace", network: "host" } },
];

/** Debian's runsc, unpacked and not installed: what the machine has stays as it is. */
async function debianRunsc(say: (line: string) => void): Promise<string> {
  const folder = join(cacheFolder(), "debian-runsc");
  const program = join(folder, "usr/bin/runsc");
  if (existsSync(program)) return program;
  say("apt-get download runsc");
  const work = `${folder}.tmp-${process.pid}`;
  await mkdir(work, { recursive: true });
  try {
    await run("apt-get", ["download", "runsc"], { cwd: work });
    const archive = (await readdir(work)).find((file) => file.endsWith(".deb"))!;
    await run("dpkg-deb", ["--extract", archive, "."], { cwd: work });
    await rename(work, folder);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return program;
}
