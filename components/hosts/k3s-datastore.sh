# shellcheck shell=bash
# PostgreSQL as the datastore of K3s: TLS with client certificates and nothing else. Variables: listen_address,
# access_rules (lines of pg_hba.conf), certificate_file, key_file, authority_file, fingerprint (of the server's certificate).
: "${listen_address:?}" "${access_rules:?}" "${certificate_file:?}" "${key_file:?}" "${authority_file:?}" "${fingerprint:?}"
install_packages postgresql
read -r version cluster _ < <(pg_lsclusters --no-header) || fail "Debian made no PostgreSQL cluster; see 'pg_lsclusters'"
folder=/etc/postgresql/$version/$cluster
unit=postgresql@$version-$cluster

# PostgreSQL reads its key as its own user; the copy follows the certificate that was installed.
install -d -m 0750 -o postgres -g postgres "$folder/tls"
for pair in "$certificate_file:server.crt" "$key_file:server.key" "$authority_file:ca.crt"; do
    write_file "$folder/tls/${pair#*:}" 0600 postgres:postgres "$(cat "${pair%%:*}")" postgresql-rules
done

# 100 connections: each K3s server opens up to about 30 at a burst, and maintenance needs some.
write_file "$folder/conf.d/school-postgres.conf" 0644 postgres:postgres "# Written by school-postgres; changes here are lost.
listen_addresses = 'localhost,$listen_address'
max_connections = 100
password_encryption = 'scram-sha-256'
ssl = on
ssl_min_protocol_version = 'TLSv1.2'
ssl_cert_file = '$folder/tls/server.crt'
ssl_key_file = '$folder/tls/server.key'
ssl_ca_file = '$folder/tls/ca.crt'
autovacuum_vacuum_scale_factor = 0.05" postgresql-settings

write_file "$folder/pg_hba.conf" 0640 postgres:postgres "# Written by school-postgres; changes here are lost.
$access_rules" postgresql-rules

if is_stale postgresql-settings || ! systemctl -q is-active "$unit"; then
    say "starting PostgreSQL $version"
    systemctl restart "$unit" || fail "PostgreSQL does not start: $(journalctl -u "$unit" -n 3 --no-pager -o cat | tr '\n' ' ')"
elif is_stale postgresql-rules; then
    systemctl reload "$unit"
fi
mark_loaded postgresql-settings
mark_loaded postgresql-rules
systemctl -q enable postgresql
sql() { runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -p "$port" "$@"; }
port=$(pg_lsclusters --no-header | awk 'NR == 1 { print $3 }')
[[ $port == 5432 ]] || fail "PostgreSQL $version listens on port $port, not 5432: another cluster was there before. Remove it with pg_dropcluster."
accepts() { sql -c 'select 1' -d postgres; }
wait_until 60 "PostgreSQL to accept connections" "it recovers after a crash; see 'journalctl -u $unit'" accepts

# Owner of the database: since PostgreSQL 15 nobody else may create tables in it.
[[ $(sql -d postgres -c "select 1 from pg_roles where rolname = 'k3s'") == 1 ]] ||
    sql -d postgres -c "create role k3s login"
# Collation C: K3s of 2026 ends in a crash loop on PostgreSQL 15 with any other, and is slower with it.
[[ $(sql -d postgres -c "select 1 from pg_database where datname = 'k3s'") == 1 ]] ||
    sql -d postgres -c "create database k3s owner k3s encoding 'UTF8' lc_collate 'C' lc_ctype 'C' template template0"
sql -d postgres -c "revoke connect on database k3s from public"
