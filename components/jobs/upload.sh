#!/bin/sh
# Carries what dump.sh made to the file share, reads it back, writes the manifest last, and removes what is too old.
# Environment: SMB_HOST SMB_SHARE SMB_USER SMB_PASSWORD, CLUSTER, KEEP_DAYS. Runs in user space: nothing is mounted.
set -eu
umask 077
fail() {
    echo "backup of $CLUSTER: FAILED: $*" >&2
    exit 1
}
RCLONE_CONFIG=/tmp/rclone.conf
export RCLONE_CONFIG
# The password goes through standard input and a private file, never through an argument.
obscured=$(printf '%s' "$SMB_PASSWORD" | rclone obscure -)
printf '[share]\ntype = smb\nhost = %s\nuser = %s\npass = %s\n' "$SMB_HOST" "$SMB_USER" "$obscured" >"$RCLONE_CONFIG"
unset SMB_PASSWORD obscured

share=share:$SMB_SHARE/$CLUSTER
remote() {
    rclone --retries 3 --low-level-retries 3 --contimeout 15s --timeout 60s --log-level NOTICE "$@"
}
found=
for folder in /backup/*/; do
    found=$folder
done
[ -f "${found}manifest.json" ] || fail "there is no finished dump to upload"
stamp=$(basename "$found")

remote mkdir "$share/$stamp" ||
    fail "the share //$SMB_HOST/$SMB_SHARE cannot be written as $SMB_USER. Is the password of the Secret the share's, is the file server up and its disk not full?"
for file in "$found"*; do
    name=$(basename "$file")
    [ "$name" != manifest.json ] || continue
    remote copyto "$file" "$share/$stamp/$name" || fail "$name could not be uploaded to //$SMB_HOST/$SMB_SHARE/$CLUSTER/$stamp"
    here=$(sha256sum <"$file")
    there=$(remote cat "$share/$stamp/$name" | sha256sum)
    [ "$here" = "$there" ] || fail "$name reads back differently from //$SMB_HOST/$SMB_SHARE/$CLUSTER/$stamp"
done
# Last: a backup without its manifest does not exist.
remote copyto "${found}manifest.json" "$share/$stamp/manifest.json" || fail "the manifest could not be uploaded"
echo "backup $stamp is on //$SMB_HOST/$SMB_SHARE/$CLUSTER"

# Only now, with a newer verified backup on the share, may an old one go. Names sort by time.
oldest=$(date -u -d "@$(($(date +%s) - KEEP_DAYS * 86400))" +%Y%m%dT%H%M%SZ)
listing=$(remote lsf --dirs-only "$share/") ||
    fail "the backups on the share cannot be listed, so no old one was removed; today's backup $stamp is safe"
for old in $(printf '%s\n' "$listing" | tr -d /); do
    case $old in
        [0-9]*T[0-9]*Z) ;;
        *) continue ;;
    esac
    if [ "$old" != "$stamp" ] && expr "$old" \< "$oldest" >/dev/null; then
        remote purge "$share/$old" || fail "$old could not be removed; today's backup $stamp is safe"
        echo "removed $old, older than $KEEP_DAYS days"
    fi
done
