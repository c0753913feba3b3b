/**
 * A managed sandbox on this host: a runsc container with a network namespace of its own, a veth pair to the host, a root
 * file system that is its own, and a supervisor beside it (host/), which keeps it and its way out running.
 * @module
 */
import { spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, rename, rm, rmdir } from "node:fs/promises";
import { networkInterfaces } from "node:os";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import {
  artifactFolder,
  artifactsFolder,
  fileDigest,
  pathInSandbox,
  provide,
  serverOf,
  type Wanted,
  wanted,
} from "../artifacts/artifacts.ts";
import { baseFolder, stageBase } from "../artifacts/stage.ts";
import { machineId } from "../config/facade.ts";
import { MESH_MTU, meshDevice, meshNetworks, meshOf } from "../config/mesh.ts";
import { linkAddresses, type Mesh, overlap, parseNetwork } from "../config/network.ts";
import { sandboxSpec } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import type { Problem } from "../config/problems.ts";
import { bytes, needsEgress, publishedPort, type StackConfig } from "../config/schema.ts";
import { readJson, roomFor, writeWhole } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import {
  argumentsOf,
  endProcess,
  holdersOf,
  isAlive,
  killProcesses,
  type ProcessId,
  parentOf,
  signalTo,
} from "../system/processes.ts";
import { isExecutable, says } from "../system/programs.ts";
import { type Output, run, worked } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { ANSWER, BaseMachine, encoded, hostToday, lockFolder, orAbsent } from "./base.ts";
import { lockIn } from "./lock.ts";
import {
  checkPlace,
  type Driver,
  type Keeper,
  type Kept,
  type KeptAs,
  type Lock,
  type LockOptions,
  type Machine,
  type Reached,
  type Start,
} from "./machine.ts";
import type { Observed } from "./observe.ts";
import { hostPaths, LINK_PREFIX, machinesIn, meshNamespace } from "./paths.ts";
import { checkOwner, type MachineRecord, readRecord, writeRecord } from "./record.ts";
import type { MachineRef } from "./ref.ts";
import { isPlanted, partOf, type Seed, seedOf, seedProblems } from "./seed.ts";
import { serviceStates } from "./services.ts";
import { driftIn, repairsOf } from "./written.ts";

/** What a managed sandbox is started with. */
export interface ManagedSpec {
  /** The programs that are built: runsc, unless it is the user's, sandbox-init, and what runs beside it on the host. */
  takes: Wanted[];
  /** runsc on the host. */
  runsc: string;
  /** The hash of a runsc of the user's, so that another program at the same path is another input. */
  runscDigest?: string;
  /** What runs beside it on the host; another one takes over without a restart. */
  host: string;
  /** sandbox-init by its path in the sandbox. */
  init: string;
  /** What is in its /bin. */
  base: string;
  /** What is linked in its /usr/local/bin at each start, for its users: targets by names. */
  tools: Record<string, string>;
  subnet: string;
  /** What it shares with the other nodes of its cluster. */
  mesh?: Mesh;
  platform: StackConfig["sandbox"]["platform"];
  network: StackConfig["sandbox"]["network"];
  /** Whether programs with the setuid bit run as who owns them; not where runsc does not know of it. */
  setuid: boolean;
  /** The way out; a change of the pods' network restarts that alone. */
  egress: { pods: string } | null;
  /** The snapshot that it begins with, if it was never started; see the option `from`. */
  from: string | null;
  // What follows takes effect while it runs.
  limits: Pick<StackConfig["sandbox"], "memory" | "cpus">;
  /** The host's ports that it reaches; null filters nothing, as for a sandbox that is only probed. */
  hostPorts: StackConfig["sandbox"]["hostPorts"] | null;
  /** Ports of it that are answered at the host; see the option `ports`. */
  ports: string[];
  /** Whether its supervisor starts it again when it died. */
  restart: boolean;
}

/** What the node's state takes on an empty cluster, with room for a few images. */
const NEEDED_MIB = 512;

/** MiB that are to stay free of the disk on which a sandbox's memory is kept. */
const SPARE = 256;

/** Seconds that the services of a sandbox have to end before it is restarted with another configuration. */
const STOP = 30;

/** What is kept of a sandbox, as gvisor-k3s-host calls it: a file of what is on its disk, and a folder of its memory. */
const [DISK, MEMORY] = ["disk", "memory"];

/** Seconds in which a sandbox that was started has to answer. */
const BOOT = 20;

/** Seconds that the supervisor has in all for a start. */
const START = 120;

/**
 * The tap's two ends. Each sandbox's network is its own, so they may all have the same link-local addresses, which no
 * stack has.
 */
export const tap = { device: "tap0", gateway: "169.254.77.1", node: "169.254.77.2", prefix: 30, mtu: 65000 };

