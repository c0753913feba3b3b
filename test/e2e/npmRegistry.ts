/** A registry of npm's on loopback: packages of this project's, and all else from the registry that this machine uses. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { list } from "tar";

interface Package {
  name: string;
  version: string;
}

/** What is in the package.json of a packed package. */
function manifestIn(file: string): Package {
  const chunks: Buffer[] = [];
  list({
    file,
    sync: true,
    filter: (path) => path === "package/package.json",
    onReadEntry: (entry) => void entry.on("data", (chunk: Buffer) => chunks.push(chunk)),
  });
  return JSON.parse(Buffer.concat(chunks).toString("utf8")) as Package;
}

/**
 * Starts it.
 * @param folder has the packed packages, `*.tgz`
 * @returns its address, and what ends it
 */
export async function startNpmRegistry(folder: string): Promise<{ url: string; close: () => void }> {
  const { stdout: upstream } = await execa("npm", ["config", "get", "registry"]);
  const own = new Map<string, { file: string; manifest: Package }>();
  for (const name of readdirSync(folder).filter((entry) => entry.endsWith(".tgz"))) {
    const file = join(folder, name);
    const manifest = manifestIn(file);
    own.set(manifest.name, { file, manifest });
  }
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(request.url!.slice(1));
    const found = own.get(path.replace(/\/-\/.*$/, ""));
    try {
      if (found === undefined) {
        const answer = await fetch(new URL(request.url!, upstream), {
          headers: { accept: request.headers.accept ?? "*/*" },
        });
        const type = answer.headers.get("content-type") ?? "application/octet-stream";
        response.writeHead(answer.status, { "content-type": type }).end(Buffer.from(await answer.arrayBuffer()));
      } else if (path.includes("/-/")) {
        response.writeHead(200).end(readFileSync(found.file));
      } else {
        const { name, version } = found.manifest;
        const integrity = `sha512-${createHash("sha512").update(readFileSync(found.file)).digest("base64")}`;
        const dist = { tarball: `http://${request.headers.host}/${name}/-/${name}-${version}.tgz`, integrity };
        const versions = { [version]: { ...found.manifest, dist } };
        response.writeHead(200, { "content-type": "application/json" });
        response.end(JSON.stringify({ name, "dist-tags": { latest: version }, versions }));
      }
    } catch (error) {
      response.writeHead(502).end(String(error));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, close: () => server.close() };
}
