#!/bin/sh
# Installs those of the named Debian packages that are missing. Their services are neither
# started nor enabled: what runs on this machine stays as it is.
set -eu

if ! command -v dpkg-query >/dev/null; then
    echo "This is not Debian. Make sure that you have what these packages bring: $*" >&2
    exit 0
fi

missing=
for package in "$@"; do
    case $(dpkg-query --show --showformat '${db:Status-Status} ' "$package" 2>/dev/null) in
        installed*) ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
        exec sudo -n sh "$0" "$@"
    fi
    echo "Debian packages are missing. Install them and try again:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "Installing Debian packages:$missing"

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d
made_policy=
made_clusters=

clean_up() {
    rm -f "$log"
    if [ "$made_policy" ]; then
        rm -f "$policy"
    fi
    rm -f "$clusters/whoami-router.conf"
    if [ "$made_clusters" ]; then
        rmdir "$clusters"
    fi
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# No service is started.
if [ ! -e "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# No PostgreSQL cluster is made: the tests have their own.
if [ ! -d "$clusters" ]; then
    mkdir -p "$clusters"
    made_clusters=yes
fi
echo "create_main_cluster = false" >"$clusters/whoami-router.conf"

export DEBIAN_FRONTEND=noninteractive
quietly() {
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "Failed: $*" >&2
        exit 1
    fi
}
quietly apt-get -q update
# shellcheck disable=SC2086  # a list of words
quietly apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $missing

# Nor are they started when the machine is next.
for package in $missing; do
    case $package in
        nginx | postgresql | redis-server | prometheus | mtail)
            systemctl --quiet disable "$package" 2>/dev/null || true
            ;;
    esac
done
