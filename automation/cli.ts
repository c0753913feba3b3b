#!/usr/bin/env node
/**
 * The command `gvisor-k3s`, which `make` calls too. Exit codes: 0 done; 1 an error; 2 a wrong command line; 3 not as it
 * could be: `doctor` found that only a control plane can run, `status` or `refresh` that something is wrong. `kubectl`
 * and `exec` end as what they run.
 */
import "./compileCache.ts";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeSync } from "node:fs";
import tab from "@bomb.sh/tab/commander";
import { Argument, Command, CommanderError, Option } from "commander";
import { execa } from "execa";
import { ownPackage } from "../system/package.ts";
import { letGo, oneLine, printable, shellWord } from "../system/run.ts";
import type { Change } from "./changes.ts";
import type { Cluster } from "./cluster.ts";
import { list } from "./list.ts";
import { Progress } from "./progress.ts";

/** Modules that not every command needs are loaded by those that do: Pulumi's alone are most of a start. */
const load = {
  cluster: () => import("./cluster.ts"),
  workspace: () => import("./workspace.ts"),
  status: () => import("./status.ts"),
  changes: () => import("./changes.ts"),
  kubeconfig: () => import("./kubeconfig.ts"),
  snapshots: () => import("./snapshots.ts"),
};

const { version, description } = ownPackage;

interface Flags {
  json?: boolean;
  dryRun?: boolean;
}

let progress: Progress;
/** Standard output is for a program's eyes with --json; progress then goes beside it. */
const begin = ({ json }: Flags = {}) => {
  progress = new Progress(json ? process.stderr : process.stdout);
  return progress;
};
const print = (value: unknown): void => {
  process.stdout.write(typeof value === "string" ? value : `${JSON.stringify(value, null, 2)}\n`);
};

// Who reads what is told may have had enough of it, and what is done goes on; that it could not be written is an error.
let lost: Error | undefined;
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") lost = error;
  });
}
process.on("exit", () => {
  if (lost === undefined) return;
  process.exitCode ||= 1;
  writeSync(process.stderr.fd, `what was to be told could not be written: ${lost.message}\n`);
});

// A terminal sends an interrupt to Pulumi as well, which ends its steps, notes what is done and releases its lock: that
// is waited for.
process.on("SIGINT", () => progress?.say("interrupted; what runs is ended first"));
const termination = new AbortController();
process.on("SIGTERM", () => termination.abort());
const { signal } = termination;

const program = new Command("gvisor-k3s")
  .description(description)
  .version(version)
  .exitOverride()
  .enablePositionalOptions();
const name = () => new Argument("[name]", "the cluster; its options are read from Pulumi.NAME.yaml").default("dev");
const json = () => new Option("--json", "print JSON");
const cluster = () => new Option("-c, --cluster <name>", "the cluster").default("dev");

program
  .command("up")
  .description("create the cluster, or change it to what its options say; ends when a pod runs in it")
  .addArgument(name())
  .addOption(json())
  .option("--dry-run", "as preview")
  .option("--forget", "a node that is taken off is left to its machine, if that is gone for good")
  .action(async (name: string, { forget, ...flags }: { forget?: boolean } & Flags) => {
    if (flags.dryRun) return await preview(name, flags);
    begin(flags);
    const made = await (await load.cluster()).up(name, { progress, signal, forgotten: forget ?? false });
    progress.end();
    printMade(name, made, flags);
  });

