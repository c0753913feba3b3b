/**
 * Another machine that is a gVisor sandbox, reached by OpenSSH's client. Everything is done from here: programs are run
 * there, files come and go through sandbox-init, and nothing else of this project is there.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { arch, homedir } from "node:os";
import { dirname, join } from "node:path";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { MESH_MTU, meshDevice, meshNetworks } from "../config/mesh.ts";
import { type Mesh, overlap, parseNetwork } from "../config/network.ts";
import { InputError, type Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { answerOf, isWritable } from "../system/programs.ts";
import { CommandError, lastLines, type Output, oneLine } from "../system/run.ts";
import { BaseMachine } from "./base.ts";
import {
  answerIn,
  type InsideSpec,
  insideRevision,
  insideSpec,
  type MachineAnswer,
  observedOf,
  startedIn,
  startInput,
} from "./inside.ts";
import { lockIn } from "./lock.ts";
import type { Driver, ExecOptions, Lock, LockOptions, Machine, Reached, Start } from "./machine.ts";
import type { Observed, There } from "./observe.ts";
import { hostPaths } from "./paths.ts";
import { checkOwner, type MachineRecord, readRecord, writeRecord } from "./record.ts";
import type { MachineRef } from "./ref.ts";
import { ensureService, LINK_SERVICE, serviceGives } from "./services.ts";
import { closeConnection, controlFolder, hostKey, remotePaths, type SshTarget, sshCommand } from "./sshConnection.ts";
import { holdThere } from "./sshLock.ts";
import { endTunnel, hasTunnel, openTunnel } from "./tunnel.ts";
import { uploadTo } from "./upload.ts";
import { endWire, hasWire, openWire } from "./wire.ts";
import { noteWritten, writtenFiles } from "./written.ts";

/** What is copied to another machine, and the state of an empty cluster, in MiB. */
const NEEDED = 1024;

/** Node.js' names for what `uname -m` tells. */
const ARCHITECTURES: Record<string, string> = { x86_64: "x64", aarch64: "arm64" };

/** What a node takes of a machine: see `askThere`, machines/upload.ts. */
const PROGRAMS = ["tar", "sha256sum"];

/** What such a machine is started with. */
interface SshSpec extends InsideSpec {
  /** What a node that joins a cluster has in common with its other nodes. */
  mesh?: Mesh;
}

/** Where the machine's end of its link is heard. */
const LINK_SOCKET = "/run/gvisor-k3s/link.sock";

/** See {@link Driver}. */
export const ssh: Driver<SshSpec> = {
  durable: false,
  refOf: (config, home) => ({
    kind: "ssh",
    name: config.name,
    home,
    ssh: targetOf(config),
    ...(config.joins ? { joins: config.joins.cluster } : {}),
  }),
  specOf: (config) => ({ ...insideSpec(config), ...(config.joins ? { mesh: config.joins } : {}) }),
  revisionOf: (spec, { name }) => insideRevision(spec, name, remotePaths.home),

  identityOf: ({ name, sandbox, mode, ssh: { host, port } }) => {
    return [name, remotePaths.home, sandbox.subnet, mode, "ssh", host!, String(port)];
  },

  problemsOf(config, { home, ssh: target }) {
    const message = "it cannot be written; set this variable to a folder of yours";
    const own = isWritable(home) ? [] : [{ option: "GVISOR_K3S_HOME", value: home, message }];
    return [...own, ...keyProblems(target!), ...linkProblems(config)];
  },

  problemsThere: (config, { ssh: target }, observed) => problemsThere(config, target!, observed),

  takesOf: ({ takes }) => takes,
  gvisorOf: () => [],
  open: (ref) => new SshMachine(ref),
};

function targetOf({ ssh: options }: StackConfig): SshTarget {
  const {
    host,
    port,
    user,
    privateKey,
    knownHosts = join(homedir(), ".ssh/known_hosts"),
    sudo = user !== "root",
  } = options;
  return { host: host!, port, user, ...(privateKey === undefined ? {} : { privateKey }), knownHosts, sudo };
}

/** Whether a machine that does not answer is left to itself; see `destroy --forget`. */
const FORGETTING = () => process.env.GVISOR_K3S_FORGET !== undefined;

