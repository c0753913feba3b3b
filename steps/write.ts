import type { MachineFile } from "../machines/ref.ts";
import { noteWritten } from "../machines/written.ts";
import type { Context } from "./step.ts";

/**
 * Writes the configuration files of a step, and notes what was written, so that an edit by hand is noticed.
 * @param service what the step starts with them, so that its end is noticed
 */
export async function writeFiles(
  { machine, repairs }: Context,
  step: string,
  files: MachineFile[],
  service?: string | string[],
): Promise<void> {
  if (files.length > 0) await machine.write(files);
  await noteWritten(machine.ref, step, files, repairs, service);
}