/** What has come to be, and what to do with it. */
function printMade(name: string, made: Cluster, flags: Flags): void {
  if (flags.json) {
    print(made);
    return;
  }
  const { kubeconfigPath, testPod: pod, quirks, resources } = made;
  const rows = [
    [
      "resources",
      Object.entries(resources)
        .map(([kind, count]) => `${count} ${kind}`)
        .join(", "),
    ],
  ];
  if (quirks) rows.push(["quirks", quirks.join(", ") || "none"]);
  if (pod) rows.push(["pod", pod.name], ["phase", pod.phase], ["log", pod.logs.split("\n")[0]!]);
  rows.push(["kubeconfig", kubeconfigPath], ["all", progress.elapsed()]);
  print(
    `\n${rows.map(([key, value]) => `${key!.padEnd(11)} ${oneLine(value!)}`).join("\n")}\n\nnext:\n  export ` +
      `KUBECONFIG=${shellWord(kubeconfigPath)}\n  kubectl get pods -A\n  ` +
      `${process.env.MAKELEVEL ? `make destroy${name === "dev" ? "" : ` STACK=${name}`}` : `gvisor-k3s destroy ${name}`}\n`,
  );
}

program
  .command("preview")
  .description("show what `up` would change: each file of the runtime as a diff, and what is restarted")
  .addArgument(name())
  .addOption(json())
  .action(preview);

async function preview(name: string, flags: Flags): Promise<void> {
  begin(flags);
  await printChanges(await (await load.cluster()).preview(name, { progress, signal }), flags);
}

async function printChanges(changes: Change[], flags: Flags): Promise<void> {
  progress.end();
  if (flags.json) return print(changes);
  const text = (await load.changes()).asText(changes, process.stdout.isTTY);
  print(
    changes.length === 0
      ? "nothing changes\n"
      : `${text}\n${changes.length} ${changes.length === 1 ? "change" : "changes"}\n`,
  );
}

program
  .command("fork")
  .description("make another cluster with what a cluster has now, or had in a snapshot, and an identity of its own")
  .argument("<name>", "the cluster")
  .argument("<new>", "what the other one is called; it has the same options, unless there is a Pulumi.NEW.yaml")
  .option("--from <snapshot>", "one of the cluster's snapshots; default: one that is made now, and removed again")
  .addOption(json())
  .action(async (name: string, fresh: string, flags: Flags & { from?: string }) => {
    begin(flags);
    const { fork } = await import("./fork.ts");
    const made = await fork(name, fresh, { progress, signal, ...(flags.from ? { from: flags.from } : {}) });
    progress.end();
    printMade(fresh, made, flags);
  });

program
  .command("upgrade")
  .description(
    "take a cluster to the versions that this gvisor-k3s brings; pods and data live on, and what fails goes back",
  )
  .addArgument(name())
  .option(
    "--to <version>",
    "a minor version of Kubernetes (see `versions`), or a release of k3s; kept in Pulumi.NAME.yaml unless it fails",
  )
  .addOption(json())
  .action(async (name: string, { to, ...flags }: { to?: string } & Flags) => {
    begin(flags);
    const done = await (await load.cluster()).upgrade(name, to, { progress, signal });
    progress.end();
    const { from = "unknown", to: now = "unknown" } = done;
    print(
      flags.json
        ? done
        : from === now
          ? `${name} runs ${now} already; all else is as configured\n`
          : `${name} runs ${now}; it ran ${from}\n`,
    );
  });

program
  .command("versions")
  .description(
    "list the versions of Kubernetes that a cluster can have (option `kubernetes`), and where they come from",
  )
  .addOption(json())
  .action(async (flags: Flags) => {
    const { asText, kubernetesVersions } = await import("./versions.ts");
    const versions = kubernetesVersions();
    print(flags.json ? versions : asText(versions));
  });

program
  .command("destroy")
  .description("remove the cluster and everything of it")
  .addArgument(name())
  .option("--dry-run", "show what would be removed, and remove nothing")
  .option("--forget", "of what is on another machine that is gone for good, remove only what is noted here")
  .addOption(json())
  .action(async (name: string, { forget, ...flags }: { forget?: boolean } & Flags) => {
    begin(flags);
    if (flags.dryRun)
      return await printChanges(await (await load.cluster()).previewDestroy(name, { progress, signal }), flags);
    await (await load.cluster()).destroy(name, { progress, signal, forgotten: forget ?? false });
    progress.say(`${name} is gone`);
    if (flags.json) print({ name, destroyed: true });
  });

