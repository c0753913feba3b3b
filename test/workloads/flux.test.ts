/** Flux: what is committed to a Git repository is in the cluster, and what is removed from it is not. */
import { expect, it } from "vitest";
import { manifestsOf, program } from "./programs.ts";
import { service, TIMEOUT, workload } from "./workload.ts";

const git = "workloads.test/git:1";
const site = "/srv/site";

/** Serves the repositories below /srv as Git's own protocol over HTTP has them. */
const cgi = `#!/bin/sh
export GIT_PROJECT_ROOT=/srv GIT_HTTP_EXPORT_ALL=1
exec git http-backend
`;

const start = `set -e
cd ${site}
git init --quiet --initial-branch=main
git add .
git commit --quiet --message=first
exec httpd -f -p 8080 -h /www`;

/** What the repository holds at first: a page, which kustomize makes a ConfigMap of, and who serves it. */
const repository = {
  "kustomization.yaml": {
    resources: ["web.yaml", "other.yaml"],
    configMapGenerator: [{ name: "page", files: ["index.html"] }],
  },
  "web.yaml": {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "web" },
    spec: {
      selector: { matchLabels: { app: "web" } },
      template: {
        metadata: { labels: { app: "web" } },
        spec: {
          containers: [
            {
              name: "web",
              image: git,
              command: ["httpd", "-f", "-p", "8080", "-h", "/page"],
              volumeMounts: [{ name: "page", mountPath: "/page" }],
            },
          ],
          volumes: [{ name: "page", configMap: { name: "page" } }],
        },
      },
    },
  },
  "other.yaml": { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "other" } },
};

const { kubectl, apply, says } = await workload("wk-flux", async () => {
  const controllers = ["source-controller", "kustomize-controller"];
  const images = [];
  const manifests = [];
  for (const name of controllers) {
    const { image, made } = await program(name, "flux");
    images.push({ ...made, user: "65534:65534" }); // as in the official ones, whose pods may not run as root
    for (const folder of ["crd/bases", "manager"])
      for (const text of await manifestsOf(`github.com/fluxcd/${name}`, `config/${folder}`, "flux"))
        manifests.push(text.replace(`image: fluxcd/${name}`, `image: ${image}`));
  }
  return {
    images: [
      ...images,
      {
        names: [git],
        packages: ["git", "busybox-static"],
        texts: {
          ...Object.fromEntries(
            Object.entries(repository).map(([name, object]) => [`${site}/${name}`, JSON.stringify(object)]),
          ),
          [`${site}/index.html`]: "hello\n",
          "/etc/gitconfig": "[user]\nname = workloads\nemail = git@workloads.test\n",
          "/www/cgi-bin/git": cgi,
        },
        modes: { "/tmp": 0o1777, "/www/cgi-bin/git": 0o755 },
      },
    ],
    objects: [
      ...manifests,
      {
        apiVersion: "rbac.authorization.k8s.io/v1",
        kind: "ClusterRoleBinding",
        metadata: { name: "flux" },
        roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "cluster-admin" },
        subjects: [{ kind: "ServiceAccount", name: "default", namespace: "default" }],
      },
      service("git", 80, 8080),
      service("web", 80, 8080),
      {
        apiVersion: "apps/v1",
        kind: "Deployment",
        metadata: { name: "git" },
        spec: {
          selector: { matchLabels: { app: "git" } },
          template: {
            metadata: { labels: { app: "git" } },
            spec: { containers: [{ name: "git", image: git, command: ["sh", "-c", start] }] },
          },
        },
      },
    ],
  };
});

/** Commits what a command changes in the repository. */
const commit = (command: string) =>
  kubectl("exec", "deploy/git", "--", "sh", "-c", `cd ${site} && ${command} && git add . && git commit -m next`);

it("follows a Git repository: what is new, what is changed, and what is not there anymore", {
  timeout: TIMEOUT,
}, async () => {
  await apply(
    {
      apiVersion: "source.toolkit.fluxcd.io/v1",
      kind: "GitRepository",
      metadata: { name: "site" },
      spec: { url: "http://git/cgi-bin/git/site/.git", ref: { branch: "main" }, interval: "5s" },
    },
    {
      apiVersion: "kustomize.toolkit.fluxcd.io/v1",
      kind: "Kustomization",
      metadata: { name: "site" },
      spec: {
        sourceRef: { kind: "GitRepository", name: "site" },
        targetNamespace: "default",
        interval: "1h",
        prune: true,
        wait: true,
      },
    },
  );
  const page = ["get", "--raw", "/api/v1/namespaces/default/services/web:80/proxy/"];
  await says(/^hello$/, ...page);
  const made = ["get", "configmaps", "-l=kustomize.toolkit.fluxcd.io/name=site", "-o=name"];
  const [other, first] = (await kubectl(...made)).split("\n");
  expect([other, first]).toEqual(["configmap/other", expect.stringMatching(/^configmap\/page-/)]);

  // Another page is another ConfigMap, which the Deployment then names; the one before goes.
  await commit("echo goodbye > index.html");
  await says(/^goodbye$/, ...page);
  await says(new RegExp(`^configmap/other\n(?!${first}$)configmap/page-\\w+$`), ...made);

  await commit("sed -i 's/,\"other.yaml\"//' kustomization.yaml && git rm -q other.yaml");
  await says(/^configmap\/page-\w+$/, ...made);
  const ready = '-o=jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}';
  await says(/^True True$/, "get", "gitrepository,kustomization", ready);
});
