import { spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { sandboxPaths } from "../../config/paths.ts";
import { isAlive, nextIncarnation, processStart } from "../../steps/record.ts";
import { CommandError, run, runsWell } from "../../steps/run.ts";
import { waitFor } from "../../steps/wait.ts";

describe("a program that fails", () => {
  const failure = async (program: string, args: string[], options = {}) =>
    (await run(program, args, options).catch((error: unknown) => error)) as CommandError;

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

  it("can be run again by pasting its command line", async () => {
    const error = await failure("sh", ["-c", 'printf "[%s]" "$@"; exit 1', "sh", "it's", "a b", "$HOME", "*", ""]);
    expect((await failure("sh", ["-c", error.command])).output).toBe("[it's][a b][$HOME][*][]");
  });

  it("whose output goes to a file is told with the file's end", async () => {
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-run-"));
    const error = await failure("sh", ["-c", "echo out; echo err >&2; exit 1"], { outputFile: join(folder, "log") });
    expect(error.message.split("\n").slice(1)).toEqual(["    out", "    err"]);
    rmSync(folder, { recursive: true });
  });

  it("tells only the end of much", async () => {
    const error = await failure("sh", ["-c", "seq 100; exit 1"]);
    expect(error.message.split("\n").slice(1)).toEqual(Array.from({ length: 20 }, (_, index) => `    ${81 + index}`));
    expect(error.output.split("\n")).toHaveLength(100);
  });

  it("reads what it is given, and nothing where it is given nothing", async () => {
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-run-"));
    writeFileSync(join(folder, "in"), "from a file");
    expect((await run("cat", [], { input: "from here" })).stdout).toBe("from here");
    expect((await run("cat", [], { inputFile: join(folder, "in") })).stdout).toBe("from a file");
    expect((await run("cat", [])).stdout).toBe("");
    rmSync(folder, { recursive: true });
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

  it("takes an answer that took longer than the time, and gives up only on none", async () => {
    // The probe moves the clock: no time passes here.
    const clock = vi.spyOn(Date, "now").mockReturnValue(0);
    const probeThatTakes = (milliseconds: number, answer?: string) => () => {
      clock.mockReturnValue(milliseconds);
      return answer;
    };
    expect(await waitFor("rain", 60, probeThatTakes(3_600_000, "late"))).toBe("late");
    clock.mockReturnValue(0);
    await expect(waitFor("rain", 60, probeThatTakes(60_001))).rejects.toThrow(/^rain: not within 60 s$/);
    clock.mockRestore();
  });

  it("tells what it waited for and the last state, and passes a probe's own error on", async () => {
    await expect(
      waitFor(
        "rain",
        0,
        () => undefined,
        () => "a blue sky",
      ),
    ).rejects.toThrow("rain: not within 0 s\na blue sky");
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

  it("takes a zombie for ended", async () => {
    // The shell starts a process and becomes a program that never asks how it ended.
    const parent = spawn("sh", ["-c", "sleep 60 & echo $!; exec sleep 60"], { stdio: ["ignore", "pipe", "ignore"] });
    const zombie = Number(String((await once(parent.stdout, "data"))[0]));
    const shows = (file: string, text: string) =>
      vi.waitFor(() => expect(readFileSync(file, "utf8")).toContain(text), { timeout: 4000 });
    await shows(`/proc/${parent.pid}/comm`, "sleep");
    process.kill(zombie, "SIGKILL");
    await shows(`/proc/${zombie}/stat`, ") Z ");
    expect(processStart(zombie)).toBeUndefined();
    parent.kill("SIGKILL");
  });

  it("is not misled by a program's name", async () => {
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-record-"));
    // In /proc the name stands in parentheses before the fields that are read.
    copyFileSync("/bin/sleep", join(folder, "a) Z 1 (b"));
    const before = Number(processStart(process.pid));
    const child = spawn(join(folder, "a) Z 1 (b"), ["60"]);
    const later = spawn("sleep", ["60"]);
    const start = Number(processStart(child.pid!));
    expect(start).toBeGreaterThanOrEqual(before);
    expect(start).toBeLessThanOrEqual(Number(processStart(later.pid!)));
    for (const each of [child, later]) each.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  });

  it(
    "counts the next start: 1 for a new sandbox, the same while it lives as described, one more when " +
      "it died or is described otherwise",
    () => {
      const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-record-"));
      const paths = { ...sandboxPaths("a", home), record: join(home, "sandbox.json") };
      const write = (startTime: string) =>
        writeFileSync(paths.record, JSON.stringify({ incarnation: 4, pid: process.pid, startTime, revision: "a" }));
      expect(nextIncarnation(paths, "a")).toBe(1);
      write(processStart(process.pid)!);
      expect(nextIncarnation(paths, "a")).toBe(4);
      expect(nextIncarnation(paths, "b")).toBe(5);
      write("1");
      expect(nextIncarnation(paths, "a")).toBe(5);
      rmSync(home, { recursive: true });
    },
  );
});
