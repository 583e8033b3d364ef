# shellcheck shell=bash
# nginx as TCP balancer of the Kubernetes API, keepalived for the address that both balancers share.
# Variables: nginx_configuration, keepalived_configuration.
: "${nginx_configuration:?}" "${keepalived_configuration:?}"
install_packages nginx libnginx-mod-stream keepalived

# apply SERVICE : starts it, or loads a changed configuration without cutting connections.
apply() {
    if ! systemctl -q is-active "$1"; then
        systemctl restart "$1" || fail "$1 does not start: $(journalctl -u "$1" -n 3 --no-pager -o cat | tr '\n' ' ')"
    elif is_stale "$1"; then
        say "loading the new configuration of $1"
        systemctl reload "$1"
    fi
    mark_loaded "$1"
    systemctl -q enable "$1"
}

rm -f /etc/nginx/sites-enabled/default
write_file /etc/nginx/nginx.conf 0644 root:root "$nginx_configuration" nginx
problem=$(nginx -t 2>&1) || fail "nginx refuses its configuration: $problem"
apply nginx

write_file /etc/keepalived/keepalived.conf 0644 root:root "$keepalived_configuration" keepalived
problem=$(keepalived --config-test=/etc/keepalived/keepalived.conf 2>&1) || fail "keepalived refuses its configuration: $problem"
apply keepalived
