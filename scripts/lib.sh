# shellcheck shell=bash
# The set-up that scripts/* share, from a fresh Debian to a built wheel and an ordinary user. Source
# this file. Everything that it makes is in $CACHE, keyed by its inputs:
#
#   venv-<hash of requirements/…>     the dependencies, including those of the tests
#   wheel-<hash of the sources>/      this project, built as any user would
#   stock-<hash of what is pinned>/   upstream's wireguard-go, unpatched: the tests' far end
#   short-<hash of our changes>/      our engine with short timers, for tests that outlast timers
#   unpacked-<hash of versions>/      programs that run from there, and are not installed

# shellcheck disable=SC2034 # the scripts that source this use USER_OF_TESTS
readonly USER_OF_TESTS=wg4netnsd-test
CACHE=/var/cache/wg4netnsd-test
((EUID == 0)) || CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/wg4netnsd # scripts/demo, run by an ordinary user
readonly CACHE
readonly PYTHON=/usr/bin/python3 # Debian's, to which systemd-python and python3-venv belong

# The packages that a wheel needs to build and to run …
readonly BUILD_PACKAGES=(ca-certificates gcc git libc6-dev libsystemd-dev pkg-config python3
    python3-dev python3-venv)
readonly RUN_PACKAGES=(dbus dbus-user-session iproute2 systemd util-linux)
# … the independent programs that the suite tests it with …
readonly TEST_PACKAGES=(bash-completion bind9-dnsutils bubblewrap busybox-static catatonit conmon crun
    curl fish gjs iperf3 iputils-ping jq keyutils libfaketime libglib2.0-bin musl-tools openssh-client podman
    python3-gi qemu-user rootlesskit rsync socat sshfs sudo tcpdump tmux traceroute uidmap wireguard-tools xauth zsh)
# … those among them that are not installed, as they would take over the machine's look-ups and bus, or
# let others log in …
readonly UNPACKED_PACKAGES=(dbus-broker libnss-mdns libnss-resolve nscd openssh-server systemd-resolved)
# … those that are too large for every run …
readonly LONG_PACKAGES=(chromium firefox-esr)
# … and the programs that benchmarks compare it with.
readonly BENCH_PACKAGES=(openssl passt slirp4netns)

say() { echo "${0##*/}: $*" >&2; }

become_root() { # COMMAND…: replaces this process, unless it runs as root already
    ((EUID != 0)) || return 0
    if [[ -n $(type -P sudo) ]]; then
        say "the stage needs root (namespaces, packages, an ordinary user); asking sudo"
        exec sudo -- "$@"
    fi
    say "the stage needs root, and this machine has no sudo. As root, run:"
    printf ' %q' "$@" >&2
    echo >&2
    exit 1
}

as_root() { if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi; } # COMMAND…

install_packages() { # PACKAGE…: lists those that are missing, then installs them
    local missing=() package
    for package; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null |
            grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)) && [[ -z $(type -P sudo) ]]; then
        say "packages are missing, and this machine has no sudo. As root, run:"
        echo "apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    say "installing distribution packages: ${missing[*]}"
    if ! as_root apt-get update -qq </dev/null ||
        ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
            --no-install-recommends "${missing[@]}" </dev/null >/dev/null; then
        say "the installation failed. As root, run:"
        echo "apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
}

make_user() { # NAME: an ordinary user, who owns $CACHE
    add_user "$1" 0
    mkdir -p "$CACHE"
    chown "$1:" "$CACHE"
}

# Make a user for each world, NAME-1 and so on. The kernel counts processes, descriptors in flight, pipes
# and inotify instances by uid, so worlds with the same user would use up each other's limits.
make_users() { # NAME COUNT
    local number
    for ((number = 1; number <= $2; number++)); do
        add_user "$1-$number" "$number"
        usermod --append --groups "$1" "$1-$number" # they share files: see share_go_caches
    done
}

