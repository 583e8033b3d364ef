# shellcheck shell=bash
# Prints the hash by which a joining node recognises the cluster's certificate authority.
sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt | cut -d' ' -f1
