import { join } from "node:path";
import { inSandbox } from "../config/paths.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

/**
 * Writes the files of the registries (the content: contents by path, as JSON), and takes away those of before. containerd
 * reads them at each pull.
 */
export const writeRegistries: Step<OnMachine> = {
  name: () => "registries",
  async run(_, context) {
    const contents = JSON.parse(context.content) as Record<string, string>;
    const files = Object.entries(contents).map(([path, content]) => {
      return { path: join(inSandbox.registries, path), content, mode: 0o600 };
    });
    await context.machine.remove([inSandbox.registries]);
    await writeFiles(context, "registries", files);
  },
};
