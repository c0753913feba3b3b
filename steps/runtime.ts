/** The OCI runtime: built, wrapped, and tried before containerd comes into play. */
import { folderOf, provide, type Wanted } from "../artifacts/artifacts.ts";
import { stage, stageWrapper } from "../artifacts/stage.ts";
import { runtimeCheckSpec } from "../config/ociSpec.ts";
import type { Machine } from "../machines/machine.ts";
import type { OnMachine, Step } from "./step.ts";

/** What is built or copied: artifacts, and programs of the user's. */
export interface BuildParams extends OnMachine {
  artifacts: Wanted[];
  own: { source: string; name: string }[];
}

/** Builds what is not built yet, and brings all to where the machine finds it. */
export const buildRuntime: Step<BuildParams> = {
  name: () => "build",
  async run(params, { machine, say }) {
    await provideTo(machine, params, say);
  },
};

/** Sees to it that artifacts, and programs of the user's, are where a machine finds them. */
export async function provideTo(
  machine: Machine,
  { artifacts, own = [] }: { artifacts: readonly Wanted[]; own?: readonly { source: string; name: string }[] },
  say: (line: string) => void,
): Promise<void> {
  const folders: string[] = [];
  for (const artifact of artifacts) folders.push(await provide(artifact, say));
  for (const { source, name } of own) folders.push(await stage(source, name));
  await machine.upload(folders, say);
}

/** An OCI runtime, or its wrapper, by its path on the machine, and what the wrapper is made of. */
export interface RuntimeParams extends OnMachine {
  runtime: string;
  wrapper: Wanted;
}

/**
 * Puts the runtime wrapper with its rules (the content) in place, unless there are none, and runs a container directly
 * with it or with the OCI runtime, before containerd starts.
 * @throws CommandError with the runtime's own message
 */
export const checkRuntime: Step<RuntimeParams> = {
  name: () => "runtime-check",
  async run({ runtime, wrapper }, { machine, content: rules, say }) {
    if (rules !== "") await machine.upload([await stageWrapper(wrapper, rules, say)], say);
    await checkRun(machine, runtime);
  },
};

/** Runs a container. */
async function checkRun(machine: Machine, program: string): Promise<void> {
  expectWord(program, await inContainer(machine, program, ["/bin/busybox", "echo", WORD]));
}

/**
 * Runs a container and a second process in it, as `kubectl exec` has it done.
 * @throws CommandError with the runtime's own message
 */
export async function checkExec(machine: Machine, program: string): Promise<void> {
  // What runs on must not hold the output that is waited for.
  const sleep = ["/bin/busybox", "sh", "-c", "exec sleep 600 < /dev/null > /dev/null 2>&1"];
  expectWord(program, await inContainer(machine, program, sleep, ["/bin/busybox", "echo", WORD]));
}

const BUNDLE = "/run/gvisor-k3s/runtime-check";
const WORD = "the runtime can start a container here";

/**
 * All of it at once, since each process in a sandbox takes its time to start: BUNDLE PROGRAM [COMMAND...], the container's
 * config on standard input. It does what containerd does: the container is detached, and its output is a pipe. One that was
 * aborted has left its container.
 */
const IN_CONTAINER = `
set -e -o pipefail
bundle=$1 program=$2
shift 2
runtime() { "$program" --root "$bundle/state" "$@" < /dev/null 2>&1 | cat; }
remove() {
  runtime delete --force runtime-check > /dev/null || true
  rm -rf "$bundle"
}
[ ! -e "$bundle" ] || remove
trap remove EXIT
mkdir -p "$bundle/rootfs/bin"
cp /bin/busybox "$bundle/rootfs/bin"
cat > "$bundle/config.json"
runtime run --detach --no-new-keyring --bundle "$bundle" runtime-check
[ $# = 0 ] || runtime exec --detach --cwd / runtime-check "$@"
`;

/** What a container prints, and a second process in it, if there is to be one. */
async function inContainer(
  machine: Machine,
  program: string,
  args: string[],
  second: string[] = [],
): Promise<{ stdout: string }> {
  return await machine.exec(["/bin/busybox", "sh", "-c", IN_CONTAINER, "sh", BUNDLE, program, ...second], {
    input: JSON.stringify(runtimeCheckSpec(args)),
    timeout: 60_000,
  });
}

function expectWord(program: string, { stdout }: { stdout: string }): void {
  if (stdout.trim().endsWith(WORD)) return;
  const said = JSON.stringify(stdout);
  throw new Error(`${program} started a container, and it said ${said} where ${JSON.stringify(WORD)} was due`);
}

/** The folder of the artifact cache that a program on a machine lies in. */
export const folderOfProgram = folderOf;