/** What the link of a node that joins a cluster takes here. */
function linkProblems({ joins, ssh: { host } }: StackConfig): Problem[] {
  if (joins === undefined || existsSync("/dev/net/tun")) return [];
  const message = "there is no /dev/net/tun here, which the link to it takes; load it (modprobe tun)";
  return [{ option: "ssh.host", value: host, message }];
}

class SshMachine extends BaseMachine implements Machine {
  get title(): string {
    return `the machine ${this.#target.host}`;
  }

  get #target(): SshTarget {
    return this.ref.ssh!;
  }

  command(args: readonly string[]): readonly string[] {
    return sshCommand(this.#target, controlFolder(this.ref.home), args);
  }

  override async exec(args: readonly string[], options: ExecOptions = {}): Promise<Output> {
    return await super.exec(args, options).catch((error: unknown) => {
      throw error instanceof CommandError ? explained(this.#target, error) : error;
    });
  }

  protected override initPath(): string {
    const { name, home } = this.ref;
    // Before the machine is started there is what was copied for that.
    return (
      readRecord(name, home)?.programs.init ?? join(remotePaths.artifacts, wanted({ name: "init" }).id, "sandbox-init")
    );
  }

  override async init(args: readonly string[], options: ExecOptions = {}): Promise<Output> {
    const { name, home } = this.ref;
    if (readRecord(name, home) === undefined) await this.upload([await provide(wanted({ name: "init" }), say)], say);
    return await super.init(args, options);
  }

  async upload(folders: readonly string[], say: (line: string) => void): Promise<void> {
    await uploadTo(this, folders, say);
  }

  async lock(options: LockOptions): Promise<Lock> {
    const { name, home } = this.ref;
    const here = await lockIn(join(home, "locks", name), options);
    const there = await holdThere(this, options).catch((error: Error) => {
      // What is to be removed from a machine that is gone is locked by nobody there.
      if (options.last && FORGETTING()) return undefined;
      throw options.last ? this.#gone(error) : error;
    });
    return {
      async release(gone) {
        await there?.release(gone);
        await here.release(gone);
      },
    };
  }

  async observe(): Promise<Observed> {
    const { name, home } = this.ref;
    const input = JSON.stringify({ version: 1, name, home: remotePaths.home, files: writtenFiles(this.ref) });
    const { there, answer } = await askThere(this, input);
    const noted = readRecord(name, home);
    if (answer !== undefined) {
      const observed = observedOf(this.ref, answer, noted);
      const { stranger } = observed.there!;
      return withWays(this.ref, { ...observed, there: { ...there, stranger } });
    }
    const lost = noted === undefined ? {} : { noted: noted.incarnation };
    return { state: "absent", ...lost, drift: [], repairs: {}, there, problems: [] };
  }

  async start({ spec, owner, incarnation, repairs }: Start<SshSpec>): Promise<MachineRecord> {
    const { name, home } = this.ref;
    const previous = readRecord(name, home);
    checkOwner(this.ref, previous, owner);
    const folders: string[] = [];
    for (const artifact of spec.takes) folders.push(await provide(artifact, say));
    await this.upload(folders, say);
    const init = join(remotePaths.artifacts, spec.takes[0]!.id, "sandbox-init");
    const input = startInput(this.ref, { spec, owner, incarnation, repairs }, remotePaths.home, remotePaths.artifacts);
    const { address, bridge } = spec;
    const joins = this.ref.joins === undefined ? {} : { joins: this.ref.joins };
    const known = { version: 2, kind: "ssh", ssh: this.#target, repairs, owner, address, bridge, ...joins } as const;
    // Before there is anything there: whoever comes after a kill knows that it was made from here.
    const nothing = { incarnation: 0, revision: "", pid: 0, startTime: "", programs: { init } };
    if (previous === undefined) await writeRecord(name, home, { ...known, ...nothing });
    const { stdout } = await this.exec([init, "machine", "start"], { input, timeout: 90_000 }).catch(
      async (error: unknown) => {
        // Where the machine itself says so, nothing is there; where the way to it is gone, nobody knows.
        if (previous === undefined && error instanceof CommandError && error.exitCode) await this.forget();
        throw error;
      },
    );
    const record: MachineRecord = { ...startedIn(JSON.parse(stdout)), ...known, programs: { init: spec.init } };
    await writeRecord(name, home, record);
    // What ran the steps of a release up to 0.2 there; without it, the ends of its resources do nothing.
    await this.exec(["rm", "-f", join(remotePaths.cache, "runner")]);
    if (spec.mesh) await this.#link(spec, spec.mesh, repairs);
    return record;
  }

  /** Has the node be linked to the others of its cluster. */
  async #link({ init, address }: SshSpec, mesh: Mesh, repairs: number): Promise<void> {
    const link = {
      device: meshDevice({ target: "ssh" }),
      mtu: MESH_MTU,
      address,
      networks: meshNetworks(mesh),
      socket: LINK_SOCKET,
    };
    const command = [init, "link", "serve", JSON.stringify(link)];
    await ensureService(this, { name: LINK_SERVICE, command, config: "", stopSeconds: 5 });
    await serviceGives(this, LINK_SERVICE, { socket: LINK_SOCKET }, 20);
    await noteWritten(this.ref, "sandbox", [], repairs, LINK_SERVICE);
    await openWire(this.ref, { address, command: [init, "link", "attach", LINK_SOCKET] });
  }

  async stop(known?: { address: string; bridge: string }): Promise<void> {
    const { name, home } = this.ref;
    const { address, bridge } = { ...readRecord(name, home), ...known };
    const input = JSON.stringify({ version: 1, name, home: remotePaths.home, address, bridge });
    try {
      await this.#remove(input);
    } catch (error) {
      if (!FORGETTING()) throw this.#gone(error as Error);
      say(`${this.title} does not say that it has removed the node; what is noted of it here is removed`);
    }
    await this.forget();
  }

  /** Says what to do about a machine that is no more. */
  #gone(error: Error): Error {
    const advice = `if ${this.title} is gone for good, the same command with --forget leaves it to itself`;
    return new Error(`${error.message}\n${advice}`, { cause: error });
  }

  /** Removes the node from the machine. */
  async #remove(input: string): Promise<void> {
    const init = this.initPath();
    const { stdout: found } = await this.exec(["sh", "-c", '[ ! -x "$1" ] || echo there', "sh", init]);
    if (found.includes("there")) await this.exec([init, "machine", "stop"], { input, timeout: 120_000 });
    // The folder of another cluster's node is still there then.
    const script =
      'rmdir "$1/sandboxes" 2> /dev/null; [ -e "$1/sandboxes" ] || { rm -rf "$2" && { rmdir "$1" || true; } }';
    await this.exec(["sh", "-c", script, "sh", remotePaths.home, remotePaths.cache]);
  }

  /** Removes what is noted here, unless the cluster has moved to another machine. */
  async forget(): Promise<void> {
    const { name, home } = this.ref;
    const { state } = hostPaths(name, home);
    await endTunnel(this.ref);
    if (this.ref.joins) await endWire(this.ref);
    if (this.ref.ssh) await closeConnection(this.ref.ssh, controlFolder(home));
    await rm(state, { recursive: true, force: true });
    for (const folder of [dirname(state), join(home, "ssh")]) await rmdir(folder).catch(() => undefined);
  }

  async reach(server: { address: string; port: number; ca: string }): Promise<Reached> {
    return await openTunnel(this.ref, server);
  }
}