/** See {@link Driver}. */
export const managed: Driver<ManagedSpec> = {
  durable: true,
  refOf: ({ name, joins }, home) => ({ kind: "managed", name, home, ...(joins ? { joins: joins.cluster } : {}) }),

  specOf(config) {
    const { subnet, memory, cpus, platform, network, hostPorts, runsc } = config.sandbox;
    const mesh = meshOf(config) ?? sharedStill(config);
    const setuid = config.sandbox.setuid && (runsc === undefined || knowsSetuid(runsc));
    const own = (runsc === undefined ? (["runsc", "init", "host"] as const) : (["init", "host"] as const)).map((name) =>
      wanted({ name }),
    );
    return {
      takes: own,
      runsc: runsc ?? join(artifactFolder({ name: "runsc" }), "runsc"),
      ...(runsc === undefined ? {} : { runscDigest: fileDigest(runsc) }),
      host: join(artifactFolder({ name: "host" }), "gvisor-k3s-host"),
      init: pathInSandbox({ name: "init" }, "sandbox-init"),
      base: baseFolder(),
      tools: {
        containerd: pathInSandbox({ name: "containerd" }, "containerd"),
        ctr: pathInSandbox({ name: "containerd" }, "ctr"),
        "gvisor-k3s-node": pathInSandbox({ name: serverOf(config.kubernetes) }, "gvisor-k3s-node"),
      },
      subnet,
      ...(mesh ? { mesh } : {}),
      platform,
      network,
      setuid,
      egress: needsEgress(config) ? { pods: config.node.clusterCidr } : null,
      from: config.from ?? null,
      limits: { memory, cpus },
      hostPorts,
      ports: config.ports,
      restart: config.sandbox.restart,
    };
  },

  revisionOf({ runsc, runscDigest, init, base, subnet, mesh, platform, network, setuid, egress }, { name, home }) {
    const spec = ociSpec({ name, home }, { init, base }, NO_LIMITS);
    const shared = mesh === undefined ? [] : [mesh];
    const started = [runsc, runscDigest, subnet, platform, network, setuid, egress !== null, spec, ...shared];
    return createHash("sha256").update(JSON.stringify(started)).digest("hex");
  },

  identityOf: ({ name, sandbox, mode }, { home }) => [name, home, sandbox.subnet, mode],

  problemsOf(config, ref, owner) {
    return [
      ...rootProblems(),
      ...runscProblems(config),
      ...egressProblems(config),
      ...subnetProblems(config, ref, owner),
      ...fromProblems(config, ref),
    ];
  },

  takesOf: ({ takes }) => takes,
  gvisorOf: ({ runsc, runscDigest = "", platform, network, setuid }) =>
    setuid ? [runsc, runscDigest, platform, network, SETUID] : [runsc, runscDigest, platform, network],

  trialOf(spec) {
    if (!existsSync(spec.runsc) || !existsSync(spec.host)) throw new Error("it is not built yet");
    // A link-local network, which no stack has; two trials at once are told apart by their processes.
    const subnet = `169.254.107.${(process.pid % 64) * 4}/30`;
    const { mesh: _, ...alone } = spec;
    return {
      ...alone,
      subnet,
      limits: NO_LIMITS,
      egress: null,
      from: null,
      hostPorts: null,
      ports: [],
      restart: false,
    };
  },

  open: (ref) => new ManagedSandbox(ref),
};

/**
 * What a server's sandbox that runs shares with nodes that leave the options. Its link to them stays until it is started
 * for another reason: it would be started for that before they are drained, and they could not be told to end their pods.
 */
function sharedStill({ name, joins, sandbox }: StackConfig): Mesh | undefined {
  const ref: MachineRef = { kind: "managed", name, home: homeFolder() };
  if (joins !== undefined || !isRunningHere(ref)) return undefined;
  const started = readJson<{ network?: { mesh?: object | null } }>(hostPaths(name, ref.home).spec, "run `up` again");
  return started?.network?.mesh ? { cluster: name, server: sandbox.subnet } : undefined;
}

/** runsc's flag, which gVisor has since 2026; "runsc flags" names every one. */
const SETUID = "--allow-suid";

const knowsSetuid = (runsc: string) => isExecutable(runsc) && says(runsc, "flags").includes(SETUID.slice(2));

const NO_LIMITS = { memory: null, cpus: null };

function ociSpec(
  { name, home }: Pick<MachineRef, "name" | "home">,
  { base, init }: Pick<ManagedSpec, "base" | "init">,
  limits: ManagedSpec["limits"],
) {
  const { rootfs, networkNamespace } = hostPaths(name, home);
  return sandboxSpec({ name, rootfs, networkNamespace, base, artifacts: artifactsFolder(), init, limits });
}

/** What the supervisor tells; see host/supervise. */
interface SupervisorState extends ProcessId {
  /** The hash of the spec that is applied, and of one that cannot be applied as a whole while the sandbox runs. */
  spec: string;
  refused: string;
  sandbox: (ProcessId & { starts: number }) | null;
  egress: (ProcessId & { starts: number }) | null;
  error?: string;
}

class ManagedSandbox extends BaseMachine implements Machine {
  get title(): string {
    return `the sandbox ${this.ref.name}`;
  }

