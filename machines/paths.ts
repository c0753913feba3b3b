import { createHash } from "node:crypto";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";

/** The folder of all that is kept of a home's machines. */
const folderOf = (home: string) => join(home, "sandboxes");

/** The names of a home's machines, those among them of which only something is left. */
export function machinesIn(home: string): string[] {
  const folder = folderOf(home);
  return existsSync(folder) ? readdirSync(folder).sort() : [];
}

/** What the names of all links to sandboxes begin with. */
export const LINK_PREFIX = "gk-";

/** At most 15 characters, as the kernel wants it of links; only nodes that join a cluster have longer names than fit. */
function linkOf(name: string): string {
  const fitting = name.length <= 12 ? name : createHash("sha256").update(name).digest("hex").slice(0, 12);
  return LINK_PREFIX + fitting;
}

/** The network namespace in which the links of a cluster's nodes meet. No link of a sandbox's has a dot in its name. */
export const meshNamespace = (cluster: string) => `${LINK_PREFIX}${cluster}.nodes`;

/** What the host keeps of a machine, and what it calls things of it. No sandbox sees any of this but its own root. */
export function hostPaths(name: string, home: string) {
  const state = join(folderOf(home), name);
  const link = linkOf(name);
  return {
    /** The folder of all that is kept of it, mode 0700. */
    state,
    /** The OCI bundle: config.json, and the root file system. */
    bundle: join(state, "bundle"),
    /**
     * The sandbox's root file system, which is the sandbox's alone to write. The host never opens a path in it, but
     * beneath a handle (`gvisor-k3s-host read`).
     */
    rootfs: join(state, "bundle", "rootfs"),
    /** A snapshot's root file system before it takes the place of that, and what made way for it until it answers. */
    incoming: join(state, "bundle", "rootfs.new"),
    replaced: join(state, "bundle", "rootfs.replaced"),
    /** What it is to begin with, and what is written down of that; see machines/seed.ts. */
    seed: join(state, "seed"),
    seedNote: join(state, "seed.json"),
    /** What is kept of it at other times, each in a folder of its own; see machines/snapshots.ts. */
    snapshots: join(state, "snapshots"),
    /** What it had in memory when it was paused. */
    paused: join(state, "paused"),
    /** The host's own logs: of the supervisor, of runsc, of the egress. */
    logs: join(state, "log"),
    /** runsc's own state. */
    runsc: join(state, "runsc"),
    /** What is written down of the machine; see `readRecord`. */
    record: join(state, "machine.json"),
    /** What the supervisor is told, and what it tells. */
    spec: join(state, "spec.json"),
    supervisor: join(state, "supervisor.json"),
    /** What is known of the process that leads to another machine's API server. */
    tunnel: join(state, "tunnel.json"),
    /** What the process is told that leads to the other nodes of its cluster, and what is known of it; see machines/wire.ts. */
    wire: join(state, "wire.json"),
    wireProcess: join(state, "wire.process.json"),
    /** The kubeconfig for this machine, mode 0600; see servers/kubeconfig.ts. */
    kubeconfig: join(state, "kubeconfig"),
    /** What was written into each configuration file; see machines/written.ts. */
    written: join(state, "written"),
    /** The server that was ready last; see servers/ready.ts. */
    ready: join(state, "server.json"),
    /** What the sandbox was found to lack; see steps/probe.ts. */
    quirks: join(state, "quirks.json"),
    /** Manifests that were applied last, where the server does not know itself; see servers/k3s.ts. */
    manifests: join(state, "manifests"),
    /** The network namespace and the host's end of the link. */
    link,
    networkNamespace: `/run/netns/${link}`,
  };
}
