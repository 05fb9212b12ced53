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
  policies?: PeerPolicies;
}

/** The policies in force that isolate a workload's pods. */
export interface PeerPolicies {
  pods: number;
  ingress_isolated: number;
  egress_isolated: number;
  ingress: string[];
  egress: string[];
}

/** What the policies in force say at one end of an edge. */
export interface VerdictSide {
  state: "open" | "allowed" | "denied" | "unproven";
  /** Rules that decide; where none matches, the policies that isolate. */
  by?: string[];
}

export interface Verdict {
  verdict: "allowed" | "denied" | "unproven";
  egress: VerdictSide;
  ingress: VerdictSide;
  reason?: string;
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
  /** Connections of earlier days that were still open; absent: none. */
  open?: number;
  /** Connections that were established and timed out; absent: none. */
  broken?: number;
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
  /** Absent: no policies are known. */
  verdict?: Verdict;
  /** Whether it would pass under default-deny; absent: nobody asked. */
  after_default_deny?: boolean;
}

export type Phase = "observe" | "constrain" | "default-deny";

export interface Wanted {
  phase: Phase;
  egress: boolean;
}

export interface SideInForce {
  phase: Phase | null;
  pods_by_phase: Partial<Record<Phase, number>>;
  isolated: number;
}

export interface Gate {
  name: string;
  is: string;
  needs: string;
  /** How much of what is needed there is, in hundredths. */
  percent: number;
  passed: boolean;
}

export interface WorkloadName {
  namespace: string;
  owner: string;
  name: string;
}

/** One namespace, as `guardrail status -o json` says it. */
export interface NamespaceStatus {
  namespace: string;
  wanted: Wanted | null;
  in_force: { pods: number; ingress: SideInForce; egress: SideInForce };
  phase_in_force: boolean;
  as_wanted: boolean;
  next: Wanted | null;
  gates: Gate[];
  would_break: string[];
  stopped_by: string[];
  denied_now: string[];
  without_evidence: WorkloadName[];
  sensitive: { workload: WorkloadName; pods: number; closed: number }[];
  exceptions: ExceptionStatus[];
}

export interface ExceptionStatus {
  id: string;
  /** RFC 3339. */
  expires: string;
  is_over: boolean;
  told: string;
  reason: string;
  owner: string;
}

/** What `guardrail drift -o json` says. */
export interface Drift {
  findings: { rule: string; kind: string; fingerprint: string; message: string }[];
  not_looked_at: string[];
}

/** Attempts that failed and that a policy denies, as `guardrail blocked -o json` says it. */
export interface BlockedAttempts {
  flow: string;
  client: string;
  server: string;
  protocol: string;
  port: number;
  via: string[];
  behind: string[];
  outcome: "unanswered" | "refused";
  attempts: number;
  last_attempt: string;
  denied_by: string[];
  confidence: "certain" | "likely" | "possible";
  because: string[];
}

export interface Source {
  name: string;
  /** RFC 3339. */
  read: string;
  problem?: string;
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
  /** Absent: the page stands in a file. */
  sources?: Source[];
  /** Why what is said of policies may be wrong. */
  unproven_because?: string[];
  default_deny?: { stopped: Record<string, string[]> };
  environment?: string;
  status?: NamespaceStatus[];
  drift?: Drift;
  blocked?: BlockedAttempts[];
}
