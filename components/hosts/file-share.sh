# shellcheck shell=bash
# A Samba share for backups: SMB 3.1.1 only, encryption required, one user that is nobody else.
# Variables: share, user, password, folder, allowed_network, address.
: "${share:?}" "${user:?}" "${password:?}" "${folder:?}" "${allowed_network:?}" "${address:?}"
install_packages samba
id "$user" >/dev/null 2>&1 || useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
install -d -m 0770 -o "$user" -g "$user" "$folder"
write_file /etc/samba/smb.conf 0644 root:root "# Written by school-postgres; changes here are lost.
[global]
   workgroup = WORKGROUP
   server role = standalone server
   server min protocol = SMB3_11
   server smb encrypt = required
   server signing = mandatory
   disable netbios = yes
   smb ports = 445
   map to guest = Never
   restrict anonymous = 2
   load printers = no
   printcap name = /dev/null
   hosts allow = 127.0.0.1 $allowed_network
   log file = /var/log/samba/log.%m
   max log size = 1000
[$share]
   path = $folder
   browseable = no
   read only = no
   guest ok = no
   valid users = $user
   force user = $user
   force group = $user
   create mask = 0660
   directory mask = 0770
   strict sync = yes" smbd
problem=$(testparm -s 2>&1 >/dev/null) || fail "Samba refuses its configuration: $problem"
# The password travels on standard input; smbpasswd -a also changes that of a user it knows.
printf '%s\n%s\n' "$password" "$password" | smbpasswd -s -a "$user" >/dev/null || fail "the Samba user $user could not be set up"
smbpasswd -e "$user" >/dev/null
# Only the file server: name service and domain services are not needed and would listen.
for unneeded in nmbd winbind samba-ad-dc; do
    systemctl -q disable --now "$unneeded" 2>/dev/null || true
done
if ! systemctl -q is-active smbd; then
    systemctl restart smbd || fail "Samba does not start: $(journalctl -u smbd -n 3 --no-pager -o cat | tr '\n' ' ')"
elif is_stale smbd; then
    systemctl reload smbd
fi
mark_loaded smbd
systemctl -q enable smbd
listens() { timeout 3 bash -c "exec 3<>/dev/tcp/$address/445"; }
wait_until 30 "Samba to answer at $address" "another program uses port 445" listens