add_user() { # NAME NUMBER: with subordinate ids of its own, for rootless containers
    local first=$((300000 + $2 * 65536))
    if ! id "$1" >/dev/null 2>&1; then
        say "adding the user $1, who runs suite and daemon"
        useradd --home-dir "$CACHE/home" --no-create-home --shell /bin/bash "$1"
    fi
    grep -q "^$1:" /etc/subuid || usermod --add-subuids "$first-$((first + 65535))" "$1"
    grep -q "^$1:" /etc/subgid || usermod --add-subgids "$first-$((first + 65535))" "$1"
}

# Replaces this process. Keeps its environment (proxies, certificates, mirrors), with another home.
become_user() { # COMMAND…
    exec setpriv --reuid "$USER_OF_TESTS" --regid "$USER_OF_TESTS" --init-groups \
        env --unset=XDG_RUNTIME_DIR --unset=XDG_CACHE_HOME --unset=XDG_CONFIG_HOME \
        HOME="$CACHE" USER="$USER_OF_TESTS" LOGNAME="$USER_OF_TESTS" "$@"
}

as_user() { (become_user "$@") </dev/null; } # COMMAND…

copy_checkout() { # FROM TO: the files that git tracks, or would track
    mkdir -p "$2"
    git -c safe.directory='*' -C "$1" ls-files -z --cached --others --exclude-standard |
        tar --create --directory="$1" --null --files-from=- --ignore-failed-read 2>/dev/null |
        tar --extract --directory="$2" --no-same-owner
}

