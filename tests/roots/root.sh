# What run and make share: `. root.sh SUITE`. Sets suite, roots, root, checkout, here and the paths inside the root.
# ROOTS is where the roots are kept, by default build/roots of the checkout.

: "${PACKAGES:?this is run by 'make test-root SUITE=...'}"
suite=$1
case $suite in
  trixie | sid) ;;
  *)
    echo "SUITE=$suite: expected trixie or sid" >&2
    exit 2
    ;;
esac
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
checkout=$(realpath "$here/../..")
roots=$(realpath --canonicalize-missing "${ROOTS:-$checkout/build/roots}")
root=$roots/$suite

# The same for every checkout, so that one root serves many of them.
checkout_inside=/checkout
venv_inside=/opt/venv
path_inside=$venv_inside/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Each stamp says what was made. It is written last, so what was interrupted has none and is made again.
made_stamp=$root/.made
installed_stamp=$root/.installed

made_of() {
  cat "$here/make" <(echo "$PACKAGES") | sha256sum
}

installed_of() {
  sha256sum <"$checkout/pyproject.toml"
}

is_made() {
  [ "$(cat "$made_stamp" 2>/dev/null)" = "$(made_of)" ]
}

is_installed() {
  [ "$(cat "$installed_stamp" 2>/dev/null)" = "$(installed_of)" ]
}

bind_kernel_and_checkout() {
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount --bind "$checkout" "$root$checkout_inside"
  mount -o remount,bind,ro "$root$checkout_inside"
}
