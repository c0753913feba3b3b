import { fetchK3s, type K3sRelease } from "../artifacts/k3sRelease.ts";
import type { OnMachine, Step } from "./step.ts";

/** Brings a release of k3s into the artifact cache, and to where the machine finds it. */
export const downloadK3s: Step<OnMachine & { release: K3sRelease }> = {
  name: () => "k3s",
  async run({ release }, { machine, say }) {
    await machine.upload([await fetchK3s(release, say)], say);
  },
};