  get #paths() {
    return hostPaths(this.ref.name, this.ref.home);
  }

  command(args: readonly string[]): readonly string[] {
    const { programs } = this.record();
    return [programs.runsc!, `--root=${this.#paths.runsc}`, "exec", this.ref.name, ...args];
  }

  override async terminalCommand(args: readonly string[]): Promise<readonly string[]> {
    // Today's: an earlier release may have started the sandbox.
    return [await hostToday((line) => console.error(line)), "terminal", ...this.command(args)];
  }

  override async read(path: string, options: { tail?: number } = {}): Promise<string | undefined> {
    if (this.#isAlive()) return await super.read(path, options);
    const limit = options.tail === undefined ? [] : [`--tail=${options.tail}`];
    return await orAbsent(this.#beneath("read", path, ...limit));
  }

  override async list(path: string): Promise<string[]> {
    if (this.#isAlive()) return await super.list(path);
    const listed = await orAbsent(this.#beneath("list", path));
    return (listed ?? "").split("\n").filter((name) => name !== "");
  }

  /** Reads in the root file system of a sandbox that does not run, beneath a handle that leads nowhere else. */
  async #beneath(verb: string, path: string, ...options: string[]): Promise<Output> {
    checkPlace(path);
    const args = [verb, ...options, this.#paths.rootfs, path.slice(1)];
    return await run(await this.#hostProgram(), args, { timeout: ANSWER });
  }

  async upload(): Promise<void> {} // the artifact cache is mounted in it

  async lock(options: LockOptions): Promise<Lock> {
    const folder = lockFolder(this.ref.name);
    if (!options.last) return await lockIn(folder, options);
    const timer = setInterval(() => this.#endOrphans(folder), 1000);
    try {
      return await lockIn(folder, options);
    } finally {
      clearInterval(timer);
    }
  }

  /**
   * Kills what a killed step has left: a command in the sandbox holds the step's locks for as long as it likes. What has a
   * parent that holds them too is a step's that lives.
   */
  #endOrphans(folder: string): void {
    const holders = holdersOf(folder);
    for (const pid of holders) {
      const isOurs = argumentsOf(pid).includes(`--root=${this.#paths.runsc}`);
      if (isOurs && !holders.has(parentOf(pid))) signalTo(pid, "SIGKILL");
    }
  }

  async reach({ address, port }: { address: string; port: number }): Promise<Reached> {
    return { address, port };
  }

  async observe(): Promise<Observed> {
    const { name, home } = this.ref;
    const record = readRecord(name, home);
    const nothing = { drift: [], repairs: {}, problems: [] };
    if (record === undefined) return { state: "absent", ...nothing };
    if (!this.#isAlive()) return { state: "stopped", record, ...nothing };
    if (record.version === 1) return { state: "running", record, ...nothing };
    const supervisor = this.#supervisor();
    const healed = {
      pid: supervisor?.sandbox?.pid ?? record.pid,
      starts: supervisor?.sandbox?.starts ?? 0,
      egressStarts: supervisor?.egress?.starts ?? null,
    };
    const problems = [...this.#problems(supervisor), ...this.#halfRestored()];
    const repairs = { sandbox: record.repairs + (problems.length > 0 ? 1 : 0) };
    const memory = memoryOf(name);
    try {
      const [hashes, services] = await Promise.all([this.hashes(), serviceStates(this)]);
      const drift = driftIn(this.ref, hashes);
      return {
        state: "running",
        record,
        drift,
        repairs: { ...repairsOf(this.ref, drift, services), ...repairs },
        healed,
        memory,
        problems,
      };
    } catch (error) {
      const why = `the sandbox does not answer: ${(error as Error).message.split("\n")[0]}`;
      return { state: "silent", record, drift: [], repairs, healed, memory, problems: [...problems, why] };
    }
  }

  /** What the supervisor should do and does not. */
  #problems(supervisor: SupervisorState | undefined): string[] {
    if (!isAlive(supervisor)) return ["the sandbox's supervisor is gone: what dies now is not started again"];
    const spec = readJson<{ egress: object | null }>(this.#paths.spec, "the next `up` writes it anew");
    const problems =
      spec?.egress && !isAlive(supervisor?.egress) ? ["the way out (egress) is gone: pods reach nothing outside"] : [];
    return supervisor?.error ? [...problems, `the sandbox's supervisor tells: ${supervisor.error}`] : problems;
  }

  /** A restore that was killed when the sandbox ran already, or one that goes on; see `mend`. */
  #halfRestored(): string[] {
    if (!existsSync(this.#paths.replaced)) return [];
    return ["a restore has not ended: what the sandbox had before that lies beside it still"];
  }

  #supervisor(): SupervisorState | undefined {
    return supervisorOf(this.ref);
  }

  #isAlive(): boolean {
    return isRunningHere(this.ref);
  }

  async start({ spec, owner, incarnation, repairs }: Start<ManagedSpec>): Promise<MachineRecord> {
    const { name, home } = this.ref;
    const previous = readRecord(name, home);
    checkOwner(this.ref, previous, owner);
    await this.#mend();
    await provideAll(spec);
    const revision = managed.revisionOf(spec, this.ref);
    const runs = this.#isAlive() && previous?.version === 2 && previous.revision === revision;
    if (runs && incarnation <= previous.incarnation) {
      await this.#apply(spec, previous);
      return await this.#note({ ...previous, owner, repairs, programs: programsOf(spec) });
    }
    const isNew = !existsSync(this.#paths.state);
    await needDiskSpace(home);
    const seed = previous === undefined ? await this.#seeded(spec) : previous.seed;
    const record = {
      version: 2 as const,
      kind: "managed" as const,
      owner,
      incarnation: Math.max((previous?.incarnation ?? 0) + 1, incarnation),
      revision,
      repairs,
      ...(this.ref.joins === undefined ? {} : { joins: this.ref.joins }),
      programs: programsOf(spec),
      ...(seed === undefined ? {} : { seed }),
    };
    try {
      await this.#end(STOP);
      await rm(this.#paths.paused, { recursive: true, force: true }); // its disk is another one from now on
      await this.#writeBundle(spec);
      // Before there is anything to end: whoever comes after a kill finds it, and knows whose it is.
      await writeRecord(name, home, { ...record, pid: 0, startTime: "" });
      await rm(this.#paths.seedNote, { force: true });
      await this.#launch(spec.host);
    } catch (error) {
      await this.#clear();
      if (isNew) await this.#removeState();
      throw error;
    }
    return await this.#note(record);
  }

  /**
   * Puts what the machine is to begin with in its place.
   * @returns what tells it, or undefined if it begins with nothing
   */
  async #seeded({ from }: ManagedSpec): Promise<string | undefined> {
    const { seed, rootfs, bundle } = this.#paths;
    if (!this.#clusterBegins(from)) await rm(this.#paths.seedNote, { force: true });
    else if (from !== null && seedOf(this.ref) === undefined) {
      const found = partOf(from, this.ref);
      // A node that joins may be one that the snapshot has not.
      if (found === undefined && this.ref.joins === undefined) throw new Error(`there is no snapshot ${from}`);
      if (found !== undefined) await this.#plant(found.folder, found.snapshot, from);
    }
    const noted = seedOf(this.ref);
    if (noted === undefined) {
      await this.#discard(seed); // half of it, of a command that was killed
      return undefined;
    }
    if (existsSync(seed)) {
      await this.#discard(rootfs);
      await mkdir(bundle, { recursive: true, mode: 0o700 });
      await rename(seed, rootfs);
    }
    return noted.id;
  }

  /**
   * Whether the cluster begins with a snapshot, of a node that joins: its server does, or has, which a fork that was killed
   * has not come to, or has been for long.
   * @param from see the option
   */
  #clusterBegins(from: string | null): boolean {
    const { joins, home } = this.ref;
    if (joins === undefined) return true;
    if (from !== null) return !existsSync(hostPaths(joins, home).ready);
    const server: MachineRef = { kind: "managed", name: joins, home };
    return seedOf(server) !== undefined || readRecord(joins, home)?.seed !== undefined;
  }

  /** The note is the last: without it the machine begins with nothing. */
  async #plant(folder: string, { files }: Kept, from: string): Promise<void> {
    const { state, seed, seedNote, rootfs } = this.#paths;
    const isNew = !existsSync(state) || isPlanted(this.ref);
    await mkdir(state, { recursive: true, mode: 0o700 });
    // Of a start that came to nothing, before it is forgotten whose data these are.
    if (existsSync(seedNote)) await this.#discard(rootfs);
    await rm(seedNote, { force: true });
    await this.#discard(seed); // of a command that was killed
    try {
      await this.#unpack(folder, files, seed);
      await writeWhole(seedNote, JSON.stringify({ id: randomUUID(), from } satisfies Seed));
    } catch (error) {
      await (isNew ? this.#removeState() : this.#discard(seed));
      throw error;
    }
  }

  async #unpack(folder: string, files: Kept["files"], to: string): Promise<void> {
    await run(await this.#hostProgram(), ["unpack", `--sha256=${files[DISK]?.sha256}`, join(folder, DISK), to]);
  }

  async #note(record: Omit<MachineRecord, "pid" | "startTime">): Promise<MachineRecord> {
    const { pid, startTime } = this.#supervisor()!.sandbox!;
    const whole = { ...record, pid, startTime };
    await writeRecord(this.ref.name, this.ref.home, whole);
    // What a release up to 0.2 has kept beside; it was the sandbox's to write, which does not see it any more.
    for (const old of ["sandbox.json", "egress.json", "etc"])
      await rm(join(this.#paths.state, old), { recursive: true, force: true });
    return whole;
  }

  /** Has the supervisor take what changes while the sandbox runs, or another supervisor take over. */
  async #apply(spec: ManagedSpec, { programs }: MachineRecord): Promise<void> {
    const supervisor = this.#supervisor();
    if (programs.host !== spec.host && isAlive(supervisor)) await killAndWait(supervisor!);
    const content = this.#supervisorSpec(spec);
    const hash = createHash("sha256").update(content).digest("hex");
    await writeWhole(this.#paths.spec, content);
    if (!isAlive(this.#supervisor())) {
      await this.#launch(spec.host);
    } else if (supervisor?.spec !== hash) {
      signalTo(supervisor!.pid, "SIGHUP");
      await waitFor("the sandbox's supervisor takes the change", 30, () => {
        const { spec: applied, refused, error } = this.#supervisor()!;
        if (applied !== hash && refused !== hash) return undefined;
        if (error) throw new Error(advised(error));
        return true;
      });
    }
  }

  async #writeBundle(spec: ManagedSpec): Promise<void> {
    const { home } = this.ref;
    const { state, bundle, runsc, logs, rootfs, spec: specFile } = this.#paths;
    await mkdir(home, { recursive: true, mode: 0o700 });
    // A release up to 0.2 has given the sandbox the folder of the logs.
    if (existsSync(join(state, "sandbox.json"))) await rm(logs, { recursive: true, force: true });
    for (const folder of [state, bundle, runsc, logs]) await mkdir(folder, { recursive: true, mode: 0o700 });
    await mkdir(rootfs, { recursive: true, mode: 0o755 });
    await writeWhole(join(bundle, "config.json"), JSON.stringify(ociSpec(this.ref, spec, spec.limits), null, 2));
    await writeWhole(specFile, this.#supervisorSpec(spec));
  }

  /** What the supervisor is told; see host/supervise. */
  #supervisorSpec(spec: ManagedSpec): string {
    const { name } = this.ref;
    const { state, runsc, bundle, link } = this.#paths;
    const { host, node, prefix } = linkAddresses(spec.subnet);
    const { memory, cpus } = spec.limits;
    const boot = [spec.init, "boot"];
    return JSON.stringify({
      version: 1,
      name,
      state,
      runsc: {
        program: spec.runsc,
        root: runsc,
        // Without an overlay of runsc's own the root is the host's folder: it keeps the cluster over restarts, and it
        // can carry containerd's overlays.
        flags: [
          `--platform=${spec.platform}`,
          `--network=${spec.network}`,
          "--overlay2=none",
          "--cpu-num-from-quota",
          ...(spec.setuid ? [SETUID] : []),
        ],
        bundle,
      },
      boot: {
        command: [...boot, "--forget"],
        again: boot,
        replay: [...boot, "--replay"],
        input: bootInput(name, node, spec),
        seconds: BOOT,
      },
      network: {
        namespace: link,
        host: `${host}/${prefix}`,
        node: `${node}/${prefix}`,
        tap: spec.egress && {
          device: tap.device,
          address: `${tap.node}/${tap.prefix}`,
          gateway: `${tap.gateway}/${tap.prefix}`,
          mtu: tap.mtu,
        },
        mesh: spec.mesh && {
          namespace: meshNamespace(spec.mesh.cluster),
          device: meshDevice({ target: "managed" }),
          mtu: MESH_MTU,
          networks: meshNetworks(spec.mesh),
        },
      },
      filter: spec.hostPorts && { ports: spec.hostPorts },
      limits: { memory: memory === null ? 0 : bytes(memory), cpus: cpus ?? 0 },
      egress: spec.egress && { pods: spec.egress.pods, resolvConf: "/etc/resolv.conf", siblings: LINK_PREFIX },
      publish: spec.ports.map((text) => {
        const { address, port, to } = publishedPort(text);
        return { listen: `${address}:${port}`, to: `${node}:${to}` };
      }),
      restart: spec.restart,
      stopSeconds: STOP,
    });
  }

  readonly keeper: Keeper = {
    plant: (...given) => this.#plant(...given),
    mend: () => this.#mend(),
    save: (folder, as) => this.#save(folder, ...(as === "memory" ? ["--memory"] : [])),
    restore: (...given) => this.#restore(...given),
    pause: (folder, as) => this.#pause(folder, as),
    resume: (folder, as) => this.#resume(folder, as),
  };

  /** Where a restore was killed: before what was there made way, while neither was in its place, or after that. */
  async #mend(): Promise<void> {
    const { rootfs, incoming, replaced } = this.#paths;
    if (existsSync(replaced)) {
      if (existsSync(rootfs) && this.#isAlive()) {
        await this.#discard(replaced);
      } else {
        await this.#clear();
        await this.#putBack();
      }
    }
    await this.#discard(incoming);
    if (this.#isAlive()) await this.#thaw();
  }

  /** Has a sandbox go on that a save has stopped, where that was killed with what watches over it. */
  async #thaw(): Promise<void> {
    const runsc = (verb: string) =>
      worked(
        run(this.record().programs.runsc!, [`--root=${this.#paths.runsc}`, verb, this.ref.name], { timeout: ANSWER }),
      );
    if (/"status": "paused"/.test((await runsc("state")) ?? "")) await runsc("resume");
  }

  /** Puts back what made way for a snapshot. The sandbox must not run. */
  async #putBack(): Promise<void> {
    const { rootfs, incoming, replaced } = this.#paths;
    await this.#discard(incoming);
    if (existsSync(rootfs)) await rename(rootfs, incoming);
    await rename(replaced, rootfs);
    await this.#discard(incoming);
  }

  /** Removes a folder in which the sandbox may have made whatever it liked. */
  async #discard(folder: string): Promise<void> {
    if (existsSync(folder)) await run(await this.#hostProgram(), ["remove", folder]);
  }

  async #save(folder: string, ...how: string[]): Promise<Kept> {
    const { existing, free } = await roomFor(folder);
    const needed = Math.ceil((memoryOf(this.ref.name).used ?? 0) / 2 ** 20) + SPARE;
    if (how.includes("--memory") && free < needed) {
      throw new Error(`no space: ${existing} has ${free} MiB free, and ${needed} MiB are needed`);
    }
    const { stdout } = await run(await this.#hostProgram(), ["save", ...how, this.#paths.spec, folder]);
    return JSON.parse(stdout) as Kept;
  }

  async #restore(
    folder: string,
    { files }: Kept,
    as: KeptAs,
    verified: Promise<void>,
    answers: () => Promise<void>,
  ): Promise<void> {
    const { rootfs, incoming, replaced } = this.#paths;
    const ran = this.#isAlive();
    const all = [verified, this.#unpack(folder, files, incoming), ran ? this.#flush() : undefined];
    const failed = (await Promise.allSettled(all)).find((one) => one.status === "rejected");
    if (failed) {
      await this.#discard(incoming);
      throw failed.reason;
    }
    await this.#clear();
    await rename(rootfs, replaced);
    try {
      await rename(incoming, rootfs);
      await this.#resume(folder, as);
      await answers();
    } catch (error) {
      await this.#clear();
      await this.#putBack();
      const started = ran ? await this.#resume(folder, "files").then(() => "runs", told) : "does not run, as before";
      throw new Error(`${told(error)}\n${this.title} has what it had before, and ${started}`, { cause: error });
    }
    await this.#discard(replaced);
  }

  /** Has what its programs have written reach its disk, as far as it still does what it is told. */
  async #flush(): Promise<void> {
    await worked(this.exec(["/bin/busybox", "sync"], { timeout: ANSWER }));
  }

  async #pause(folder: string, as: KeptAs): Promise<Kept> {
    if (as === "memory") {
      const kept = await this.#save(folder, "--memory", "--end");
      await this.#clear();
      return kept;
    }
    const begin = performance.now();
    await this.#end(STOP);
    return { frozen: Math.round(performance.now() - begin), files: {} };
  }

  async #resume(folder: string, as: KeptAs): Promise<void> {
    const host = await this.#hostProgram();
    await this.#launch(host, as === "memory" ? `--restore=${join(folder, MEMORY)}` : "--again");
    await this.#note(this.record());
  }

  /** Starts the supervisor, and waits until it says that the sandbox answers. */
  async #launch(program: string, ...how: string[]): Promise<void> {
    const { spec, logs } = this.#paths;
    const child = spawn(program, ["supervise", ...how, spec], {
      detached: true,
      cwd: "/",
      env: {},
      stdio: ["ignore", "ignore", "ignore", "pipe"],
    });
    const answer = text(child.stdio[3] as Readable);
    child.unref();
    const failed = new Promise<never>((_, reject) => child.once("error", reject));
    const said = await Promise.race([
      waitFor(
        "the sandbox's supervisor is ready",
        START,
        () => answer,
        () => `see ${logs}/supervisor.log`,
      ),
      failed,
    ]);
    const { ready, error } =
      said === "" ? { ready: false, error: undefined } : (JSON.parse(said) as { ready?: boolean; error?: string });
    if (!ready) throw new Error(advised(error ?? `the sandbox's supervisor ended at once; see ${logs}/supervisor.log`));
  }

  async stop(): Promise<void> {
    await this.#clear();
    await this.#removeState();
  }

  /** Has the supervisor end the sandbox in good order, and removes what is left of it outside its folder. */
  async #end(seconds: number): Promise<void> {
    const record = readRecord(this.ref.name, this.ref.home);
    if (record?.version === 1 && isAlive(record)) {
      // A release up to 0.2 has no supervisor.
      const { runsc } = this.#paths;
      await worked(
        run(record.programs.runsc!, [`--root=${runsc}`, "kill", this.ref.name, "TERM"], { timeout: ANSWER }),
      );
      await waitFor("the sandbox ends", seconds, () => (isAlive(record) ? undefined : true)).catch(() => undefined);
    }
    await endProcess(this.#supervisor(), seconds + 20); // it gives the sandbox its time, and then itself
    await this.#clear();
  }

  /** Removes what a sandbox has outside its folder: processes, network, cgroups. It does not need a runsc that works. */
  async #clear(): Promise<void> {
    const { state, runsc, link, networkNamespace, spec, supervisor } = this.#paths;
    const sandbox = toldOrNot(this.ref)?.sandbox;
    // First, or it would start the sandbox again. One that has just begun has not told yet that it is there.
    await killProcesses("supervise", spec);
    await killProcesses(`--root=${runsc}`);
    if (sandbox && isAlive(sandbox)) await killAndWait(sandbox); // a runtime that is called otherwise than gVisor's
    await killProcesses(`-netns=${networkNamespace}`); // an egress of a release up to 0.2
    await unmountBelow(state);
    for (const path of [runsc, supervisor]) await rm(path, { recursive: true, force: true });
    const mesh = meshNamespace(this.ref.joins ?? this.ref.name);
    await run(await this.#hostProgram(), ["network", "down", link, mesh]);
    const root = "/sys/fs/cgroup";
    for (const controller of existsSync(root) ? ["", ...readdirSync(root)] : []) {
      const group = join(root, controller, "gvisor-k3s");
      await removeCgroup(join(group, this.ref.name));
      await rmdir(group).catch(() => undefined); // of other sandboxes as well, or not there
    }
  }

  /** Removes the folder, in which the sandbox may have made whatever it liked. */
  async #removeState(): Promise<void> {
    const { state } = this.#paths;
    if (existsSync(state)) await run(await this.#hostProgram(), ["remove", state]);
    await rmdir(dirname(state)).catch(() => undefined); // other sandboxes are in it
  }

  /** What runs beside the sandbox: that which it was started with, or, where the cache was emptied, today's. */
  async #hostProgram(): Promise<string> {
    const noted = readRecord(this.ref.name, this.ref.home)?.programs.host;
    if (noted !== undefined && existsSync(noted)) return noted;
    return await hostToday(() => {});
  }
}

function supervisorOf({ name, home }: MachineRef): SupervisorState | undefined {
  const remedy = "delete it, and the next `gvisor-k3s up` starts the sandbox again";
  return readJson<SupervisorState>(hostPaths(name, home).supervisor, remedy);
}

/** The same where it does not matter: a file that is not whole keeps nothing from being removed. */
function toldOrNot(ref: MachineRef): SupervisorState | undefined {
  try {
    return supervisorOf(ref);
  } catch {
    return undefined;
  }
}

/** Whether a sandbox's process runs, be it one that the supervisor has started again. */
export function isRunningHere(ref: MachineRef): boolean {
  const record = readRecord(ref.name, ref.home);
  return record?.version === 1 ? isAlive(record) : isAlive(supervisorOf(ref)?.sandbox);
}

const told = (error: unknown) => (error as Error).message;

const programsOf = ({ runsc, host, init }: ManagedSpec) => ({ runsc, host, init });

async function provideAll({ takes }: ManagedSpec): Promise<void> {
  const say = (line: string) => console.error(line);
  await stageBase(say);
  for (const artifact of takes) await provide(artifact, say);
}

async function killAndWait(process: ProcessId): Promise<void> {
  signalTo(process.pid, "SIGKILL");
  await waitFor(`process ${process.pid} ends`, 20, () => (isAlive(process) ? undefined : true));
}

/** What sandbox-init makes at each start, before anything else: see `boot` in node/init. */
function bootInput(name: string, node: string, { egress, tools }: ManagedSpec): string {
  const file = (path: string, content: string) => encoded({ path, content, mode: 0o644 });
  const links = Object.entries({ "/var/run": "../run", ...prefixed("/usr/local/bin/", tools) });
  return JSON.stringify({
    folders: [
      { path: "/root", mode: "700" },
      ...["/usr/local/bin", "/var/lib", inSandbox.logs].map((path) => ({ path, mode: "755" })),
    ],
    files: [
      file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
      file("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
      file("/etc/hosts", `127.0.0.1 localhost\n::1 localhost\n${node} ${name}\n`),
      file("/etc/hostname", `${name}\n`),
      file(machineId(name).path, machineId(name).content), // the facade leaves that of a cluster that it began with
      file("/etc/resolv.conf", resolvConf(egress !== null)),
      // What the node tells as its OS image.
      file("/etc/os-release", 'ID=gvisor-k3s\nPRETTY_NAME="gvisor-k3s sandbox"\n'),
    ],
    links: links.map(([path, target]) => ({ path, target })),
  });
}

const prefixed = (prefix: string, values: Record<string, string>) =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [prefix + key, value]));