program
  .command("status")
  .description("tell how a cluster is: what runs, what does not, and which files were edited by hand")
  .addArgument(name())
  .addOption(json())
  .action(async (name: string, flags: Flags) => {
    const { status, asText } = await load.status();
    const found = await status(await configOf(name), (line) => console.error(line));
    print(flags.json ? found : asText(found));
    if (found.problems.length > 0) process.exitCode = 3;
  });

program
  .command("refresh")
  .description(
    "note what is no longer as it was made, a test pod that was deleted by hand included, and tell " +
      "it as `status` does; `up` repairs it",
  )
  .addArgument(name())
  .addOption(json())
  .action(async (name: string, flags: Flags) => {
    begin(flags);
    const changed = await (await load.cluster()).refresh(name, { progress, signal });
    progress.end();
    const { status, asText } = await load.status();
    const found = await status(await configOf(name), (line) => console.error(line));
    found.problems.push(...changed.map((resource) => `${resource} is not as it was made`));
    print(flags.json ? found : asText(found));
    if (found.problems.length > 0) process.exitCode = 3;
  });

program
  .command("list")
  .description("list this machine's clusters")
  .addOption(json())
  .action((flags: Flags) => {
    const clusters = list();
    if (flags.json) return print(clusters);
    const rows = clusters.map(({ name, cluster, owner, state, kubeconfigPath }) => {
      const known = owner === undefined || owner.endsWith(`/${name}`) ? cluster : `${cluster} (${owner})`;
      return `${name.padEnd(12)} ${state.padEnd(8)} ${known.padEnd(12)} ${kubeconfigPath}\n`;
    });
    print(rows.length === 0 ? "there is no cluster; `gvisor-k3s up` makes one\n" : rows.join(""));
  });

program
  .command("doctor")
  .description("tell what a sandbox can do, before anything is installed in it")
  .addArgument(name())
  .option("-n, --node <node>", "that of which node; default: the server's")
  .addOption(json())
  .action(async (name: string, { node, ...flags }: { node?: string } & Flags) => {
    begin(flags);
    const { doctor, asTable } = await import("./doctor.ts");
    const { nodeOf } = await import("./nodes.ts");
    const config = nodeOf(await (await load.workspace()).checkStackConfig(name), node);
    const report = await doctor(config, (line) => progress.say(line), name);
    progress.end();
    print(flags.json ? report : asTable(report));
    process.exitCode = report.blockers.length === 0 ? 0 : 3;
  });

const kubeconfig = program.command("kubeconfig").description("print a cluster's kubeconfig, or keep it in your own");
kubeconfig
  .command("print", { isDefault: true })
  .description("print it (the default)")
  .addArgument(name())
  .action(async (name: string) =>
    print(readFileSync((await load.cluster()).kubeconfigThere(await configOf(name)), "utf8")),
  );
kubeconfig
  .command("merge")
  .description(
    "put it into your kubeconfig (the first file of KUBECONFIG, or ~/.kube/config) as the context " +
      "gvisor-k3s-NAME, and switch to that",
  )
  .addArgument(name())
  .option("--no-switch", "leave the current context as it is")
  .option("--dry-run", "print what the file would be")
  .action(async (name: string, { switch: choose, dryRun }: { switch: boolean } & Flags) => {
    const { changeUserKubeconfig, content, entryName, merged, userKubeconfig } = await load.kubeconfig();
    const own = readFileSync((await load.cluster()).kubeconfigThere(await configOf(name)), "utf8");
    const file = userKubeconfig();
    if (dryRun) return print(merged(content(file) ?? "", own, name, choose));
    await changeUserKubeconfig(file, (text) => merged(text, own, name, choose));
    const current = choose ? ", and the current context" : "";
    print(`${entryName(name)} is in ${file}${current}; \`gvisor-k3s kubeconfig undo\` takes that back\n`);
  });
