/**
 * The images that the conformance tests run, under the names that they ask for, from the pinned modules and from
 * Debian's packages.
 * @module
 */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { run } from "../system/run.ts";
import { type Image, makeImage } from "../test/images.ts";

const module = join(import.meta.dirname, "../toolchain/conformance");

const e2e = "registry.k8s.io/e2e-test-images";
const users = {
  "/etc/passwd":
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nwww-data:x:33:33::/var/www:/bin/false\nuser-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n",
  "/etc/group":
    "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
  "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
};
const folders = { "/tmp": 0o1777, "/root": 0o700, "/home": 0o755, "/run": 0o755, "/var/log": 0o755 };
const shell = ["busybox-static"];
// Debian's busybox takes its own applets before anything in PATH, so that its shell would never run the other packages'
// programs.
const dnsTools = [...shell, "dash", "bind9-dnsutils", "libc-bin"];

const images: Image[] = [
  // Some tests look for variables with a dash in their names, which Debian's older busybox, as a shell, does not hand
  // on; they ask for `sh` by PATH. Others know its words, and ask for /bin/sh.
  {
    names: [`${e2e}/busybox:1.37.0-2`],
    packages: [...shell, "bash-static"],
    links: { "/usr/local/bin/sh": "/bin/bash-static" },
    texts: users,
    modes: folders,
    cmd: ["/bin/sh"],
  },
  {
    names: [`${e2e}/agnhost:2.66.1`, `${e2e}/agnhost:2.55`],
    packages: [...dnsTools, "curl", "netcat-openbsd", "iproute2"],
    files: {
      "/agnhost": "agnhost",
      "/localhost.crt": "agnhost/porter/localhost.crt",
      "/localhost.key": "agnhost/porter/localhost.key",
    },
    texts: users,
    links: { "/agnhost-2": "agnhost", "/usr/bin/nc": "nc.openbsd" },
    modes: { ...folders, "/agnhost": 0o755, "/uploads": 0o755 },
    entrypoint: ["/agnhost"],
    cmd: ["pause"],
  },
  { names: [`${e2e}/glibc-dns-testing:2.1.1`], packages: dnsTools, texts: users, modes: folders, cmd: ["sh"] },
  {
    names: [`${e2e}/nginx:1.27.0-2`, `${e2e}/nginx:1.28.0-2`],
    packages: [...shell, "nginx"],
    texts: {
      ...users,
      "/etc/nginx/nginx.conf":
        "events {}\nhttp { access_log off; server { listen 80; root /usr/share/nginx/html; } }\n",
    },
    modes: { ...folders, "/var/log/nginx": 0o755, "/var/lib/nginx": 0o755 },
    cmd: ["nginx", "-e", "stderr", "-g", "daemon off;"],
  },
  {
    names: [`${e2e}/nonewprivs:1.4`],
    files: { "/usr/local/bin/nnp": "nonewprivs" },
    modes: { "/usr/local/bin/nnp": 0o4755 },
    cmd: ["nnp"],
  },
  { names: [`${e2e}/nonroot:1.5`], packages: shell, texts: users, modes: folders, cmd: ["sh"], user: "1234" },
  ...["kitten", "nautilus"].map((name) => ({
    names: [`${e2e}/${name}:1.8`],
    files: {
      "/agnhost": "agnhost",
      [`/${name}.jpg`]: `${name}/html/${name}.jpg`,
      "/data.json": `${name}/html/data.json`,
    },
    // Upstream's image has more of that distribution than this file; a test reads it to see that the image is mounted.
    texts: { "/etc/os-release": 'NAME="Alpine Linux"\nID=alpine\n' },
    modes: { "/tmp": 0o1777, "/agnhost": 0o755 },
    entrypoint: ["/agnhost"],
    cmd: ["test-webserver"],
  })),
  {
    names: [`${e2e}/sample-apiserver:1.29.2`],
    files: { "/sample-apiserver": "sample-apiserver" },
    modes: { "/tmp": 0o1777, "/sample-apiserver": 0o755 },
    // It is of Kubernetes 1.37, and asks its cluster for what there is since 1.36: without that it is never ready.
    entrypoint: ["/sample-apiserver", "--disable-admission-plugins=MutatingAdmissionPolicy"],
  },
  {
    names: ["registry.k8s.io/etcd:3.7.0-0"],
    files: { "/usr/local/bin/etcd": "etcd" },
    texts: users,
    modes: { "/tmp": 0o1777, "/usr/local/bin/etcd": 0o755 },
    cmd: ["/usr/local/bin/etcd"],
  },
  {
    names: ["registry.k8s.io/pause:3.10.2"],
    files: { "/pause": "pause" },
    modes: { "/pause": 0o755 },
    entrypoint: ["/pause"],
    user: "65535:65535",
  },
];

/** The folder of the sources that the tests are built from. */
export async function kubernetesSources(): Promise<string> {
  const { stdout } = await run("go", ["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"], { cwd: module });
  return stdout.trim();
}

/**
 * Where the images' files are: programs that are built here, and what the sources of Kubernetes have beside theirs.
 * @param made takes what is built for this alone
 */
async function sources(made: string): Promise<(file: string) => string> {
  mkdirSync(made, { recursive: true });
  await run("sh", [join(import.meta.dirname, "../node/images/pause/build.sh"), join(made, "pause")]);
  const folders = [artifactFolder({ name: "conformance" }), made, join(await kubernetesSources(), "test/images")];
  return (file) => {
    const found = folders.map((folder) => join(folder, file)).find((path) => existsSync(path));
    if (found === undefined) throw new Error(`an image needs ${file}, which is in none of ${folders.join(", ")}`);
    return found;
  };
}

/**
 * Makes every image.
 * @param folder takes the archives; what it holds already is used again for packages only
 * @returns the archives' paths, by the names of what is in them
 */
export async function makeImages(folder: string, say: (line: string) => void): Promise<Map<string, string>> {
  const source = await sources(join(folder, "programs"));
  const archives = new Map<string, string>();
  for (const image of images) {
    say(`image ${image.names.join(", ")}`);
    const made = await makeImage(image, folder, source);
    for (const [i, name] of image.names.entries()) archives.set(name, made[i]!);
  }
  return archives;
}