hash_of() { # DIRECTORY PATH…: hashes names and contents
    (
        cd "$1" && shift
        find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -c-16
}

once() { # DIRECTORY COMMAND…: runs the command to make it, unless done already; removes old ones
    local directory=$1
    shift
    if [[ ! -e $directory/.done ]]; then
        rm -rf "$directory"
        "$@" "$directory"
        find "$CACHE" -mindepth 1 -maxdepth 1 -name "$(basename "${directory%-*}")-*" \
            -mmin +1440 -exec rm -rf {} +
    fi
    touch "$directory" "$directory/.done"
}

# pip installs only what requirements/ lists, with its hashes. It installs no build requirements of an
# sdist either, so setuptools has to be there before.
readonly INSTALL_LOCKED=(install --quiet --require-hashes --no-deps --use-pep517 --no-build-isolation)

make_tools() { # GROUP: build/GROUP, an environment with the packages of requirements/GROUP.txt
    local venv=build/$1 lock=requirements/$1.txt wanted
    wanted="$("$PYTHON" --version) $(sha256sum "$lock")"
    [[ $(cat "$venv/.made-for" 2>/dev/null) != "$wanted" ]] || return 0
    say "installing the packages of $lock from PyPI into $venv"
    rm -rf "$venv"
    "$PYTHON" -m venv "$venv"
    "$venv/bin/pip" "${INSTALL_LOCKED[@]}" --requirement "$lock"
    echo "$wanted" >"$venv/.made-for"
}

make_venv() { # SOURCE DIRECTORY
    local group
    as_user "$PYTHON" -m venv "$2"
    for group in build test; do
        say "installing the packages of requirements/$group.txt from PyPI"
        as_user "$2/bin/pip" "${INSTALL_LOCKED[@]}" --requirement "$1/requirements/$group.txt"
    done
}

make_wheel() { # SOURCE VENV DIRECTORY
    say "building the wheel"
    as_user "$2/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$3" "$1"
}

make_stock() { # SOURCE VENV DIRECTORY
    say "building upstream's wireguard-go, the far end"
    as_user mkdir "$3"
    (cd "$1" && as_user "$2/bin/python" build.py --stock --output "$3/wireguard-go")
    download_go_modules "$1" "$2"
}

make_short() { # SOURCE VENV DIRECTORY
    say "building the engine with short timers"
    as_user mkdir "$3"
    (cd "$1" && as_user "$2/bin/python" build.py --short-timers --output "$3/wireguard-go")
}

download_go_modules() { # SOURCE VENV: including those that only upstream's tests need
    local tree=$CACHE/go-modules
    rm -rf "$tree"
    (cd "$1" && as_user "$2/bin/python" build.py --stock --source "$tree")
    (cd "$tree" && as_user env PATH="$PATH:$CACHE/build/go/bin" go mod download)
    rm -rf "$tree"
}

unpacked() { # prints the directory of UNPACKED_PACKAGES, with what this machine lacks for them
    local fits
    fits=$(declare -f unpack && echo "${UNPACKED_PACKAGES[@]}" && dpkg-query --show)
    echo "$CACHE/unpacked-$(sha256sum <<<"$fits" | cut -c-16)"
}

unpack_packages() {
    local lock
    exec {lock}>"$CACHE/.lock"
    flock "$lock"
    once "$(unpacked)" unpack "${UNPACKED_PACKAGES[@]}"
    exec {lock}>&-
}

unpack() { # PACKAGE… DIRECTORY: and the packages that these need and the machine lacks
    local packages=("${@:1:$#-1}") directory=${*: -1} package
    say "unpacking distribution packages: ${packages[*]}"
    mkdir "$directory"
    apt-get update -qq </dev/null
    mapfile -t packages < <(
        printf '%s\n' "${packages[@]}"
        apt-get install --simulate --no-install-recommends "${packages[@]}" |
            sed -n 's/^Inst \([^ ]*\) .*/\1/p'
    )
    # As root, because apt-get's own user may not write there.
    (cd "$directory" && apt-get download -qq --option APT::Sandbox::User=root "${packages[@]}")
    for package in "$directory"/*.deb; do
        dpkg-deb --extract "$package" "$directory"
        rm "$package"
    done
    # The broker's absolute path is compiled into the launcher: replace it by a relative one of the
    # same length.
    local launcher=$directory/usr/bin/dbus-broker-launch
    sed --in-place 's,/usr/bin/dbus-broker\x00,usr/bin//dbus-broker\x00,' "$launcher"
    grep --quiet --text 'usr/bin//dbus-broker' "$launcher"
}

make_all() { # CHECKOUT: sets $venv, $wheel, $stock and $short
    local source=$CACHE/source directory
    umask 022 # an ordinary user reads what root makes here and on the stage
    exec {lock}>"$CACHE/.lock"
    flock "$lock"
    rm -rf "$source"
    copy_checkout "$1" "$source"
    ln -s "$CACHE/build" "$source/build" # where build.py keeps Go, if it has to download it
    mkdir -p "$CACHE/build"
    chown -R "$USER_OF_TESTS:" "$source" "$CACHE/build"

    venv=$CACHE/venv-$(hash_of "$source" requirements/{build,test}.txt)
    once "$venv" make_venv "$source"
    stock=$CACHE/stock-$(hash_of "$source" build.py wireguard-go/go{.mod,.sum,-bin.txt})
    once "$stock" make_stock "$source" "$venv"
    stock+=/wireguard-go
    short=$CACHE/short-$(hash_of "$source" build.py wireguard-go wireguard-go.patch)
    once "$short" make_short "$source" "$venv"
    short+=/wireguard-go
    rm -rf "$source"/{tests,scripts,.ci} "$source"/docs/performance* # these are not in a wheel
    directory=$CACHE/wheel-$(hash_of "$source" .)
    once "$directory" make_wheel "$source" "$venv"
    wheel=$(echo "$directory"/*.whl)
    share_go_caches
    exec {lock}>&-
}

share_go_caches() { # with the users of all worlds, who have a group in common
    local caches=("$CACHE"/{.cache/go-build,go/pkg/mod/cache})
    chgrp -R "$USER_OF_TESTS" "${caches[@]}" "$CACHE/go/pkg/mod"
    chmod -R o-w,g+rwX "${caches[@]}"
    chmod o-w,g+rwx "$CACHE/go/pkg/mod"
}

install_wheel() { # WHEEL VENV DIRECTORY: a fresh environment that also sees the venv's packages
    local site
    "$PYTHON" -m venv --without-pip "$3"
    site=$(echo "$2"/lib/python3*/site-packages)
    echo "$site" >"${site/"$2"/"$3"}/dependencies.pth"
    "$2/bin/python" -m pip --python "$3/bin/python" install --quiet --no-deps --no-index \
        --root-user-action=ignore "$1"
}
