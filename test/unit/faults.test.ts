/**
 * A step that is killed anywhere, on a machine in memory: whatever was half done, the next run goes on from there, and no
 * data of the user's is lost. On a real machine, test/e2e/faults.test.ts does it at some of these places.
 */
import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { inSandbox } from "../../config/paths.ts";
import { FakeMachine, Killed } from "../../machines/fake.ts";
import { lastReady } from "../../servers/ready.ts";
import type { Stage } from "../../servers/server.ts";
import { awaitNode } from "../../steps/ready.ts";
import { ensureServer } from "../../steps/server.ts";

// In memory, where it is there: each of some thousand runs syncs its files.
const folder = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "gvisor-k3s-faults-"));
afterAll(() => rmSync(folder, { recursive: true }));

const state = `${inSandbox.nodeData}/server/db/state.db`;

/** What the datastore holds: the objects of its users, in the form of the server that wrote it last. */
interface Data {
  form: string;
  objects: string[];
}

const dataOf = (machine: FakeMachine) => JSON.parse(machine.files.get(state)!) as Data;

/** Servers: each brings the data into its form when it starts; `broken` destroys them, and does not become ready. */
function starts({ name, command }: { name: string; command: string[] }, machine: FakeMachine): boolean {
  if (name !== "server") return true;
  const [program] = command;
  const before = machine.files.get(state);
  const { form, objects } = before === undefined ? { form: program!, objects: [] } : (JSON.parse(before) as Data);
  const broken = program!.includes("broken");
  const readable = form === program || Number(form.slice(-1)) < Number(program!.slice(-1));
  if (!readable) return false; // the data of a newer one
  machine.files.set(state, JSON.stringify(broken ? { form: program, objects: [] } : { form: program, objects }));
  return !broken;
}

/** The three that there are; a newer one reads what an older one has written, and not the other way round. */
const [old, good, broken] = ["/opt/server-1", "/opt/server-2", "/opt/broken-3"];

let count = 0;

/** A cluster of the old server, with something of its user's in it. */
async function cluster(): Promise<FakeMachine> {
  const machine = new FakeMachine({ kind: "managed", name: "a", home: join(folder, String(count++)) }, { starts });
  await run(machine, old!);
  machine.files.set(state, JSON.stringify({ ...dataOf(machine), objects: ["precious"] }));
  return machine;
}

const serverOf = (program: string) =>
  ({ distribution: "embedded", server: program, kubectl: program, version: `v1.${program.slice(-1)}.0` }) as const;

const contextOf = (machine: FakeMachine, content = "") => ({ machine, content, incarnation: 1, repairs: 0, say() {} });

async function run(machine: FakeMachine, server: string, content = "config", stage: Stage = "node"): Promise<void> {
  const params = { machine: machine.ref, server: serverOf(server), takes: { artifacts: [], own: [] }, stage };
  await ensureServer.run(params, contextOf(machine, content));
}

/** The same cluster, as it is now, to be worked on apart. */
function copied(machine: FakeMachine): FakeMachine {
  const home = join(folder, String(count++));
  cpSync(machine.ref.home, home, { recursive: true });
  const copy = new FakeMachine({ ...machine.ref, home }, { starts });
  for (const [path, content] of machine.files) copy.files.set(path, content);
  for (const [name, service] of machine.services) copy.services.set(name, structuredClone(service));
  return copy;
}

/** What runs, and what must be so whenever a step has ended well, or has gone back. */
function expectRunning(machine: FakeMachine, server: string): void {
  expect(machine.services.get("server")).toMatchObject({
    command: [server, ...Array(3).fill(expect.anything())],
    ready: true,
  });
  expect(dataOf(machine)).toEqual({ form: server, objects: ["precious"] });
  expect(lastReady(machine.ref)!.server).toBe(server);
}

const copies = (machine: FakeMachine) => [...machine.files.keys()].filter((path) => path.includes("/db.before-"));

/** Every place at which a run of an upgrade can be killed, before and after each of its operations. */
async function placesOf(machine: FakeMachine, server: string): Promise<{ at: number; done: boolean }[]> {
  const trial = copied(machine);
  await run(trial, server).catch(() => undefined);
  const places = Array.from(trial.operations, (_, at) => [false, true].map((done) => ({ at, done })));
  expect(places.length).toBeGreaterThan(8);
  return places.flat();
}

