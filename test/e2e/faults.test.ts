/**
 * What goes wrong while the host works: its processes are killed anywhere, run twice, and run out of disk. Whatever
 * happens, the next `up` ends with a pod that runs, and no data are lost.
 */
import {
  closeSync,
  cpSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { list } from "tar";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { artifactFolder, artifactsFolder, imageArchive, manifest } from "../../artifacts/artifacts.ts";
import { pulumiCommand } from "../../automation/workspace.ts";
import { parseStackConfig } from "../../config/schema.ts";
import { openMachine } from "../../machines/index.ts";
import { managed, mountPoints } from "../../machines/managed.ts";
import { serviceStates } from "../../machines/services.ts";
import { credentialsIn } from "../../servers/kubeconfig.ts";
import { lastReady } from "../../servers/ready.ts";
import { VERSION } from "../../steps/versions.ts";
import { argumentsOf, isAlive, parentOf, processStart, signalTo, statOf } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  endAll,
  entriesOf,
  inside,
  kubectl,
  ownHome,
  pathsOf,
  record,
  root,
  services,
  stateFiles,
  supervised,
  traces,
  writeOptions,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-f";
const paths = pathsOf(name);
const small = {
  addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
  sandbox: { memory: "2Gi" },
};
let before: ReturnType<typeof traces>;

beforeAll(() => {
  before = { ...traces(home, name), files: [] };
});

afterAll(async () => {
  await endAll(home, name);
});

/** Writes a cluster's options. */
const configure = (stack: string, options: object = {}) => writeOptions(home, stack, { ...small, ...options });

/** The command, in a session of its own, so that all that it starts can be found. */
function begin(args: string[], env: Record<string, string> = {}) {
  const options = { all: true, reject: false, cwd: home, detached: true, stdin: "ignore", env } as const;
  return execa("node", [join(root, "automation/cli.ts"), ...args], options);
}

type Run = ReturnType<typeof begin>;

/** What a command printed, which must have ended well. */
async function printed(...args: string[]): Promise<string> {
  const { exitCode, all } = await begin(args);
  expect(exitCode, `${args.join(" ")}\n${all}`).toBe(0);
  return all;
}

interface Process {
  pid: number;
  startTime: string;
  group: number;
}

/** The processes of a run that live, but for what it has started for good. */
function processesOf(run: Run): Process[] {
  return readdirSync("/proc").flatMap((entry) => {
    const startTime = /^\d+$/.test(entry) ? processStart(Number(entry)) : undefined;
    if (startTime === undefined) return [];
    const [, , group, session] = (statOf(Number(entry)) ?? []).map(Number);
    return session === run.pid ? [{ pid: Number(entry), startTime, group: group! }] : [];
  });
}

/** The process of a step that a run does just now. */
function stepOf(run: Run, step: string): Process | undefined {
  return processesOf(run).find(({ pid }) => {
    const [, program, what] = argumentsOf(pid);
    return program?.endsWith("steps/main.ts") && what === step;
  });
}

/** Which of a run's processes are killed. */
const victims = {
  "the command": (run: Run) => processesOf(run).filter(({ pid }) => pid === run.pid),
  "the command's process group": (run: Run) => processesOf(run).filter(({ group }) => group === run.pid),
  everything: processesOf,
  "all but the step": (run: Run, step: string) => {
    const spared = stepOf(run, step)?.pid;
    return processesOf(run).filter(({ pid, group }) => pid !== spared && group !== spared);
  },
  "the step": (run: Run, step: string) => [stepOf(run, step)].filter((process) => process !== undefined),
};

/**
 * Runs `up`, and kills it when a step is so far.
 * @param when what there is to see of that; by default the step only has to run
 */
async function killedUp(
  who: keyof typeof victims,
  step: string,
  when: () => Promise<boolean> | boolean = () => true,
  env: Record<string, string> = {},
): Promise<void> {
  const run = begin(["up", name], env);
  let ended = "";
  void run.then(({ all }) => {
    ended = all || "it printed nothing";
  });
  await waitFor(`the step ${step} is so far`, 120, async () => {
    if (ended !== "") throw new Error(`up ended before the step ${step} was so far\n${ended}`);
    return (stepOf(run, step) !== undefined && (await when())) || undefined;
  });
  const killed = victims[who](run, step);
  expect(killed).not.toEqual([]);
  for (const { pid } of killed) signalTo(pid, "SIGKILL");
  const { exitCode, signal, all } = await run;
  if (killed.some(({ pid }) => pid === run.pid)) expect(signal, all).toBe("SIGKILL");
  else expect(exitCode, all).toBe(1);
}

/** What the supervisor tells, if there is one. */
const told = () => (existsSync(paths.supervisor) ? supervised(name) : undefined);

const sandboxAnswers = () => isAlive(told()?.sandbox);

/** Waits until a process has printed something. */
async function prints(run: Pick<Run, "all">, text: string): Promise<void> {
  let printed = "";
  run.all.on("data", (data: Buffer) => {
    printed += data.toString("utf8");
  });
  await waitFor(
    `"${text}" is printed`,
    120,
    () => printed.includes(text) || undefined,
    () => printed,
  );
}

const fileThere = (file: string) => () => existsSync(file);

/** Where an `up` is killed: what of it, in which step, and when. */
type Place = [who: keyof typeof victims, step: string, what: string, when?: () => boolean];

describe("an up that is killed while it makes the sandbox, or just after", () => {
  const places: Place[] = [
    ["the command's process group", "sandbox", "nothing is made yet"],
    ["the step", "sandbox", "the supervisor is told what to start", fileThere(paths.spec)],
    ["everything", "sandbox", "the sandbox answers, and Pulumi does not know of it", sandboxAnswers],
    ["everything", "server", "the server is started", fileThere(join(paths.written, "server.json"))],
  ];

  it.each(places)("%s, in the step %s, when %s", async (who, step, _, when) => {
    configure(name);
    await killedUp(who, step, when);
  });

  it("has all that it has made told by list, and removed by destroy", async () => {
    expect(await printed("list")).toMatch(new RegExp(`^${name} +running`));
    expect(await printed("destroy", name, "--dry-run")).toMatch(/^- delete sandbox-process: is removed$/m);
    await printed("destroy", name);
    expect({ ...traces(home, name), files: [] }).toEqual(before);
  });
});

describe("an up that is killed on its way to a pod", () => {
  const places: Place[] = [
    ["the command", "build", "runc is looked for"],
    ["the step", "containerd", "containerd is started", fileThere(join(paths.written, "containerd.json"))],
    ["everything", "ready", "the node is waited for"],
    ["the command's process group", "proxy", "the server is ready"],
  ];

  it.each(places)("%s, in the step %s, when %s", async (who, step, _, when) => {
    configure(name);
    await killedUp(who, step, when);
  });

  it("is followed by one that gets there", async () => {
    expect(await printed("up", name)).toMatch(/^phase +Running$/m);
    expect(await printed("preview", name)).toContain("nothing changes");
  });
});

describe("a change that is killed", () => {
  const server = async () => (await services(name)).server?.pid ?? 0;
  const serverFolder = () => inside(name, "/bin/ls", "/var/lib/rancher/k3s/server");
  const podUid = () => kubectl(name, "get", "pod", "testpod", "-o=jsonpath={.metadata.uid}");
  /** Another server of the same version, in another place: what an upgrade is. */
  const upgraded = join(home, "upgraded.json");
  const other = "server-e2e-faults";
  let uid: string;

  beforeAll(async () => {
    await kubectl(name, "create", "configmap", "kept", "--from-literal=by=its-owner");
    uid = await podUid();
    const content = { ...manifest(), artifacts: { ...manifest().artifacts, server: other } };
    writeFileSync(upgraded, JSON.stringify(content));
    rmSync(join(artifactsFolder(), other), { recursive: true, force: true });
    cpSync(artifactFolder({ name: "server" }), join(artifactsFolder(), other), { recursive: true });
  });

  afterAll(() => {
    if (!process.env.KEEP) rmSync(join(artifactsFolder(), other), { recursive: true, force: true });
  });

  /** Has `up` done to its end, and looks whether all is there. */
  async function expectHealed(env: Record<string, string> = {}): Promise<void> {
    const { exitCode, all } = await begin(["up", name], env);
    expect(exitCode, all).toBe(0);
    expect(await kubectl(name, "get", "configmap", "kept", "-o=jsonpath={.data.by}")).toBe("its-owner");
    await kubectl(name, "wait", "pod/testpod", "--for=condition=Ready", "--timeout=60s");
    expect(await podUid()).toBe(uid);
    expect(await serverFolder()).not.toMatch(/db\.(before|part)/);
  }

  it("while images are imported", async () => {
    configure(name, { images: [imageArchive()] });
    await killedUp("the step", "images");
    await expectHealed();
  });

  it("while the sandbox is restarted, twice: its data and its pod are there again", async () => {
    configure(name, { egress: { enabled: false } });
    const { sandbox } = supervised(name);
    await killedUp("the step", "sandbox", () => !isAlive(sandbox));
    await killedUp("everything", "sandbox"); // whether the sandbox answers by then or not: that is no long time
    await expectHealed();
    expect(supervised(name).egress).toBeNull();
  });

  it("while the server is restarted with another configuration", async () => {
    configure(name, { node: { apiServerArgs: ["v=1"] } });
    const pid = await server();
    await killedUp("the step", "server", async () => (await server()) !== pid);
    await expectHealed();
    expect(await inside(name, "/bin/cat", "/etc/rancher/k3s/config.yaml")).toContain("v=1");
  });

  it("while the data are copied for an upgrade, which is then given up", async () => {
    configure(name);
    const env = { GVISOR_K3S_MANIFEST: upgraded };
    await killedUp("everything", "server", async () => (await serverFolder()).includes("db.before-"), env);
    await expectHealed();
    expect(lastReady({ name, home })!.server).not.toContain(other);
  });

  it("while the upgraded server starts, and is then gone on with", async () => {
    const env = { GVISOR_K3S_MANIFEST: upgraded };
    const pid = await server();
    await killedUp("the step", "server", async () => ![0, pid].includes(await server()), env);
    await expectHealed(env);
    expect(lastReady({ name, home })!.server).toContain(other);
    expect(await serverFolder()).not.toContain("db."); // what was kept for the upgrade that was given up
  });
});

describe("an up whose predecessor was killed, and whose step goes on", () => {
  it("waits for that step, and says for which process", async () => {
    configure(name, { node: { apiServerArgs: ["v=2"] } });
    const lock = `/run/lock/gvisor-k3s/${name}/server.lock`;
    const first = begin(["up", name]);
    const holder = await waitFor("the step has the lock", 120, () => {
      const step = stepOf(first, "server");
      return step && readFileSync(lock, "utf8").startsWith(`server (process ${step.pid}, since `) ? step : undefined;
    });
    const { sandbox } = supervised(name);
    signalTo(sandbox!.pid, "SIGSTOP"); // so that the step does not end before it is stopped itself
    const others = victims["all but the step"](first, "server");
    const parent = parentOf(holder.pid);
    for (const { pid } of others) signalTo(pid, "SIGKILL");
    // Only then: a process that is stopped when its parent dies is ended by the kernel. That is when the parent's last
    // thread has died, and has left it to another.
    const gone = () => !others.some(isAlive) && parentOf(holder.pid) !== parent;
    await waitFor("the others are gone", 20, () => gone() || undefined);
    signalTo(holder.pid, "SIGSTOP");
    signalTo(sandbox!.pid, "SIGCONT");
    expect(isAlive(holder), "the step goes on").toBe(true);
    const second = begin(["up", name]);
    await prints(second, `waiting for server (process ${holder.pid}, since `);
    signalTo(holder.pid, "SIGCONT");
    const { exitCode, all } = await second;
    expect(exitCode, all).toBe(0);
    expect(await printed("preview", name)).toContain("nothing changes");
  });
});

describe("the same thing done twice at once", () => {
  /** Runs a step as Pulumi does it. */
  const step = (verb: string, params: object) => {
    const env = { STEP_PARAMS: JSON.stringify({ version: VERSION, machine: ref, ...params }) };
    return execa("node", [join(root, "steps/main.ts"), verb], { all: true, reject: false, stdin: "ignore", env });
  };
  const twice = "e2e-f-twice";
  const ref = { kind: "managed" as const, name: twice, home };
  const lock = `/run/lock/gvisor-k3s/${twice}/lock`;
  const said = () => (existsSync(lock) ? readFileSync(lock, "utf8") : "");

  afterAll(async () => {
    await step("sandbox-remove", {});
  });

  it("a sandbox is started by one, for which the other waits", async () => {
    const traced = traces(home, twice);
    const spec = managed.specOf(parseStackConfig({ name: twice, mode: "control-plane" }));
    const params = { owner: "gvisor-k3s/twice", spec };
    const first = step("sandbox", params);
    await waitFor("the first has the lock", 60, () => said().includes(`process ${first.pid},`) || undefined);
    signalTo(first.pid!, "SIGSTOP"); // however slow the second one is
    const second = step("sandbox", params);
    await prints(second, `waiting for start (process ${first.pid}, since `);
    signalTo(first.pid!, "SIGCONT");
    const [one, two] = await Promise.all([first, second]);
    expect(one.exitCode, one.all).toBe(0);
    expect(two.exitCode, two.all).toBe(0);
    expect(JSON.parse(two.stdout)).toEqual(JSON.parse(one.stdout));
    expect(record(twice)).toEqual(JSON.parse(one.stdout));
    const { sandbox, ...supervisor } = supervised(twice);
    expect([isAlive(supervisor), isAlive(sandbox), sandbox!.starts]).toEqual([true, true, 1]);
    const removed = await Promise.all([step("sandbox-remove", {}), step("sandbox-remove", {})]);
    // Whoever comes second waits.
    expect(removed.map(({ exitCode, all }) => [exitCode, all]).sort()).toEqual([
      [0, ""],
      [0, expect.stringMatching(/^(waiting for remove .*)?$/)],
    ]);
    expect(traces(home, twice)).toEqual(traced);
  });
});

describe("a cluster that is called otherwise than its stack, on a small disk, in a folder with a blank in its name", () => {
  const [stack, cluster] = ["e2e-small", "e2e-f-other"];
  const folder = "small disk";
  const disk = join(home, folder);
  const filler = join(disk, "filler");
  const files = pathsOf(cluster, disk);
  const options = { name: cluster, pod: { enabled: false } };
  const password = "hunter2-of-a-registry";
  const own = { GVISOR_K3S_HOME: folder }; // relative to where the command is called
  const run = (...args: string[]) => begin(args, own);
  /** What a command printed, which must have ended well. */
  const said = async (...args: string[]) => {
    const { exitCode, stdout, all } = await run(...args);
    expect(exitCode, `${args.join(" ")}\n${all}`).toBe(0);
    return stdout;
  };
  const traced = () => ({ ...traces(disk, cluster), mounts: mountPoints().filter((path) => path.startsWith(disk)) });
  let untouched: ReturnType<typeof traced>;

  beforeAll(async () => {
    mkdirSync(disk);
    // A start asks for 512 MiB, and this cluster takes some 20.
    await execa("mount", ["-t", "tmpfs", "-o", "size=560m,mode=0700", "tmpfs", disk]);
    untouched = traced();
    configure(stack, options);
  });

  afterAll(async () => {
    if (process.env.KEEP) return;
    rmSync(filler, { force: true });
    await run("destroy", stack);
    await execa("umount", [disk]);
  });

  it("is made once by two that want it at once", async () => {
    const ended = await Promise.all([run("up", stack), run("up", stack)]);
    const told = ended.map(({ all }) => all).join("\n---\n");
    expect(
      ended.some(({ exitCode }) => exitCode === 0),
      told,
    ).toBe(true);
    for (const { exitCode, all } of ended) {
      if (exitCode !== 0) expect(all).toContain("another run works on this cluster; try again when it has ended");
    }
    expect(await said("preview", stack)).toContain("nothing changes");
    expect(entriesOf(join(home, "sandboxes"))).not.toContain(cluster);
  });

  it("has commands printed that a shell takes", async () => {
    const printed = await said("up", stack);
    const commands = printed.split("next:\n")[1]!;
    expect(commands).toMatch(new RegExp(`^ {2}(gvisor-k3s destroy |make destroy STACK=)${stack}$`, "m")); // as it was called
    const script = `${commands.split("\n")[0]}; cat "$KUBECONFIG"`;
    expect((await execa("sh", ["-c", script])).stdout).toBe(readFileSync(files.kubeconfig, "utf8").trimEnd());
  });

  it("is found by its stack by every command", async () => {
    expect(
      await said("kubectl", "-c", stack, "create", "configmap", "kept", "--from-literal=by=its-owner"),
    ).toBeTruthy();
    expect(JSON.parse(await said("status", stack, "--json"))).toMatchObject({ name: stack, cluster, problems: [] });
    const owner = `gvisor-k3s/${stack}`;
    const listed = { name: stack, cluster, owner, state: "running", kubeconfigPath: files.kubeconfig };
    expect(JSON.parse(await said("list", "--json"))).toEqual([listed]);
    expect(await said("exec", "-c", stack, "/bin/hostname")).toBe(cluster);
    expect(await said("kubectl", "-c", stack, "get", "nodes", "-o", "name")).toBe(`node/${cluster}`);
    expect(await said("kubeconfig", stack)).toBe(readFileSync(files.kubeconfig, "utf8").trimEnd());
    expect(await said("complete", "--", "status", "")).toContain(stack);
    const archive = join(home, "report.tar.gz");
    expect(JSON.parse(await said("logs", stack, "--output", archive, "--json")).files).toContain("logs/server.log");
    const forgotten = await run("destroy", stack, "--forget");
    expect(forgotten.all).toBe(`${stack} has nothing on another machine; \`gvisor-k3s destroy ${stack}\` removes it`);
    expect(forgotten.exitCode).toBe(1);
  });

  it("is not given to a second stack, nor harmed by it", async () => {
    const second = "e2e-second";
    configure(second, options);
    for (const verb of ["preview", "up"]) {
      const { exitCode, all } = await run(verb, second);
      expect(exitCode).toBe(1);
      expect(all).toBe(
        "1 problem with the configuration; nothing was changed:\n" +
          `  - name = "${cluster}": ${cluster} is the cluster of gvisor-k3s/${stack}, and gvisor-k3s/${second} asks for ` +
          "one of the same name; give one of them another with the option name",
      );
    }
    expect(stateFiles(disk).filter((file) => file.includes(second))).toEqual([]);
    expect(await said("destroy", second)).toContain(`${second} is gone`);
    expect(await said("kubectl", "-c", stack, "get", "--raw=/readyz")).toBe("ok");
  });

  it("takes options that Pulumi has encrypted, and shows them nowhere", async () => {
    const { command, env } = await pulumiCommand(() => {});
    cpSync(join(root, "Pulumi.yaml"), join(home, "Pulumi.yaml"));
    const backend = {
      PULUMI_BACKEND_URL: `file://${disk}/pulumi`,
      PULUMI_CONFIG_PASSPHRASE_FILE: join(disk, "passphrase"),
    };
    const set = (...args: string[]) =>
      execa(command.command, ["config", "set", "--stack", stack, "--secret", ...args], {
        cwd: home,
        env: { ...env, ...backend, PULUMI_SKIP_UPDATE_CHECK: "true" },
      });
    const registries = { configs: { "registry.example": { auth: { username: "me", password } } } };
    await set("gvisor-k3s:registries", JSON.stringify(registries));
    await set("--path", "gvisor-k3s:proxy.http", `http://me:${password}@192.0.2.1:3128`);
    expect(readFileSync(join(home, `Pulumi.${stack}.yaml`), "utf8")).not.toContain(password);
    const preview = await said("preview", stack);
    expect(preview).toMatch(/^~ update containerd-apply/m);
    const { exitCode, all } = await run("up", stack);
    expect(exitCode, all).toBe(0);
    // containerd knows both.
    const exec = async (...args: string[]) => await said("exec", "-c", stack, ...args);
    expect(await exec("/bin/cat", "/etc/containerd/conf.d/credentials.toml")).toContain(password);
    const { containerd } = await serviceStates(openMachine({ kind: "managed", name: cluster, home: disk }));
    expect(await exec("/bin/cat", `/proc/${containerd!.pid}/environ`)).toContain(
      `http://me:${password}@192.0.2.1:3128`,
    );
    const archive = join(home, "secrets.tar.gz");
    let report = "";
    await said("logs", stack, "--output", archive);
    await list({
      file: archive,
      onReadEntry: (entry) => entry.on("data", (data: Buffer) => (report += data.toString())),
    });
    expect(report).toContain("registry.example");
    const logs = entriesOf(files.logs)
      .map((file) => join(files.logs, file))
      .filter((file) => statSync(file).isFile());
    const texts = [...stateFiles(disk), ...logs].map((file) => readFileSync(file, "utf8"));
    for (const text of [preview, all, report, ...texts]) expect(text).not.toContain(password);
    expect(await said("preview", stack)).toBe("nothing changes");
  });

  /** Fills the disk, but for some MiB. */
  function fill(spared = 0): void {
    const file = openSync(filler, "w");
    try {
      for (const size of [2 ** 20, 4096]) writeUntilFull(file, Buffer.alloc(size));
      if (spared > 0) ftruncateSync(file, fstatSync(file).size - spared * 2 ** 20);
    } finally {
      closeSync(file);
    }
  }

  /** Takes what has become free since. */
  function refill(): void {
    const file = openSync(filler, "a");
    try {
      writeUntilFull(file, Buffer.alloc(4096));
    } finally {
      closeSync(file);
    }
  }

  function writeUntilFull(file: number, data: Buffer): void {
    try {
      for (;;) if (writeSync(file, data) < data.length) return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }

  /** Looks at every file that the host keeps of the cluster, but for those of some folders. */
  function expectWhole(...except: string[]): void {
    const kept = readdirSync(disk, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .filter(
        (file) => ![files.rootfs, files.runsc, files.logs, ...except].some((other) => file.startsWith(`${other}/`)),
      )
      .filter((file) => file !== filler && !file.endsWith(".lock"));
    for (const file of [files.kubeconfig, files.record, files.ready, files.quirks, files.spec, files.supervisor])
      expect(kept).toContain(file);
    expect(kept.filter((file) => file.endsWith(".tmp"))).toEqual([]);
    for (const file of kept) {
      const text = readFileSync(file, "utf8");
      expect(text, file).not.toBe("");
      if (file.endsWith(".json")) JSON.parse(text);
      if (file.endsWith(".yaml")) expect(parse(text), file).toBeTypeOf("object");
    }
    expect(credentialsIn(readFileSync(files.kubeconfig, "utf8"))).toBeTruthy();
  }

  /** What the files of the node hold, which are in the sandbox. */
  const inTheSandbox = async () => {
    const empty = await said("exec", "-c", stack, "/bin/find", "/var/lib/rancher", "/etc", "-type", "f", "-size", "0");
    expect(empty.split("\n").filter((file) => /\.(key|crt|kubeconfig|json|toml|yaml)$/.test(file))).toEqual([]);
    return await said("exec", "-c", stack, "/bin/cat", "/etc/containerd/config.toml", "/etc/rancher/k3s/config.yaml");
  };

  const noSpace = new RegExp(`no space: ${disk} has \\d+ MiB free, and 16 MiB are needed`);

  it("whose disk is full is changed by nobody, and told", async () => {
    const before = await inTheSandbox();
    configure(stack, { ...options, containerd: { logLevel: "debug" }, node: { apiServerArgs: ["v=1"] } });
    fill();
    for (const verb of ["up", "preview", "refresh"]) {
      const { exitCode, all } = await run(verb, stack);
      expect(exitCode, all).toBe(1);
      expect(all).toMatch(new RegExp(`^${noSpace.source} .*; nothing was changed\\. Make room, and run it again$`));
    }
    expectWhole();
    expect(await inTheSandbox()).toBe(before);
    const { exitCode, stdout } = await run("status", stack, "--json");
    expect(exitCode).toBe(3);
    const full = expect.stringContaining("the disk is nearly full: 0 MiB of 560 MiB are free");
    expect(JSON.parse(stdout)).toMatchObject({ state: "running", problems: [full] });
  });

  it("whose disk is full in the midst of an up is told by that, and healed by the next one", async () => {
    fill(24);
    const full = run("up", stack);
    await waitFor("containerd is about to be restarted", 120, () => stepOf(full, "containerd"));
    fill();
    const again = setInterval(refill, 20); // what is restarted makes room, and would go on
    const { exitCode, all } = await full.finally(() => clearInterval(again));
    expect(exitCode, all).toBe(1);
    expect(all).toMatch(/no space left on device/);
    expect(all).toMatch(noSpace);
    expectWhole(join(disk, "pulumi")); // Pulumi itself may cut its state short, of which there is a copy
    await inTheSandbox();
    rmSync(filler);
    await said("up", stack);
    expect(await inTheSandbox()).toMatch(/level = "debug"(.|\n)*v=1/);
    expect(await said("preview", stack)).toBe("nothing changes");
    expect(await said("kubectl", "-c", stack, "get", "configmap", "kept", "-o=jsonpath={.data.by}")).toBe("its-owner");
  });

  it("is removed while its disk is full, and nothing is left", async () => {
    fill();
    expect(await said("destroy", stack)).toContain(`${stack} is gone`);
    rmSync(filler);
    expect(traced()).toEqual(untouched);
    expect(entriesOf(disk)).toEqual([]);
  });
});

it("a cluster on a machine that is gone is forgotten by its stack's name", async () => {
  const [stack, cluster] = ["e2e-gone", "e2e-f-gone"];
  configure(stack, { name: cluster, target: "ssh", ssh: { host: "192.0.2.1" } });
  const owner = `gvisor-k3s/${stack}`;
  const known = { version: 2, kind: "ssh", owner, incarnation: 1, revision: "", pid: 0, startTime: "", repairs: 0 };
  mkdirSync(pathsOf(cluster).state, { recursive: true });
  writeFileSync(pathsOf(cluster).record, JSON.stringify({ ...known, programs: { init: "" } }));
  expect(await printed("list")).toMatch(new RegExp(`^${stack} +remote +${cluster} `, "m"));
  expect(await printed("destroy", stack, "--forget")).toContain(`${stack} is gone`);
  expect(await printed("list")).not.toContain(cluster);
  expect(existsSync(pathsOf(cluster).state)).toBe(false);
});

it("a cluster in which a killed step has left a command running is removed all the same", async () => {
  const cluster = "e2e-f-left";
  const own = () => ({ ...traces(home, cluster), files: [] }); // beside the cluster of the other tests
  const untouched = own();
  configure(cluster, { mode: "control-plane" });
  await printed("up", cluster);
  const program = join(home, "step.ts");
  writeFileSync(
    program,
    `import { artifactFolder } from "${root}/artifacts/artifacts.ts";
    import { openMachine } from "${root}/machines/index.ts";
    const machine = openMachine({ kind: "managed", name: "${cluster}", home: "${home}" });
    const init = artifactFolder({ name: "init" }) + "/sandbox-init";
    await machine.lock({ what: "facade", alone: false, init, say: console.error });
    await machine.exec(["/bin/sleep", "infinity"]);`,
  );
  const step = execa("node", [program], { reject: false });
  const left = () => traces(home, cluster).processes.find((line) => line.includes("/bin/sleep infinity"));
  await waitFor("the command runs", 30, async () => left());
  step.kill("SIGKILL");
  await step;
  expect(left()).toBeDefined();
  expect(await printed("destroy", cluster)).toContain(`${cluster} is gone`);
  expect(own()).toEqual(untouched);
  expect(existsSync(pathsOf(cluster).state)).toBe(false);
});
