import { setTimeout as delay } from "node:timers/promises";

/**
 * Waits until a probe answers with something, which is returned.
 * @param what the condition, for the error: "containerd answers"
 * @param seconds how long to wait at most
 * @param probe undefined means "not yet"
 * @param lastState tells, when the time is up, what is known about the reason
 */
export async function waitFor<T>(
  what: string,
  seconds: number,
  probe: () => Promise<T | undefined> | T | undefined,
  lastState: () => Promise<string> | string = () => "",
): Promise<T> {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const answer = await probe();
    if (answer !== undefined) return answer;
    if (Date.now() > deadline)
      throw new Error([`${what}: not within ${seconds} s`, await lastState()].filter(Boolean).join("\n"));
    await delay(25);
  }
}
