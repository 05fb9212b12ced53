// The document that the page shows, as guardrail-lifecycle/src/page.rs writes it.

export interface Peer {
  kind: "Workload" | "Node" | "External";
  namespace?: string;
  owner?: string;
  name?: string;
  address?: string;
  /** DNS names that the client had asked for. */
  names?: string[];
  about?: About;
  /** Why its edges may be incomplete. */
  incomplete?: string[];
}

export interface About {
  pods: number;
  nodes: number;
  labels: Record<string, string>;
  host_network: boolean;
  selector_advice?: string;
}

export interface Edge {
  /** Indices in `peers`. */
  client: number;
  server: number;
  protocol: string;
  port: number;
  port_name?: string;
  via: string[];
  seen_by: string[];
  opened: number;
  found: number;
  refused: number;
  unanswered: number;
  unreachable: number;
  bytes_sent: number;
  bytes_received: number;
  /** RFC 3339. */
  first_seen: string;
  last_seen: string;
  supported: boolean;
  marks: string[];
  node_workloads?: string[];
}

export interface Page {
  apiVersion: string;
  kind: string;
  from: string | null;
  to: string | null;
  nodes: number;
  /** Why the observation is incomplete, one sentence each. */
  incomplete: string[];
  peers: Peer[];
  edges: Edge[];
}
