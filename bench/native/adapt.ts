/**
 * What runsc is given, fitted to runc and to a kernel that is the host's own. Only what could not work, or would reach
 * the host, is changed.
 *
 *     node adapt.ts bundle FOLDER    rewrites the bundle's config.json
 *     node adapt.ts plan             rewrites the facade's plan, from standard input to standard output
 * @module
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import type { FacadePlan } from "../../config/facade.ts";
import type { sandboxSpec } from "../../config/ociSpec.ts";

type Spec = ReturnType<typeof sandboxSpec>;

function nativeSpec(spec: Spec) {
  const { process, mounts, linux } = spec;
  const held = heldCapabilities(process.capabilities.bounding);
  const limits = readFileSync("/proc/self/limits", "utf8");
  const openFiles = Number(limits.match(/^Max open files\s+\d+\s+(\d+)/m)![1]);
  return {
    ...spec,
    // In gVisor root's rights and limits are the sandbox's own affair; here nobody can give what this machine's root
    // does not have.
    process: {
      ...process,
      capabilities: { bounding: held, effective: held, permitted: held, inheritable: held },
      rlimits: process.rlimits.map(({ type, hard }) => ({
        type,
        hard: Math.min(hard, openFiles),
        soft: Math.min(hard, openFiles),
      })),
    },
    // gVisor brings these along.
    mounts: [
      ...mounts,
      {
        destination: "/dev/pts",
        type: "devpts",
        source: "devpts",
        options: ["newinstance", "ptmxmode=0666", "mode=0620"],
      },
      { destination: "/dev/shm", type: "tmpfs", source: "shm", options: ["mode=1777"] },
    ],
    linux: {
      ...linux,
      // A sandbox sees no cgroups but its own; here that takes a namespace.
      namespaces: [...linux.namespaces, { type: "cgroup" }],
      resources: { ...linux.resources, devices: [{ allow: true, access: "rwm" }] },
      // What of /proc/sys is the host's. The rest is the network namespace's.
      readonlyPaths: ["/proc/sys/fs", "/proc/sys/kernel", "/proc/sys/vm", "/proc/sysrq-trigger"],
    },
  };
}

/** Those of these capabilities that this process may hand on. */
function heldCapabilities(names: string[]): string[] {
  // linux/capability.h: the bit of each name that the sandbox's spec may hold.
  const order = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO " +
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME " +
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
  ).split(" ");
  const bits = BigInt(`0x${readFileSync("/proc/self/status", "utf8").match(/^CapEff:\s*(\w+)/m)![1]}`);
  return names.filter((name) => ((bits >> BigInt(order.indexOf(name.slice("CAP_".length)))) & 1n) === 1n);
}

function nativePlan(plan: FacadePlan): FacadePlan {
  return { ...plan, mounts: plan.mounts.filter(({ target }) => target !== "/proc/sys") };
}

const [verb, bundle = ""] = process.argv.slice(2);
if (verb === "bundle") {
  const file = join(bundle, "config.json");
  writeFileSync(file, JSON.stringify(nativeSpec(JSON.parse(readFileSync(file, "utf8")) as Spec), null, 2));
} else if (verb === "plan") {
  process.stdout.write(JSON.stringify(nativePlan(JSON.parse(await text(process.stdin)) as FacadePlan)));
} else {
  throw new Error("usage: adapt.ts bundle FOLDER | plan");
}
