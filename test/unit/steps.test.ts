import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { incarnationOf, type Observed } from "../../machines/observe.ts";
import { hostPaths } from "../../machines/paths.ts";
import { type MachineRecord, readRecord } from "../../machines/record.ts";
import { driftIn, noteWritten, repairsOf } from "../../machines/written.ts";
import { keepWhole, readJson, writeOnce, writeWhole } from "../../system/files.ts";
import { isAlive, processStart } from "../../system/processes.ts";
import { CommandError, run, runsWell, shellWord } from "../../system/run.ts";
import { waitFor } from "../../system/wait.ts";

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

  it("has words that a shell reads back as they are", async () => {
    for (const word of ["plain/path-1.2", "it's", "a b", "$HOME", "*", "", "a\nb"])
      expect((await run("sh", ["-c", `printf %s ${shellWord(word)}`])).stdout).toBe(word);
    expect(shellWord("/var/lib/gvisor-k3s/kubeconfig")).toBe("/var/lib/gvisor-k3s/kubeconfig");
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

  it("tells no more of a line without end, and nothing that steers a terminal", async () => {
    const error = await failure("sh", [
      "-c",
      "head -c 1000000 /dev/zero | tr '\\0' x; printf '\\033[2Jend\\007'; exit 1",
    ]);
    expect(error.message.split("\n").at(-1)).toMatch(/^ {4}x+end$/);
    expect(error.message.length).toBeLessThan(70_000);
  });

  it("is not waited for when what it has left running holds its output, nor when it takes too long itself", async () => {
    const left: number[] = [];
    try {
      const { stdout } = await run("sh", ["-c", "sleep 1000 & echo $!"]);
      left.push(Number(stdout));
      const file = join(mkdtempSync(join(tmpdir(), "gvisor-k3s-run-")), "pid");
      const late = run("sh", ["-c", `sleep 1000 & echo $! > ${file}; wait`], { timeout: 500 });
      await expect(late).rejects.toThrow(/^took too long/);
      left.push(Number(readFileSync(file, "utf8")));
      rmSync(dirname(file), { recursive: true });
    } finally {
      for (const pid of left) process.kill(pid);
    }
  });

  it("gives all that it has printed, however late it is read", async () => {
    const { stdout } = await run("sh", ["-c", "head -c 3000000 /dev/zero | tr '\\0' x"]);
    expect(stdout).toHaveLength(3_000_000);
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
    // The probe moves the clock, which is one that nobody sets: no time passes here.
    const clock = vi.spyOn(performance, "now").mockReturnValue(0);
    const probeThatTakes = (milliseconds: number, answer?: string) => () => {
      clock.mockReturnValue(milliseconds);
      return answer;
    };
    expect(await waitFor("rain", 60, probeThatTakes(3_600_000, "late"))).toBe("late");
    clock.mockReturnValue(0);
    await expect(waitFor("rain", 60, probeThatTakes(60_001))).rejects.toThrow(/^rain: not within 60 s$/);
    clock.mockRestore();
  });

  it("is not misled by a clock that somebody sets", async () => {
    const clock = vi.spyOn(Date, "now").mockReturnValue(Number.MAX_SAFE_INTEGER);
    let calls = 0;
    expect(await waitFor("three", 60, () => (++calls === 3 ? calls : undefined))).toBe(3);
    clock.mockRestore();
  });

  it("does not wait for a question that hangs", async () => {
    const hangs = () => new Promise<undefined>(() => {});
    await expect(waitFor("rain", 0, hangs, () => "a blue sky")).rejects.toThrow(
      "rain: not within 0 s; the last question got no answer\na blue sky",
    );
  });

  it("tells what it waited for and the last state, and passes a probe's own error on", async () => {
    const never = () => undefined;
    const sky = () => "a blue sky";
    await expect(waitFor("rain", 0, never, sky)).rejects.toThrow("rain: not within 0 s\na blue sky");
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

  it("is read as sandbox-init writes it, when the step that adds the rest was killed", () => {
    const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-record-"));
    const { state, record } = hostPaths("a", home);
    const written = { version: 2, kind: "inside", owner: "p/s", incarnation: 1, revision: "r", pid: 1, startTime: "1" };
    mkdirSync(state, { recursive: true });
    writeFileSync(record, JSON.stringify(written));
    expect(readRecord("a", home)).toEqual({ ...written, repairs: 0, programs: { init: "" } });
    rmSync(home, { recursive: true });
  });

  it("takes a zombie for ended", async () => {
    // The shell starts a process and becomes a program that never asks how it ended.
    const parent = spawn("sh", ["-c", "sleep 60 & echo $!; exec sleep 60"], { stdio: ["ignore", "pipe", "ignore"] });
    const zombie = Number(String((await once(parent.stdout, "data"))[0]));
    const shows = (file: string, text: string) =>
      vi.waitFor(() => expect(readFileSync(file, "utf8")).toContain(text), { timeout: 60_000 });
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

  it.each<[string, Partial<Observed>, number]>([
    ["a new one has", { state: "absent" }, 1],
    ["one that was lost with its machine", { state: "absent", noted: 4 }, 5],
    ["one that runs as described", { state: "running", record: recordOf("a") }, 4],
    ["one that is described otherwise", { state: "running", record: recordOf("b") }, 5],
    ["one that died", { state: "stopped", record: recordOf("a") }, 5],
    ["one that lives and does not answer", { state: "silent", record: recordOf("a") }, 5],
  ])("counts the next start: %s", (_, observed, next) => {
    expect(incarnationOf({ drift: [], repairs: {}, problems: [], state: "absent", ...observed }, "a")).toBe(next);
  });
});

function recordOf(revision: string): MachineRecord {
  const programs = { init: "" };
  return { version: 2, kind: "managed", incarnation: 4, revision, pid: 1, startTime: "1", repairs: 0, programs };
}

describe("a file that matters", () => {
  const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-files-"));
  afterAll(() => rmSync(folder, { recursive: true }));

  it("is whole, with its permissions, whatever the umask is", async () => {
    const before = process.umask(0o077);
    const file = join(folder, "new/file");
    await writeWhole(file, "content", 0o644);
    process.umask(before);
    expect(readFileSync(file, "utf8")).toBe("content");
    expect(statSync(file).mode & 0o777).toBe(0o644);
    expect(statSync(join(folder, "new")).mode & 0o777).toBe(0o700);
  });

  it("stays as it was where the disk is full, and the error names it", async () => {
    const small = join(folder, "small");
    mkdirSync(small);
    await run("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", small]);
    try {
      const file = join(small, "file");
      await writeWhole(file, "before");
      const error = `cannot be written: the disk of ${small} is full (ENOSPC); make room, and try again`;
      await expect(writeWhole(file, "x".repeat(2 ** 20))).rejects.toThrow(`${file} ${error}`);
      expect(() => writeOnce(join(small, "once"), "x".repeat(2 ** 20))).toThrow(`${small}/once ${error}`);
      expect(readFileSync(file, "utf8")).toBe("before");
      expect(readdirSync(small)).toEqual(["file"]);
    } finally {
      await run("umount", [small]);
    }
  });

  it("that holds already what it is to hold is left alone", async () => {
    const file = join(folder, "kept");
    await keepWhole(file, "content");
    const { ino } = statSync(file);
    await keepWhole(file, "content");
    expect(statSync(file).ino).toBe(ino);
    await keepWhole(file, "other");
    expect(readFileSync(file, "utf8")).toBe("other");
  });

  it("that is half is told by its name, with the remedy", () => {
    const file = join(folder, "half.json");
    writeFileSync(file, '{"pid": 1');
    expect(() => readJson(file, "delete it")).toThrow(/half\.json cannot be read \(.+\); delete it$/);
    expect(readJson(join(folder, "none.json"), "delete it")).toBeUndefined();
  });

  it("that is written once is the first one's", () => {
    const file = join(folder, "once");
    expect(writeOnce(file, "first")).toBe("first");
    expect(writeOnce(file, "second")).toBe("first");
    expect(readdirSync(folder).filter((name) => name.startsWith("once"))).toEqual(["once"]);
  });
});

describe("what a step has left", () => {
  it("is made again when a file of it was edited, and when its service is gone", async () => {
    const ref = { kind: "managed", name: "left", home: mkdtempSync(join(tmpdir(), "gvisor-k3s-left-")) } as const;
    const file = { path: "/etc/containerd/config.toml", content: "version = 3\n", mode: 0o644 };
    await noteWritten(ref, "containerd", [file], 2, ["containerd", "limits"]);
    await noteWritten(ref, "network", [], 0);
    const repairs = (content: string, services?: object) => {
      const sha256 = createHash("sha256").update(content).digest("hex");
      return repairsOf(ref, driftIn(ref, { [file.path]: { sha256 } }), services as Record<string, unknown>);
    };
    expect(repairs(file.content, { containerd: {}, limits: {} })).toEqual({ containerd: 2, network: 0 });
    expect(repairs("edited", { containerd: {}, limits: {} })).toEqual({ containerd: 3, network: 0 });
    expect(repairs(file.content, { containerd: {} }), "one of two is gone").toEqual({ containerd: 3, network: 0 });
    expect(repairs(file.content, { server: {} })).toEqual({ containerd: 3, network: 0 });
    await noteWritten(ref, "containerd", [file], 3, "containerd"); // as releases before noted it
    expect(repairs(file.content, { limits: {} })).toEqual({ containerd: 4, network: 0 });
    expect(repairs(file.content, { containerd: {} })).toEqual({ containerd: 3, network: 0 });
    expect(repairs(file.content, undefined)).toEqual({ containerd: 3, network: 0 }); // nothing is known of them
    rmSync(ref.home, { recursive: true });
  });
});
