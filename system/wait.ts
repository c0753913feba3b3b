import { setTimeout as delay } from "node:timers/promises";

/** Milliseconds that the first question gets even if there is no time to wait. */
const LEAST = 1000;

/** Milliseconds between two questions. */
const PAUSE = 25;

/**
 * Waits until a probe answers with something, which is returned.
 * @param what the condition, for the error: "containerd answers"
 * @param seconds how long to wait at most, by a clock that nobody sets; a question that hangs is not waited for longer
 * @param probe undefined means "not yet"
 * @param lastState tells, when the time is up, what is known about the reason
 * @throws Error when the time is up, and what the probe throws
 */
export async function waitFor<T>(
  what: string,
  seconds: number,
  probe: () => Promise<T | undefined> | T | undefined,
  lastState: () => Promise<string> | string = () => "",
): Promise<T> {
  const deadline = performance.now() + seconds * 1000;
  const late = async (more: string) => {
    const state = await within(LEAST * 10, lastState());
    return new Error([`${what}: not within ${seconds} s${more}`, state].filter(Boolean).join("\n"));
  };
  for (;;) {
    const answer = await within(Math.max(LEAST, deadline - performance.now()), probe());
    if (answer === HUNG) throw await late("; the last question got no answer");
    if (answer !== undefined) return answer as T;
    if (performance.now() > deadline) throw await late("");
    await delay(PAUSE);
  }
}

const HUNG = Symbol("no answer");

/** An answer, or {@link HUNG} if it takes longer than some milliseconds. */
async function within<T>(milliseconds: number, answer: Promise<T> | T): Promise<T | typeof HUNG> {
  if (!(answer instanceof Promise)) return answer;
  const timer = new AbortController();
  try {
    return await Promise.race([answer, delay(milliseconds, HUNG, { signal: timer.signal })]);
  } finally {
    timer.abort();
    answer.catch(() => undefined); // it may fail when nobody waits for it any more
  }
}
