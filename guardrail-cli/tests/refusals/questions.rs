//! Command lines that are refused.

/// Options and commands.
pub(crate) const COMMANDS: &str = "
graph
grpah shop.json
graph nowhere.json
graph empty
graph shop.json -o pdf
graph shop.json --agent-timeout soon
graph shop.json --agent-timeout 0
graph kube:A_B
check shop.json
check --policies good.yaml
check shop.json --flows f.csv --policies good.yaml
check --all --policies good.yaml
check shop.json --policies nowhere.yaml
check shop.json --policies good.yaml -o dot
check shop.json --policies good.yaml --dataplane calico
check shop.json --policies good.yaml --dataplane-config config.yaml --dataplane kubernetes
check shop.json --policies good.yaml --dataplane cilium --dataplane-config good.yaml
check shop.json --policies good.yaml --names good.yaml
check shop.json --policies good.yaml --inventory empty
explain --policies good.yaml --inventory ends.yaml --from shop/web-1 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-1 --to shop/web-2 --port 0
explain --policies good.yaml --inventory ends.yaml --from shop/web-1 --to shop/web-2 --port 70000
explain --policies good.yaml --inventory ends.yaml --from shop/web-1 --to shop/web-2 --port http
explain --policies good.yaml --inventory ends.yaml --from shop/web-1 --to shop/web-2 --port 80 --protocol HTTP
lint
lint nowhere
lint good.yaml --inventory empty
export shop.json
export shop.json --phase all
export shop.json --phase constrain --declare office
export shop.json --phase constrain --declare office=10.0.0.0/40
export shop.json --phase constrain --ignore-client web
export shop.json --phase constrain --accept web
export shop.json --phase constrain --min-window long
export shop.json --phase constrain --node-range 10.0.0.0
export shop.json --phase constrain --format cilium --dataplane kubernetes
diff
diff shop.json
diff shop.json shop.json shop.json
diff --from-policies good.yaml
diff --from-policies good.yaml --to-policies good.yaml
diff shop.json shop.json --map a
status shop.json -n nowhere
status shop.json -n shp
status shop.json --environment prod
drift shop.json
drift shop.json --policies good.yaml --baseline good.yaml
drift shop.json --policies good.yaml --fail-on all
merge
merge good.yaml
merge shop.json --output nowhere/x.json
merge shop.json --output empty
init shop.json --output good.yaml
completions tcl
";

/// Commands that read a plan.
pub(crate) const PLANNED: &str = "
status shop.json --plan other.yaml --environment prod --context staging
drift shop.json --policies good.yaml --plan other.yaml --environment prod --context staging
export shop.json --plan other.yaml --environment prod --context staging
admission shop.json --policies good.yaml --plan other.yaml --environment prod --context staging
status shop.json --plan other.yaml --environment prd
export shop.json --plan other.yaml --environment stagging
export shop.json --plan other.yaml --environment slip
export shop.json --plan other.yaml --environment prod --phase constrain
export shop.json --plan other.yaml
exceptions --plan other.yaml --environment prd
admission
export shop.json --plan other.yaml --environment prod -n shp
export shop.json --plan other.yaml --environment prod --egress
blocked shop.json --policies good.yaml --plan other.yaml --environment prod --context staging
exceptions --plan other.yaml --environment prod --context staging
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/mailer --port 80 --plan other.yaml --environment prod --reason r --owner o --context staging
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/mailer --port 80 --plan other.yaml --environment prd --reason r --owner o
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/mailer --port 80 --plan other.yaml
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/malier --port 80
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/nobody --port 80
drift shop.json --policies good.yaml --plan other.yaml --environment prod --in-cluster --context prod-eu
drift shop.json --policies kube --in-cluster
unblock shop.json --policies good.yaml --from shop/Deployment/cart --to shop/Deployment/mailer --port http
blocked shop.json --policies good.yaml --policies-since yesterday
prune all
";

/// Of which one environment names a sensitive workload that is nearly somebody's name.
pub(crate) const PLAN: &str = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    prod: {context: prod-eu, phase: constrain}
    staging: {phase: observe}
    slip: {phase: observe, sensitive: [data/StatefulSet/postgre]}
";

/// Ends that cannot be judged.
pub(crate) const EXPLAIN: &str = "
explain --policies good.yaml --inventory ends.yaml --from web --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/gone --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/done --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/Deployment/gone --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from reserved:cluster --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from a/b/c/d --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from 300.1.1.1 --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from 10.0.0.0/8 --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from 10.96.0.61 --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from 198.18.0.2 --to shop/web-2 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 192.168.1.11 --port 30080
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 192.168.1.11 --port 443
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 192.168.1.11 --port 31000
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 198.18.0.2 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 198.18.0.2 --port 81
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 10.96.0.60 --port 81
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to 10.96.0.61 --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to shop/np --port 8080
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to shop/Service/gone --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to shop/gone --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to shop/done --port 80
explain --policies good.yaml --inventory ends.yaml --from shop/web-2 --to reserved:all --port 80
";

/// A node, pods on it, one that has finished, and Services.
pub(crate) const ENDS: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-a, uid: u1, controller: true}]}, spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 8080, hostPort: 443}]}]}, status: {phase: Running, podIP: 10.244.0.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web, track: canary}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-a, uid: u1, controller: true}]}, spec: {nodeName: n1, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.0.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop}, spec: {nodeName: n1, containers: [{name: c}]}, status: {phase: Succeeded}}
---
{apiVersion: v1, kind: Service, metadata: {name: np, namespace: shop}, spec: {type: LoadBalancer, clusterIP: 10.96.0.60, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 198.18.0.2}]}}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop}, spec: {clusterIP: 10.96.0.61, selector: {app: gone}, ports: [{port: 80}]}}
";
