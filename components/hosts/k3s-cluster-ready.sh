# shellcheck shell=bash
# Waits until every node is Ready, seen through the API balancer. Variables: endpoint, nodes (words), ready_seconds.
: "${endpoint:?}" "${nodes:?}" "${ready_seconds:?}"
ready_nodes() {
    k3s kubectl --server "$endpoint" --request-timeout=5s get nodes --no-headers \
        -o 'custom-columns=NAME:.metadata.name,READY:.status.conditions[?(@.type=="Ready")].status' 2>/dev/null |
        awk '$2 == "True" { print $1 }'
}
missing() { comm -23 <(tr ' ' '\n' <<<"$nodes" | sort) <(ready_nodes | sort) | tr '\n' ' '; }
all_ready() { [[ -z $(missing) ]]; }
last_words() { printf 'Not Ready: %s' "$(missing)"; }
wait_until "$ready_seconds" "all nodes ($nodes) to be Ready, seen at $endpoint" \
    "a node cannot pull its first images (kubernetes.registryMirrors), or cannot reach the virtual address" all_ready
