#!/usr/bin/env bash
# FOR TESTS ONLY: a certificate authority and one certificate per node for Ray's TLS, valid for a month.
# For real use take certificates from your own authority, and keep its key off the cluster.
#
#   make-test-certificates.sh FOLDER NODE...     for example: make-test-certificates.sh certificates 10.0.0.1 10.0.0.2
#
# A node is an IP address or a DNS name. Several of one node are joined by commas: 10.0.0.1,head.example
# Ray's nodes are both server and client, and reach each other and themselves by address: each certificate is for both,
# and names localhost and 127.0.0.1 besides. On each node, in the environment of `ray start` and of the driver:
#   RAY_USE_TLS=1 RAY_TLS_CA_CERT=FOLDER/ca.crt
#   RAY_TLS_SERVER_CERT=FOLDER/NODE.crt RAY_TLS_SERVER_KEY=FOLDER/NODE.key
set -euo pipefail
umask 077

if [ $# -lt 2 ]; then
  echo "usage: $0 FOLDER NODE..." >&2
  exit 2
fi
folder=$1
shift
if [ -e "$folder" ]; then
  echo "$folder exists; give a folder that does not, or remove it first" >&2
  exit 1
fi
for node in "$@"; do
  case $node in
    *[!A-Za-z0-9.:,-]* | "" | -* | .*)
      echo "node is '$node'; give an IP address or a DNS name" >&2
      exit 2
      ;;
  esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
days=30

openssl ecparam -name prime256v1 -genkey -noout -out "$work/ca.key"
openssl req -x509 -new -sha256 -key "$work/ca.key" -days "$days" -out "$work/ca.crt" \
  -subj "/CN=infogan test authority" \
  -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"

for node in "$@"; do
  first=${node%%,*}
  names="DNS:localhost,IP:127.0.0.1"
  IFS=, read -ra parts <<<"$node"
  for part in "${parts[@]}"; do
    case $part in
      *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) names+=",IP:$part" ;;
      *) names+=",DNS:$part" ;;
    esac
  done
  printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=serverAuth,clientAuth" "subjectAltName=$names" >"$work/extensions"
  openssl ecparam -name prime256v1 -genkey -noout -out "$work/$first.key"
  openssl req -new -sha256 -key "$work/$first.key" -subj "/CN=$first" -out "$work/request"
  openssl x509 -req -sha256 -in "$work/request" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial \
    -days "$days" -extfile "$work/extensions" -out "$work/$first.crt" 2>/dev/null
done

# At the end and at once, so that a folder is there as a whole or not at all. The authority's key goes with the rest of
# the working files: nobody can make another certificate.
rm -f "$work/request" "$work/extensions" "$work/ca.srl" "$work/ca.key"
mkdir -p "$(dirname "$folder")"
mv -T "$work" "$folder"
echo "$folder: $(cd "$folder" && echo ./*)"
