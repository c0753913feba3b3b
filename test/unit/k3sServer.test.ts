/** What is asked of k3s before it counts as started, against a machine whose answers are made up. */
import { describe, expect, it } from "vitest";
import type { Machine } from "../../machines/machine.ts";
import { openServer } from "../../servers/index.ts";
import { run } from "../../system/run.ts";

/** What the machine says at one moment. */
interface Moment {
  pid: number;
  /** The process at the end of the questions, if it is another one. */
  after?: number;
  restarts?: number;
  /** What the API server says of the scheduler and the controllers. */
  components?: string;
  kubelet?: string;
}

/** A machine on which each round of questions is about the next of these moments, and at last about the last one. */
function machineWith(moments: Moment[], { log = "" } = {}) {
  let asked = 0;
  const now = () => moments[Math.min(asked, moments.length - 1)]!;
  const exec = async (args: readonly string[]) => {
    const line = args.join(" ");
    if (args[0] === "/bin/grep") {
      const lines = log.split("\n").filter((text) => /Unknown flag|Starting k3s v/.test(text));
      return { stdout: lines.join("\n") };
    }
    if (line.includes("serviceaccount")) return { stdout: "serviceaccount/default" };
    if (line.includes("componentstatuses")) return { stdout: now().components ?? "TrueTrue" };
    return now().kubelet === undefined ? await run("false", []) : { stdout: now().kubelet };
  };
  let looks = 0;
  const machine = {
    ref: { kind: "managed", name: "n", home: "/nowhere" },
    exec,
    // The state is looked at before the first question of a round and after the last.
    init: async () => {
      const isLast = looks > 0 && looks % 2 === 0;
      if (looks > 1 && !isLast) asked++;
      looks++;
      const { pid, after = pid, restarts = 0 } = now();
      return { stdout: JSON.stringify({ server: { pid: isLast ? after : pid, restarts, lastExit: "exit status 1" } }) };
    },
    read: async () => log,
  };
  return { machine: machine as unknown as Machine, rounds: () => asked + 1 };
}

const server = openServer({ distribution: "k3s", server: "/k3s", kubectl: "/kubectl", version: "v1.36.3+k3s1" });

describe("k3s", () => {
  it("is awaited until its scheduler, its controllers and its kubelet answer", async () => {
    const { machine, rounds } = machineWith([
      { pid: 7, components: "FalseTrue" },
      { pid: 7 },
      { pid: 7, kubelet: "[-]syncloop failed" },
      { pid: 7, after: 8, kubelet: "ok" },
      { pid: 8, kubelet: "ok" },
    ]);
    await server.reached(machine, "agent", "");
    expect(rounds()).toBe(5);
  });

  it("is a control plane without a kubelet where its config says so", async () => {
    const { machine } = machineWith([{ pid: 7 }]);
    await server.reached(machine, "agent", "disable-agent: true\n");
  });

  it("that keeps ending is an error with what it said before it ended, not with what its next start says", async () => {
    const log = [
      "the logging configuration should not be changed after setting it once",
      "sandbox-init: server ended: exit status 1; it starts again in 1s",
      "a next start",
    ].join("\n");
    const { machine } = machineWith([{ pid: 7 }, { pid: 8, restarts: 3 }], { log });
    const error = await server.reached(machine, "agent", "").catch((reason: Error) => reason.message);
    expect(error).toMatch(/server keeps ending, the last time with exit status 1\n(.|\n)*should not be changed/);
    expect(error).not.toContain("a next start");
  });

  it("that skips keys of its config is an error that names them, and not those of an earlier start", async () => {
    const unknown = (flag: string) => `level=warning msg="Unknown flag --${flag} found in config.yaml, skipping\\n"`;
    const started = 'level=info msg="Starting k3s v1.36.3+k3s1 (abc)"';
    const moments = [{ pid: 7, kubelet: "ok" }];
    const said = (...log: string[]) => machineWith(moments, { log: log.join("\n") }).machine;
    await expect(
      server.reached(said(unknown("old"), started, unknown("a"), unknown("b-c"), started), "agent", ""),
    ).rejects.toThrow("v1.36.3+k3s1 does not know, and skips, what its config has: a, b-c; take another k3s");
    await server.reached(said(unknown("old"), started, started), "agent", "");
    await server.reached(said(), "agent", "");
  });
});
