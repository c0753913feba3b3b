/**
 * How far Pulumi is, for people: in a terminal a line for what is done and live ones for what runs, elsewhere plain
 * lines.
 * @module
 */
import type { EngineEvent } from "@pulumi/pulumi/automation/index.js";
import { createLogUpdate } from "log-update";
import { lastLines, printable } from "../system/run.ts";

/** Milliseconds between two looks at what runs. */
const [LIVE, PLAIN] = [200, 10_000];

/** Tells what happens, with the time since the command began. */
export class Progress {
  readonly #started = Date.now();
  readonly #begun = new Map<string, number>();
  readonly #took = new Map<string, number>();
  /** What a resource waits for, as its provider tells it. */
  readonly #status = new Map<string, string>();
  /** Whether anything was told to have gone wrong. */
  failed = false;
  readonly #live: ReturnType<typeof createLogUpdate> | undefined;
  readonly #out: NodeJS.WriteStream;

  /** @param out where it is told; standard output is a program's where that asks for JSON */
  constructor(out: NodeJS.WriteStream = process.stdout) {
    this.#out = out;
    this.#live = out.isTTY ? createLogUpdate(out) : undefined;
    setInterval(() => this.#showRunning(), this.#live ? LIVE : PLAIN).unref();
  }

  say(line: string): void {
    const timed = `[${this.elapsed()}] ${printable(line)}`;
    if (this.#live) this.#live.persist(timed);
    else this.#out.write(`${timed}\n`);
  }

  /** Takes an event of Pulumi's engine. */
  see(event: EngineEvent): void {
    const metadata = (event.resourcePreEvent ?? event.resOutputsEvent)?.metadata;
    const diagnostic = event.diagnosticEvent;
    if (diagnostic?.severity === "error") this.error(diagnostic.message.trimEnd());
    if (diagnostic?.ephemeral) this.#status.set(nameOf(diagnostic.urn), lastLines(diagnostic.message, 1));
    if (!metadata || metadata.op === "same" || !isWork(metadata.type)) return;
    const name = nameOf(metadata.urn);
    if (event.resourcePreEvent) {
      this.#begun.set(name, Date.now());
      return;
    }
    const took = Date.now() - (this.#begun.get(name) ?? Date.now());
    this.#took.set(name, took);
    this.say(`${metadata.op} ${name} (${seconds(took)})`);
  }

  /** Prints what went wrong, above the live lines. */
  error(text: string): void {
    this.failed = true;
    this.#live?.clear();
    process.stderr.write(`${printable(text)}\n`);
  }

  /** Takes the live lines away. */
  end(): void {
    this.#live?.clear();
  }

  /** How long each resource took, in milliseconds. */
  get stages(): Record<string, number> {
    return Object.fromEntries(this.#took);
  }

  elapsed(): string {
    return seconds(Date.now() - this.#started);
  }

  #showRunning(): void {
    const running = [...this.#begun].filter(([name]) => !this.#took.has(name));
    const lines = running.map(([name, begun]) =>
      [`… ${name} (${seconds(Date.now() - begun)})`, this.#status.get(name)].filter(Boolean).join(" "),
    );
    if (this.#live) this.#live(lines.join("\n"));
    else for (const line of lines) this.say(line);
  }
}

/** A resource's own name. */
export function nameOf(urn = ""): string {
  return urn.split("::").at(-1)!;
}

/** Whether something is done for a resource of this type; components and the stack itself only group what is done. */
export function isWork(type: string): boolean {
  return !type.startsWith("gvisor-k3s:") && !type.startsWith("pulumi:");
}

export function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
