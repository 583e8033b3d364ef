# shellcheck shell=bash
# Installs K3s from a pinned binary and runs it with a configuration and a unit of our own. Variables: mode (server or
# agent), version, binary_url, binary_sha256, configuration and registries (YAML), unit, ready_seconds,
# certificate_fingerprint (of a server's datastore certificate; empty for an agent), node_password, kubelet_configuration (YAML).
: "${mode:?}" "${version:?}" "${binary_url:?}" "${binary_sha256:?}" "${configuration:?}" "${registries:?}" "${unit:?}" "${ready_seconds:?}" "${certificate_fingerprint?}" "${node_password:?}" "${kubelet_configuration:?}"
service=k3s
[[ $mode == server ]] || service=k3s-agent
[[ -e /dev/kmsg ]] || fail "/dev/kmsg is missing: the raw lxc lines of this container are not in force. Restart it on its Proxmox host (pct reboot)."
install_packages wget ca-certificates iptables ipset

# What K3s enforces network policies with. Where the kernel refuses it, K3s goes on without, and every pod is open to all.
probe=school-postgres-probe
place_probe() {
    ipset -exist create $probe hash:net timeout 0 && { iptables -w -N $probe 2>/dev/null || iptables -w -F $probe; } &&
        iptables -w -A $probe -m set --match-set $probe src -m physdev --physdev-is-bridged -m limit -j NFLOG --nflog-group 100
}
take_probe_away() {
    iptables -w -F $probe && iptables -w -X $probe
    # The kernel lets go of a set a moment after the rule that named it is gone.
    for _ in 1 2 3 4 5; do ! ipset destroy $probe 2>/dev/null || return 0; sleep 0.2; done
}
refusal=$(place_probe 2>&1) ||
    fail "the kernel refuses what network policies need: $(tail -n 1 <<<"$refusal"). Load ip_set, ip_set_hash_net, xt_set, xt_physdev and xt_NFLOG on the Proxmox host (modprobe)."
take_probe_away

binary=/usr/local/bin/k3s
matches() { printf '%s  %s\n' "$binary_sha256" "$1" | sha256sum --check --status 2>/dev/null; }
if ! matches "$binary"; then
    say "downloading K3s $version"
    new=$(mktemp /usr/local/bin/.k3s.XXXXXX)
    trap 'rm -f "$new"' EXIT
    log=$(wget --no-verbose --tries=3 --timeout=30 -O "$new" "$binary_url" 2>&1) ||
        fail "K3s could not be downloaded from $binary_url: $(tail -n 1 <<<"$log"). Is kubernetes.binaryUrl right and reachable from this machine?"
    matches "$new" ||
        fail "the K3s binary from $binary_url has the SHA-256 $(sha256sum "$new" | cut -d' ' -f1), not $binary_sha256. Either kubernetes.binarySha256 is wrong or the file is not the one you mean; it was not installed."
    chmod 0755 "$new"
    # A running process keeps the old file, so only a restart brings the new version.
    mark_stale "$service"
    mv -f "$new" "$binary"
fi

install -d -m 0755 /etc/rancher /etc/rancher/k3s /etc/rancher/node
# A machine that joined before this program kept the password is known by the one it made itself.
[[ -s /etc/rancher/node/password ]] || write_file /etc/rancher/node/password 0600 root:root "$node_password"
drop_ins=/var/lib/rancher/k3s/agent/etc/kubelet.conf.d
install -d -m 0700 "$drop_ins"
write_file "$drop_ins/50-school-postgres.conf" 0600 root:root "$kubelet_configuration" "$service"
write_file /etc/rancher/k3s/config.yaml 0600 root:root "$configuration" "$service"
write_file /etc/rancher/k3s/registries.yaml 0600 root:root "$registries" "$service"
# K3s reads its certificate only at the start: a renewed one is a changed file here.
write_file /etc/rancher/k3s/datastore-certificate 0600 root:root "$certificate_fingerprint" "$service"
write_file "/etc/systemd/system/$service.service" 0644 root:root "$unit" "$service"
systemctl daemon-reload
systemctl -q enable "$service"

active() { systemctl -q is-active "$service"; }
last_words() {
    # K3s writes its own level into the line; all of it has the same priority in the journal.
    printf 'It said last: %s' "$(journalctl -u "$service" -n 300 --no-pager -o cat 2>/dev/null |
        grep -iE 'fatal|level=error' | tail -n 1 | cut -c 1-300)"
}
if is_stale "$service" || ! active; then
    say "starting K3s $mode"
    systemctl restart --no-block "$service"
    sleep 1
fi
mark_loaded "$service"
if [[ $mode == server ]]; then
    cause="the datastore does not answer, or refuses this server's certificate"
else
    cause="the API balancer's virtual address does not answer, or the token is not the cluster's"
fi
wait_until "$ready_seconds" "K3s $mode to be ready" "$cause" active
if [[ $mode == server ]]; then
    ready() { "$binary" kubectl get --raw /readyz; }
    wait_until "$ready_seconds" "the Kubernetes API of this server to be ready" "$cause" ready
fi
