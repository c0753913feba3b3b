/** PostgreSQL, with its data on a claim. */
import { expect, it } from "vitest";
import { service, TIMEOUT, workload } from "./workload.ts";

const image = "workloads.test/postgres:15";
const ID = 999;

const start = `set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --auth=trust --no-sync
  echo 'host all all all trust' >> "$PGDATA/pg_hba.conf"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp`;

const { kubectl, says } = await workload("wk-pg", async () => ({
  images: [
    {
      names: [image],
      packages: ["postgresql-15", "dash", "coreutils"],
      texts: {
        "/etc/passwd": `postgres:x:${ID}:${ID}::/tmp:/bin/sh\n`,
        "/etc/group": `postgres:x:${ID}:\n`,
      },
      links: { "/usr/local/pgsql": "../lib/postgresql/15" },
      modes: { "/tmp": 0o1777 },
    },
  ],
  objects: [
    service("db", 5432),
    {
      apiVersion: "apps/v1",
      kind: "StatefulSet",
      metadata: { name: "db" },
      spec: {
        serviceName: "db",
        selector: { matchLabels: { app: "db" } },
        template: {
          metadata: { labels: { app: "db" } },
          spec: {
            securityContext: { runAsUser: ID, runAsGroup: ID, fsGroup: ID },
            containers: [
              {
                name: "postgres",
                image,
                command: ["sh", "-c", start],
                env: [
                  { name: "PGDATA", value: "/data/pg" },
                  { name: "PATH", value: "/usr/local/pgsql/bin:/usr/bin:/bin" },
                ],
                readinessProbe: { exec: { command: ["pg_isready", "-h", "127.0.0.1"] }, periodSeconds: 2 },
                volumeMounts: [{ name: "data", mountPath: "/data" }],
              },
            ],
          },
        },
        volumeClaimTemplates: [
          {
            metadata: { name: "data" },
            spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Gi" } } },
          },
        ],
      },
    },
  ],
}));

/** A command of kubectl that runs a program of PostgreSQL's against the Service, by its name. */
const command = (program: string, ...args: string[]) => [
  ...["exec", "db-0", "--", program, "-h", "db", "-U", "postgres"],
  ...args,
];

it("takes four writers at a time, and has what they wrote after its pod was killed", { timeout: TIMEOUT }, async () => {
  await kubectl(...command("pgbench", "-i", "-s", "1"));
  await kubectl(...command("pgbench", "-c", "4", "-t", "100"));
  const count = command("psql", "-qAtc", "select count(*) from pgbench_history");
  expect(await kubectl(...count)).toBe("400");
  const uid = await kubectl("get", "pod", "db-0", "-o=jsonpath={.metadata.uid}");
  await kubectl("delete", "pod", "db-0", "--force", "--grace-period=0");
  const state = "-o=jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}";
  await says(new RegExp(`^(?!${uid}).+ true$`), "get", "pod", "db-0", state);
  await says(/^400$/, ...count); // the Service has it as an endpoint a moment later
});
