#!/usr/bin/env bash
# ONLY FOR TESTS: makes a certificate authority and one certificate per node for Ray's TLS, valid for 30 days.
# In production, use certificates from your own authority, and do not store its key on the cluster.
#
#   make-test-certificates.sh FOLDER NODE...     for example: make-test-certificates.sh certificates 10.0.0.1 10.0.0.2
#
# NODE is an IP address or a DNS name. Join several names of one node with commas: 10.0.0.1,head.example
# Ray's nodes are servers and clients, and connect by address to each other and to themselves. So each certificate is
# valid for both, and for localhost and 127.0.0.1. Set on each node, in the environment of `ray start` and the driver:
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
  echo "$folder exists; remove it, or name another folder" >&2
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

# The folder appears at the end in one step, so it is always complete. The authority's key is deleted with the other
# working files, so no more certificates can be made.
rm -f "$work/request" "$work/extensions" "$work/ca.srl" "$work/ca.key"
mkdir -p "$(dirname "$folder")"
mv -T "$work" "$folder"
echo "$folder: $(cd "$folder" && echo ./*)"
