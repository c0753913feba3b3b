/** The lock of another machine, whose root says what he likes about it. */
import { afterEach, describe, expect, it, vi } from "vitest";
import type { LockOptions, Machine } from "../../machines/machine.ts";
import { holdThere } from "../../machines/sshLock.ts";
import { isAlive, processStart } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";

vi.mock("../../artifacts/artifacts.ts", () => ({ provide: async () => "/nowhere", wanted: () => ({ id: "init-0" }) }));
vi.mock("../../machines/upload.ts", () => ({ uploadTo: async () => {} }));

afterEach(() => void vi.useRealTimers());

/** Holds the lock of a machine that runs a shell script in the place of what was asked for. */
const hold = (script: string, said: string[] = []) => {
  const machine = { ref: { name: "far" }, command: () => ["sh", "-c", script] } as unknown as Machine;
  const options: LockOptions = { what: "test", alone: true, init: "", say: (line) => said.push(line) };
  return holdThere(machine, options);
};

describe("a lock of another machine", () => {
  it("is held until it is given back, and tells who is waited for as a terminal may show it", async () => {
    const said: string[] = [];
    const lock = await hold("printf 'waiting for \\033[2Jann\\nheld\\n'; exec cat > /dev/null", said);
    expect(said).toEqual(["waiting for ann"]);
    await lock.release();
  });

  it.each([
    ["ends", "echo no >&2; exit 3", /cannot be locked there \(3\): no/],
    ["says too much", "exec yes", /too much is said of it/],
    ["says a line without end", "tr '\\0' x < /dev/zero", /too much is said of it/],
  ])("is not waited for if the machine %s", async (_, script, message) => {
    await expect(hold(script)).rejects.toThrow(message);
  });

  it("is not waited for where nothing is said", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const refused = expect(hold("exec sleep 1000")).rejects.toThrow("nothing is said");
    await vi.waitFor(() => expect(vi.getTimerCount()).toBe(1));
    vi.advanceTimersByTime(60_000);
    await refused;
  });

  it("leaves no process behind, whatever the machine has it do", async () => {
    const said: string[] = [];
    const lock = await hold("echo $$; echo held; trap '' TERM; exec sleep 1000", said);
    const pid = Number(said[0]);
    const process = { pid, startTime: processStart(pid)! };
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const released = lock.release();
    vi.advanceTimersByTime(5000);
    await released;
    vi.useRealTimers();
    await waitFor("it is gone", 10, () => !isAlive(process) || undefined);
  });
});
