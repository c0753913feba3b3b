/** The command, as its user types it, on one cluster: each test goes on where the one before it stopped. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { list } from "tar";
import { afterAll, expect, it } from "vitest";
import { parse } from "yaml";
import { waitFor } from "../../system/wait.ts";
import {
  cli,
  inside,
  killSandbox,
  kubectl,
  ownHome,
  pathsOf,
  printed,
  removeHome,
  root,
  services,
  stateFiles,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-cli";
const options = join(root, `Pulumi.${name}.yaml`);
const userKubeconfig = join(home, "kube/config");
process.env.KUBECONFIG = userKubeconfig;
const password = "hunter2-in-a-mirror";
const proxyPassword = "hunter3@in a proxy";
const proxyUrl = `http://me:${encodeURIComponent(proxyPassword)}@proxy.example:3128`;
/** As they may stand somewhere. */
const secrets = [password, proxyPassword, encodeURIComponent(proxyPassword)];
const expectNoSecret = (text: string) => {
  for (const secret of secrets) expect(text).not.toContain(secret);
};
const paths = pathsOf(name);

writeFileSync(
  options,
  JSON.stringify({
    config: {
      "gvisor-k3s:addons": { coredns: { enabled: false }, metricsServer: { enabled: false } },
      "gvisor-k3s:registries": { configs: { "registry.example": { auth: { username: "me", password } } } },
      "gvisor-k3s:proxy": { https: proxyUrl },
    },
  }),
);

afterAll(async () => {
  if (process.env.KEEP) return;
  await cli("destroy", name);
  rmSync(options, { force: true });
  removeHome(home);
});

/** What the command printed, which must have ended well. */
const json = async (...args: string[]) => JSON.parse(await printed(...args, "--json"));

it("tells of a cluster that is not there how to make it", async () => {
  const { exitCode, stdout } = await cli("status", name);
  expect(exitCode).toBe(3);
  expect(stdout).toContain(`\`gvisor-k3s up ${name}\` makes it`);
  const refused = await cli("kubeconfig", name);
  expect(refused.exitCode).toBe(1);
  expect(refused.all).toBe(`${name} has no kubeconfig yet; run \`gvisor-k3s up ${name}\` first`);
});

it("up tells a program what it made, and no secret", async () => {
  const { exitCode, stdout, stderr } = await cli("up", name, "--json");
  expect(exitCode, String(stderr)).toBe(0);
  const made = JSON.parse(String(stdout));
  expect(made).toMatchObject({
    name,
    kubeconfigPath: paths.kubeconfig,
    quirks: expect.arrayContaining(["no-netfilter"]),
    testPod: { phase: "Running" },
  });
  expect(Object.keys(made.stages)).toContain("node-server");
  expect(stdout).not.toContain("client-key-data");
  expectNoSecret(`${stdout}${stderr}`);
  // Pulumi's history has the options as their file has them: in clear, unless `pulumi config set --secret` wrote them.
  const states = stateFiles(home).filter((file) => !file.endsWith(".history.json"));
  for (const file of states) expectNoSecret(readFileSync(file, "utf8"));
  expect(stderr).toMatch(/^\[\d+\.\d s\] create node-server/m);
});

it("status and list tell that it is well", async () => {
  expect(await json("status", name)).toMatchObject({
    state: "running",
    problems: [],
    drift: [],
    node: { ready: true },
    services: { server: { restarts: 0 }, containerd: { restarts: 0 }, proxy: { restarts: 0 } },
  });
  expectNoSecret(await printed("status", name, "--json"));
  expect(await printed("status", name)).toMatch(
    /^enforced +memory and processes of a container.*\n(.*\n)*all is well$/m,
  );
  expect(await json("list")).toEqual([
    { name, cluster: name, owner: `gvisor-k3s/${name}`, state: "running", kubeconfigPath: paths.kubeconfig },
  ]);
});

it("kubectl and exec are what they run, exit codes included", async () => {
  expect(await printed("kubectl", "-c", name, "get", "nodes", "-o", "name")).toBe(`node/${name}`);
  expect((await cli("kubectl", "-c", name, "get", "pod", "nothing")).exitCode).toBe(1);
  expect(await printed("exec", "-c", name, "/bin/uname", "-r")).toContain("gvisor");
  expect((await cli("exec", "-c", name, "/bin/sh", "-c", "exit 7")).exitCode).toBe(7);
  // Whatever its ends are: runsc would write to a file from its beginning.
  const script = `{ echo before; "$@" sh -c 'echo out; echo err >&2; cat'; echo after; } > "$0" 2>&1 < "$0.in"`;
  const log = join(home, "exec.log");
  writeFileSync(`${log}.in`, "read in\n");
  const exec = [process.execPath, join(root, "automation/cli.ts"), "exec", "-c", name];
  await execa("sh", ["-c", script, log, ...exec]);
  expect(readFileSync(log, "utf8").split("\n").sort()).toEqual(["", "after", "before", "err", "out", "read in"]);
  expect(readFileSync(log, "utf8")).toMatch(/^before\n(.*\n)*after\n$/);
});