/**
 * The host's resolv.conf; its name servers are asked by way of the egress, or, without one, directly, less those on
 * loopback, which the sandbox cannot reach.
 */
function resolvConf(egress: boolean): string {
  const hosts = existsSync("/etc/resolv.conf") ? readFileSync("/etc/resolv.conf", "utf8") : "";
  const unreachable = egress ? /^\s*nameserver\s/ : /^\s*nameserver\s+(127\.|::1)/;
  const kept = hosts.split("\n").filter((line) => line.trim() !== "" && !unreachable.test(line));
  return `${[...(egress ? [`nameserver ${tap.gateway}`] : []), ...kept].join("\n")}\n`;
}

async function needDiskSpace(home: string): Promise<void> {
  const { existing, free } = await roomFor(home);
  if (free >= NEEDED_MIB) return;
  throw new Error(
    `no space: ${existing} has ${free} MiB free and a sandbox needs ${NEEDED_MIB} MiB; make room, or set ` +
      "GVISOR_K3S_HOME to a folder on another disk",
  );
}

/** Refusals that an option of this project's helps with. */
const ADVICE: Record<string, string> = {
  "cannot run with network enabled in root network namespace":
    "this runsc takes the network namespace of a newer kernel for the host's own: set sandbox.network: host, with " +
    "which it uses the kernel's network stack within the sandbox's own namespace",
  "nftables netdev egress hook":
    "without it the services of this host that listen on every address cannot be kept from the sandbox: set " +
    "sandbox.hostPorts: all to let it reach them",
  "unknown platform": "this runsc does not know the platform: set sandbox.platform to one that it has, such as ptrace",
};

