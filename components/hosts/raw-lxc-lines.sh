# shellcheck shell=bash
# Lines of a container's configuration that Proxmox's API cannot set. Variables: vm_id, lines (may be empty).
# Comments in that file are the container's description, and what follows a [section] belongs to a snapshot:
# so the lines go at the end of the main section, and only lines this program owns are replaced.
: "${vm_id:?}" "${lines?}"
file=/etc/pve/lxc/$vm_id.conf
own='^lxc\.((apparmor\.profile|cap\.drop|cgroup2?\.devices\.allow|mount\.auto)[[:space:]]*[:=]|mount\.entry[[:space:]]*[:=][[:space:]]*/dev/kmsg[[:space:]])'
[[ $operation == apply ]] || lines=
if [[ ! -e $file ]]; then
    [[ $operation == delete ]] && exit 0
    fail "$file does not exist: the container $vm_id is not on this Proxmox host (was it migrated?)"
fi
unlocked() { ! sed '/^\[/,$d' "$file" | grep -q '^lock:'; }
wait_until 120 "container $vm_id to be unlocked" "a backup, snapshot or migration of it is running in Proxmox" unlocked

is_running() { [[ $(pct status "$vm_id") == *running* ]]; }
stopped=no
wanted=$(mktemp)
current=$(mktemp)
{
    sed '/^\[/,$d' "$file" | grep -Ev "$own|^\$" || true
    [[ -z $lines ]] || printf '%s\n' "$lines"
    if grep -q '^\[' "$file"; then
        echo
        sed -n '/^\[/,$p' "$file"
    fi
} | sed 's/[[:space:]]*$//' >"$wanted"
sed 's/[[:space:]]*$//' "$file" >"$current"
if ! cmp -s "$wanted" "$current"; then
    if is_running; then
        say "restarting container $vm_id: its raw lxc lines change"
        pct shutdown "$vm_id" --timeout 60 --forceStop 1 >&2 || fail "container $vm_id could not be stopped"
        stopped=yes
    fi
    # Written in place: the file system of /etc/pve knows no rename across, and keeps the owner.
    cat "$wanted" >"$file"
fi
rm -f "$wanted" "$current"
# A run that was killed after it had stopped the container is made good here.
if [[ $stopped == yes ]] || { [[ $operation == apply ]] && ! is_running; }; then
    pct start "$vm_id" >&2 || fail "container $vm_id does not start with its raw lxc lines; see 'pct start $vm_id --debug' on $host_label"
fi