const say = (line: string) => console.error(line);

/** Characters of a word that a machine says, and how many of a kind are taken. */
const [LONGEST, MOST] = [200, 50];

/** What is observed, with whether the processes are there that lead to the machine: a step starts each again. */
function withWays(ref: MachineRef, observed: Observed): Observed {
  if (observed.state !== "running" || (ref.joins ? hasWire(ref) : hasTunnel(ref))) return observed;
  const [step, what] = ref.joins
    ? ["sandbox", "the link to the other nodes is gone"]
    : ["kubeconfig", "the SSH tunnel to the API server is gone"];
  const repairs = { ...observed.repairs, [step]: (observed.repairs[step] ?? 0) + 1 };
  return { ...observed, repairs, cutOff: true, problems: [...observed.problems, what] };
}

/** Asks a machine how it is, by a shell: nothing of this project need be there. */
async function askThere(machine: SshMachine, input: string): Promise<{ there: There; answer?: MachineAnswer }> {
  const { home, artifacts } = remotePaths;
  const folders = ["/etc/cni", "/etc/containerd", "/etc/rancher", "/run/containerd", "/var/lib/cni"].concat([
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/rancher",
  ]);
  const { name } = machine.ref;
  const script = `echo "arch $(uname -m)"
{ dmesg -S || dmesg; } 2> /dev/null | grep -q 'Starting gVisor' && echo gvisor
[ -z "$1" ] || [ -c /dev/net/tun ] || echo "missing /dev/net/tun"
while read -r device to by rest; do case $device in lo|Iface|gk-nodes) ;; *) echo "route $to $by $rest";; esac; done \
  < /proc/net/route
for program in ${PROGRAMS.join(" ")}; do command -v $program > /dev/null || echo "missing $program"; done
[ -e /etc/resolv.conf ] || echo "missing /etc/resolv.conf"
for folder in ${folders.join(" ")}; do [ -d $folder ] && [ -n "$(ls -A $folder)" ] && echo "taken $folder"; done
df -P -k /var/lib | { read -r header; read -r device size used free rest; echo "free $free"; }
for init in ${artifacts}/init-*/sandbox-init; do last=$init; done
if [ -x "$last" ] && [ -e ${home}/sandboxes/${name} ]; then printf 'observed '; "$last" machine observe || exit 1; fi
`;
  const { stdout } = await machine.exec(["sh", "-c", script, "sh", machine.ref.joins ?? ""], { input });
  const lines = stdout.split("\n");
  const words = (word: string) =>
    lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1));
  const all = (word: string) =>
    words(word)
      .slice(0, MOST)
      .map((text) => oneLine(text.slice(0, LONGEST)));
  const observed = words("observed")[0];
  const answer = observed === undefined ? undefined : answerIn(observed);
  if (observed !== undefined && answer === undefined)
    throw new Error(`${machine.title} does not tell how it is, but ${oneLine(observed.slice(0, LONGEST))}`);
  return {
    there: {
      arch: all("arch")[0] ?? "",
      isGvisor: lines.includes("gvisor"),
      missing: all("missing"),
      taken: all("taken"),
      free: Math.floor(Number(all("free")[0] ?? 0) / 1024),
      stranger: false,
      networks: all("route").flatMap(networksOf),
    },
    ...(answer === undefined ? {} : { answer }),
  };
}

