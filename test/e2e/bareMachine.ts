/**
 * A machine with Node.js and nothing else: a root file system of its own in a mount namespace of its own. It has the C
 * library, a shell and coreutils, which npm itself calls; no compiler, no busybox, no iproute2, no mount, no tar, no apt.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, readdirSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa, type Options } from "execa";
import { cacheFolder } from "../../system/folders.ts";
import { findProgram } from "../../system/programs.ts";
import { root as project } from "./harness.ts";

const PACKAGES = ["coreutils", "dash", "libstdc++6"];

/** What starts a machine: its folders, and what is of this host. It tells when it is done. */
const START = `set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mkdir -p dev/net
for device in null zero full random urandom tty net/tun; do
	touch "dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mkdir -p mnt/read-only mnt/small old
mount -t tmpfs -o ro tmpfs mnt/read-only
mount -t tmpfs -o size=600m tmpfs mnt/small
pivot_root . old
/old/bin/busybox umount -l /old
echo ready
exec sleep infinity`;

/** A machine of the tests. */
export interface BareMachine {
  /** Its files, as this host sees them. */
  root: string;
  /** Runs a program on it, in /root; the environment is `env` with a PATH, and nothing of this host's. */
  run: (args: string[], env?: Record<string, string>, options?: Options) => ReturnType<typeof execa>;
  /** Ends it, and takes its files away. */
  remove: () => Promise<void>;
}

/** Starts a machine whose files are in a folder, which is made anew. */
export async function startBareMachine(folder: string): Promise<BareMachine> {
  await execa("sh", [join(project, "test/debian-root.sh"), folder, join(cacheFolder(), "debian"), ...PACKAGES]);
  // What Debian's packages depend on for their own installation.
  for (const program of readdirSync(join(folder, "usr/bin")).filter((name) => /^(dpkg|tar$|perl|update-)/.test(name))) {
    rmSync(join(folder, "usr/bin", program));
  }
  for (const path of ["dev", "proc", "sys", "run", "tmp", "root", "etc", "usr/local/bin", "usr/local/lib", "var/lib"]) {
    mkdirSync(join(folder, path), { recursive: true });
  }
  writeFileSync(join(folder, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n");
  writeFileSync(join(folder, "etc/hosts"), "127.0.0.1 localhost\n");
  writeFileSync(join(folder, "etc/resolv.conf"), "");
  cpSync(realpathSync(process.execPath), join(folder, "usr/local/bin/node"));
  const npm = join(realpathSync(findProgram("npm")!), "../.."); // npm/bin/npm-cli.js
  cpSync(npm, join(folder, "usr/local/lib/npm"), { recursive: true, dereference: true });
  for (const name of ["npm", "npx"]) {
    symlinkSync(`../lib/npm/bin/${name}-cli.js`, join(folder, "usr/local/bin", name));
  }
  const holder: ChildProcess = spawn("unshare", ["--mount", "sh", "-c", START, "sh", folder], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [ready] = await Promise.race([once(holder.stdout!, "data"), once(holder, "exit")]);
  if (String(ready).trim() !== "ready") throw new Error(`the bare machine did not start: ${ready}`);
  return {
    root: folder,
    run: (args, env = {}, options = {}) =>
      execa(
        "nsenter",
        [
          `--target=${holder.pid}`,
          "--mount",
          "--root",
          "/usr/bin/env",
          "-i",
          "-C",
          "/root",
          ...variables(env),
          ...args,
        ],
        { all: true, reject: false, stdin: "ignore", ...options },
      ),
    async remove() {
      holder.kill();
      if (holder.exitCode === null && holder.signalCode === null) await once(holder, "exit");
      if (existsSync(folder)) rmSync(folder, { recursive: true });
    },
  };
}

function variables(env: Record<string, string>): string[] {
  const all = { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: "/root", ...env };
  return Object.entries(all).map(([name, value]) => `${name}=${value}`);
}
