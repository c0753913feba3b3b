import { ctr } from "./containerd.ts";
import { execIn, type SandboxRef } from "./sandbox.ts";

export interface ImagesParams extends SandboxRef {
  /** Archives on the host, with the hash of each, so that another content is another input. */
  archives: { path: string; sha256: string }[];
}

/** Imports archives into containerd's namespace for Kubernetes; images that are there already are left as they are. */
export async function importImages(params: ImagesParams): Promise<{ imported: string[] }> {
  for (const { path } of params.archives) {
    await execIn(params, [ctr(), "--namespace=k8s.io", "images", "import", "-"], { inputFile: path });
  }
  return { imported: params.archives.map(({ path }) => path) };
}
