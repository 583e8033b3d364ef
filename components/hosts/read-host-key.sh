# shellcheck shell=bash
# Runs on the Proxmox host: waits until a new container answers SSH, then prints its public host key, read over the path
# that is already trusted (pct) and not from the network. Variables: vm_id, address.
# Nobody may connect before the banner has been seen: a connection without one would wait without end.
: "${vm_id:?}" "${address:?}"
banner() { timeout 5 bash -c "exec 3<>/dev/tcp/$address/22 && IFS= read -r -t 4 line <&3 && [[ \$line == SSH-2.0-* ]]"; }
is_running() { [[ $(pct status "$vm_id") == *running* ]]; }
wait_until 60 "container $vm_id to run" "Proxmox could not start it; see its task log" is_running
wait_until 90 "SSH of container $vm_id at $address" "the address is used by another machine, or the container's network does not start" banner
key=$(pct exec "$vm_id" -- cat /etc/ssh/ssh_host_ed25519_key.pub) || fail "the host key of container $vm_id could not be read"
# The comment is dropped: it is the name of the machine the key was made on.
read -r type value _ <<<"$key"
printf '%s %s\n' "$type" "$value"
