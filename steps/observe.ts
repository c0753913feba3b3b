/**
 * What is known of a cluster before anything is done to it: read here, or asked of the machine that it is on.
 * @module
 */
import { sandboxPaths } from "../config/paths.ts";
import { remotePaths, type SshTarget } from "../config/ssh.ts";
import { type Drift, driftOf, repairsOf } from "./files.ts";
import { ownFolders } from "./inside.ts";
import { isAlive, incarnationAfter, readRecord, type SandboxRecord } from "./record.ts";
import type { SandboxRef } from "./sandbox.ts";
import { askOverSsh, quoted } from "./ssh.ts";
import { lastReady, type ReadyServer } from "./upgrade.ts";
import { notedMachine } from "./upload.ts";

export interface Observed {
  /** What is written down of the sandbox; none if there is none. */
  record?: SandboxRecord;
  /** Whether its process runs. */
  alive: boolean;
  /** The files that are not as they were written. */
  drift: Drift[];
  /** See `repairsOf`. */
  repairs: ReturnType<typeof repairsOf>;
  /** The server that was ready last. */
  ready?: ReadyServer;
}

/**
 * What is known of a sandbox.
 * @param fresh another machine is asked again, even if it was before
 * @throws SshError if the machine that it is on is not reached
 */
export function observe(ref: SandboxRef, fresh = false): Observed {
  if (ref.ssh) return machineOf(ref.ssh, ref.name, fresh).observed ?? { alive: false, drift: [], repairs: {} };
  const [record, ready] = [readRecord(sandboxPaths(ref.name, ref.home)), lastReady(ref)];
  return {
    ...(record ? { record } : {}),
    alive: isAlive(record),
    drift: driftOf(ref),
    repairs: repairsOf(ref),
    ...(ready ? { ready } : {}),
  };
}

/** Another machine, as it is found. */
export interface Machine {
  /** As `uname -m` tells it. */
  arch: string;
  isGvisor: boolean;
  /** Programs that a node needs and that are not there. */
  missing: string[];
  /** Folders of a container runtime or a node. */
  taken: string[];
  /** MiB that are free for the node. */
  free: number;
  /** The cluster, if it is on the machine. */
  observed?: Observed;
}

/**
 * What a node takes of a machine. sandbox-init, the facade and the network are made with these; see steps/inside.ts.
 */
const PROGRAMS = ["ip", "mount", "umount", "tar", "sha256sum"];

const machines = new Map<string, Machine>();

/**
 * Asks a machine how it is, once unless a fresh answer is asked for.
 * @throws SshError if it is not reached
 */
export function machineOf(ssh: SshTarget, name: string, fresh = false): Machine {
  const key = JSON.stringify([ssh, name]);
  const known = (fresh ? undefined : machines.get(key)) ?? askMachine(ssh, name);
  machines.set(key, known);
  return known;
}

function askMachine(ssh: SshTarget, name: string): Machine {
  const { runner, home } = remotePaths;
  const params = JSON.stringify({ params: { name, home } });
  const lines = askOverSsh(
    ssh,
    `echo "arch $(uname -m)"
{ dmesg -S || dmesg; } 2> /dev/null | grep -q 'Starting gVisor' && echo gvisor
for program in ${PROGRAMS.join(" ")}; do command -v $program > /dev/null || echo "missing $program"; done
[ -x /bin/busybox ] || [ -x /usr/bin/busybox ] || echo "missing busybox"
[ -e /etc/resolv.conf ] || echo "missing /etc/resolv.conf"
for folder in ${ownFolders.join(" ")}; do [ -d $folder ] && [ -n "$(ls -A $folder)" ] && echo "taken $folder"; done
df -P -k /var/lib | { read -r header; read -r device size used free rest; echo "free $free"; }
[ ! -x ${runner}/run ] || { printf 'observed '; printf '%s' ${quoted(params)} | ${runner}/run observe; } || exit 1
`,
  ).split("\n");
  const all = (word: string) =>
    lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1));
  const observed = all("observed")[0];
  return {
    arch: all("arch")[0] ?? "",
    isGvisor: lines.includes("gvisor"),
    missing: all("missing"),
    taken: all("taken"),
    free: Math.floor(Number(all("free")[0] ?? 0) / 1024),
    ...(observed === undefined ? {} : { observed: JSON.parse(observed) as Observed }),
  };
}

/** The start of the sandbox that the next `up` is for. */
export function incarnationOf({ record, alive }: Observed, name: string, home: string, revision: string): number {
  return record === undefined
    ? (notedMachine({ name, home })?.incarnation ?? 0) + 1
    : incarnationAfter(record, alive, revision);
}
