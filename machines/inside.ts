/**
 * The machine that this runs on as the sandbox: it is one already, and only takes what process 1 of a managed sandbox
 * does.
 * @module
 */
import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { artifactsFolder, pathInSandbox, provide, type Wanted, wanted } from "../artifacts/artifacts.ts";
import { linkAddresses } from "../config/network.ts";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { type Output, run } from "../system/run.ts";
import { ANSWER, BaseMachine, lockFolder } from "./base.ts";
import { lockIn } from "./lock.ts";
import type { Driver, ExecOptions, Lock, LockOptions, Machine, Reached, Start } from "./machine.ts";
import type { Observed, There } from "./observe.ts";
import { hostPaths } from "./paths.ts";
import { checkOwner, type MachineRecord, readRecord, writeRecord } from "./record.ts";
import type { MachineRef } from "./ref.ts";
import { driftIn, repairsOf, writtenFiles } from "./written.ts";

/** What a machine that is a sandbox already is started with. */
export interface InsideSpec {
  takes: Wanted[];
  /** sandbox-init by its path on the machine. */
  init: string;
  /** The node's address: an address of the machine's loopback device, and so of nobody else's. */
  address: string;
  /** The pods' bridge, which has a namespace of its own of the same name. */
  bridge: string;
}

/**
 * What sandbox-init tells of the machine that it is on; see `machine observe` in node/init. Of one that is elsewhere, root
 * there may tell anything.
 */
const machineAnswer = z.object({
  record: z.record(z.string(), z.unknown()).nullable(),
  alive: z.boolean(),
  answers: z.boolean(),
  files: z
    .record(z.string(), z.object({ sha256: z.string().optional(), absent: z.boolean().optional() }))
    .nullable()
    .transform((files) => files ?? {}),
  services: z
    .record(z.string(), z.unknown())
    .nullable()
    .transform((services) => services ?? {}),
  /** MiB. */
  free: z.number(),
  arch: z.string(),
  gvisor: z.boolean(),
  taken: z
    .array(z.string())
    .nullable()
    .transform((taken) => taken ?? []),
});
export type MachineAnswer = z.output<typeof machineAnswer>;

