/** Keys that depend on what the sandbox can do, with what they are on Linux. */
export interface ContainerdKeys {
  snapshotter: "overlayfs" | "native";
  /** Whether containers get net.ipv4.ping_group_range; needs Linux 4.11. */
  enable_unprivileged_icmp: boolean;
  /** Whether containers get net.ipv4.ip_unprivileged_port_start; needs Linux 4.11. */
  enable_unprivileged_ports: boolean;
}
