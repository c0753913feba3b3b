/** An error whose message is for the user, and says what to do: where it was thrown is of no interest. */
export class Refusal extends Error {}
