# shellcheck shell=bash
# What every container needs before anything is installed in it. Variables: apt_proxy (may be empty).
: "${apt_proxy?}"
if [[ -n $apt_proxy ]]; then
    write_file /etc/apt/apt.conf.d/01school-postgres 0644 root:root "Acquire::http::Proxy \"$apt_proxy\";
Acquire::https::Proxy \"$apt_proxy\";"
else
    rm -f /etc/apt/apt.conf.d/01school-postgres
fi
is_up() { [[ $(systemctl is-system-running 2>/dev/null) =~ ^(running|degraded)$ ]]; }
wait_until 90 "systemd to finish starting" "a service of the template hangs; see 'systemctl list-jobs'" is_up
