# shellcheck shell=bash
# Makes a private key on the machine that will use it, and prints a signing request. Variables: directory, file_name, common_name.
: "${directory:?}" "${file_name:?}" "${common_name:?}"
install_packages openssl
install -d -m 0755 "$directory"
key=$directory/$file_name.key
if [[ ! -s $key ]]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$key.sec1"
    # PKCS#8 is what every reader of the key understands.
    openssl pkcs8 -topk8 -nocrypt -in "$key.sec1" -out "$key.new"
    rm -f "$key.sec1"
    mv "$key.new" "$key"
fi
# The same key gives the same request again, so that a repeated run asks for nothing new.
if [[ ! -s $directory/$file_name.csr ]] ||
    ! cmp -s <(openssl req -in "$directory/$file_name.csr" -noout -pubkey) <(openssl pkey -in "$key" -pubout) ||
    # RFC 2253: without it OpenSSL 3.0 and 3.2 print the same subject differently.
    [[ $(openssl req -in "$directory/$file_name.csr" -noout -subject -nameopt RFC2253) != "subject=CN=$common_name" ]]; then
    openssl req -new -sha256 -key "$key" -subj "/CN=$common_name" -out "$directory/$file_name.csr"
fi
cat "$directory/$file_name.csr"
