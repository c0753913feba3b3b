import { homedir } from "node:os";
import { join } from "node:path";
import type { StackConfig } from "./schema.ts";

/** How the machine of a node is reached; see the options `ssh`. */
export interface SshTarget {
  host: string;
  port: number;
  user: string;
  /** The file of a key without a passphrase; without one, the keys of the SSH agent. */
  privateKey?: string;
  /** The file that the machine's key is noted in. */
  knownHosts: string;
  /** Whether commands become root by sudo. */
  sudo: boolean;
}

/** Where the node's own files lie on such a machine. */
export const remotePaths = {
  /** As `GVISOR_K3S_HOME` here. */
  home: "/var/lib/gvisor-k3s",
  /** What is copied there; removed with the node. */
  cache: "/var/lib/gvisor-k3s/cache",
  artifacts: "/var/lib/gvisor-k3s/cache/artifacts",
  /** What runs steps there: `run STEP`. It is a link to the one that was copied last. */
  runner: "/var/lib/gvisor-k3s/cache/runner",
  /** Where programs are looked for: a command over SSH may find a PATH without the administrator's folders. */
  programs: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
} as const;

/** The options `ssh` with their defaults; undefined with another target. */
export function sshTarget({ mode, target, ssh }: Pick<StackConfig, "mode" | "target" | "ssh">): SshTarget | undefined {
  if (mode === "external" || target !== "ssh") return undefined;
  const {
    host,
    port,
    user,
    privateKey,
    knownHosts = join(homedir(), ".ssh/known_hosts"),
    sudo = user !== "root",
  } = ssh;
  return { host: host!, port, user, ...(privateKey === undefined ? {} : { privateKey }), knownHosts, sudo };
}
