/** The steps between an empty sandbox and containerd. */
import { join } from "node:path";
import type { FacadePlan } from "../config/facade.ts";
import { runtimeCheckSpec } from "../config/ociSpec.ts";
import { type Artifact, build, stage, stageWrapper } from "../toolchain/artifacts.ts";
import { execIn, initIn, type SandboxRef } from "./sandbox.ts";

/** Builds what is not built yet, and takes files of the user's into the artifact folder. */
export async function buildArtifacts(params: { artifacts: Artifact[]; own: { source: string; name: string }[] }): Promise<void> {
  for (const artifact of params.artifacts) await build(artifact, (line) => console.error(line));
  for (const { source, name } of params.own) await stage(source, name);
}

/** Applies the facade; the plan is given so that a preview shows a change of it. */
export async function applyFacade(params: SandboxRef & { plan: FacadePlan }): Promise<void> {
  await initIn(params, ["facade"], { input: JSON.stringify(params.plan), timeout: 20_000 });
}

/**
 * Puts the runtime wrapper with its rules (standard input) in place, unless there are none, and runs a container directly with it or with the
 * OCI runtime, before containerd starts.
 * @throws CommandError with the runtime's own message
 */
export async function checkRuntime(params: SandboxRef & { runtime: string }, rules: string): Promise<void> {
  if (rules !== "") await stageWrapper(rules);
  const bundle = "/run/gvisor-k3s/runtime-check";
  const word = "the runtime can start a container here";
  const spec = runtimeCheckSpec(["/bin/busybox", "echo", word]);
  await execIn(params, ["/bin/mkdir", "-p", join(bundle, "rootfs/bin")]);
  await execIn(params, ["/bin/cp", "/bin/busybox", join(bundle, "rootfs/bin/busybox")]);
  await initIn(params, ["write", join(bundle, "config.json"), "600"], { input: JSON.stringify(spec) });
  const runtime = (...args: string[]) => execIn(params, [params.runtime, "--root", join(bundle, "state"), ...args], { timeout: 60_000 });
  try {
    const { stdout } = await runtime("run", "--bundle", bundle, "runtime-check");
    if (stdout.trim() !== word) throw new Error(`${params.runtime} started a container, and it said ${JSON.stringify(stdout)} where ${JSON.stringify(word)} was due`);
  } finally {
    await runtime("delete", "--force", "runtime-check").catch(() => undefined); // an aborted run leaves its container
    await execIn(params, ["/bin/rm", "-rf", bundle]);
  }
}
