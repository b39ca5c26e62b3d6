#!/bin/sh
# Installs the Slurm that the tests run a private cluster of: tests/install_packages.sh [--accounting] [--browser] [--shells] [--latex]
#
# Idempotent. On Debian, as root, the daemons are installed but none is started: the tests start their own, in a
# temporary folder. Anywhere else this says why the tests that need them will be skipped, and exits 0.
# --accounting also installs what sacct needs (slurmdbd and MariaDB), --browser the Chromium that opens reports,
# --shells zsh and fish, which complete commands, --latex what sets a paper's tables.
set -eu

commands="sbatch slurmctld slurmd munged"
packages="slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
for option in "$@"; do
    case "$option" in
        --accounting)
            commands="$commands sacct slurmdbd mariadbd"
            packages="$packages slurmdbd slurm-wlm-mysql-plugin mariadb-server"
            ;;
        --browser)
            commands="$commands chromium"
            packages="$packages chromium"
            ;;
        --shells)
            commands="$commands zsh fish"
            packages="$packages zsh fish"
            ;;
        --latex)
            commands="$commands pdflatex"
            packages="$packages texlive-latex-recommended"
            ;;
        *)
            echo "usage: $0 [--accounting] [--browser] [--shells] [--latex]" >&2
            exit 2
            ;;
    esac
done

# The daemons live in sbin, which an ordinary user's PATH leaves out.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

missing=""
for command in $commands; do
    command -v "$command" >/dev/null 2>&1 || missing="$missing $command"
done
[ -n "$missing" ] || exit 0

skip() {
    echo "Tests that need them will be skipped: missing$missing, and $1."
    exit 0
}
[ -f /etc/debian_version ] && command -v apt-get >/dev/null 2>&1 || skip "this is not a Debian-like system"
[ "$(id -u)" -eq 0 ] || skip "installing packages takes root (run: sudo $0 $*)"

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=""
tidy() {
    rm -f "$log"
    [ -z "$made_policy" ] || rm -f "$policy"
}
trap tidy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A policy-rc.d that exits 101 forbids packages to start services (the interface that invoke-rc.d documents).
# One that is already there is the owner's decision: it is neither replaced nor removed.
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# apt is silent unless it fails; then all that it said is shown.
quietly() {
    "$@" >"$log" 2>&1 || {
        status=$?
        cat "$log" >&2
        echo "$0: failed: $*" >&2
        exit "$status"
    }
}
export DEBIAN_FRONTEND=noninteractive
quietly apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
quietly apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 $packages
