/**
 * The two folders of this project on a machine.
 * @module
 */
import { homedir } from "node:os";
import { join, resolve } from "node:path";

/**
 * The folder of everything that is kept between commands: `GVISOR_K3S_HOME`, by default `/var/lib/gvisor-k3s`. A relative
 * one is taken from the current folder.
 */
export function homeFolder(environment: NodeJS.ProcessEnv = process.env): string {
  return resolve(environment.GVISOR_K3S_HOME || "/var/lib/gvisor-k3s");
}

/**
 * The folder of what is built, downloaded or unpacked, safe to delete while no sandbox exists: `GVISOR_K3S_CACHE`, by
 * default `gvisor-k3s` in `XDG_CACHE_HOME` or `~/.cache`; in `/var/cache` for who has no home.
 */
export function cacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  const caches = environment.XDG_CACHE_HOME || homeCache() || "/var/cache";
  return resolve(environment.GVISOR_K3S_CACHE || join(caches, "gvisor-k3s"));
}

/** The folder of what Node.js has compiled. */
export const compileCacheFolder = (): string => join(cacheFolder(), "node-compile-cache");

function homeCache(): string | undefined {
  try {
    const home = homedir();
    return home === "" ? undefined : join(home, ".cache");
  } catch {
    return undefined; // neither HOME nor an entry in /etc/passwd
  }
}
