# shellcheck shell=bash
# Signs a request with the certificate authority of this machine and prints the certificate. Variables: directory, name,
# request, usage (serverAuth or clientAuth), alternative_names (DNS:..,IP:.. or empty), lifetime_days, renew_before_days.
: "${directory:?}" "${name:?}" "${request:?}" "${usage:?}" "${alternative_names?}" "${lifetime_days:?}" "${renew_before_days:?}"
issued=$directory/issued/$name
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\n' "$request" >"$work/request.csr"
openssl req -in "$work/request.csr" -noout -verify >/dev/null 2>&1 || fail "the request for $name is not a valid signing request"
{
    printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n' "$usage"
    [[ -z $alternative_names ]] || printf 'subjectAltName=%s\n' "$alternative_names"
} >"$work/extensions"
# A certificate for the same key and the same names that lasts long enough is handed out again.
if [[ -s $issued.crt ]] && cmp -s "$work/request.csr" "$issued.csr" && cmp -s "$work/extensions" "$issued.extensions" &&
    openssl verify -CAfile "$directory/ca.crt" "$issued.crt" >/dev/null 2>&1 &&
    openssl x509 -in "$issued.crt" -noout -checkend $((renew_before_days * 86400)) >/dev/null; then
    cat "$issued.crt"
    exit 0
fi
openssl x509 -req -sha256 -days "$lifetime_days" -in "$work/request.csr" -CA "$directory/ca.crt" -CAkey "$directory/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/certificate.crt" 2>"$work/log" ||
    fail "the certificate for $name could not be signed: $(tail -n 1 "$work/log")"
mv "$work/request.csr" "$issued.csr"
mv "$work/extensions" "$issued.extensions"
mv "$work/certificate.crt" "$issued.crt"
cat "$issued.crt"