it("exec on a terminal gives the program one of its own, which ends with it", async () => {
  // Without a descriptor of its own, what is started in the background reads nothing.
  const left = "exec 3<&0; (trap '' HUP; test -t 3 && cat <&3; echo gone > /tmp/left) > /dev/null 2>&1 &";
  const program = `stty size; read -r line; echo "heard $line"; ${left} exit 7`;
  const command =
    `stty rows 33 columns 111; ${process.execPath} ${join(root, "automation/cli.ts")} exec -c ${name} ` +
    `/bin/sh -c "$PROGRAM"; echo "ended with $?"; read -r line; echo "typed $line"`;
  const terminal = execa("script", ["--quiet", "--return", "--command", command, "/dev/null"], {
    env: { PROGRAM: program, SHELL: "/bin/sh" },
    timeout: 60_000,
  });
  terminal.stdin.write("a word\n");
  // What it has left is told that its terminal is gone, while the user's is open.
  await waitFor(
    "what exec has left has no terminal",
    30,
    async () => (await cli("exec", "-c", name, "/bin/cat", "/tmp/left")).all === "gone" || undefined,
  );
  terminal.stdin.end("a secret\n");
  const { stdout } = await terminal;
  for (const line of ["33 111", "heard a word", "ended with 7", "typed a secret"]) expect(stdout).toContain(line);
});

it("kubeconfig is printed, merged, chosen and taken back", async () => {
  const theirs =
    "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts:\n  - name: work\n    context: " +
    "{ cluster: work, user: me }\ncurrent-context: work\n";
  expect(await printed("kubeconfig", name)).toBe(readFileSync(paths.kubeconfig, "utf8").trimEnd());
  expect(await printed("kubeconfig", "merge", name, "--dry-run")).toContain(`current-context: gvisor-k3s-${name}`);
  expect(existsSync(userKubeconfig)).toBe(false);
  await execa("mkdir", [join(home, "kube")]);
  writeFileSync(userKubeconfig, theirs, { mode: 0o640 }); // which is theirs to choose
  await printed("kubeconfig", "merge", name, "--no-switch");
  expect(parse(readFileSync(userKubeconfig, "utf8"))["current-context"]).toBe("work");
  expect(statSync(userKubeconfig).mode & 0o777).toBe(0o640);
  await printed("kubeconfig", "switch", name);
  const own = await execa(process.execPath, [
    join(root, "automation/cli.ts"),
    "kubectl",
    "-c",
    name,
    `--kubeconfig=${userKubeconfig}`,
    `--context=gvisor-k3s-${name}`,
    "get",
    "--raw=/readyz",
  ]);
  expect(own.stdout).toBe("ok");
  await printed("kubeconfig", "undo");
  expect(parse(readFileSync(userKubeconfig, "utf8"))["current-context"]).toBe("work");
});

it("what was edited by hand is told, previewed as a diff, and written again by up", async () => {
  const config = "/etc/containerd/config.toml";
  const written = await inside(name, "cat", config);
  await inside(name, "sh", "-c", `echo '# by hand' >> ${config}; rm /etc/cni/net.d/10-gvisor-k3s.conflist`);
  const { exitCode, stdout } = await cli("status", name);
  expect(exitCode).toBe(3);
  expect(stdout).toContain(`! ${config} was edited by hand`);
  expect(stdout).toContain("10-gvisor-k3s.conflist was removed by hand");
  const preview = await printed("preview", name);
  expect(preview).toContain("~ update containerd-apply: restarts containerd; running pods live on");
  expect(preview).toContain("~ update network-apply");
  expect(preview).toContain("~ update node-ready: waits until the node is Ready again, and restarts nothing");
  expectNoSecret(preview);
  const { containerd, server } = await services(name);
  const { resources } = await json("up", name);
  expect(resources.update).toBe(3);
  expect(await inside(name, "cat", config)).toBe(written);
  expect((await services(name)).containerd!.pid).not.toBe(containerd!.pid); // it may have read what was edited
  expect((await services(name)).server!.pid).toBe(server!.pid);
  // The kubelet has seen a containerd without a network, and looks again every five seconds.
  await waitFor("the node is well", 30, async () => (await cli("status", name)).exitCode === 0 || undefined);
  expect((await json("status", name)).problems).toEqual([]);
  expect(await printed("preview", name)).toContain("nothing changes");
});

it("a test pod that was deleted by hand is told by refresh, and made again by up", async () => {
  expect(await printed("refresh", name)).toMatch(/all is well$/);
  await printed("kubectl", "-c", name, "delete", "pod", "testpod", "--now");
  const { exitCode, stdout } = await cli("refresh", name);
  expect(exitCode).toBe(3);
  expect(stdout).toContain("! testpod-pod is not as it was made");
  expect(await printed("up", name)).toMatch(/phase {7}Running/);
  expect(await printed("refresh", name)).toMatch(/all is well$/);
});