function advised(message: string): string {
  const advice = Object.entries(ADVICE).filter(([refusal]) => message.includes(refusal));
  return [message, ...advice.map(([, remedy]) => remedy)].join("\n");
}

/** A process that was killed leaves its cgroup when the last of its threads has ended, which is after it looks gone. */
async function removeCgroup(group: string): Promise<void> {
  // gVisor's own cgroups are none of the host's; natively (bench/native) the pods have theirs below.
  for (const entry of existsSync(group) ? readdirSync(group, { withFileTypes: true }) : []) {
    if (entry.isDirectory()) await removeCgroup(join(group, entry.name));
  }
  await waitFor(`the cgroup ${group} can be removed`, 20, () =>
    rmdir(group).then(
      () => true,
      (error: NodeJS.ErrnoException) => (error.code === "EBUSY" ? undefined : true),
    ),
  );
}

/** What the sandbox's cgroup counts, in either version of cgroups. */
function memoryOf(name: string): { used: number | null; limit: number | null } {
  const read = (...files: string[]) => {
    const file = files.map((path) => `/sys/fs/cgroup/${path}`).find((path) => existsSync(path));
    const value = file === undefined ? Number.NaN : Number(readFileSync(file, "utf8"));
    return Number.isSafeInteger(value) ? value : null; // "max", and cgroup v1's number for it, are no limit
  };
  const [v1, v2] = [`memory/gvisor-k3s/${name}`, `gvisor-k3s/${name}`];
  return {
    used: read(`${v1}/memory.usage_in_bytes`, `${v2}/memory.current`),
    limit: read(`${v1}/memory.limit_in_bytes`, `${v2}/memory.max`),
  };
}

