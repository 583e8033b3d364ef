# shellcheck shell=bash
# Runs on another server before a machine joins: a machine that was made anew is refused under its old name as long as
# the cluster remembers the old one. Variables: node.
: "${node:?}"
if ! systemctl -q is-active k3s; then
    say "there is no cluster yet that could remember $node"
    exit 0
fi
k3s kubectl --request-timeout=30s delete node "$node" --ignore-not-found --wait=false >&2 ||
    fail "the cluster cannot be asked to forget the old $node; does the Kubernetes API answer?"
k3s kubectl --request-timeout=30s -n kube-system delete secret "$node.node-password.k3s" --ignore-not-found >&2
