import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { sandboxPaths } from "../../config/paths.ts";
import { isAlive, nextIncarnation, processStart } from "../../steps/record.ts";
import { CommandError, run, runsWell } from "../../steps/run.ts";
import { waitFor } from "../../steps/wait.ts";

describe("a program that fails", () => {
  const failure = async (program: string, args: string[], options = {}) => (await run(program, args, options).catch((error: unknown) => error)) as CommandError;

  it("is told with its command line, its end and what it said", async () => {
    const error = await failure("sh", ["-c", "echo out; echo err >&2; exit 3"]);
    expect(error).toBeInstanceOf(CommandError);
    expect(error.message).toBe("exit code 3: sh -c 'echo out; echo err >&2; exit 3'\n    out\n    err");
  });

  it("is told when it is killed, takes too long or is not there", async () => {
    expect((await failure("sh", ["-c", "kill -9 $$"])).message).toMatch(/^ended by SIGKILL: sh/);
    expect((await failure("sleep", ["60"], { timeout: 50 })).message).toBe("took too long: sleep 60");
    expect((await failure("no-such-program", [])).message).toMatch(/ENOENT.*: no-such-program$/);
  });

  it("tells only the end of much", async () => {
    const error = await failure("sh", ["-c", "seq 100; exit 1"]);
    expect(error.message.split("\n")).toHaveLength(21);
    expect(error.output.split("\n")).toHaveLength(100);
  });

  it("is an answer where one was asked for", async () => {
    expect(await runsWell("false", [])).toBeUndefined();
    expect(await runsWell("echo", ["yes"])).toBe("yes");
  });
});

describe("waitFor", () => {
  it("returns the first answer", async () => {
    let calls = 0;
    expect(await waitFor("three", 60, () => (++calls === 3 ? calls : undefined))).toBe(3);
  });

  it("tells what it waited for and the last state, and passes a probe's own error on", async () => {
    await expect(waitFor("rain", 0, () => undefined, () => "a blue sky")).rejects.toThrow("rain: not within 0 s\na blue sky");
    await expect(waitFor("rain", 60, () => Promise.reject(new Error("no sky")))).rejects.toThrow("no sky");
  });
});

describe("the record of a sandbox", () => {
  it("tells a process that lives from one that ended, and from another with its id", async () => {
    const child = spawn("sleep", ["60"]);
    const record = { incarnation: 4, pid: child.pid!, startTime: processStart(child.pid!)!, revision: "" };
    expect(isAlive(record)).toBe(true);
    expect(isAlive({ ...record, startTime: "1" })).toBe(false);
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(isAlive(record)).toBe(false);
  });

  it("counts the next start: 1 for a new sandbox, the same while it lives, one more when it died", () => {
    const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-record-"));
    const paths = { ...sandboxPaths("a", home), record: join(home, "sandbox.json") };
    const write = (startTime: string) => writeFileSync(paths.record, JSON.stringify({ incarnation: 4, pid: process.pid, startTime, revision: "" }));
    expect(nextIncarnation(paths)).toBe(1);
    write(processStart(process.pid)!);
    expect(nextIncarnation(paths)).toBe(4);
    write("1");
    expect(nextIncarnation(paths)).toBe(5);
    rmSync(home, { recursive: true });
  });
});