it("preview shows the lines of a file that an option changes", async () => {
  const before = readFileSync(options, "utf8");
  writeFileSync(
    options,
    JSON.stringify({
      config: {
        ...JSON.parse(before).config,
        "gvisor-k3s:containerd": { snapshotter: "native" },
        "gvisor-k3s:registries": {
          configs: { "registry.example": { auth: { username: "me", password: "another-secret" } } },
        },
        "gvisor-k3s:proxy": { https: proxyUrl.replace("3128", "3129") },
      },
    }),
  );
  const preview = await printed("preview", name);
  expect(preview).toMatch(
    /--- a\/etc\/containerd\/config\.toml\n +\+\+\+ b\/etc\/containerd\/config\.toml\n(.*\n)*? +-.*"overlayfs"\n +\+.*"native"/,
  );
  expectNoSecret(preview);
  expect(preview).not.toContain("another-secret");
  const [change] = JSON.parse(await printed("preview", name, "--json"));
  expect(change).toMatchObject({ resource: "containerd-apply", operation: "update" });
  writeFileSync(options, before);
});

it("upgrade tells what runs, and what it cannot do", async () => {
  expect(await printed("upgrade", name)).toMatch(new RegExp(`^${name} runs v1\\.\\d+\\.\\d+ already`, "m"));
  const { exitCode, all } = await cli("upgrade", name, "--to", "v1.36.4+k3s1");
  expect(exitCode).toBe(1);
  expect(all).toMatch(/--to = "v1\.36\.4\+k3s1": allowed: .*1\.37/);
});

it("logs has what a bug report needs, and no secret", async () => {
  const archive = join(home, "report.tar.gz");
  const { files } = await json("logs", name, "--output", archive);
  expect(files).toEqual(
    expect.arrayContaining([
      "status.json",
      "options.yaml",
      "files/etc/containerd/config.toml",
      "logs/server.log",
      "logs/containerd.log",
      "kubernetes/events.txt",
    ]),
  );
  expect(statSync(archive).mode & 0o777).toBe(0o600);
  let text = "";
  await list({
    file: archive,
    onReadEntry: (entry) => entry.on("data", (data: Buffer) => (text += data.toString("utf8"))),
  });
  expect(text).toContain(`Name:               ${name}`); // describe nodes
  expectNoSecret(text);
  expect(text).not.toContain(parse(readFileSync(paths.kubeconfig, "utf8")).users[0].user["client-key-data"]);
  expect(text).not.toContain("PRIVATE KEY");
  expect(text).not.toContain(readFileSync(join(home, "passphrase"), "utf8").trim());
  rmSync(archive);
});

it("a sandbox that is gone is told", async () => {
  await killSandbox(name);
  const { exitCode, stdout } = await cli("status", name, "--json");
  expect(exitCode).toBe(3);
  expect(JSON.parse(String(stdout))).toMatchObject({ state: "stopped", problems: ["the sandbox's process is gone"] });
  expect(await json("list")).toMatchObject([{ name, state: "stopped" }]);
  expect((await cli("exec", "-c", name, "/bin/true")).all).toBe(
    `${name} does not run; run \`gvisor-k3s up ${name}\` first`,
  );
  await printed("up", name);
  expect(await kubectl(name, "get", "--raw=/readyz")).toBe("ok");
});

it("a cluster that another run works on is left to it, and is usable afterwards", async () => {
  const other = join(home, "bin/pulumi"); // the name by which a lock's owner is known
  mkdirSync(dirname(other));
  copyFileSync("/bin/sleep", other);
  const owner = execa(other, ["600"], { reject: false });
  const locks = join(home, "pulumi/.pulumi/locks/organization/gvisor-k3s", name);
  mkdirSync(locks, { recursive: true });
  writeFileSync(
    join(locks, "other.json"),
    JSON.stringify({ pid: owner.pid, username: "other", hostname: hostname(), timestamp: new Date().toISOString() }),
  );
  try {
    const { exitCode, all } = await cli("up", name);
    expect(exitCode).toBe(1);
    expect(all).toMatch(
      /the stack is currently locked by 1 lock(.*\n)*up did nothing: another run works on this cluster; try again when it has ended/,
    );
  } finally {
    owner.kill();
    await owner;
    rmSync(dirname(other), { recursive: true });
  }
  expect(await printed("up", name)).toContain("an earlier run was interrupted"); // its lock is of nobody now
});

it("destroy shows what it would remove, and removes nothing", async () => {
  expect(await printed("destroy", name, "--dry-run")).toMatch(/^- delete sandbox-process: is removed$/m);
  expect(existsSync(paths.state)).toBe(true);
});

it("destroy takes its entries out of the user's kubeconfig", async () => {
  await printed("kubeconfig", "merge", name);
  await printed("destroy", name);
  expect(readFileSync(userKubeconfig, "utf8")).not.toContain("gvisor-k3s");
  expect(readFileSync(userKubeconfig, "utf8")).toContain("work");
  expect(await printed("list")).toContain("there is no cluster");
});

it("completes clusters, and refuses what is none of its words", async () => {
  expect(await printed("complete", "--", "stat")).toContain("status");
  for (const args of [
    ["nothing"],
    ["up", "--nothing"],
    ["up", "a", "b"],
    ["images", "import"],
    ["kubeconfig", "undo", "x"],
  ])
    expect((await cli(...args)).exitCode, args.join(" ")).toBe(2);
});
