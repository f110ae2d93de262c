#!/bin/sh
# Opens a page in the desktop's browser, and prints where it lies. Without a desktop it prints that alone.
# usage: scripts/open_page.sh PAGE.html
set -eu
page=$1
if [ "$(uname)" = Darwin ]; then
    opener=open
elif [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    opener=xdg-open
else
    opener=
fi
echo "Look at $page in a browser."
if [ -n "$opener" ] && command -v "$opener" >/dev/null; then
    # A browser may run on for hours, and is none of this script's.
    "$opener" "$page" >/dev/null 2>&1 &
fi
