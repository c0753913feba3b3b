import { dirname } from "node:path";
import { digest, provide, type Wanted } from "../artifacts/artifacts.ts";
import { provideTo } from "./runtime.ts";
import type { OnMachine, Step } from "./step.ts";

export interface ImagesParams extends OnMachine {
  /** ctr by its path on the machine. */
  ctr: string;
  /** What the archives that are built here are of. */
  takes: Wanted[];
  /** What is to be on the machine, for those pods whose programs are mounted. */
  programs: Wanted[];
  /** What the images are labelled with: see {@link PINNED}. */
  labels: string[];
  /** Archives on the host, with the hash of each, so that another content is another input. */
  archives: { path: string; sha256: string }[];
}

/** Has the kubelet never delete an image, since an archive's could be pulled from nowhere (containerd's CRI, labels). */
export const PINNED = "io.cri-containerd.pinned=pinned";

/** Milliseconds that an import may take: some GiB, unpacked in the sandbox. */
const PATIENCE = 30 * 60_000;

/** Imports archives into containerd's namespace for Kubernetes; images that are there already are left as they are. */
export const importImages: Step<ImagesParams, { imported: string[] }> = {
  name: ({ archives }) => `images-${digest(...archives.map(({ path }) => path))}`,
  async run({ ctr, takes, programs, labels, archives }, { machine, say }) {
    for (const artifact of takes) await provide(artifact, say);
    await provideTo(machine, { artifacts: programs }, say);
    for (const { path } of archives) {
      const labelled = labels.map((label) => `--label=${label}`);
      const command = [ctr, "--namespace=k8s.io", "images", "import", ...labelled, "-"];
      await machine.exec(command, { inputFile: path, timeout: PATIENCE });
    }
    return { imported: archives.map(({ path }) => path) };
  },
};

/** ctr beside a containerd, by its path on the machine. */
export const ctrBeside = (containerd: string) => `${dirname(containerd)}/ctr`;
