import { writtenBy } from "../machines/written.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface FilesParams extends OnMachine {
  /** The files by their paths on the machine. */
  paths: string[];
}

/**
 * Writes files of the user's that the server or the kubelet reads (the content: contents by path, as JSON), and takes
 * those away that it wrote before and that are asked for no more.
 */
export const provideFiles: Step<FilesParams> = {
  name: () => "files",
  async run({ paths }, context) {
    const { machine } = context;
    const contents = JSON.parse(context.content) as Record<string, string>;
    const left = writtenBy(machine.ref, "files").filter((path) => !paths.includes(path));
    await machine.remove(left);
    const files = paths.map((path) => ({ path, content: contents[path]!, mode: 0o600 }));
    await writeFiles(context, "files", files);
  },
};

/** Takes all of them away. */
export const removeFiles: Step<FilesParams> = {
  name: () => "files",
  async run(_, context) {
    const { machine } = context;
    if ((await machine.observe()).state !== "running") return; // they end with it
    await machine.remove(writtenBy(machine.ref, "files"));
    await writeFiles(context, "files", []);
  },
};
