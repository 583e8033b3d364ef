# shellcheck shell=bash
# Kernel modules and limits that Kubernetes in containers needs from the Proxmox host's kernel; a container cannot set them.
# Variables: owner (stack name), needed_modules, optional_modules (words).
: "${owner:?}" "${needed_modules?}" "${optional_modules?}"
modules_file=/etc/modules-load.d/school-postgres-$owner.conf
sysctl_file=/etc/sysctl.d/90-school-postgres-$owner.conf

if [[ $operation == delete ]]; then
    rm -f "$modules_file" "$sysctl_file"
    exit 0
fi
[[ $(id -u) == 0 ]] || fail "must run as root"
command -v pct >/dev/null || fail "there is no 'pct' here: $host_label is not a Proxmox host"

# A module that is built into the kernel has no file, so what counts is that the kernel offers what it brings.
offered() {
    case $1 in
        overlay) grep -qw overlay /proc/filesystems ;;
        br_netfilter) [[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] ;;
        nf_conntrack) [[ -e /proc/sys/net/netfilter/nf_conntrack_max ]] ;;
        *) [[ -d /sys/module/$1 ]] ;;
    esac
}
for module in $needed_modules; do
    modprobe -q "$module" 2>/dev/null || offered "$module" ||
        fail "the kernel module '$module' cannot be loaded. Kubernetes needs it; is the Proxmox kernel complete (reboot after an update)?"
done
for module in $optional_modules; do
    modprobe -q "$module" 2>/dev/null || offered "$module" || say "kernel module '$module' is not there as a module (it may be built in)"
done

# shellcheck disable=SC2086 # one module a line is what is wanted
write_file "$modules_file" 0644 root:root "$(printf '%s\n' $needed_modules $optional_modules)"
# Only upwards, now and at the next boot: another program of this host may need more.
limits="# Every kubelet and container runtime watches files; the defaults are used up by three nodes on one host."
for wanted in fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288; do
    name=${wanted%=*} value=${wanted#*=}
    current=$(sysctl -n "$name") || fail "the kernel setting $name cannot be read"
    if ((current < value)); then
        sysctl -q -w "$wanted" || say "$name could not be raised to $value; raise it by hand if the kubelet reports 'too many open files'"
    else
        value=$current
    fi
    limits+=$'\n'"$name = $value"
done
write_file "$sysctl_file" 0644 root:root "$limits"
