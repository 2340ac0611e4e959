#!/bin/sh
# Make what compose.yaml hands in as secrets: the password of Redis, once, and an API key.
#
#   ./secrets.sh ORGANIZATION
#
# The key is shown here and stored nowhere; the file of keys holds its hash. Run it again for
# another key, and restart the API, which reads the file when it starts.
set -eu

export LC_ALL=C  # letters are those of ASCII

usage() {
    echo "usage: $0 ORGANIZATION, of 1 to 64 letters, digits, dots, underscores and hyphens" >&2
    exit 2
}

organization=${1:-}
case $organization in
    '' | *[!A-Za-z0-9._-]*) usage ;;
esac
[ ${#organization} -le 64 ] || usage

secret() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'
}

# The folder keeps other users of this machine out; the files are for the users in the containers.
mkdir -p "$(dirname "$0")/secrets"
cd "$(dirname "$0")/secrets"
chmod 700 .
if [ ! -e redis_password ]; then
    secret > redis_password
fi
key=sk-$(secret)
printf '%s:%s\n' "$organization" "$(printf %s "$key" | sha256sum | cut -d ' ' -f 1)" >> api_keys
chmod 444 redis_password
chmod 644 api_keys
echo "API key, shown only now: $key"