/** Where something is mounted, in the order of the mounts. */
export function mountPoints(): string[] {
  const decoded = (path: string) =>
    path.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
  const lines = readFileSync("/proc/self/mounts", "utf8").split("\n");
  return lines.map((line) => decoded(line.split(" ")[1] ?? "")); // blanks are written as \040; see proc_pid_mounts(5)
}

/**
 * Takes off what is mounted on a folder or below it. runsc keeps a namespace mounted in its own, and leaves the mount
 * behind when it is killed.
 */
export async function unmountBelow(folder: string): Promise<void> {
  const targets = mountPoints().filter((target) => target === folder || target.startsWith(`${folder}/`));
  if (targets.length === 0) return;
  const busybox = join(await stageBase(), "bin/busybox"); // a bare machine has no umount
  for (const target of targets.reverse()) await run(busybox, ["umount", target]);
}

function rootProblems(): Problem[] {
  if (process.getuid?.() === 0) return [];
  const message = "root is needed to make network namespaces and sandboxes; run it with sudo";
  return [{ option: "user", value: process.getuid?.(), message }];
}

function runscProblems({ sandbox: { runsc } }: StackConfig): Problem[] {
  if (runsc === undefined || !isExecutable(runsc) || says(runsc, "--version").startsWith("runsc version")) return [];
  const message =
    "`--version` of it does not say that it is runsc; give the path of gVisor's runsc, or leave the option out";
  return [{ option: "sandbox.runsc", value: runsc, message }];
}

