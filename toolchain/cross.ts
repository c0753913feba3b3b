/**
 * What another architecture's programs are built with on a Debian machine: its cross compiler, and the libraries of that
 * architecture, unpacked into the cache; nothing is installed.
 * @module
 */
import { existsSync, globSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { intoPlace } from "../artifacts/artifacts.ts";
import { cacheFolder } from "../system/folders.ts";
import { findProgram } from "../system/programs.ts";
import { run } from "../system/run.ts";

/** Debian's names for Node.js' architectures that are built for. */
const targets: Record<string, { go: string; debian: string; triplet: string }> = {
  x64: { go: "amd64", debian: "amd64", triplet: "x86_64-linux-gnu" },
  arm64: { go: "arm64", debian: "arm64", triplet: "aarch64-linux-gnu" },
};

/** What is linked in, or brought along. */
const PACKAGES = ["libseccomp-dev", "busybox-static"];

/**
 * The variables by which Go, C compilers and this project build for another architecture.
 * @throws Error that names the package that is missing
 */
export async function crossEnvironment(arch: string, say: (line: string) => void): Promise<Record<string, string>> {
  const target = targets[arch];
  if (target === undefined) throw new Error(`no builds for ${arch}; there are ${Object.keys(targets).join(", ")}`);
  const { go, debian, triplet } = target;
  const compiler = `${triplet}-gcc`;
  if (findProgram(compiler) === undefined) {
    const packages = `gcc-${triplet.replace("_", "-")} libc6-dev-${debian}-cross`;
    throw new Error(`there is no ${compiler}; install it (Debian: apt-get install ${packages})`);
  }
  const folder = await libraries(debian, say);
  return {
    GOARCH: go,
    CC: compiler,
    PKG_CONFIG_LIBDIR: join(folder, `usr/lib/${triplet}/pkgconfig`),
    PKG_CONFIG_SYSROOT_DIR: folder,
    GVISOR_K3S_BUSYBOX: join(folder, "bin/busybox"),
  };
}

/** Debian's packages of another architecture, unpacked. apt takes them with a state of its own. */
async function libraries(debian: string, say: (line: string) => void): Promise<string> {
  const folder = join(cacheFolder(), "cross", debian);
  if (existsSync(folder)) return folder;
  say(`fetching ${PACKAGES.join(", ")} for ${debian}`);
  await mkdir(join(cacheFolder(), "cross"), { recursive: true });
  return await intoPlace(folder, async (work) => {
    const apt = `${work}.apt`;
    for (const part of ["lists/partial", "archives/partial", "debs"]) await mkdir(join(apt, part), { recursive: true });
    const conf = [
      `APT::Architecture "${debian}"; APT::Architectures { "${debian}"; }; APT::Sandbox::User "root";`,
      `Dir::State "${apt}"; Dir::State::status "/dev/null"; Dir::Cache "${apt}";`,
    ];
    await writeFile(join(apt, "apt.conf"), conf.join("\n"));
    const env = { APT_CONFIG: join(apt, "apt.conf") };
    await run("apt-get", ["update", "-qq"], { env });
    await run("apt-get", ["download", "-qq", ...PACKAGES], { env, cwd: join(apt, "debs") });
    for (const file of globSync(join(apt, "debs/*.deb"))) await run("dpkg-deb", ["--extract", file, work]);
    await run("rm", ["-r", apt]);
  });
}
