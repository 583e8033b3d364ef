# shellcheck shell=bash
# Prints the admin's kubeconfig, pointed at the API balancer. Variables: endpoint.
: "${endpoint:?}"
sed "s#^\( *server:\).*#\1 $endpoint#" /etc/rancher/k3s/k3s.yaml
