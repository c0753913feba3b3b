/**
 * What removes quirks: each patch of runc, and the rule, does what it is there for; and what goes wrong with patches
 * and probes is told.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Artifact, knownPatches, pathInSandbox, provide, wanted } from "../../artifacts/artifacts.ts";
import { wrapperPath } from "../../artifacts/stage.ts";
import { facadePlan } from "../../config/facade.ts";
import type { OciRule } from "../../config/ociRules.ts";
import { facadeFor, patchesFor, type QuirkId, rulesFor } from "../../config/quirks.ts";
import { parseStackConfig } from "../../config/schema.ts";
import type { Machine } from "../../machines/machine.ts";
import { managed } from "../../machines/managed.ts";
import { inTrial } from "../../machines/trial.ts";
import { applyFacade } from "../../steps/facade.ts";
import { ask, type Probe, probeQuirks, probes, quirksIn } from "../../steps/probe.ts";
import { checkExec, checkRuntime } from "../../steps/runtime.ts";
import { generations } from "../generations.ts";

const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-patches-"));

afterAll(() => rmSync(home, { recursive: true, force: true }));

/** Runs something in a trial sandbox of a generation. */
async function inGeneration<T>(name: string, use: (sandbox: Machine) => Promise<T>): Promise<T> {
  const { runsc, sandbox } = generations.find((generation) => generation.name === name)!;
  const config = parseStackConfig({ name: "trial", sandbox: { ...sandbox, runsc: await runsc(() => {}) } });
  const ref = managed.refOf(config, home);
  return await inTrial(ref, managed.specOf(config), use);
}

const lacksIn = async (sandbox: Machine) => quirksIn(await ask(sandbox, probes));

/** What a step is given beside its parameters. */
const contextOf = (machine: Machine, content = "") => {
  return { machine, content, incarnation: 1, repairs: 0, say: () => {} };
};

/**
 * What runc says, with these patches, when it runs a container and a second process in it; nothing if all goes well.
 */
async function complaint(
  sandbox: Machine,
  found: QuirkId[],
  patches: string[],
  rules: OciRule[] = [],
): Promise<string> {
  // What it does for pods is not looked at here, and 2022-12 cannot carry it out.
  const plan = { ...facadePlan(sandbox.ref.name, facadeFor(found)), settings: [], private: [], shared: [] };
  const machine = sandbox.ref;
  await applyFacade.run({ machine, plan }, contextOf(sandbox));
  const runc: Artifact = { name: "runc", ...(patches.length > 0 ? { patches: patches.toSorted() } : {}) };
  await provide(wanted(runc), () => {});
  const program = pathInSandbox(runc, "runc");
  const rulesFile = rules.length > 0 ? JSON.stringify({ runtime: [program], rules }) : "";
  const wrapper = wanted({ name: "wrapper" });
  const runtime = rulesFile ? wrapperPath(wrapper, rulesFile) : program;
  return await checkRuntime
    .run({ machine, runtime, wrapper }, contextOf(sandbox, rulesFile))
    .then(() => checkExec(sandbox, runtime))
    .then(
      () => "",
      (error: Error) => error.message,
    );
}

describe("a patch is needed where its quirk is found, and removes it", () => {
  it("none on the pinned gVisor", async () => {
    await inGeneration("2026-09", async (sandbox) => {
      const found = await lacksIn(sandbox);
      expect(patchesFor(found)).toEqual([]);
      expect(await complaint(sandbox, found, [])).toBe("");
    });
  });

  it.each<[string, RegExp, Record<string, RegExp>, OciRule[]]>([
    [
      "2025-02",
      /^$/,
      {
        "procfs-root-inode": /incorrect procfs root inode number/,
        "tmpfs-nr-blocks": /can't mask dir .*nr_blocks=1,nr_inodes=1: invalid argument/,
        "setns-exec": /error executing setns process/,
      },
      [],
    ],
    // There is more that this one lacks (docs/quirks.md): it can join no namespace, and so no pod. What the patches are
    // for is gone.
    [
      "2022-12",
      /open \/proc\/\d+\/ns\/mnt: no such file/,
      { "cgroup-statfs": /statfs .*: function not implemented/, "devices-cgroup": /mountpoint for devices not found/ },
      [{ dropNamespace: "network" }],
    ],
  ])("gVisor %s", async (generation, withAll, symptoms, rules) => {
    await inGeneration(generation, async (sandbox) => {
      const found = await lacksIn(sandbox);
      const patches = patchesFor(found);
      expect(patches).toEqual(expect.arrayContaining(Object.keys(symptoms)));
      const whole = await complaint(sandbox, found, patches, rules);
      expect(whole).toMatch(withAll);
      for (const [patch, symptom] of Object.entries(symptoms)) {
        expect(whole).not.toMatch(symptom);
        expect(
          await complaint(
            sandbox,
            found,
            patches.filter((id) => id !== patch),
            rules,
          ),
          `without ${patch}`,
        ).toMatch(symptom);
      }
    });
  });

  it("cap-last-cap, on a kernel whose file is hidden from the container", async () => {
    await inGeneration("2026-09", async (sandbox) => {
      // The whiteout of an overlay over /proc/sys hides it, and the container gets the node's /proc for its own.
      const hidden = "/run/gvisor-k3s/proc-sys/upper/kernel/cap_last_cap";
      await sandbox.exec(["/bin/mkdir", "-p", dirname(hidden)]);
      await sandbox.exec(["/bin/mknod", hidden, "c", "0", "0"]);
      const nodesProc: OciRule[] = [
        { dropMount: "/proc" },
        { set: "mounts.-1", value: { destination: "/proc", type: "bind", source: "/proc", options: ["rbind"] } },
        { dropNamespace: "pid" },
      ];
      const found = await lacksIn(sandbox);
      expect(await complaint(sandbox, found, [], nodesProc)).toContain(
        "open /proc/sys/kernel/cap_last_cap: no such file or directory",
      );
      expect(await complaint(sandbox, found, ["cap-last-cap"], nodesProc)).toBe("");
    });
  });

  it("and every patch is one of these", () => {
    expect(knownPatches("runc")).toEqual([
      "cap-last-cap",
      "cgroup-statfs",
      "devices-cgroup",
      "procfs-root-inode",
      "setns-exec",
      "tmpfs-nr-blocks",
    ]);
  });
});

it("the rule for cgroup-namespace removes it from a spec that asks for one", async () => {
  await inGeneration("2026-09", async (sandbox) => {
    const found = await lacksIn(sandbox);
    const asking: OciRule[] = [{ set: "linux.namespaces.-1", value: { type: "cgroup" } }];
    expect(await complaint(sandbox, found, [], asking)).toContain("cgroup namespaces aren't enabled in the kernel");
    expect(await complaint(sandbox, found, [], [...asking, ...rulesFor(["cgroup-namespace"])])).toBe("");
  });
});

it("a probe that hangs in a sandbox is one clear error", async () => {
  const hangs: Probe = { id: "rshared", command: ["/bin/sleep", "1000"], milliseconds: 500 };
  await inGeneration("2026-09", async (sandbox) => {
    const questions = [hangs, ...probes.filter(({ id }) => id !== hangs.id)];
    const params = { machine: sandbox.ref, gvisor: [], mode: "node" as const, probes: questions };
    await expect(probeQuirks.run(params, contextOf(sandbox))).rejects.toThrow(
      /^probe rshared gave no answer within 0\.5 s: \/bin\/sleep 1000\ntry again on a machine that is less busy, or name the sandbox's quirks with the option `quirks`, which probes nothing$/,
    );
  });
});