kubeconfig
  .command("switch")
  .description("make a merged cluster the current context of your kubeconfig")
  .addArgument(name())
  .action(async (name: string) => {
    const { changeUserKubeconfig, chosen, entryName, userKubeconfig } = await load.kubeconfig();
    const file = userKubeconfig();
    if (!(await changeUserKubeconfig(file, (text) => chosen(text, name)))) {
      throw new Error(`${file} has no context ${entryName(name)}; run \`gvisor-k3s kubeconfig merge ${name}\` first`);
    }
    print(`${entryName(name)} is the current context of ${file}\n`);
  });
kubeconfig
  .command("undo")
  .description("take the last merge or switch back")
  .action(async () => print(`${await (await load.kubeconfig()).undo()} is as it was\n`));

program
  .command("kubectl")
  .description("run kubectl, of the node's own version, on a cluster")
  .usage("[-c NAME] ARGUMENT…")
  .addOption(cluster())
  .argument("[arguments...]")
  .passThroughOptions()
  .allowUnknownOption()
  .helpOption(false)
  .action(async (args: string[], { cluster: name }: { cluster: string }) => {
    const [file, ...first] = await (await load.cluster()).kubectl(await configOf(name), (line) => console.error(line));
    await become(file, [...first, ...args]);
  });

program
  .command("exec")
  .description("run a program in a cluster's sandbox, beside the node")
  .usage("[-c NAME] [-n NODE] PROGRAM ARGUMENT…")
  .addOption(cluster())
  .option("-n, --node <node>", "in which node's; default: the server's")
  .argument("<program...>")
  .passThroughOptions()
  .action(async (args: string[], { cluster: name, node }: { cluster: string; node?: string }) => {
    const { nodeOf } = await import("./nodes.ts");
    const machine = await (await load.cluster()).needRunning(nodeOf(await configOf(name), node));
    if (process.stdin.isTTY && process.stdout.isTTY) {
      const [file, ...rest] = await machine.terminalCommand(args);
      return await become(file!, rest);
    }
    const [file, ...rest] = machine.command(args);
    await passThrough(file!, rest);
  });

const snapshot = program
  .command("snapshot")
  .description("keep a cluster as it is, and take it back to that: save, restore, list, show, delete");
const which = (text: string) => new Argument("[snapshot]", text);
const newest = "its name; the newest by default";

snapshot
  .command("save")
  .description("keep a cluster as it is now; it runs on")
  .addArgument(name())
  .addArgument(which("what it is to be called; the time by default"))
  .addOption(json())
  .action(async (name: string, given: string | undefined, flags: Flags) => {
    const { saveSnapshot } = await load.snapshots();
    const saved = await saveSnapshot(await quickConfigOf(name), given, tell);
    print(
      flags.json ? saved : `${saved.name} is kept: ${sizeOf(saved)}; nothing ran in ${name} for ${saved.frozen} ms\n`,
    );
  });

snapshot
  .command("restore")
  .description("take a cluster back to a snapshot: what it has now is lost, unless that fails")
  .addArgument(name())
  .addArgument(which(newest))
  .addOption(json())
  .action(async (name: string, given: string | undefined, flags: Flags) => {
    const { restoreSnapshot } = await load.snapshots();
    const restored = await restoreSnapshot(await quickConfigOf(name), given, tell);
    const pods = restored.kind === "files" ? "; its pods start again" : "";
    print(flags.json ? restored : `${name} is as it was at ${restored.created} (${restored.name})${pods}\n`);
  });

snapshot
  .command("list")
  .description("list a cluster's snapshots, the oldest first")
  .addArgument(name())
  .addOption(json())
  .action(async (name: string, flags: Flags) => {
    const all = (await load.snapshots()).listSnapshots(await quickConfigOf(name));
    if (flags.json) return print(all);
    const rows = all.map((one) => `${one.name.padEnd(20)} ${one.created}  ${one.kind.padEnd(6)} ${sizeOf(one)}\n`);
    print(
      rows.length === 0 ? `${name} has no snapshot; \`gvisor-k3s snapshot save ${name}\` makes one\n` : rows.join(""),
    );
  });

