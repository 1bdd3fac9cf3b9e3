# Sourced by deploy/setup: what strata is built from, and how it gets here.
#
# Debian 13 and newer have an OpenSSL that ngtcp2's crypto library accepts. Debian 12 has not, so the static
# libraries of Debian 13 are unpacked into a private prefix (nothing of them enters the system) by apt itself,
# with a state directory of its own, from the archive the machine already uses, checked by its keyring.

apt_packages="build-essential clang clang-format ninja-build cmake pkg-config git ca-certificates
  libevent-dev protobuf-compiler protobuf-c-compiler libprotobuf-c-dev libsqlite3-dev libcmocka-dev
  libvulkan-dev libvulkan-volk-dev glslc spirv-tools mesa-vulkan-drivers vulkan-validationlayers
  libcyaml-dev libyaml-dev libjansson-dev libncurses-dev zlib1g-dev libzstd-dev
  libclang-rt-dev llvm valgrind gcovr iproute2 sqlite3 python3 python3-cryptography openssl bc"

say() { printf '%s\n' "setup: $*" >&2; }
die() { printf '%s\n' "setup: $*" >&2; exit 1; }

missing_packages() {
  local p
  for p in $apt_packages; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || printf '%s ' "$p"
  done
}

install_packages() {
  local miss
  command -v dpkg-query >/dev/null || die "this set-up knows Debian 12 and newer, whose packages deploy/deps.sh lists"
  miss=$(missing_packages)
  [ -z "$miss" ] && { say "system packages: all there"; return; }
  say "installing: $miss"
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $miss >/dev/null
}

# The address of the Debian archive this machine is set up with.
archive_uri() {
  {
    # A machine has only some of these files.
    sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null || true
    sed -n 's/^deb[[:space:]]\+\(\[[^]]*\][[:space:]]*\)\?\([^[:space:]]*\).*/\2/p' /etc/apt/sources.list \
      /etc/apt/sources.list.d/*.list 2>/dev/null || true
  } | grep -E '/debian/?$' | head -n 1
}

fetch_prefix() {
  local prefix=$1 work uri a="apt-get"
  uri=$(archive_uri)
  [ -n "$uri" ] || die "no Debian archive found in /etc/apt: cannot fetch OpenSSL >= 3.5"
  work=$(mktemp -d)
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs"
  cat >"$work/sources.list" <<LIST
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie-backports main
LIST
  local opt=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o Dir::State::status=/dev/null
    -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root)
  $a "${opt[@]}" update -qq || die "cannot read the package lists of Debian 13 at the configured archive"
  (cd "$work/debs" &&
    $a "${opt[@]}" download -qq libssl-dev/trixie &&
    $a "${opt[@]}" download -qq libngtcp2-dev/trixie-backports libngtcp2-crypto-ossl-dev/trixie-backports) ||
    die "cannot download OpenSSL and ngtcp2"
  rm -rf "$prefix.new" "$prefix"
  mkdir -p "$prefix.new"
  for d in "$work"/debs/*.deb; do dpkg -x "$d" "$prefix.new"; done
  mv "$prefix.new" "$prefix"
  rm -rf "$work"
  say "OpenSSL and ngtcp2 unpacked into $prefix"
}

# Prints nothing when the system's own packages serve; otherwise makes the prefix.
ensure_transport_libs() {
  local prefix=$1
  if [ -e "$prefix/usr/include/ngtcp2/ngtcp2_crypto_ossl.h" ]; then
    say "private prefix: there"
  elif [ -e /usr/include/ngtcp2/ngtcp2_crypto_ossl.h ] && pkg-config --atleast-version=3.5 libssl &&
    pkg-config --atleast-version=1.22 libngtcp2; then
    say "OpenSSL and ngtcp2: the system's own"
  else
    fetch_prefix "$prefix"
  fi
}
