/** A node on another machine, which is a gVisor sandbox with an SSH server. */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactId } from "../../artifacts/artifacts.ts";
import { readRecord } from "../../machines/record.ts";
import { remotePaths } from "../../machines/sshConnection.ts";
import { argumentsOf, type ProcessId } from "../../system/processes.ts";
import {
  cli,
  killProcess,
  ownHome,
  pathsOf,
  removeHome,
  root,
  shellImage,
  stateFiles,
  traces,
  writeOptions,
} from "./harness.ts";
import { type SshMachine, startSshMachine } from "./sshMachine.ts";

const home = await ownHome();
const name = "e2e-ssh";
const settings = join(root, `Pulumi.${name}.yaml`);
let machine: SshMachine;
let second: SshMachine | undefined;

/** Writes the stack's options. */
function configure(ssh: Record<string, unknown> = {}, more: Record<string, unknown> = {}): void {
  const { host, keys } = machine;
  const reached = { host, privateKey: keys.user, knownHosts: keys.knownHosts, ...ssh };
  writeOptions(root, name, { target: "ssh", ssh: reached, ...more });
}

/** What a command printed, which must have ended well. */
async function printed(...args: string[]): Promise<string> {
  const { exitCode, all } = await cli(...args);
  expect(exitCode, all).toBe(0);
  return all!;
}

const kubectl = (...args: string[]) => printed("kubectl", "-c", name, ...args);

/** What runs here, but for the machine itself. */
const processesHere = () => traces(home).processes.filter((line) => !line.includes("/machines/"));

/** What a node leaves traces in, on the machine. */
const left = () =>
  machine.shell(
    "ls -d /etc/cni /etc/containerd /etc/rancher /opt/gvisor-k3s /run/cni /run/containerd " +
      "/run/gvisor* /run/netns/* /run/sandbox-init.sock /var/lib/cni /var/lib/containerd " +
      "/var/lib/gvisor-k3s /var/lib/kubelet /var/lib/rancher /var/log/pods /var/log/gvisor-k3s " +
      "/dev/kmsg 2> /dev/null; cat /proc/mounts; ip -oneline address; ps -e -o stat=,comm= | grep -v " +
      "^Z | grep -E 'sandbox-init|containerd|gvisor-k3s|pause|coredns|node'; true",
  );

let before: string;

/** What is written down of the way to the API server. */
const tunnel = () => JSON.parse(readFileSync(pathsOf(name).tunnel, "utf8")) as ProcessId & { localPort: number };

beforeAll(async () => {
  machine = await startSshMachine(home, "e2e-machine", "10.109.9");
  before = await left();
});

afterAll(async () => {
  if (process.env.KEEP) return;
  await cli("destroy", name);
  await machine.remove();
  await second?.remove();
  rmSync(settings, { force: true });
  removeHome(home);
});

