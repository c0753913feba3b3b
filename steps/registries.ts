import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { hostPath, inSandbox } from "../config/paths.ts";
import { writeOwnFiles } from "./files.ts";
import type { SandboxRef } from "./sandbox.ts";

/**
 * Writes the files of the registries (standard input: contents by path, as JSON), and takes away those of before.
 * containerd reads them at each pull.
 */
export async function writeRegistries(params: SandboxRef, files: string): Promise<void> {
  const folder = hostPath(params, inSandbox.registries);
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const own = Object.entries(JSON.parse(files) as Record<string, string>).map(([path, content]) => ({
    path: join(inSandbox.registries, path),
    content,
    mode: 0o600,
  }));
  await writeOwnFiles(params, "registries", own);
}
