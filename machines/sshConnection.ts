/**
 * OpenSSH's client: how another machine is reached, and what a command line for it is.
 * @module
 */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { answerOf } from "../system/programs.ts";
import { run, worked } from "../system/run.ts";

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
  /** Where programs are looked for: a command over SSH may find a PATH without the administrator's folders. */
  programs: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
} as const;

/** The machine's public key as its owner noted it, "TYPE BASE64"; of several the one that is best checked. */
export function hostKey({ host, port, knownHosts }: SshTarget): string | undefined {
  const entry = port === 22 ? host : `[${host}]:${port}`;
  const said = answerOf("ssh-keygen", ["-F", entry, "-f", knownHosts]) ?? "";
  const lines = said.split("\n").filter((line) => line !== "" && !/^[#@]/.test(line));
  const keys = lines.map((line) => line.split(/\s+/).slice(1, 3).join(" "));
  const preference = ["ssh-ed25519", "ecdsa-", "ssh-rsa"];
  const rank = (key: string) => preference.findIndex((type) => key.startsWith(type));
  return keys.filter((key) => rank(key) >= 0).sort((a, b) => rank(a) - rank(b))[0];
}

/** The folder of the connections that several commands share: each new one would be half a second of the machine's. */
export const controlFolder = (home: string) => join(home, "ssh");

/** The kernel's limit of a socket's path, less what ssh adds to it while it makes one. */
const SOCKET_PATH = 107 - 18;

/** The length of what ssh puts in the place of %C. */
const HASH = 40;

/** Seconds that a shared connection is kept without a command. */
const PERSIST = 15;

/**
 * ssh's arguments before the command. No file of the user's configuration is read, so that it is the same here as in any
 * other place.
 * @param control see `controlFolder`; without it, the connection is the command's own
 */
export function sshArguments(target: SshTarget, control: string | undefined, ...more: string[]): string[] {
  const { host, port, user, privateKey, knownHosts } = target;
  const options = {
    BatchMode: "yes",
    StrictHostKeyChecking: "yes",
    UserKnownHostsFile: `"${knownHosts}"`, // several may be given, a blank between them
    GlobalKnownHostsFile: "none",
    ConnectTimeout: "15",
    ServerAliveInterval: "15",
    LogLevel: "ERROR",
    ...(privateKey === undefined ? {} : { IdentityFile: privateKey, IdentitiesOnly: "yes", IdentityAgent: "none" }),
    ...(control === undefined ? {} : shared(control)),
  };
  const type = hostKey(target)?.split(" ")[0];
  const algorithm = type === "ssh-rsa" ? "rsa-sha2-512,rsa-sha2-256" : type;
  const all = { ...options, ...(algorithm === undefined ? {} : { HostKeyAlgorithms: algorithm }) };
  const words = Object.entries(all).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  return ["-F", "none", ...words, "-p", String(port), "-l", user, ...more, "--", host];
}

/** Options for a connection that several commands share; none where its socket's path would be too long. */
function shared(control: string): Record<string, string> {
  if (control.length + 1 + HASH > SOCKET_PATH) return {};
  mkdirSync(control, { recursive: true, mode: 0o700 });
  return { ControlMaster: "auto", ControlPath: `"${join(control, "%C")}"`, ControlPersist: String(PERSIST) };
}

/** Ends the shared connection. */
export async function closeConnection(target: SshTarget, control: string): Promise<void> {
  if (existsSync(control)) await worked(run("ssh", sshArguments(target, control, "-O", "exit"), { timeout: 10_000 }));
}

/**
 * The command line that runs a program on the machine as root. SSH knows commands as one text for a shell only, so each
 * argument is quoted.
 */
export function sshCommand(
  target: SshTarget,
  control: string | undefined,
  args: readonly string[],
): [string, ...string[]] {
  const words = [`PATH=${remotePaths.programs}`, ...args].map(quoted).join(" ");
  return ["ssh", ...sshArguments(target, control), `${target.sudo ? "sudo -n " : ""}env ${words}`];
}

/** An argument as a POSIX shell takes it literally. */
function quoted(argument: string): string {
  return `'${argument.replaceAll("'", "'\\''")}'`;
}
