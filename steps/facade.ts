import type { FacadePlan } from "../config/facade.ts";
import type { OnMachine, Step } from "./step.ts";

/** The plan is a parameter, so that a preview shows a change of it. */
export type FacadeParams = OnMachine & { plan: FacadePlan };

/** Puts there what a kubelet and runc look for and the sandbox lacks. */
export const applyFacade: Step<FacadeParams> = {
  name: () => "facade",
  async run({ plan }, { machine }) {
    await machine.init(["facade"], { input: JSON.stringify(plan), timeout: 20_000 });
  },
};
