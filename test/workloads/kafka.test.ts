/** Apache Kafka, one node with its own quorum, on Debian's Java. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { cacheFolder } from "../../system/folders.ts";
import { run } from "../../system/run.ts";
import { service, TIMEOUT, workload } from "./workload.ts";

const image = "workloads.test/kafka:4.3.1";

const properties = `process.roles=broker,controller
node.id=1
controller.quorum.voters=1@localhost:9093
listeners=PLAINTEXT://:9092,CONTROLLER://:9093
advertised.listeners=PLAINTEXT://kafka:9092
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=/data/log
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
`;

/** What says only what goes wrong. */
const java = "/usr/lib/jvm/java-17-openjdk-*/bin/java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn";

const start = `set -e
kafka-run kafka.tools.StorageTool format -t 4L6g3nShT-eMCtK--X86sw -c /etc/kafka.properties --ignore-formatted
exec kafka-run kafka.Kafka /etc/kafka.properties`;

const { kubectl, says } = await workload("wk-kafka", async () => ({
  images: [
    {
      names: [image],
      packages: ["openjdk-17-jre-headless", "dash", "coreutils", "util-linux"],
      files: { "/opt/kafka": await jars() },
      texts: {
        "/etc/kafka.properties": properties,
        "/usr/bin/kafka-run": `#!/bin/sh\nexec ${java} -cp '/opt/kafka/*' "$@"\n`,
      },
      modes: { "/tmp": 0o1777, "/usr/bin/kafka-run": 0o755 },
      cmd: ["sh", "-c", start],
    },
  ],
  objects: [
    service("kafka", 9092),
    {
      apiVersion: "apps/v1",
      kind: "StatefulSet",
      metadata: { name: "kafka" },
      spec: {
        serviceName: "kafka",
        selector: { matchLabels: { app: "kafka" } },
        template: {
          metadata: { labels: { app: "kafka" } },
          spec: {
            // Else the Service's variables, KAFKA_PORT and so on, are taken for its own.
            enableServiceLinks: false,
            containers: [
              {
                name: "kafka",
                image,
                readinessProbe: { tcpSocket: { port: 9092 }, periodSeconds: 2 },
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

/** Kafka's programs, from Maven. */
async function jars(): Promise<string> {
  const folder = join(cacheFolder(), "workloads/kafka");
  rmSync(folder, { recursive: true, force: true });
  const pom = join(import.meta.dirname, "kafka/pom.xml");
  const goal = ["dependency:copy-dependencies", `-DoutputDirectory=${folder}`];
  await run("mvn", ["--batch-mode", "--quiet", "--file", pom, ...goal]);
  return folder;
}

/** A command of kubectl that runs one of Kafka's programs against the Service. */
const command = (program: string, options: string, rest = "") => [
  ...["exec", "kafka-0", "--", "sh", "-c"],
  `kafka-run org.apache.kafka.tools.${program} --bootstrap-server kafka:9092 --topic news ${options} ${rest}`,
];

it("hands on messages, and has them after its pod was killed", { timeout: TIMEOUT }, async () => {
  await kubectl(...command("TopicCommand", "--create --partitions 3"));
  await kubectl(...command("ProducerPerformance", "--num-records 10000 --record-size 100 --throughput -1"));
  const count = command(
    "consumer.ConsoleConsumer",
    "--from-beginning --max-messages 10000 --timeout-ms 60000",
    "2>/dev/null | wc -l",
  );
  expect(await kubectl(...count)).toBe("10000");
  const uid = await kubectl("get", "pod", "kafka-0", "-o=jsonpath={.metadata.uid}");
  await kubectl("delete", "pod", "kafka-0", "--force", "--grace-period=0");
  const state = "-o=jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}";
  await says(new RegExp(`^(?!${uid}).+ true$`), "get", "pod", "kafka-0", state);
  await says(/^10000$/, ...count);
});
