import { conflistPath } from "../config/conflist.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

/** Writes the CNI conflist (the content) where containerd watches for it. With it the node becomes Ready. */
export const ensureNetwork: Step<OnMachine> = {
  name: () => "network",
  async run(_, context) {
    await writeFiles(context, "network", [{ path: conflistPath, content: context.content, mode: 0o644 }]);
  },
};
