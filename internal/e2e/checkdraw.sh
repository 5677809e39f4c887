#!/bin/sh
# checkdraw.sh BLOCK < what-nc-printed: draws again, from the seal and the lines that "draw" has shown, and wants what was told.
text=$(cat) how=
lines=$(echo "$text" | sed -n "/^block $1: ticket/,/^\$/p" | sed '1d; /^$/d')
hash() { sha256sum | tr -d ' -'; }
draw() { # hash, proposals: the ticket is 1 + hash mod all tickets
	total=$(echo "$2" | cut -d ' ' -f 2 | paste -s -d + - | bc)
	ticket=$(echo "m = $total; ibase = 16; 1 + $(echo "$1" | tr a-f A-F) % m" | bc)
	holder=$(echo "$2" | { while read -r address stake bpm && [ $((sum += stake)) -lt "$ticket" ]; do :; done; echo "$address $bpm"; })
	how="${how}ticket $ticket of $total"; }
draw "$(echo "$lines" | hash)" "$(echo "$lines" | sed 1d)"
case $holder in *slashed) how="$how was slashed, again: "; draw "$(echo "$lines" | hash | hash)" "$(echo "$lines" | sed '1d; / slashed$/d')" ;; esac
won=$(printf 'winning validator: %s\nblock %s, BPM %s: %s, secret %s' "${holder% *}" "$1" "${holder#* }" "$how" "$(echo "$lines" | head -n 1)")
case $text in *"draw $1 seal: $(echo "$lines" | head -n 1 | hash)"*"$won"*) echo "ok: $won" ;; *) echo "this was not told: $won"; exit 1 ;; esac
