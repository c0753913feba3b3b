import { isDeepStrictEqual } from "node:util";
import type { Wanted } from "../artifacts/artifacts.ts";
import { inSandbox } from "../config/paths.ts";
import { readRecord } from "../machines/record.ts";
import { ensureService, serviceStates, stopService } from "../machines/services.ts";
import { openServer } from "../servers/index.ts";
import { lastReady, noteReady, type ReadyServer } from "../servers/ready.ts";
import type { ServerRef, Stage } from "../servers/server.ts";
import { dropCopies, isUnsettled, keepData, restoreData } from "./data.ts";
import { provideTo } from "./runtime.ts";
import type { Context, OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface ServerParams extends OnMachine {
  server: ServerRef;
  /** What is to be there for it. */
  takes: { artifacts: Wanted[]; own: { source: string; name: string }[] };
  /** How far it is to come where no other server, or config, was ready before: `api` where a step awaits the node. */
  stage: Stage;
  /** A hash of what it reads beside its config file, if there is anything. */
  files?: string;
}

/** What is known where the server is started. */
type ServerContext = Context & Pick<ServerParams, "stage"> & { files: string };

/** Seconds that the server has to end. */
const STOP = 15;

/**
 * Has the server run with its config (the content), and waits until the API is ready (/readyz, and the default service
 * account is there). Where another server or another config was ready before, whose pods run on, it waits until all of
 * the server lives.
 * @throws Error with the end of the server's log if it does not become ready. If another one was ready before, that one
 *   runs again then, with its configuration, and, if it was of another version, with the data as they were
 */
export const ensureServer: Step<ServerParams> = {
  name: () => "server",
  async run({ server, takes, stage, files }, given) {
    const context = { ...given, stage, files: files ?? "" };
    const { machine, content: config, say } = context;
    await provideTo(machine, takes, say);
    const { version, distribution, kubectl } = server;
    const known = version === undefined ? {} : { version };
    const next: ReadyServer = { ...known, distribution, server: server.server, config, kubectl };
    const last = lastReady(machine.ref);
    if (last === undefined) await startFirst(context, server, config);
    else if (last.server === next.server) await restart(context, server, last, next);
    else await upgrade(context, server, last, next);
    await noteReady(machine.ref, { ...next, ...(last === undefined && stage === "api" ? { awaitsNode: true } : {}) });
    if (last === undefined) return;
    await dropCopies(machine, last.server !== next.server);
    if (last.server !== next.server) await openServer(server).tidy?.(machine);
  },
};

/** Whose data are another cluster's, it makes an identity of its own for; see node/server/reidentify.go. */
async function startFirst(context: ServerContext, ref: ServerRef, config: string): Promise<void> {
  const { machine } = context;
  const { seed } = readRecord(machine.ref.name, machine.ref.home) ?? {};
  const file = (name: string) => `${inSandbox.nodeData}/server/${name}`;
  // The other cluster's root may have put there what looks like a server that has one already, but does not know the id.
  if (seed !== undefined && (await machine.read(file("seed"), { tail: 64 })) !== seed) {
    await dropCopies(machine, true);
    await machine.remove([file("seed"), file("seeded"), file("renames.json")]);
    await machine.write([{ path: file("seed"), content: seed, mode: 0o600 }]);
  }
  await startServer(context, ref, config, context.stage);
}

async function startServer(
  context: ServerContext,
  ref: ServerRef,
  config: string,
  stage: Stage = "agent",
): Promise<void> {
  const { machine, repairs } = context;
  const server = openServer(ref);
  const { service, files } = server.service(config);
  await writeFiles(context, "server", files, service.name);
  await ensureService(machine, {
    ...service,
    config: `${files.map(({ content }) => content).join()}${repairs}${context.files}`,
  });
  await server.reached(machine, stage, config);
}

/** The same program, whatever its configuration. */
async function restart(context: ServerContext, server: ServerRef, last: ReadyServer, next: ReadyServer): Promise<void> {
  await settle(context, last, next);
  const same = isDeepStrictEqual(last, next);
  await startServer(context, server, next.config, same ? context.stage : "agent").catch(async (error: Error) => {
    throw same ? error : (await back(context, server, last, error)).told;
  });
}

/** Another program, which may write the data in another way. */
async function upgrade(context: ServerContext, server: ServerRef, last: ReadyServer, next: ReadyServer): Promise<void> {
  const { machine } = context;
  await settle(context, last, next);
  await stopServer(context);
  await keepData(machine, last.server, next.server).catch(async (error: Error) => {
    const reason = new Error(`the cluster's data could not be copied, so nothing was changed: ${error.message}`);
    throw (await back(context, server, last, reason)).told;
  });
  await startServer(context, server, next.config).catch(async (error: Error) => {
    await stopServer(context);
    await restoreData(machine, last.server);
    const { told, again } = await back(context, server, last, error);
    if (again) await dropCopies(machine, true);
    throw told;
  });
}

/** Brings the data back that an upgrade which was given up has left to another server. */
async function settle(context: Context, last: ReadyServer, next: ReadyServer): Promise<void> {
  const { machine, say } = context;
  if (!(await isUnsettled(machine, last.server, next.server))) return;
  await stopServer(context);
  await restoreData(machine, last.server);
  say("an earlier upgrade was interrupted: the data are those of before it again; what it made of them is kept beside");
}

async function stopServer({ machine }: Context): Promise<void> {
  if ((await serviceStates(machine)).server) await stopService(machine, "server", STOP);
}

/** Has the server of before run again, and tells both what went wrong and what runs. */
async function back(
  context: ServerContext,
  server: ServerRef,
  last: ReadyServer,
  error: Error,
): Promise<{ told: Error; again: boolean }> {
  const before = { ...server, distribution: last.distribution, server: last.server };
  const version = last.version === undefined ? "" : `, ${last.version},`;
  const [again, outcome] = await startServer(context, before, last.config).then(
    () => [true, `the server of before${version} runs again, as it was`] as const,
    (reason: Error) => [false, `the server of before does not start either: ${reason.message}`] as const,
  );
  return { told: new Error(`${error.message}\n${outcome}`, { cause: error }), again };
}
