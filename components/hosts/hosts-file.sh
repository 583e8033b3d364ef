# shellcheck shell=bash
# The names of all machines, in a block of its own: Proxmox rewrites only its own block in /etc/hosts. Variables: entries.
: "${entries:?}"
begin='# --- BEGIN school-postgres ---'
end='# --- END school-postgres ---'
rest=$(sed "/^$begin\$/,/^$end\$/d" /etc/hosts)
write_file /etc/hosts 0644 root:root "$rest
$begin
$entries
$end"
