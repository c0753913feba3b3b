/** prometheus-operator: a Prometheus that it makes, what that scrapes, and rules that change while it runs. */
import { expect, it } from "vitest";
import { manifestsOf, program } from "./programs.ts";
import { TIMEOUT, workload } from "./workload.ts";

const module = "github.com/prometheus-operator/prometheus-operator";
const programs = ["prometheus-operator", "prometheus-config-reloader", "prometheus"];
const monitored = { by: "test" };

const { kubectl, apply, says } = await workload("wk-prom", async () => {
  const images = [];
  for (const name of programs) images.push((await program(name, "prometheus-operator")).made);
  const manifests = [];
  for (const folder of ["prometheus-operator-crd", "rbac/prometheus-operator", "rbac/prometheus"])
    manifests.push(...(await manifestsOf(module, `example/${folder}`, "prometheus-operator")));
  return {
    images,
    objects: manifests
      .filter((text) => !/^kind: (Prometheus|ServiceMonitor)$/m.test(text)) // those are the test's
      .map((text) => text.replaceAll(/quay\.io\/prometheus-operator\/([a-z-]+):v[\d.]+/g, "workloads.test/$1:1")),
  };
});

const prometheus = {
  apiVersion: "monitoring.coreos.com/v1",
  kind: "Prometheus",
  metadata: { name: "test" },
  spec: {
    image: "workloads.test/prometheus:1",
    serviceAccountName: "prometheus",
    serviceMonitorSelector: { matchLabels: monitored },
    ruleSelector: { matchLabels: monitored },
    scrapeInterval: "1s",
    evaluationInterval: "1s",
    securityContext: { runAsNonRoot: true, runAsUser: 1000, fsGroup: 2000 },
    storage: { volumeClaimTemplate: { spec: { resources: { requests: { storage: "1Gi" } } } } },
  },
};

/** Has the operator's own metrics scraped, and what was scraped labelled. */
const monitor = (label: string) => ({
  apiVersion: "monitoring.coreos.com/v1",
  kind: "ServiceMonitor",
  metadata: { name: "operator", labels: monitored },
  spec: {
    selector: { matchLabels: { "app.kubernetes.io/name": "prometheus-operator" } },
    endpoints: [{ port: "http", relabelings: [{ targetLabel: "label", replacement: label }] }],
  },
});

const rule = (answer: number) => ({
  apiVersion: "monitoring.coreos.com/v1",
  kind: "PrometheusRule",
  metadata: { name: "answer", labels: monitored },
  spec: { groups: [{ name: "answer", rules: [{ record: "answer", expr: `vector(${answer})` }] }] },
});

/** A command of kubectl that asks Prometheus, through its Service, for something as it is, or was at a time. */
const ask = (query: string, time?: string) => {
  const asked = new URLSearchParams({ query, ...(time && { time }) });
  return ["get", "--raw", `/api/v1/namespaces/default/services/prometheus-operated:web/proxy/api/v1/query?${asked}`];
};

/** An answer of Prometheus's with one sample, and that of this value. */
const value = (value: number) => new RegExp(`"result":\\[\\{[^[]*"value":\\[([\\d.]+),"${value}"\\]\\}\\]`);

/** A command of kubectl that tells of Prometheus's pod which it is, and something of each of its containers. */
const pod = (field: string) => [
  ...["get", "pod", "prometheus-test-0"],
  `-o=jsonpath={.metadata.uid} {.status.containerStatuses[*].${field}}`,
];

it("makes a Prometheus that scrapes, takes other rules as it runs, and has its data after it was killed", {
  timeout: TIMEOUT,
}, async () => {
  await apply(prometheus, monitor("one"), rule(41));
  await says("True", "get", "prometheus", "test", '-o=jsonpath={.status.conditions[?(@.type=="Available")].status}');
  expect(
    await kubectl("get", "statefulset", "prometheus-test", "-o=jsonpath={.metadata.ownerReferences[*].kind}"),
  ).toBe("Prometheus");
  await says(value(1), ...ask('up{label="one"}'));
  const [, then] = (await says(value(41), ...ask("answer"))).match(value(41))!;
  const before = await kubectl(...pod("restartCount"));

  await apply(monitor("two"), rule(42));
  await says(value(42), ...ask("answer"));
  await says(value(1), ...ask('up{label="two"}'));
  expect(await kubectl(...pod("restartCount"))).toBe(before);

  await kubectl("delete", "pod", "prometheus-test-0", "--force", "--grace-period=0");
  const [uid] = before.split(" ");
  await says(new RegExp(`^(?!${uid}).+ true true$`), ...pod("ready"));
  await says(value(1), ...ask('up{label="two"}')); // the Service has it as an endpoint a moment later
  expect(await kubectl(...ask("answer", then))).toMatch(value(41));
});
