#!/bin/sh
# Dumps one cluster into /backup: every database in custom format, the roles as SQL, and at last the manifest.
# Environment: PGHOST PGUSER PGPASSWORD PGSSLMODE, DATABASES (words), CLUSTER, PATH with PostgreSQL's client programs.
set -eu
umask 077
cd /backup
fail() {
    echo "backup of $CLUSTER: FAILED: $*" >&2
    exit 1
}
stamp=$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$stamp"

# The database lets a new pod in only when the machine it runs on knows the pod's address.
tries=0
until pg_isready -q; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || fail "the database at $PGHOST does not accept connections; see 'kubectl -n postgres get postgresql'"
    sleep 1
done
server=$(psql -XAtq -d postgres -c 'show server_version') ||
    fail "the database at $PGHOST does not answer; see 'kubectl -n postgres get postgresql'"
pg_dumpall --globals-only --file="$stamp/globals.sql" || fail "the roles could not be dumped"
[ -s "$stamp/globals.sql" ] || fail "the dump of the roles is empty"

entries=
for database in $DATABASES; do
    file=$database.dump
    echo "dumping $database"
    pg_dump --format=custom --compress=6 --file="$stamp/$file" "$database" || fail "database $database could not be dumped"
    # Reads the whole archive as a restore would; a list alone would not notice that its end is missing.
    pg_restore --file=/dev/null "$stamp/$file" || fail "the dump of $database is damaged"
    # Rows of each table, to compare a restored copy with. What is written during the dump may be counted and not dumped.
    rows=$(psql -XAtq -v ON_ERROR_STOP=1 -d "$database" -c "
        select coalesce(json_object_agg(format('%I.%I', schemaname, tablename), (xpath('/row/n/text()', query_to_xml(
            format('select count(*) as n from %I.%I', schemaname, tablename), false, true, '')))[1]::text::bigint), '{}')
        from pg_tables where schemaname not in ('pg_catalog', 'information_schema') and schemaname not like 'pg\\_temp\\_%'") ||
        fail "the rows of $database could not be counted"
    entries="$entries{\"database\":\"$database\",\"file\":\"$file\",\"bytes\":$(wc -c <"$stamp/$file"),\"sha256\":\"$(sha256sum "$stamp/$file" | cut -d' ' -f1)\",\"rows\":$rows},"
done
globals="{\"file\":\"globals.sql\",\"bytes\":$(wc -c <"$stamp/globals.sql"),\"sha256\":\"$(sha256sum "$stamp/globals.sql" | cut -d' ' -f1)\"}"
printf '{"cluster":"%s","takenAt":"%s","serverVersion":"%s","globals":%s,"dumps":[%s]}\n' \
    "$CLUSTER" "$stamp" "$server" "$globals" "${entries%,}" >"$stamp/manifest.json"
echo "dumped $(du -sh "$stamp" | cut -f1) as $stamp"