/** What a cluster that is there has begun with is of no interest any more. */
function fromProblems(config: StackConfig, ref: MachineRef): Problem[] {
  if (config.from === undefined || readRecord(ref.name, ref.home) || seedOf(ref)) return [];
  return seedProblems(config, config.from, ref.home);
}

function egressProblems(config: StackConfig): Problem[] {
  if (!needsEgress(config) || existsSync("/dev/net/tun")) return [];
  const message =
    "the host has no /dev/net/tun; load it (modprobe tun), or set egress.enabled to false: pods and pulls then reach " +
    "no further than the host";
  return [{ option: "egress.enabled", value: true, message }];
}

/** An address of the host in the sandbox's subnet, unless it is this sandbox's own link. */
function subnetProblems({ sandbox }: StackConfig, { name, home }: MachineRef, owner: string | undefined): Problem[] {
  const { link, networkNamespace } = hostPaths(name, home);
  const subnet = parseNetwork(sandbox.subnet)!;
  const problems = takenNetworks([link, ...linksOf(home, owner)])
    .filter(({ network }) => overlap(subnet, network))
    .map(({ device, network }): Problem => {
      const message = `the host's ${device} has ${network.cidr}; choose a network that the host does not use`;
      return { option: "sandbox.subnet", value: sandbox.subnet, message };
    });
  if (existsSync(networkNamespace) && readRecord(name, home) === undefined) {
    const message =
      `a sandbox of this name exists on this machine with another home (network namespace ${link}); choose another ` +
      "name";
    problems.push({ option: "name", value: name, message });
  }
  return problems;
}

/** The links of somebody's own sandboxes: one that has had another name so far makes way before the new one is made. */
function linksOf(home: string, owner: string | undefined): string[] {
  const names = owner === undefined ? [] : machinesIn(home);
  return names.filter((name) => readRecord(name, home)?.owner === owner).map((name) => hostPaths(name, home).link);
}

/** The IPv4 networks of this machine's interfaces, but for some. */
function takenNetworks(except: readonly string[]) {
  return Object.entries(networkInterfaces()).flatMap(([device, addresses]) =>
    (except.includes(device) ? [] : (addresses ?? [])).flatMap(({ cidr }) => {
      const [address, prefix] = (cidr ?? "").split("/");
      const host = parseNetwork(`${address}/32`);
      if (!host) return []; // IPv6
      const size = 2 ** (32 - Number(prefix));
      return [{ device, network: { cidr: cidr!, first: host.first - (host.first % size), size } }];
    }),
  );
}
