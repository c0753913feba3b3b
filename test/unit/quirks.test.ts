/** The catalogue, and how its probes are asked. */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  blockersAmong,
  patchesFor,
  probedQuirks,
  type QuirkId,
  quirk,
  quirks,
  whyNoNode,
} from "../../config/quirks.ts";
import { FakeMachine } from "../../machines/fake.ts";
import { type Answer, ask, probes, quirksIn } from "../../steps/probe.ts";

describe("the catalogue", () => {
  const all = Object.keys(quirks) as QuirkId[];

  it("has one remedy for each quirk, and no patch that no quirk asks for", () => {
    const files = readdirSync(join(import.meta.dirname, "../../toolchain/runc/patches"));
    for (const id of all) expect(Object.keys(quirk(id).remedy), id).toHaveLength(1);
    expect(patchesFor(all).toSorted()).toEqual(files.map((file) => basename(file, ".patch")).sort());
  });

  it("asks for what a sandbox may have or not, and for nothing else", () => {
    expect(probedQuirks).toEqual(all.filter((id) => !("always" in quirk(id).remedy)));
  });

  it("names the source files of the facts that are in this project", () => {
    for (const id of all)
      for (const [file] of quirk(id).source.matchAll(/docs\/\S+\.md/g))
        expect(existsSync(join(import.meta.dirname, "../..", file)), file).toBe(true);
  });

  it("tells why a sandbox cannot run pods", () => {
    expect(blockersAmong(["setns-exec", "no-veth", "rshared"])).toEqual(["rshared", "no-veth"]);
    expect(whyNoNode(["rshared"])).toBe(
      `rshared: the kubelet cannot run here ("kubelet: failed to make /var/lib/kubelet rshared: ` +
        `invalid argument"); who can change it: the sandbox's owner: a gVisor of 2025 or later`,
    );
  });
});

describe("the probes", () => {
  const answering = (answers: Answer[]) =>
    new FakeMachine({ kind: "managed", name: "probed", home: "/" }, { runs: () => JSON.stringify(answers) });

  it("find what is answered with no", async () => {
    const answers = probes.map(({ id }) => ({ id, yes: id !== "rshared", reason: "" }));
    expect(quirksIn(await ask(answering(answers), probes))).toEqual(["rshared"]);
  });

  it("that hang are all named, with what to do", async () => {
    const questions = [
      { id: "rshared" as const, command: ["can", "share-mounts"], milliseconds: 1500 },
      { id: "no-veth" as const, command: ["can", "link", "veth"], milliseconds: 1500 },
    ];
    await expect(
      ask(answering(questions.map(({ id }) => ({ id, yes: false, hung: true, reason: "signal: killed" }))), questions),
    ).rejects.toThrow(
      /^probe rshared gave no answer within 1\.5 s: can share-mounts\nprobe no-veth gave no answer within 1\.5 s: can link veth\ntry again .* the option `quirks`, which probes nothing$/,
    );
  });
});