snapshot
  .command("show")
  .description("tell what is in a snapshot, and whether it can be restored now")
  .addArgument(name())
  .addArgument(which(newest))
  .addOption(json())
  .action(async (name: string, given: string | undefined, flags: Flags) => {
    const found = (await load.snapshots()).showSnapshot(await quickConfigOf(name), given);
    if (flags.json) return print(found);
    const { snapshot: kept, problems } = found;
    const rows = [
      ["snapshot", kept.name],
      ["made", `${kept.created} by gvisor-k3s ${kept.product}`],
      ["holds", kept.kind === "memory" ? "memory and disk: its programs go on" : "the disk: its programs start again"],
      ["size", sizeOf(kept)],
      ["Kubernetes", kept.kubernetes ?? "not known"],
    ];
    const lines = rows.map(([key, value]) => `${key!.padEnd(11)} ${oneLine(value!)}\n`);
    const told = problems.map(({ option, message }) => `  - ${option}: ${oneLine(message)}\n`);
    const fits = problems.length === 0 ? "it can be restored\n" : `it cannot be restored:\n${told.join("")}`;
    print(`${lines.join("")}\n${fits}`);
    if (problems.length > 0) process.exitCode = 3;
  });

snapshot
  .command("delete")
  .description("remove a snapshot")
  .argument("<name>", "the cluster")
  .argument("<snapshot>", "its name")
  .addOption(json())
  .action(async (name: string, given: string, flags: Flags) => {
    await (await load.snapshots()).deleteSnapshot(await quickConfigOf(name), given, tell);
    print(flags.json ? { name, snapshot: given, deleted: true } : `${given} is removed\n`);
  });

program
  .command("pause")
  .description("have a cluster take no memory and no CPU until `resume`")
  .addArgument(name())
  .addOption(json())
  .action(async (name: string, flags: Flags) => {
    const paused = await (await load.snapshots()).pause(await quickConfigOf(name), tell);
    print(flags.json ? paused : `${name} is paused; \`gvisor-k3s resume ${name}\` has it go on\n`);
  });

program
  .command("resume")
  .description("have a paused cluster go on")
  .addArgument(name())
  .addOption(json())
  .action(async (name: string, flags: Flags) => {
    const how = await (await load.snapshots()).resume(await quickConfigOf(name), tell);
    print(
      flags.json ? { name, from: how } : `${name} ${how === "memory" ? "goes on" : "runs; its pods start again"}\n`,
    );
  });

/** What waits for somebody says so beside what is printed. */
function tell(line: string): void {
  console.error(line);
}

const sizeOf = ({ files }: { files: Record<string, { size: number }> }) =>
  `${Math.ceil(Object.values(files).reduce((sum, { size }) => sum + size, 0) / 2 ** 20)} MiB`;

const images = program.command("images").description("the images of a node that runs: import, prune");
images
  .command("import")
  .description("import archives: OCI layouts or docker save's, also compressed by gzip or zstd")
  .addOption(cluster())
  .option("-n, --node <node>", "into this node alone; default: into every one")
  .argument("<archives...>")
  .action(async (archives: string[], { cluster: name, node }: { cluster: string; node?: string }) => {
    begin();
    await (await load.cluster()).importArchives(await configOf(name), archives, progress, node);
  });

images
  .command("prune")
  .description("remove those that no container uses, but for those that were imported, and the node's own")
  .addOption(cluster())
  .option("--imported", "also those that were imported from archives; `images import` brings them again")
  .addOption(json())
  .action(async ({ cluster: name, imported, ...flags }: { cluster: string; imported?: boolean } & Flags) => {
    begin(flags);
    const pruned = await (await load.cluster()).pruneImages(await configOf(name), imported ?? false, progress);
    progress.end();
    if (flags.json) return print(pruned);
    const { images: removed, freed } = pruned;
    const room = freed === undefined ? "" : `; ${Math.round(freed / 2 ** 20)} MiB are free again`;
    const lines = removed.map(({ id, names }) => `${printable(names[0] ?? id)}\n`);
    print(`${lines.join("")}${removed.length} ${removed.length === 1 ? "image" : "images"} removed${room}\n`);
  });

