/** The packages as users get them, made anew for a test; what is compressed lightly is kept in the cache. */
import { join } from "node:path";
import { execa } from "execa";
import { root } from "./harness.ts";

/** Makes a release of this machine's architecture in a folder of its own, and returns the folder. */
export async function makeRelease(home: string): Promise<string> {
  const folder = join(home, "release");
  const args = [join(root, "toolchain/release.ts"), "--level", "3", "--kubernetes", "none", "--out", folder];
  await execa("node", args, { env: { GVISOR_K3S_MANIFEST: "" } });
  return folder;
}