/** Takes it out of a text; undefined if that is something else. */
export function answerIn(text: string): MachineAnswer | undefined {
  try {
    return machineAnswer.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** What the options say of such a machine, wherever it is. */
export function insideSpec({ sandbox, network }: StackConfig): InsideSpec {
  return {
    takes: [wanted({ name: "init" })],
    init: pathInSandbox({ name: "init" }, "sandbox-init"),
    address: linkAddresses(sandbox.subnet).node,
    bridge: network.bridge,
  };
}

/** A hash of all that such a machine is started with. */
export function insideRevision({ init, address }: InsideSpec, name: string, home: string): string {
  return createHash("sha256")
    .update(JSON.stringify([name, home, address, init]))
    .digest("hex");
}

/** See {@link Driver}. */
export const inside: Driver<InsideSpec> = {
  durable: false,
  refOf: ({ name }, home) => ({ kind: "inside", name, home }),
  specOf: insideSpec,
  revisionOf: (spec, { name, home }) => insideRevision(spec, name, home),
  identityOf: ({ name, sandbox, mode }, { home }) => [name, home, sandbox.subnet, mode, "inside"],

  problemsOf() {
    if (process.getuid?.() === 0) return [];
    const message = "root is needed to run a node on this machine; run it with sudo";
    return [{ option: "user", value: process.getuid?.(), message }];
  },

  problemsThere: (config, _, observed) => (observed.there ? takenProblems(observed.there, observed, config) : []),

  takesOf: ({ takes }) => takes,
  gvisorOf: () => [],
  open: (ref) => new ThisMachine(ref),
};

/** What a node would take over that is somebody else's. */
function takenProblems({ taken }: There, { record }: Observed, { target }: StackConfig): Problem[] {
  if (record !== undefined || taken.length === 0) return [];
  const message =
    "this machine has a container runtime or a node already, or what one left: " +
    `${taken.join(", ")}; a node needs these for itself: remove them, or use target: managed`;
  return [{ option: "target", value: target, message }];
}

class ThisMachine extends BaseMachine implements Machine {
  readonly title = "this machine";

  command(args: readonly string[]): readonly string[] {
    return args;
  }

  /** sandbox-init from the cache: nothing is linked to it before the machine is started. */
  async #init(args: readonly string[], options: ExecOptions): Promise<string> {
    const init = wanted({ name: "init" });
    const folder = await provide(init, (line) => console.error(line));
    return (await run(join(folder, "sandbox-init"), args, options)).stdout;
  }

  override async init(args: readonly string[], options: ExecOptions = {}): Promise<Output> {
    const { name, home } = this.ref;
    if (readRecord(name, home)?.programs.init) return await super.init(args, options);
    return { stdout: await this.#init(args, options), stderr: "" };
  }

  async upload(): Promise<void> {} // the artifact cache is linked to where it finds it

  async lock(options: LockOptions): Promise<Lock> {
    return await lockIn(lockFolder(this.ref.name), options);
  }

  async reach({ address, port }: { address: string; port: number }): Promise<Reached> {
    return { address, port };
  }

  async observe(): Promise<Observed> {
    const { name, home } = this.ref;
    const input = JSON.stringify({ version: 1, name, home, files: writtenFiles(this.ref) });
    const answer = answerIn(await this.#init(["machine", "observe"], { input, timeout: ANSWER }));
    if (answer === undefined) throw new Error("sandbox-init does not tell how this machine is; run it again");
    return observedOf(this.ref, answer, readRecord(name, home));
  }

  async start({ spec, owner, incarnation, repairs }: Start<InsideSpec>): Promise<MachineRecord> {
    const { name, home } = this.ref;
    const previous = readRecord(name, home);
    checkOwner(this.ref, previous, owner);
    const input = startInput(this.ref, { spec, owner, incarnation, repairs }, home, artifactsFolder());
    const started = JSON.parse(await this.#init(["machine", "start"], { input, timeout: 90_000 })) as MachineRecord;
    const record: MachineRecord = { ...started, kind: "inside", repairs, programs: { init: spec.init } };
    await writeRecord(name, home, record);
    await rm(join(hostPaths(name, home).state, "sandbox.json"), { force: true }); // of a release up to 0.2
    return record;
  }

  async stop(known?: { address: string; bridge: string }): Promise<void> {
    const { name, home } = this.ref;
    const { address, bridge } = { ...readRecord(name, home), ...known };
    const input = JSON.stringify({ version: 1, name, home, address, bridge });
    await this.#init(["machine", "stop"], { input, timeout: 120_000 });
  }
}

/** What `machine start` of sandbox-init takes. */
export function startInput(
  { name }: MachineRef,
  { spec, owner, incarnation }: Start<InsideSpec>,
  home: string,
  artifacts: string,
): string {
  const { address, bridge } = spec;
  const revision = insideRevision(spec, name, home);
  const environment = SANDBOX_ENVIRONMENT;
  return JSON.stringify({
    version: 1,
    name,
    home,
    owner,
    address,
    bridge,
    artifacts,
    revision,
    incarnation,
    environment,
  });
}

/** What a machine tells of the start of its process, of which nothing else is taken. */
export function startedIn(told: unknown): Pick<MachineRecord, "incarnation" | "revision" | "pid" | "startTime"> {
  const { incarnation, revision, pid, startTime } = (told ?? {}) as Record<string, unknown>;
  const count = (value: unknown) => (Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : 0);
  const word = (value: unknown) => (typeof value === "string" && /^[0-9a-z]{0,64}$/.test(value) ? value : "");
  return { incarnation: count(incarnation), revision: word(revision), pid: count(pid), startTime: word(startTime) };
}

/** What a machine's own answer means. */
export function observedOf(ref: MachineRef, answer: MachineAnswer, noted: MachineRecord | undefined): Observed {
  const { record, alive, answers, files, services, free, arch, gvisor, taken } = answer;
  const stranger = record !== null && noted === undefined;
  const there: There = { arch, isGvisor: gvisor, missing: [], taken, free, stranger };
  if (record === null) {
    const lost = noted === undefined ? {} : { noted: noted.incarnation };
    return { state: "absent", ...lost, drift: [], repairs: {}, there, problems: [] };
  }
  const known: MachineRecord = {
    version: record.version === 1 ? 1 : 2,
    kind: ref.kind,
    ...startedIn(record),
    repairs: 0,
    programs: noted?.programs ?? { init: "" },
  };
  const drift = alive && answers ? driftIn(ref, files) : [];
  const state = !alive ? "stopped" : answers ? "running" : "silent";
  const repairs = repairsOf(ref, drift, state === "running" ? services : undefined);
  const problems = state === "silent" ? ["sandbox-init does not answer"] : [];
  return { state, record: known, drift, repairs, there, problems };
}
