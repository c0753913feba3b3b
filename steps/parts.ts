/** The steps between an empty sandbox and containerd. */
import { join } from "node:path";
import type { FacadePlan } from "../config/facade.ts";
import { runtimeCheckSpec } from "../config/ociSpec.ts";
import { type Artifact, build, stage, stageWrapper } from "../toolchain/artifacts.ts";
import { fetchK3s, type K3sRelease } from "../toolchain/k3sRelease.ts";
import { buildRunner } from "../toolchain/runner.ts";
import { execIn, initIn, type SandboxRef } from "./sandbox.ts";
import { noteMachine, removeUploads, upload, type UploadParams, useRunner } from "./upload.ts";

/** What a step builds. */
export interface BuildParams {
  artifacts: Artifact[];
  /** Programs of the user's. */
  own: { source: string; name: string }[];
  /** Another machine that all of it is copied to. */
  to?: UploadParams;
  /**
   * Whether what runs steps there is copied as well, by the name of its folder, so that another one is another input.
   */
  runner?: string;
}

/**
 * Builds what is not built yet, takes files of the user's into the artifact folder, and copies all to the machine that
 * runs it, if that is another one.
 */
export async function buildArtifacts({ artifacts, own, to, runner }: BuildParams): Promise<void> {
  const folders: string[] = [];
  if (to && runner) await noteMachine(to);
  for (const artifact of artifacts) folders.push(await build(artifact, say));
  for (const { source, name } of own) folders.push(await stage(source, name));
  if (!to) return;
  if (runner) folders.push(await buildRunner());
  await upload(to, folders, say);
  if (runner) await useRunner(to, folders.at(-1)!);
}

/** Brings a release of k3s into the artifact folder, and to the machine that runs it, if that is another one. */
export async function downloadK3s({ to, ...release }: K3sRelease & { to?: UploadParams }): Promise<void> {
  const folder = await fetchK3s(release, say);
  if (to) await upload(to, [folder], say);
}

/** Undoes the copies, the runner's included: nothing can be run there then. */
export async function removeBuilt({ to }: BuildParams): Promise<void> {
  if (to) await removeUploads(to);
}

const say = (line: string) => console.error(line);

/** Applies the facade; the plan is given so that a preview shows a change of it. */
export async function applyFacade(params: SandboxRef & { plan: FacadePlan }): Promise<void> {
  await initIn(params, ["facade"], { input: JSON.stringify(params.plan), timeout: 20_000 });
}

/**
 * Puts the runtime wrapper with its rules (standard input) in place, unless there are none, and runs a container
 * directly with it or with the OCI runtime, before containerd starts.
 * @throws CommandError with the runtime's own message
 */
export async function checkRuntime(params: RuntimeRef, rules: string): Promise<void> {
  if (rules !== "") await stageWrapper(rules);
  await inContainerBundle(params, ["/bin/busybox", "echo", WORD], async (runtime) =>
    expectWord(params, await runtime("run", "--detach", "--no-new-keyring", "--bundle", BUNDLE, CONTAINER)),
  );
}

/**
 * Runs a container and a second process in it, as `kubectl exec` has it done.
 * @throws CommandError with the runtime's own message
 */
export async function checkExec(params: RuntimeRef): Promise<void> {
  // What runs on must not hold the output that is waited for.
  await inContainerBundle(
    params,
    ["/bin/busybox", "sh", "-c", "exec sleep 600 < /dev/null > /dev/null 2>&1"],
    async (runtime) => {
      await runtime("run", "--detach", "--no-new-keyring", "--bundle", BUNDLE, CONTAINER);
      expectWord(params, await runtime("exec", "--detach", "--cwd", "/", CONTAINER, "/bin/busybox", "echo", WORD));
    },
  );
}

/** An OCI runtime, or its wrapper, by its path in a sandbox. */
export type RuntimeRef = SandboxRef & { runtime: string };

const BUNDLE = "/run/gvisor-k3s/runtime-check";
const CONTAINER = "runtime-check";
const WORD = "the runtime can start a container here";

/**
 * What containerd does: the container is detached, and its output is a pipe in the sandbox, which here ends with the
 * container.
 */
const INSIDE_PIPE = 'set -o pipefail; "$@" < /dev/null 2>&1 | cat';

type Runtime = (...args: string[]) => Promise<{ stdout: string }>;

async function inContainerBundle(
  params: RuntimeRef,
  args: string[],
  use: (runtime: Runtime) => Promise<void>,
): Promise<void> {
  await execIn(params, ["/bin/mkdir", "-p", join(BUNDLE, "rootfs/bin")]);
  await execIn(params, ["/bin/cp", "/bin/busybox", join(BUNDLE, "rootfs/bin/busybox")]);
  await initIn(params, ["write", join(BUNDLE, "config.json"), "600"], {
    input: JSON.stringify(runtimeCheckSpec(args)),
  });
  const runtime: Runtime = (...words) =>
    execIn(
      params,
      ["/bin/busybox", "sh", "-c", INSIDE_PIPE, "sh", params.runtime, "--root", join(BUNDLE, "state"), ...words],
      { timeout: 60_000 },
    );
  try {
    await use(runtime);
  } finally {
    await runtime("delete", "--force", CONTAINER).catch(() => undefined); // an aborted run leaves its container
    await execIn(params, ["/bin/rm", "-rf", BUNDLE]);
  }
}

function expectWord({ runtime }: RuntimeRef, { stdout }: { stdout: string }): void {
  if (!stdout.trim().endsWith(WORD))
    throw new Error(
      `${runtime} started a container, and it said ${JSON.stringify(stdout)} where ${JSON.stringify(WORD)} was due`,
    );
}
