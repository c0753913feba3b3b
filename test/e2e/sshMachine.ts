/** Another machine: Debian with an SSH server, in a gVisor sandbox that has nothing of this project in it. */
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { sandboxSpec } from "../../config/ociSpec.ts";
import { unmountBelow } from "../../machines/managed.ts";
import { hostPaths } from "../../machines/paths.ts";
import { cacheFolder } from "../../system/folders.ts";
import { killProcesses } from "../../system/processes.ts";
import { run } from "../../system/run.ts";
import { waitFor } from "../../system/wait.ts";

const project = join(import.meta.dirname, "../..");

const PACKAGES = [
  "bash",
  "busybox-static",
  "coreutils",
  "dash",
  "grep",
  "iproute2",
  "mount",
  "openssh-server",
  "procps",
  "sudo",
  "tar",
  "util-linux",
];

/** A machine of the tests. */
export interface SshMachine {
  host: string;
  /** What its users root and ops log in with, and somebody else's key. */
  keys: { user: string; stranger: string; knownHosts: string };
  /** Runs a shell script on it, not by SSH. */
  shell(script: string): Promise<string>;
  /** Ends it; its address answers no more. */
  halt(): Promise<void>;
  /** The same, and takes everything of it away. */
  remove(): Promise<void>;
}

const runsc = () => join(artifactFolder({ name: "runsc" }), "runsc");

/**
 * Starts a machine.
 * @param home a folder for its files
 * @param name names its network namespace and link too
 * @param subnet three numbers of a network of 256 addresses; the machine has the second
 */
export async function startSshMachine(home: string, name: string, subnet: string): Promise<SshMachine> {
  const paths = hostPaths(name, join(home, "machines"));
  const keys = join(paths.state, "keys");
  const halt = () => killProcesses(`--root=${paths.runsc}`);
  const remove = async () => {
    await halt();
    await unmountBelow(paths.runsc); // runsc's own
    await execa("ip", ["link", "delete", paths.link], { reject: false });
    await execa("ip", ["netns", "delete", paths.link], { reject: false });
    rmSync(paths.state, { recursive: true, force: true });
  };
  await remove(); // what a run that was killed left
  for (const folder of [paths.state, paths.bundle, paths.logs, keys, paths.runsc])
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  await execa("sh", [join(project, "test/debian-root.sh"), paths.rootfs, join(cacheFolder(), "debian"), ...PACKAGES]);
  for (const key of ["user", "stranger", "host"])
    await execa("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", join(keys, key)]);
  const { stdout: userKey } = await execa("cat", [join(keys, "user.pub")]);
  const { stdout: machineKey } = await execa("cat", [join(keys, "host.pub")]);
  const host = `${subnet}.2`;
  const own = (path: string, content: string, mode = 0o644) => {
    mkdirSync(join(paths.rootfs, path, ".."), { recursive: true, mode: 0o755 });
    writeFileSync(join(paths.rootfs, path), content, { mode });
  };
  own(
    "etc/passwd",
    "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\nops:x:1000:1000:ops:/home/ops:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
  );
  own("etc/group", "root:x:0:\nops:x:1000:\nnogroup:x:65534:\n");
  own("etc/shadow", "root:*:1::::::\nops:*:1::::::\n", 0o600);
  own("etc/hosts", `127.0.0.1 localhost\n${host} ${name}\n`);
  own("etc/resolv.conf", `nameserver ${subnet}.1\n`);
  own("etc/sudoers", "ALL ALL=(ALL) NOPASSWD: ALL\n", 0o440);
  for (const service of ["sudo", "other"])
    own(
      `etc/pam.d/${service}`,
      ["auth", "account", "session"].map((kind) => `${kind} required pam_permit.so\n`).join(""),
    );
  own(
    "etc/ssh/sshd_config",
    "HostKey /etc/ssh/host\nUsePAM no\nPasswordAuthentication no\nAuthorizedKeysFile " +
      "/etc/ssh/users\nPidFile none\nStrictModes no\n",
  );
  own("etc/ssh/users", `${userKey}\n`);
  for (const suffix of ["", ".pub"])
    await execa("cp", [join(keys, `host${suffix}`), join(paths.rootfs, `etc/ssh/host${suffix}`)]);
  for (const folder of ["dev", "proc", "sys", "run", "tmp", "root", "home/ops", "var/lib", "var/log"])
    mkdirSync(join(paths.rootfs, folder), { recursive: true });
  await execa("chown", ["1000:1000", join(paths.rootfs, "home/ops")]);
  rmSync(join(paths.rootfs, "var/run"), { recursive: true, force: true });
  symlinkSync("../run", join(paths.rootfs, "var/run"));
  const knownHosts = join(keys, "known_hosts");
  writeFileSync(knownHosts, `${host} ${machineKey}\n`);

  const { rootfs, networkNamespace } = paths;
  const limits = { memory: null, cpus: null };
  const spec = sandboxSpec({ name, rootfs, networkNamespace, base: "/", artifacts: "/", init: "", limits });
  spec.process.args = ["/bin/sh", "-c", "mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e"];
  spec.process.env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
  spec.mounts = spec.mounts.filter(({ type }) => type !== "bind");
  writeFileSync(join(paths.bundle, "config.json"), JSON.stringify(spec));
  await execa("ip", ["netns", "add", paths.link]);
  await execa("ip", ["link", "add", paths.link, "type", "veth", "peer", "name", "eth0", "netns", paths.link]);
  await execa("ip", ["address", "add", `${subnet}.1/24`, "dev", paths.link]);
  await execa("ip", ["link", "set", paths.link, "up"]);
  for (const line of [
    `address add ${host}/24 dev eth0`,
    "link set eth0 up",
    "link set lo up",
    `route add default via ${subnet}.1`,
  ])
    await execa("ip", ["-netns", paths.link, ...line.split(" ")]);
  const log = join(paths.logs, "sshd.log");
  await run(
    runsc(),
    [
      `--root=${paths.runsc}`,
      "--platform=systrap",
      "--network=sandbox",
      "--overlay2=none",
      "--ignore-cgroups",
      "run",
      "--detach",
      `--bundle=${paths.bundle}`,
      name,
    ],
    { outputFile: log },
  );
  await waitFor("sshd answers", 30, () =>
    execa("ssh-keyscan", ["-T", "2", host]).then(
      ({ stdout }) => stdout.includes("ssh-ed25519") || undefined,
      () => undefined,
    ),
  );
  return {
    host,
    keys: { user: join(keys, "user"), stranger: join(keys, "stranger"), knownHosts },
    shell: async (script) =>
      (
        await execa(runsc(), [`--root=${paths.runsc}`, "exec", name, "/bin/sh", "-c", script], {
          all: true,
          timeout: 60_000,
        })
      ).all,
    halt,
    remove,
  };
}
