/**
 * The clusters of this machine; apart from what needs Pulumi, because shells ask for them as one types.
 * @module
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { stateHere } from "../machines/index.ts";
import { hostPaths, machinesIn } from "../machines/paths.ts";
import { type MachineRecord, readRecord } from "../machines/record.ts";
import type { MachineRef } from "../machines/ref.ts";
import { homeFolder } from "../system/folders.ts";
import { ownerOf, ownProject, stacksFolder } from "./project.ts";

/** One of this home's clusters. */
export interface Listed {
  /** What commands call it: its stack; of one that a program of the user's made, the name that it has there. */
  name: string;
  /** The option `name`, which is the node's name and the sandbox's. */
  cluster: string;
  /** The project and the stack that it is of, if that is written down. */
  owner?: string;
  /** Of one on another machine, whether it runs is for `status` to ask. */
  state: "running" | "stopped" | "paused" | "remote";
  kubeconfigPath: string;
}

/** The clusters of this home, by what is on this machine; one whose `up` failed before anything was made is none. */
export function list(): Listed[] {
  const home = homeFolder();
  return machinesIn(home).flatMap((cluster) => {
    const record = readRecord(cluster, home);
    if (record === undefined || record.joins !== undefined) return []; // which is a node of one of them
    const { kubeconfig: kubeconfigPath } = hostPaths(cluster, home);
    const { owner } = record;
    const state = stateHere({ kind: record.kind, name: cluster, home });
    const name = stackOf(record) ?? stackByState(record, cluster, home) ?? cluster;
    return [{ name, cluster, ...(owner ? { owner } : {}), state, kubeconfigPath }];
  });
}

/** The stack of this project that a cluster is of; undefined if it is of another project's, or nothing tells. */
function stackOf({ owner }: MachineRecord): string | undefined {
  const [project, stack] = owner?.split("/") ?? [];
  return project === ownProject() ? stack : undefined;
}

/** The stack of a cluster that a release up to 0.2 made, which did not write that down: its state has the steps' names. */
function stackByState({ version }: MachineRecord, cluster: string, home: string): string | undefined {
  const folder = stacksFolder(home);
  if (version !== 1 || !existsSync(folder)) return undefined;
  const named = JSON.stringify(JSON.stringify({ name: cluster, home }).slice(0, -1)).slice(1, -1);
  const stacks = readdirSync(folder).filter((file) => file.endsWith(".json"));
  return stacks.find((file) => readFileSync(join(folder, file), "utf8").includes(named))?.slice(0, -".json".length);
}

/**
 * The machine that a stack of this project has here; undefined if there is none.
 * @param fallback the cluster's name where nothing tells whose it is: releases up to 0.2 did not write that down
 */
export function machineOf(stack: string, fallback: string): MachineRef | undefined {
  const home = homeFolder();
  const found = list().find(({ name, owner }) => owner !== undefined && name === stack)?.cluster ?? fallback;
  const record = readRecord(found, home);
  if (record === undefined || (record.owner !== undefined && record.owner !== ownerOf(stack))) return undefined;
  return refTo(found, record);
}

/** The machines that are a stack's by what is written down of them, whatever Pulumi knows. */
export function machinesOf(stack: string): MachineRef[] {
  const home = homeFolder();
  return machinesIn(home).flatMap((name) => {
    const record = readRecord(name, home);
    return record?.owner === undefined || record.owner !== ownerOf(stack) ? [] : [refTo(name, record)];
  });
}

function refTo(name: string, { kind, ssh, joins }: MachineRecord): MachineRef {
  return { kind, name, home: homeFolder(), ...(ssh ? { ssh } : {}), ...(joins ? { joins } : {}) };
}
