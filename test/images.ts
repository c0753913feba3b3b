/**
 * Container images for tests that run others' programs, from Debian's packages and from programs that are built here.
 * @module
 */
import { chmodSync, cpSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { artifactFolder, goArch } from "../artifacts/artifacts.ts";
import { run } from "../system/run.ts";

/** What an image is made of. */
export interface Image {
  /** Full names, with tags: the same content under each. */
  names: string[];
  /** Debian packages, with all that they depend on. */
  packages?: string[];
  /** Files and folders that a maker knows by these names, by their paths in the image. */
  files?: Record<string, string>;
  /** Short files, by their paths in the image. */
  texts?: Record<string, string>;
  links?: Record<string, string>;
  /** Modes of folders and files; folders are made. */
  modes?: Record<string, number>;
  entrypoint?: string[];
  cmd?: string[];
  user?: string;
}

/**
 * Makes an image, once for each of its names.
 * @param folder takes the archives; the packages that it holds already are used again
 * @param source where a file of `files` is
 * @returns the archives' paths, in the names' order
 */
export async function makeImage(
  image: Image,
  folder: string,
  source: (file: string) => string = (file) => file,
): Promise<string[]> {
  const root = join(folder, "root");
  await makeRoot(image, root, source, join(folder, "packages"));
  const words = (option: string, list: string[] = []) => list.flatMap((word) => [`--${option}`, word]);
  const config = [
    ...words("entrypoint", image.entrypoint),
    ...words("cmd", image.cmd),
    ...words("env", ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
    ...(image.user ? ["--user", image.user] : []),
  ];
  const archives: string[] = [];
  // Each name is an image of its own, and they share their only layer.
  for (const name of image.names) {
    const archive = join(folder, `${name.split("/").at(-1)!.replace(":", "_")}.tar`);
    await run(join(artifactFolder({ name: "images" }), "mkimage"), [
      "--name",
      name,
      "--platform",
      `linux/${goArch()}`,
      "--root",
      root,
      ...config,
      "-o",
      archive,
    ]);
    archives.push(archive);
  }
  return archives;
}

async function makeRoot(image: Image, root: string, source: (file: string) => string, packages: string): Promise<void> {
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root, { recursive: true });
  if (image.packages) await run("sh", [join(import.meta.dirname, "debian-root.sh"), root, packages, ...image.packages]);
  const at = (path: string) => {
    const full = join(root, path);
    mkdirSync(dirname(full), { recursive: true });
    return full;
  };
  for (const [path, file] of Object.entries(image.files ?? {})) cpSync(source(file), at(path), { recursive: true });
  for (const [path, text] of Object.entries(image.texts ?? {})) writeFileSync(at(path), text);
  for (const [path, target] of Object.entries(image.links ?? {})) symlinkSync(target, at(path));
  if (image.packages?.includes("dash") && !existsSync(join(root, "bin/sh"))) symlinkSync("dash", join(root, "bin/sh"));
  if (image.packages?.includes("busybox-static")) {
    const { stdout } = await run("chroot", [root, "/bin/busybox", "--list"]);
    for (const applet of stdout.split("\n")) {
      const places = ["bin", "sbin"].map((folder) => join(root, "usr", folder, applet));
      if (!places.some((place) => existsSync(place))) symlinkSync("busybox", places[0]!);
    }
  }
  for (const [path, mode] of Object.entries(image.modes ?? {})) {
    if (!existsSync(join(root, path))) mkdirSync(join(root, path), { recursive: true });
    chmodSync(join(root, path), mode);
  }
}