describe("what is wrong is one clear error, before anything is made", () => {
  it.each<[string, () => Record<string, unknown>, string | RegExp]>([
    [
      "a host that is not there",
      () => ({ host: "127.0.0.1", port: 1, knownHosts: known("[127.0.0.1]:1") }),
      /ssh\.host = "127\.0\.0\.1": it is not reached at port 1 \(.*Connection refused/,
    ],
    [
      "a key that it does not know",
      () => ({ privateKey: machine.keys.stranger }),
      /ssh\.privateKey = ".*stranger": the key is not accepted by 10\.109\.9\.2 for the user root \(.*Permission denied/,
    ],
    [
      "a host key that changed",
      () => ({ knownHosts: known(machine.host) }),
      /ssh\.knownHosts = ".*": the key of 10\.109\.9\.2 is not the one that is noted there/,
    ],
    [
      "a host key that nobody has noted",
      () => ({ knownHosts: "/dev/null" }),
      /ssh\.knownHosts = "\/dev\/null": no key of 10\.109\.9\.2 is noted there/,
    ],
    [
      "a user who cannot become root",
      () => ({ user: "ops" }),
      /ssh\.user = "ops": it cannot become root on 10\.109\.9\.2 without a password \(sudo: /,
    ],
    [
      "a key that is not there",
      () => ({ privateKey: "/nowhere" }),
      'ssh.privateKey = "/nowhere": there is no such file',
    ],
  ])("%s", async (_, ssh, message) => {
    configure(ssh());
    const { exitCode, all } = await cli("up", name);
    expect(exitCode).toBe(1);
    expect(all).toMatch(message);
    expect(all).toContain("1 problem with the configuration; nothing was changed");
    expect(await left()).toBe(before);
  });
});

/** A file in which another machine's key is noted for this one. */
function known(host: string): string {
  const file = join(home, "other_known_hosts");
  const stranger = readFileSync(`${machine.keys.stranger}.pub`, "utf8").split(" ").slice(0, 2).join(" ");
  writeFileSync(file, `${host} ${stranger}\n`);
  return file;
}

describe("a cluster", () => {
  it("is probed before anything is installed, of which nothing stays", async () => {
    configure({ sudo: true });
    const all = await printed("doctor", name);
    expect(all).toContain(`probed the machine ${machine.host}; kernel 4.19.0-gvisor`);
    expect(all).toContain("a node can run here");
    expect(await left()).toBe(before);
  });

  it("is previewed before there is anything, and nothing is made", async () => {
    expect(await printed("preview", name)).toMatch(
      /\+ create sandbox-process\n(.*\n)*\+ create testpod-pod\n(.*\n)*\d+ changes$/,
    );
    expect(await left()).toBe(before);
  });

  it("is brought up by the same command, with its pods Running", async () => {
    expect(await printed("up", name)).toMatch(/phase {7}Running/);
    const pods = (await kubectl("get", "pods", "-A", "--no-headers")).split("\n").map((line) => line.split(/ +/));
    expect(pods.map(([, pod, ready, state]) => [pod!.split("-")[0], ready, state]).sort()).toEqual([
      ["coredns", "1/1", "Running"],
      ["metrics", "1/1", "Running"],
      ["testpod", "1/1", "Running"],
    ]);
    expect(await kubectl("logs", "testpod")).toContain("is running on kernel 4.19.0-gvisor");
    expect(
      await kubectl("exec", "testpod", "--", "/testpod", "get", "https://kubernetes.default.svc/version"),
    ).toContain("gitVersion");
    expect(await printed("exec", "-c", name, "sh", "-c", 'echo "a  b $(uname -n)"')).toContain("a  b e2e-machine");
    expect(JSON.parse(await printed("status", name, "--json"))).toMatchObject({
      target: "ssh",
      state: "running",
      problems: [],
      node: { ready: true },
    });
    expect(await printed("list")).toMatch(/^e2e-ssh +remote /m);
  });

  it("is not changed by a second up", async () => {
    expect(await printed("up", name)).toMatch(/resources {3}\d+ same\n/);
  });

  it("shows a change as the lines that it changes", async () => {
    configure({ sudo: true }, { containerd: { snapshotter: "native" } });
    const all = await printed("preview", name);
    expect(all).toContain("~ update containerd-apply: restarts containerd; running pods live on");
    expect(all).toMatch(/-snapshotter = "overlayfs"\n *\+snapshotter = "native"/);
    expect(all).toMatch(/\n1 change$/);
    configure({ sudo: true });
  });

  it("keeps the key and the kubeconfig from others", async () => {
    const key = readFileSync(machine.keys.user, "utf8").split("\n")[1]!;
    const { users } = JSON.parse(await kubectl("config", "view", "--raw", "-o", "json")) as {
      users: [{ user: { "client-key-data": string } }];
    };
    for (const file of stateFiles(home))
      for (const secret of [key, users[0].user["client-key-data"]])
        expect(readFileSync(file, "utf8")).not.toContain(secret);
    const listening = (await execa("ss", ["-Hltn"])).stdout;
    const { localPort } = tunnel();
    expect(
      listening
        .split("\n")
        .filter((line) => line.includes(`:${localPort} `))
        .map((line) => line.split(/ +/)[3]),
    ).toEqual([`127.0.0.1:${localPort}`]);
    expect(await machine.shell("ss -Hltn | grep :6443")).not.toMatch(
      /0\.0\.0\.0:6443|10\.109\.9\.2:6443|\[::\]:6443|\*:6443 +/,
    );
    const archive = join(home, "logs.tar.gz");
    await printed("logs", name, "-o", archive);
    const { stdout } = await execa("tar", ["-xzOf", archive]);
    expect(stdout).toContain("snapshotter = ");
    expect(stdout).not.toContain(key);
  });

  it("is reached again by whoever asks when the tunnel is gone, and by one tunnel for all who ask at once", async () => {
    const before = tunnel();
    await killProcess(before);
    const asked = [1, 2, 3].map(() => kubectl("get", "--raw=/readyz"));
    expect(await Promise.all(asked)).toEqual(["ok", "ok", "ok"]);
    // A tunnel that came first serves later calls as well, and is called "ssh: SOCKET [mux]"; else it is served by one.
    const sshs = traces(home).processes.filter((line) => /\bssh:? /.test(line));
    const serves = argumentsOf(tunnel().pid).join(" ").includes("[mux]");
    expect(sshs, sshs.join("\n")).toHaveLength(serves ? 1 : 2);
    expect(tunnel().localPort).toBe(before.localPort); // of kubeconfigs that were copied
    const log = join(pathsOf(name).logs, "tunnel.log");
    writeFileSync(log, "what ssh says\n".repeat(2 ** 17));
    await kubectl("get", "--raw=/readyz");
    expect(readFileSync(log, "utf8")).toBe("");
  });

  it("gets images from archives here, and loses those that nothing uses", async () => {
    const [image, archive] = ["example.test/shell:1", join(home, "shell.tar")];
    await shellImage(image, archive);
    await printed("images", "import", "-c", name, archive);
    const ctr = `${remotePaths.artifacts}/${artifactId({ name: "containerd" })}/ctr`;
    const images = () => printed("exec", "-c", name, ctr, "-n", "k8s.io", "images", "ls", "-q");
    expect(await images()).toContain(image);
    expect(JSON.parse(await printed("status", name, "--json")).disk.images).toBeGreaterThan(0);
    expect(await printed("images", "prune", "-c", name, "--imported")).toContain(`${image}\n1 image removed`);
    expect(await images()).not.toContain(image);
  });

  it("is there again with the next up when its processes, the tunnel, and a file are gone", async () => {
    await killProcess(tunnel());
    await machine.shell(
      "echo '# by hand' >> /etc/containerd/config.toml; pkill -KILL -x sandbox-init; pkill -KILL -x " +
        "containerd; pkill -KILL -x gvisor-k3s-node; pkill -KILL -x service-proxy; true",
    );
    const { exitCode, stdout } = await cli("status", name);
    expect(exitCode).toBe(3);
    expect(stdout).toContain("! the sandbox's process is gone");
    expect(await printed("up", name)).toMatch(/phase {7}Running/);
    expect(await machine.shell("cat /etc/containerd/config.toml")).not.toContain("by hand");
    expect(
      await kubectl("exec", "testpod", "--", "/testpod", "get", "https://kubernetes.default.svc/version"),
    ).toContain("gitVersion");
  });

  it("is made anew where the machine was set up anew", async () => {
    const { address, bridge } = readRecord(name, home)!;
    const params = JSON.stringify({ version: 1, name, home: remotePaths.home, address, bridge });
    const init = `${remotePaths.artifacts}/${artifactId({ name: "init" })}/sandbox-init`;
    await machine.shell(`printf '%s' '${params}' | ${init} machine stop && rm -rf ${remotePaths.home}; true`);
    expect(await printed("up", name)).toMatch(/phase {7}Running/);
    expect(await kubectl("get", "pods", "--no-headers")).toMatch(/^testpod +1\/1 +Running/);
  });

  it("is gone after a destroy, with everything of it, there and here", async () => {
    await printed("destroy", name);
    expect(await left()).toBe(before);
    expect(existsSync(pathsOf(name).state)).toBe(false);
    expect(processesHere()).toEqual([]);
  });
});

describe("a control plane alone", () => {
  it("moves to another machine, and leaves nothing on the one of before", async () => {
    configure({}, { mode: "control-plane" });
    await printed("up", name);
    expect(await kubectl("get", "--raw=/readyz")).toBe("ok");
    second = await startSshMachine(home, "e2e-second", "10.109.10");
    const { host, keys } = second;
    configure({ host, privateKey: keys.user, knownHosts: keys.knownHosts }, { mode: "control-plane" });
    await printed("up", name);
    expect(await kubectl("get", "--raw=/readyz")).toBe("ok");
    expect(JSON.parse(await printed("status", name, "--json"))).toMatchObject({ mode: "control-plane", problems: [] });
    expect(await left()).toBe(before);
  });

  it("whose machine is gone for good is an error of destroy, which can be told to forget it", async () => {
    await second!.halt();
    const failed = await cli("destroy", name);
    expect(failed.exitCode).toBe(1);
    expect(failed.all).toMatch(/ssh\.host = "10\.109\.10\.2": it is not reached at port 22 \(/);
    expect(failed.all).toContain("--forget");
    await printed("destroy", name, "--forget");
    expect(await printed("list")).toContain("there is no cluster");
    expect(processesHere()).toEqual([]);
  });
});