/**
 * The network that a route leads to, and the address by which; of a line of /proc/net/route: the network, the gateway, what
 * is of no interest here, and the mask, in hexadecimal digits, the last byte first.
 */
function networksOf(line: string): string[] {
  const [to, by, , , , , mask] = line.split(/\s+/);
  const bytes = [to, by, mask].map((hex) =>
    /^[0-9A-Fa-f]{8}$/.test(hex ?? "") ? Buffer.from(hex!, "hex").reverse() : undefined,
  );
  const [network, gateway, bits] = bytes;
  if (!network || !gateway || !bits) return [];
  const length = bits.reduce((sum, byte) => sum + byte.toString(2).replaceAll("0", "").length, 0);
  const isAny = (address: Buffer) => address.every((byte) => byte === 0);
  return [
    ...(isAny(network) ? [] : [`${network.join(".")}/${length}`]),
    ...(isAny(gateway) ? [] : [`${gateway.join(".")}/32`]),
  ];
}

function meet(one: string, other: string): boolean {
  const [a, b] = [parseNetwork(one), parseNetwork(other)];
  return a !== undefined && b !== undefined && overlap(a, b);
}

/** What stands in the way on a machine that answers. */
function problemsThere({ name, joins }: StackConfig, { host }: SshTarget, { record, there }: Observed): Problem[] {
  if (there === undefined) return [];
  const own = joins ? meshNetworks(joins) : [];
  const problem = (message: string): Problem => ({ option: "ssh.host", value: host, message });
  const problems: Problem[] = [];
  if (!there.isGvisor) {
    const message = "it is no gVisor sandbox, and the node would be on its kernel; give a machine that is one, or use";
    problems.push(problem(`${message} target: managed on it`));
  }
  if (ARCHITECTURES[there.arch] !== arch()) {
    problems.push(
      problem(`it is ${there.arch}, and what is built here is for ${arch()}; run this on a machine like it`),
    );
  }
  if (there.missing.length > 0) {
    const advice = "(on Debian: apt-get install tar coreutils)";
    problems.push(problem(`it lacks ${there.missing.join(", ")}; a node needs them ${advice}`));
  }
  if (there.stranger) {
    const message = `${host} has a node of this name that was made from elsewhere; choose another machine, or destroy it`;
    problems.push({ option: "name", value: name, message: `${message} from there` });
  }
  if (record !== undefined) return problems;
  // The machine would look for it on the link, and be reached no more.
  const between = (there.networks ?? []).find((text) => own.some((mesh) => meet(text, mesh)));
  if (between !== undefined) {
    const message = `it is on the network ${between}, and the cluster's nodes have their addresses in ${own.join(" and ")}`;
    problems.push(problem(`${message}; give a machine on another network`));
  }
  if (there.taken.length > 0) {
    const message = `it has a container runtime or a node already, or what one left: ${there.taken.join(", ")}; a node`;
    problems.push(problem(`${message} needs these for itself: remove them, or give another machine`));
  }
  if (there.free < NEEDED) {
    problems.push(problem(`/var/lib has ${there.free} MiB free there, and a node needs ${NEEDED} MiB; make room`));
  }
  return problems;
}

