# shellcheck shell=bash
# Makes the certificate authority of the datastore on the machine it protects, and prints its certificate.
# Variables: directory, common_name. The key never leaves the directory (root only).
: "${directory:?}" "${common_name:?}"
install_packages openssl
install -d -m 0700 "$directory" "$directory/issued"
if [[ ! -s $directory/ca.key ]]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$directory/ca.key.new"
    mv "$directory/ca.key.new" "$directory/ca.key"
fi
if [[ ! -s $directory/ca.crt ]]; then
    openssl req -x509 -new -sha256 -days 3650 -key "$directory/ca.key" -subj "/CN=$common_name" \
        -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
        -out "$directory/ca.crt.new"
    mv "$directory/ca.crt.new" "$directory/ca.crt"
fi
cat "$directory/ca.crt"