program
  .command("logs")
  .description(
    "collect what a bug report needs in one archive: status, options, rendered files, logs, events; " +
      "secrets are removed",
  )
  .addArgument(name())
  .option("-o, --output <file>", "the archive", "gvisor-k3s-NAME.tar.gz")
  .addOption(json())
  .action(async (name: string, { output, ...flags }: { output: string } & Flags) => {
    const archive = output.replace("NAME", name);
    const files = await (await import("./bundle.ts")).writeBundle(await configOf(name), archive, (line) =>
      console.error(line),
    );
    print(
      flags.json
        ? { archive, files }
        : `${archive}: ${files.length} files, without secrets as far as these are known; look at them ` +
            "before you send them\n",
    );
  });

const completion = tab(program, { completionCommandName: "completion" });
for (const [command, { arguments: args, options }] of completion.commands) {
  const complete = (add: (value: string, text: string) => void) => {
    for (const { name, state } of list()) add(name, state);
  };
  const [positional, option] = [args.get("name"), options.get("cluster")];
  if (positional) positional.handler = complete;
  if (option && command !== "") option.handler = complete;
}

/** The options of a cluster, checked but for what stands in the way of making it. */
async function configOf(name: string) {
  return (await load.workspace()).readConfig(name);
}

/** The same; Pulumi, which takes long to load, only for options that it alone can read. */
async function quickConfigOf(name: string) {
  return (await import("./options.ts")).plainConfig(name) ?? (await configOf(name));
}

/** Runs a program on this terminal, and ends as it does. */
async function become(file: string, args: string[]): Promise<void> {
  const { exitCode } = await execa(file, args, { stdio: "inherit", reject: false });
  process.exitCode = exitCode ?? 1;
}

/**
 * The same, of a program that takes a file or a terminal for its own: runsc writes to a file from its beginning, wherever
 * its user was, and has a sandbox hold both. So it gets pipes, which are let go when it has ended.
 */
async function passThrough(file: string, args: string[]): Promise<void> {
  const child = spawn(file, args, { stdio: "pipe" });
  child.stdin.on("error", () => process.stdin.destroy()); // it has ended, and reads no more
  process.stdin.pipe(child.stdin);
  const pipes = [
    [child.stdout, process.stdout],
    [child.stderr, process.stderr],
  ] as const;
  for (const [from, to] of pipes) {
    from.pipe(to);
    to.on("error", () => child.kill()); // who reads it has had enough
    child.once("exit", () => void letGo(from));
  }
  const [exitCode] = (await once(child, "close")) as [number | null];
  process.exitCode = exitCode ?? 1;
  process.stdin.destroy();
}

/** What runs Pulumi, whose errors are told as they come. */
const PULUMI_VERBS = ["up", "upgrade", "preview", "refresh", "destroy"];

await program.parseAsync().catch(async (error: unknown) => {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2;
    return;
  }
  progress?.end();
  const verb = program.args[0] ?? "";
  // What Pulumi's engine has told of, its own error only repeats.
  const pulumi = PULUMI_VERBS.includes(verb) ? await import("@pulumi/pulumi/automation/index.js") : undefined;
  if (pulumi && error instanceof pulumi.ConcurrentUpdateError)
    console.error(`${verb} did nothing: another run works on this cluster; try again when it has ended`);
  else if (pulumi && error instanceof pulumi.CommandError) {
    if (!progress.failed) console.error(error.message);
    console.error(`${verb} failed; what is done is kept, and the next ${verb} goes on from there`);
  } else console.error(printable(error instanceof Error ? error.message : String(error))); // a machine's words may be in it
  process.exitCode = 1;
});
