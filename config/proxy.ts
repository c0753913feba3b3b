/** The password in an address, as it is written there and as it is meant; none if there is none. */
export function passwordsIn(address: string): string[] {
  const { password } = URL.canParse(address) ? new URL(address) : { password: "" };
  return password === "" ? [] : [password, decodeURIComponent(password)];
}

/** Whether an address has a password in it, and so is a secret. */
export const hasPassword = (address: string): boolean => passwordsIn(address).length > 0;
