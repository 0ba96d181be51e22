#!/bin/sh
# Runs the built examples and compares what they say: check.sh FOLDER MODEL
# CHECK is put before each program (valgrind), EXPECTED is a PNG file that the drawing must be byte by byte equal to.
set -eu
folder=$1 model=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# expect WHAT TEXT: standard input is that text
expect() {
    got=$(cat)
    [ "$got" = "$2" ] || {
        echo "$1 said \"$got\" instead of \"$2\"" >&2
        exit 1
    }
}

# say COMMAND...: fails with the command, whose own output goes through a file
say() {
    # shellcheck disable=SC2086 # CHECK is a command with its options
    ${CHECK:-} "$@" >"$scratch/out"
}

prompt='a yellow star above a purple ring on a black background'
say "$folder/draw" "$model" "$prompt" "$scratch/a.png" 2
say "$folder/draw" "$model" "$prompt" "$scratch/b.png" 2
cmp "$scratch/a.png" "$scratch/b.png"
[ -z "${EXPECTED:-}" ] || cmp "$scratch/a.png" "$EXPECTED"

say "$folder/ask" "$model" 'What is 17 + 25?'
expect ask 42 <"$scratch/out"
say "$folder/ask" "$model" 'What color is the background?' "$scratch/a.png"
expect 'ask about a picture' black <"$scratch/out"

printf 'What is 17 + 25?\nWhat is 17 + 26?\n' | say "$folder/chat" "$model"
expect chat '42
43' <"$scratch/out"

say "$folder/embed" "$model"
expect embed 'cancelled
42' <"$scratch/out"

# what cannot be is said on stderr, with an exit status
if say "$folder/ask" "$scratch/a.png" 'What?' 2>"$scratch/err"; then
    echo 'ask took a picture for a model' >&2
    exit 1
fi
grep -q "a.png: " "$scratch/err"
echo "the examples of bindings/c said what they should"