/** What ssh or sudo says, as an error that names the option that helps; what the command itself says stays as it is. */
function explained(target: SshTarget, error: CommandError): Error {
  const problem = problemOf(target, error.exitCode, error.output);
  return problem === undefined ? error : new InputError([problem]);
}

/** ssh's own exit code. */
const SSH_FAILED = 255;

function problemOf(target: SshTarget, exitCode: number | undefined, output: string): Problem | undefined {
  const { host, port, user, privateKey, knownHosts } = target;
  const last = lastLines(output, 1).slice(0, LONGEST);
  if (/^sudo:|not in the sudoers/m.test(output)) {
    const message = `it cannot become root on ${host} without a password (${last}); allow that in sudoers, or give`;
    return { option: "ssh.user", value: user, message: `${message} another user` };
  }
  if (exitCode !== SSH_FAILED) return undefined;
  if (/HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No \S+ host key is known/.test(output)) {
    const entry = port === 22 ? host : `[${host}]:${port}`;
    const message =
      `the key of ${host} is not the one that is noted there: it was set up anew, or somebody answers in its place. ` +
      `Compare \`ssh-keyscan -p ${port} ${host}\` with the machine's own /etc/ssh/ssh_host_*_key.pub; if they are ` +
      `the same, \`ssh-keygen -R ${entry} -f ${knownHosts}\` forgets the old one`;
    return { option: "ssh.knownHosts", value: knownHosts, message };
  }
  if (/Permission denied/.test(output)) {
    const which = privateKey === undefined ? "no key of the SSH agent is" : "the key is not";
    const message = `${which} accepted by ${host} for the user ${user} (${last}); put its public part into that user's`;
    return {
      option: "ssh.privateKey",
      value: privateKey,
      message: `${message} ~/.ssh/authorized_keys, or give another key`,
    };
  }
  return { option: "ssh.host", value: host, message: `it is not reached at port ${port} (${last})` };
}

/** What is wrong with the keys, as far as this machine tells. */
function keyProblems(target: SshTarget): Problem[] {
  const { host, port, knownHosts } = target;
  if (answerOf("ssh", ["-V"]) === undefined) {
    const message = "there is no OpenSSH client here; install it (Debian: apt-get install openssh-client)";
    return [{ option: "target", value: "ssh", message }];
  }
  const problems = privateKeyProblems(target);
  if (hostKey(target) === undefined) {
    const message =
      `no key of ${host} is noted there, so nobody could tell it from another machine; ` +
      `\`ssh-keyscan -p ${port} ${host} >> ${knownHosts}\`, and compare that with the machine's own ` +
      "/etc/ssh/ssh_host_*_key.pub";
    problems.push({ option: "ssh.knownHosts", value: knownHosts, message });
  }
  return problems;
}

function privateKeyProblems({ privateKey }: SshTarget): Problem[] {
  const option = "ssh.privateKey";
  if (privateKey === undefined) {
    if (process.env.SSH_AUTH_SOCK !== undefined) return [];
    return [{ option, message: "it is missing, and no SSH agent runs (SSH_AUTH_SOCK); give the file of a key" }];
  }
  const problem = (message: string): Problem[] => [{ option, value: privateKey, message }];
  if (!existsSync(privateKey)) return problem("there is no such file");
  if (!readFileSync(privateKey, "utf8").includes("PRIVATE KEY-----")) {
    return problem("it is no private key; give the file without .pub");
  }
  if (answerOf("ssh-keygen", ["-y", "-P", "", "-f", privateKey]) !== undefined) return [];
  return problem(
    "it cannot be used as it is: it is encrypted, or others may read it. An encrypted key is for the SSH agent: " +
      "`ssh-add` it and leave the option out; else `chmod 600` it",
  );
}
