# shellcheck shell=bash
# Puts a certificate and its authority beside the key made before. Variables: directory, file_name, certificate, authority.
: "${directory:?}" "${file_name:?}" "${certificate:?}" "${authority:?}"
work=$(mktemp)
trap 'rm -f "$work"' EXIT
printf '%s\n' "$certificate" >"$work"
cmp -s <(openssl x509 -in "$work" -noout -pubkey) <(openssl pkey -in "$directory/$file_name.key" -pubout) ||
    fail "the certificate does not belong to the key $directory/$file_name.key"
write_file "$directory/ca.crt" 0644 root:root "$authority"
write_file "$directory/$file_name.crt" 0644 root:root "$certificate"
openssl x509 -in "$work" -noout -fingerprint -sha256