/** Runs an upgrade that is killed. */
async function killed(
  machine: FakeMachine,
  server: string,
  { at, done }: { at: number; done: boolean },
): Promise<FakeMachine> {
  const victim = copied(machine);
  victim.killAt(at, done);
  await run(victim, server).catch((error: Error) => expect([Killed.name, "Error"]).toContain(error.name));
  victim.spare();
  return victim;
}

describe("an upgrade", () => {
  it("keeps the data, and leaves no copy", async () => {
    const machine = await cluster();
    await run(machine, good!);
    expectRunning(machine, good!);
    expect(copies(machine)).toEqual([]);
  });

  it("that does not become ready goes back to the server of before, with its data", async () => {
    const machine = await cluster();
    await expect(run(machine, broken!)).rejects.toThrow(/the server of before, v1\.1\.0, runs again, as it was$/);
    expectRunning(machine, old!);
    expect([...machine.files.keys()].filter((path) => /\/db\.(before|after|part)/.test(path))).toEqual([]);
  });

  it("killed anywhere goes on with the next run", async () => {
    const machine = await cluster();
    for (const place of await placesOf(machine, good!)) {
      const victim = await killed(machine, good!, place);
      await run(victim, good!);
      expectRunning(victim, good!);
      expect(copies(victim)).toEqual([]);
    }
  });

  it("killed anywhere can be given up: the server of before runs again with its data", async () => {
    const machine = await cluster();
    for (const place of await placesOf(machine, good!)) {
      const victim = await killed(machine, good!, place);
      // One that was noted as ready has no way back: its own data are not the older one's.
      if (lastReady(victim.ref)!.server === good) continue;
      await run(victim, old!);
      expectRunning(victim, old!);
      expect(copies(victim)).toEqual([]);
    }
  });

  it("to a server that destroys the data, killed anywhere, loses none of them, however often it is tried", async () => {
    const machine = await cluster();
    for (const place of await placesOf(machine, broken!)) {
      const victim = await killed(machine, broken!, place);
      for (let again = 0; again < 2; again++) {
        await expect(run(victim, broken!)).rejects.toThrow(/runs again, as it was/);
        expectRunning(victim, old!);
      }
      await run(victim, good!);
      expectRunning(victim, good!);
    }
  });

  it("killed twice, at any two places, loses nothing either", async () => {
    const machine = await cluster();
    for (const first of await placesOf(machine, broken!)) {
      const once = await killed(machine, broken!, first);
      for (const second of await placesOf(once, good!)) {
        const twice = await killed(once, good!, second);
        await run(twice, good!);
        expectRunning(twice, good!);
      }
    }
  }, 60_000);

  it("whose copy does not fit on the disk changes nothing, and the server runs again", async () => {
    const machine = await cluster();
    const full = new FakeMachine(machine.ref, {
      starts,
      runs: ([program]) => {
        if (program === "/bin/cp") throw new Error("cp: No space left on device");
        return undefined;
      },
    });
    for (const [path, content] of machine.files) full.files.set(path, content);
    for (const [name, service] of machine.services) full.services.set(name, service);
    await expect(run(full, good!)).rejects.toThrow(/could not be copied, so nothing was changed: .*No space left/);
    expectRunning(full, old!);
  });
});

describe("another configuration of the same server", () => {
  it("that does not become ready makes way for the one of before", async () => {
    const machine = await cluster();
    const picky = new FakeMachine(machine.ref, {
      starts: (service, fake) => fake.files.get(inSandbox.nodeConfig) !== "wrong" && starts(service, fake),
    });
    for (const [path, content] of machine.files) picky.files.set(path, content);
    await expect(run(picky, old!, "wrong")).rejects.toThrow(/runs again, as it was$/);
    expect(picky.files.get(inSandbox.nodeConfig)).toBe("config");
    expectRunning(picky, old!);
  });
});

describe("the first server of a cluster", () => {
  it("is gone back to only once its node was Ready", async () => {
    const home = join(folder, String(count++));
    const machine = new FakeMachine({ kind: "managed", name: "a", home }, { starts });
    await run(machine, old!, "a kubelet that never is", "api");
    expect(lastReady(machine.ref)).toBeUndefined();
    await run(machine, good!, "another", "api");
    expect(lastReady(machine.ref), "no upgrade: there was nothing before").toBeUndefined();
    expect(copies(machine)).toEqual([]);
    await awaitNode.run({ machine: machine.ref, server: serverOf(good!) }, contextOf(machine));
    expect(lastReady(machine.ref)).toMatchObject({ server: good, config: "another" });
    await expect(run(machine, broken!, "another", "api")).rejects.toThrow(/runs again, as it was$/);
  });
});
